"""Tokenizers in GGUF files: a text has the tokens of the folder, and a tokenizer unknown to llama.cpp is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from seft.checkpoint.export import export
from seft.checkpoint.formats import verify_format
from seft.checkpoint.verify import check
from seft.config import OutputFormat
from seft.errors import ConfigError, VerifyError
from seft.models.load import load_tokenizer
from seft.models.source import find
from tests.seft.checkpoint.test_export import FACTS
from tests.seft.checkpoint.test_gguf import sparse
from tests.tiny import beginning_tokenizer, tiny_texts, tiny_tokenizer

TEXTS = (
    "a  1 b",
    "x = 10\n    20 y",
    " lead",
    "Cafe\u0301",
    "1234567",
    "\u0662\u0663 \u0939\u093f \u4f60\u597d",
    "I'LL don't",
)


def keys(tokenizer: PreTrainedTokenizerFast, folder: Path) -> dict[str, Any]:
    """Export a model with this tokenizer and return the keys of its GGUF file."""
    export(sparse("llama with tied embeddings", tokenizer), folder, FACTS, [OutputFormat.GGUF_BF16])
    reader = GGUFReader(folder / "model-BF16.gguf")
    return {name: field.contents() for name, field in reader.fields.items()}


def test_a_byte_level_tokenizer_has_its_split_merges_and_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    found = keys(tokenizer, tmp_path / "model")
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert found["tokenizer.ggml.tokens"][:2] == ["<pad>", "<eos>"]
    assert found["tokenizer.ggml.token_type"][:3] == [3, 3, 1]
    assert found["tokenizer.ggml.eos_token_id"] == 1
    assert found["tokenizer.ggml.add_bos_token"] is found["tokenizer.ggml.add_eos_token"] is False
    assert found["tokenizer.chat_template"] == tokenizer.chat_template
    check(tmp_path / "model")


def test_tokens_that_the_tokenizer_adds_are_in_the_file(tmp_path: Path) -> None:
    found = keys(beginning_tokenizer(), tmp_path / "model")
    assert found["tokenizer.ggml.add_bos_token"] is found["tokenizer.ggml.add_eos_token"] is True
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (0, 1)


def test_the_padding_of_a_training_is_not_in_the_file(tmp_path: Path) -> None:
    padded = beginning_tokenizer()
    padded.backend_tokenizer.enable_padding(length=8, pad_id=0, pad_token="<pad>")
    assert keys(padded, tmp_path / "padded") == keys(beginning_tokenizer(), tmp_path / "plain")


def sentencepiece() -> PreTrainedTokenizerFast:
    """A tokenizer like the one of Llama 2: BPE on characters, with tokens for bytes and a space before a text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<pad>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=390, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(tiny_texts()[:20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def test_a_tokenizer_of_sentencepiece_has_scores_in_the_order_of_its_merges(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    found = keys(tokenizer, tmp_path / "model")
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.add_space_prefix"]) == ("llama", True)
    scores = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.scores"], strict=True))
    merged = ["".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    assert [scores[text] for text in dict.fromkeys(merged)] == sorted({scores[text] for text in merged}, reverse=True)
    assert found["tokenizer.ggml.token_type"][0] == 2
    assert found["tokenizer.ggml.tokens"][-1] == f"[PAD{len(scores) - 1}]", "the embedding has more rows"
    check(tmp_path / "model")
    loaded = load_tokenizer(find(str(tmp_path / "model" / "model-BF16.gguf")))
    text = tiny_texts()[30][:400]
    assert loaded(text, add_special_tokens=False).input_ids == tokenizer(text).input_ids


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with tokens for spaces, numbers and accents, so that every rule to split text matters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for text in TEXTS for _ in range(9)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def byte_level(*steps: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerFast:
    tokenizer = spaced_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps])
    return tokenizer


def isolated(regex: str) -> list[pre_tokenizers.PreTokenizer]:
    split = pre_tokenizers.Split(Regex(regex), behavior="isolated")
    return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


DIGITS, WORDS = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
LLAMA3 = isolated(PRETOKENIZE_REGEX.replace(r"\p{N}|", r"\p{N}{1,3}|"))
BYTE_LEVEL: dict[str, tuple[list[pre_tokenizers.PreTokenizer], bool, bool]] = {
    "gpt-2": ([WORDS], False, False),
    "olmo": ([WORDS], True, False),
    "smollm": ([DIGITS, WORDS], False, False),
    "command-r": ([DIGITS, WORDS], True, False),
    "deepseek-r1-qwen": (isolated(PRETOKENIZE_REGEX), False, False),
    "qwen2": (isolated(PRETOKENIZE_REGEX), True, False),
    "dbrx": (LLAMA3, False, False),
    "llama-bpe": (LLAMA3, False, True),
}
"""Name of a rule to split text -> its steps, whether characters are composed, and whether words that are tokens are."""


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_a_byte_level_tokenizer_gives_the_tokens_of_the_folder(name: str, tmp_path: Path) -> None:
    steps, composes, whole = BYTE_LEVEL[name]
    tokenizer = byte_level(*steps)
    if composes:
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.backend_tokenizer.model.ignore_merges = whole
    assert keys(tokenizer, tmp_path / "model")["tokenizer.ggml.pre"] == name
    check(tmp_path / "model")
    loaded = load_tokenizer(find(str(tmp_path / "model" / "model-BF16.gguf")))
    assert loaded.backend_tokenizer.model.ignore_merges is whole
    for text in TEXTS:
        tokens = loaded(text).input_ids
        assert tokens == tokenizer(text).input_ids, text
        assert loaded.decode(tokens) == (normalize("NFC", text) if composes else text)


@pytest.mark.parametrize("prefix", [True, False])
def test_a_tokenizer_of_sentencepiece_gives_the_tokens_of_the_folder(prefix: bool, tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    if not prefix:
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    found = keys(tokenizer, tmp_path / "model")
    assert found["tokenizer.ggml.add_space_prefix"] is prefix
    check(tmp_path / "model")
    loaded = load_tokenizer(find(str(tmp_path / "model" / "model-BF16.gguf")))
    texts = [*TEXTS, "Hello<pad>Hello", "<pad> a"]
    assert loaded(texts).input_ids == tokenizer(texts).input_ids
    assert [loaded.decode(loaded(text).input_ids) for text in TEXTS] == [*TEXTS]


def metaspace(*, split: bool) -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece()
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=split)
    return tokenizer


def test_the_space_before_a_text_that_has_one_is_the_only_difference_of_metaspace(tmp_path: Path) -> None:
    tokenizer = metaspace(split=False)
    assert keys(tokenizer, tmp_path / "model")["tokenizer.ggml.add_space_prefix"] is True
    check(tmp_path / "model")
    loaded = load_tokenizer(find(str(tmp_path / "model" / "model-BF16.gguf")))
    for text in TEXTS:
        assert loaded(text.lstrip()).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize("step", [WORDS, pre_tokenizers.Sequence(LLAMA3)])
def test_a_file_that_splits_text_otherwise_than_the_folder_is_detected(
    step: pre_tokenizers.PreTokenizer, tmp_path: Path
) -> None:
    keys(byte_level(DIGITS, WORDS), tmp_path / "model")
    byte_level(step).save_pretrained(tmp_path / "model")
    with pytest.raises(VerifyError, match="must split a text into the tokens of the tokenizer; 'a  1"):
        verify_format(tmp_path / "model", tmp_path / "model" / "model-BF16.gguf", OutputFormat.GGUF_BF16)


def without_letters() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"<pad>": 0}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "found"),
    [
        (lambda: byte_level(pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)), r"Whitespace \+ bytes"),
        (lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)), "ByteLevel"),
        (
            lambda: PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, "<pad>"))),
            "WordLevel",
        ),
        (lambda: PreTrainedTokenizerFast(tokenizer_object=without_letters()), r"\[\]"),
        (lambda: metaspace(split=True), "Metaspace with split"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(
    tokenizer: Callable[[], PreTrainedTokenizerFast], found: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"may contain GGUF only for a tokenizer .* this one has '{found}"):
        keys(tokenizer(), tmp_path / "model")


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(384)])
    with pytest.raises(ConfigError, match="only if every token has one of the 400 rows"):
        keys(tokenizer, tmp_path / "model")
