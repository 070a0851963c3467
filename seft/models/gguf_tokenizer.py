"""Which tokenizers llama.cpp has, by the description in `tokenizer.json`. Needs no torch.

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
    ("digits", "bytes with words"): "smollm",
    (_CONTRACTIONS + _WORDS + r"|\p{N}" + _OTHERS, "bytes"): "qwen2",
    (_CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _OTHERS, "bytes"): "dbrx",
}
"""Steps that split text -> their name in llama.cpp (`llama_vocab::impl::load`)."""
_WHOLE_WORDS_FIRST = {"dbrx": "llama-bpe"}
"""Name of steps -> their name in llama.cpp if a word that is a token is not split. Other steps are then refused."""
_SPACE = "\u2581"
"""Character that stands for a space in SentencePiece."""


@dataclass(frozen=True, slots=True)
class TokenizerRules:
    """The names that llama.cpp has for a tokenizer, and whether it puts a space before a text."""

    model: str
    split: str
    adds_space: bool = False

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
        return TokenizerRules("llama", "default", _adds_space(description))
    return TokenizerRules("gpt2", _split_name(description))


def unknown_tokenizer(rule: str, value: str) -> ConfigError:
    """Return the error for a tokenizer that llama.cpp does not have."""
    return ConfigError(
        FORMATS, f"may contain GGUF only for {rule}", value, "Use the format dense.", lead="this one has"
    )


def _adds_space(description: Mapping[str, Any]) -> bool:
    """Return whether a SentencePiece tokenizer puts a space before a text. Raises ConfigError for other tokenizers."""
    adds = replaces = False
    for step in [*_steps(description, "normalizer"), *_steps(description, "pre_tokenizer")]:
        match step:
            case {"type": "Prepend", "prepend": prepend} if prepend == _SPACE:
                adds = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": content} if content == _SPACE:
                replaces = True
            case {"type": "Metaspace", "replacement": replacement} if replacement == _SPACE:
                replaces, adds = True, step.get("prepend_scheme", "always") != "never"
            case _:
                raise unknown_tokenizer("a tokenizer of SentencePiece without further steps", str(step.get("type")))
    if not replaces:
        raise unknown_tokenizer("a tokenizer that writes spaces like SentencePiece or bytes like GPT-2", "neither")
    return adds


def _split_name(description: Mapping[str, Any]) -> str:
    """Return the name that llama.cpp has for the way in which a byte-level tokenizer splits text."""
    further = [str(step.get("type")) for step in _steps(description, "normalizer") if step.get("type") != "NFC"]
    steps = tuple(map(_step_name, _steps(description, "pre_tokenizer")))
    name = None if further else _SPLITS.get(steps)
    if name is not None and description["model"].get("ignore_merges"):
        name = _WHOLE_WORDS_FIRST.get(name)
    if name is None:
        known = ", ".join([*_SPLITS.values(), *_WHOLE_WORDS_FIRST.values()])
        found = " + ".join([*further, *steps]) or "no rule"
        raise unknown_tokenizer(f"a tokenizer that splits text like one of {known}", found)
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
