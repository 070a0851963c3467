"""Gives a tokenizer from a GGUF file the steps that the file means. Needs no torch.

The loader of transformers ignores most names of rules to split text, and whether SentencePiece puts a space before a
text. It adds no begin-of-text token if the file of a Llama 3 does not say whether to add one. Without these steps, a
text would have other tokens than in the model's folder and in llama.cpp.
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from seft.models.gguf_tokenizer import SPACE, steps_by_name

_ADDS_BOS = "tokenizer.ggml.add_bos_token"
"""Key of a GGUF file: whether a text begins with the begin-of-text token. The files of 2024 often have no such key."""


def set_steps(tokenizer: Any, header: Mapping[str, Any]) -> None:
    """Let a tokenizer that transformers loaded read text as the keys of its file mean.

    Raises ValueError if no loader has the rule that the file names.
    """
    match header.get("tokenizer.ggml.model"):
        case "gpt2":
            steps, whole_words_first = steps_by_name(header)
            _set_split(tokenizer.backend_tokenizer, steps, whole_words_first)
            if whole_words_first and _ADDS_BOS not in header:  # llama.cpp assumes both for the same rules
                tokenizer.add_bos_token = True
        case "llama":
            gemma = str(header.get("general.architecture")).startswith("gemma")  # its oldest files have no such key
            adds_space = bool(header.get("tokenizer.ggml.add_space_prefix", not gemma))
            _set_space(tokenizer.backend_tokenizer, adds_space=adds_space)


def _set_split(tokenizer: Tokenizer, steps: tuple[str, ...], whole_words_first: bool) -> None:
    tokenizer.model.ignore_merges = whole_words_first
    if "NFC" in steps:
        tokenizer.normalizer = normalizers.NFC()
    if splits := [_split(step) for step in steps if step != "NFC"]:
        tokenizer.pre_tokenizer = splits[0] if len(splits) == 1 else pre_tokenizers.Sequence(splits)


def _split(step: str) -> pre_tokenizers.PreTokenizer:
    match step:
        case "bytes" | "bytes with words":
            return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step == "bytes with words")
        case "digits":
            return pre_tokenizers.Digits(individual_digits=True)
        case regex:
            return pre_tokenizers.Split(Regex(regex), behavior="isolated")


def _set_space(tokenizer: Tokenizer, *, adds_space: bool) -> None:
    """Let a SentencePiece tokenizer put a space before every text, also if it begins with a space, or before none."""
    normalizer: normalizers.Normalizer = normalizers.Replace(" ", SPACE)
    restored: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if adds_space:
        normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizer])
        restored.append(decoders.Strip(" ", left=1))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, None
    tokenizer.decoder = decoders.Sequence(restored)
