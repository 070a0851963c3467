"""Which tokenizers llama.cpp has, by `tokenizer.json` and by the keys of a GGUF file. Needs no torch.

llama.cpp has its own tokenizers. It knows two kinds: byte-level BPE, whose rule to split text has a name, and
SentencePiece BPE. All other tokenizers, and all other rules, are refused: llama.cpp would split a text into tokens on
which the model was not trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seft.config import FORMATS
from seft.errors import ConfigError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    ("bytes with words",): "gpt-2",
    ("NFC", "bytes with words"): "olmo",
    ("digits", "bytes with words"): "smollm",
    ("NFC", "digits", "bytes with words"): "command-r",
    (_CONTRACTIONS + _WORDS + r"|\p{N}" + _OTHERS, "bytes"): "deepseek-r1-qwen",
    ("NFC", _CONTRACTIONS + _WORDS + r"|\p{N}" + _OTHERS, "bytes"): "qwen2",
    (_CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _OTHERS, "bytes"): "dbrx",
}
"""Steps that split text -> their name in llama.cpp (`llama_vocab::impl::load`).

llama.cpp itself never composes characters (NFC). A name with NFC is the one of a tokenizer that does.
"""
_WHOLE_WORDS_FIRST = {"dbrx": "llama-bpe"}
"""Name of steps -> their name in llama.cpp if a word that is a token is not split. Other steps are then refused."""
_OTHER_NAMES = {
    "gpt-2": "a.x-4.0 exaone4 gigachat granite-docling jais jina-de jina-es jina-v1-en jina-v2-code jina-v2-de"
    " jina-v2-es mellum modern-bert phi-2 roberta-bpe trillion",
    "olmo": "mpt",
    "smollm": "codeshell exaone mellum2 minerva-7b refact starcoder",
    "deepseek-r1-qwen": "f2llmv2 grok-2 hunyuan kormo megrez solar-open stablelm2",
    "dbrx": "chatglm-bpe glm4 smaug-bpe",
    "llama-bpe": "falcon-h1 falcon3 jina-v5-nano lfm2 llama-v3 llama3 midm-2.0 pixtral",
}
"""Name -> further names of the same steps in llama.cpp. No file is written with them."""
_SET_BY_TRANSFORMERS: dict[str, tuple[tuple[str, ...], bool]] = {
    **dict.fromkeys(("", "default", "gpt-4o", "kanana2", "llama4", "minimax-m2", "talkie"), ((), False)),
    "qwen35": (("NFC",), False),
    "tekken": ((), True),
}
"""Further names, for which the loader of transformers sets the split -> what it does not set, see `steps_by_name`.

A file with the first or second name, or without a name, does not say how it splits text. It is read like GPT-2.
"""
SPACE = "\u2581"
"""Character that stands for a space in SentencePiece."""
_SPLIT = "tokenizer.ggml.pre"
"""Key of a GGUF file: the name of the rule to split text."""


@dataclass(frozen=True, slots=True)
class TokenizerRules:
    """The names that llama.cpp has for a tokenizer, and whether it puts a space before a text."""

    model: str
    split: str
    adds_space: bool = False
    keeps_space: bool = False
    """Whether it puts no second space before a text that begins with one. llama.cpp always puts it there."""

    @property
    def is_sentencepiece(self) -> bool:
        """Whether the tokenizer merges by scores of tokens, and not by a list of merges."""
        return self.model == "llama"


def tokenizer_rules(description: Mapping[str, Any]) -> TokenizerRules:
    """Return the rules of a tokenizer from the content of its `tokenizer.json`.

    Raises ConfigError if llama.cpp has no such tokenizer.
    """
    model = description["model"]
    if model.get("type") != "BPE":
        raise unknown_tokenizer("a tokenizer of the type BPE", str(model.get("type")))
    if model.get("byte_fallback"):
        return TokenizerRules("llama", "default", *_spaces(description))
    return TokenizerRules("gpt2", _split_name(description))


def unknown_tokenizer(rule: str, value: str) -> ConfigError:
    """Return the error for a tokenizer that llama.cpp does not have."""
    return ConfigError(
        FORMATS, f"may contain GGUF only for {rule}", value, "Use the format dense.", lead="this one has"
    )


def _spaces(description: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return `adds_space` and `keeps_space` of a SentencePiece tokenizer. Raises ConfigError for other tokenizers."""
    adds = keeps = replaces = False
    for step in [*_steps(description, "normalizer"), *_steps(description, "pre_tokenizer")]:
        match step:
            case {"type": "Prepend", "prepend": prepend} if prepend == SPACE:
                adds = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": content} if content == SPACE:
                replaces = True
            case {"type": "Metaspace", "replacement": replacement, "split": False} if replacement == SPACE:
                replaces, adds = True, step.get("prepend_scheme", "always") != "never"
                keeps = adds
            case {"type": "Metaspace", "replacement": replacement} if replacement == SPACE:
                raise unknown_tokenizer("a tokenizer of SentencePiece that does not split text", "Metaspace with split")
            case _:
                raise unknown_tokenizer("a tokenizer of SentencePiece without further steps", str(step.get("type")))
    if not replaces:
        raise unknown_tokenizer("a tokenizer that writes spaces like SentencePiece or bytes like GPT-2", "neither")
    return adds, keeps


def _split_name(description: Mapping[str, Any]) -> str:
    """Return the name that llama.cpp has for the way in which a byte-level tokenizer splits text."""
    steps = tuple(_step_name(step) for part in ("normalizer", "pre_tokenizer") for step in _steps(description, part))
    name = _SPLITS.get(steps)
    if name is not None and description["model"].get("ignore_merges"):
        name = _WHOLE_WORDS_FIRST.get(name)
    if name is None:
        known = ", ".join([*_SPLITS.values(), *_WHOLE_WORDS_FIRST.values()])
        raise unknown_tokenizer(f"a tokenizer that splits text like one of {known}", " + ".join(steps) or "no rule")
    return name


def _step_name(step: Mapping[str, Any]) -> str:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "bytes with words" if step.get("use_regex", True) else "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            return str(regex)
        case _:
            return str(step.get("type"))


def _steps(description: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    """Return the steps of the part `normalizer` or `pre_tokenizer` of a tokenizer."""
    step = description.get(part)
    if step is None:
        return []
    return (
        list(step["normalizers" if part == "normalizer" else "pretokenizers"]) if step["type"] == "Sequence" else [step]
    )


def steps_by_name(header: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Return the steps with which a byte-level tokenizer splits text, and whether a word that is a token is not split.

    `header` has the keys of a GGUF file. If the steps have no split, it is the one that the loader of transformers
    sets. Raises ValueError if no loader has the rule that the file names.
    """
    name = header.get(_SPLIT, "")
    if name not in _STEPS:
        raise ValueError(f"{_SPLIT} is {name}")
    return _STEPS[name]


def _all_steps() -> dict[str, tuple[tuple[str, ...], bool]]:
    found = {name: (steps, False) for steps, name in _SPLITS.items()}
    found |= {whole: (found[name][0], True) for name, whole in _WHOLE_WORDS_FIRST.items()}
    found |= {other: found[name] for name, others in _OTHER_NAMES.items() for other in others.split()}
    return found | _SET_BY_TRANSFORMERS


_STEPS = _all_steps()
