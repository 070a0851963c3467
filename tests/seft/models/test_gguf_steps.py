"""The tokenizer of a GGUF file splits text by the rule that the file names. A file with an unknown rule is refused."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from local.demo import gguf_path
from seft.data.tokens import bos_tokens
from seft.errors import SourceError
from seft.models.gguf_tokenizer import steps_by_name
from seft.models.load import load_tokenizer
from seft.models.source import find
from tests.seft.gguf_files import write_gguf
from tests.tiny import tiny_texts, untrained_tiny

WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = [pre_tokenizers.Digits(individual_digits=True), WORDS]


@pytest.fixture(scope="module")
def smollm() -> Any:
    """The tokenizer of SmolLM2, whose rule transformers does not know."""
    return load_tokenizer(find(str(gguf_path())))


def test_digits_do_not_end_the_spaces_before_them(smollm: Any) -> None:
    assert smollm.tokenize("a  1") == ["a", "ĠĠ", "1"]
    assert smollm.tokenize("x = 10\n    20") == ["x", "Ġ=", "Ġ", "1", "0", "ĊĠĠĠĠ", "2", "0"]


def test_the_tokens_of_a_smollm_are_those_of_its_definition(smollm: Any) -> None:
    found = [smollm(text).input_ids for text in tiny_texts()]
    defined = load_tokenizer(find(str(gguf_path())))
    defined.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(DIGITS)
    assert found == [defined(text).input_ids for text in tiny_texts()]
    defined.backend_tokenizer.pre_tokenizer = WORDS
    assert found != [defined(text).input_ids for text in tiny_texts()]


def test_a_tokenizer_that_is_saved_keeps_its_rule(smollm: Any, tmp_path: Path) -> None:
    untrained_tiny().save_pretrained(tmp_path)
    smollm.save_pretrained(tmp_path)
    saved = load_tokenizer(find(str(tmp_path)))
    assert saved(tiny_texts()[:9]).input_ids == smollm(tiny_texts()[:9]).input_ids


@pytest.mark.parametrize("name", GGUF_PRE_TOKENIZER_SPLITS)
def test_every_rule_that_transformers_knows_stays(name: str) -> None:
    steps, _ = steps_by_name({"tokenizer.ggml.pre": name})
    assert not set(steps) - {"NFC", "bytes", GGUF_PRE_TOKENIZER_SPLITS[name]}


@pytest.mark.parametrize("name", [None, "default", "phi-2", "starcoder", "stablelm2", "tekken"])
def test_a_file_is_read_if_its_rule_is_known_or_not_named(name: str | None, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", untrained_tiny(), name)
    backend = load_tokenizer(find(str(tmp_path / "tiny.gguf"))).backend_tokenizer
    assert backend.model.ignore_merges is (name == "tekken")
    splits = {"starcoder": pre_tokenizers.Sequence(DIGITS)}
    if name not in {"stablelm2", "tekken"}:
        text = "Don't  5 or\n    12"
        assert backend.pre_tokenizer.pre_tokenize_str(text) == splits.get(name or "", WORDS).pre_tokenize_str(text)


@pytest.mark.parametrize("name", ["llama-bpe", "llama3", "tekken", "smollm", "gpt-2"])
@pytest.mark.parametrize("key", [None, True, False])
def test_a_text_begins_as_the_key_says_or_as_llama_cpp_assumes_for_the_rule(
    name: str, key: bool | None, tmp_path: Path
) -> None:
    keys: dict[str, int] = {"tokenizer.ggml.bos_token_id": 0}
    if key is not None:
        keys["tokenizer.ggml.add_bos_token"] = key
    tokenizer = load_tokenizer(find(str(write_gguf(tmp_path / "tiny.gguf", untrained_tiny(), name, keys))))
    begins = name in {"llama-bpe", "llama3", "tekken"} if key is None else key
    assert bos_tokens(tokenizer) == [0] * begins
    tokenizer.save_pretrained(tmp_path)
    assert bos_tokens(AutoTokenizer.from_pretrained(tmp_path)) == [0] * begins


@pytest.mark.parametrize("name", ["falcon", "deepseek-llm", "of-tomorrow"])
def test_a_rule_that_no_loader_knows_is_refused_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", untrained_tiny(), name)
    with pytest.raises(SourceError, match=rf"tokenizer\.ggml\.pre is {name}. Give the model's folder") as caught:
        find(str(tmp_path / "tiny.gguf"))
    assert caught.value.code == "model_refused"
