"""The bytes that llama.cpp reads per token do not include an embedding that is not the head."""

from pathlib import Path

import pytest
from gguf import GGUFReader
from transformers import LlamaConfig

from benchmarks.llama import write_gguf


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["BF16", "Q8_0"])
def test_an_embedding_that_is_not_the_head_is_not_read(tmp_path: Path, kind: str, *, tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    size = write_gguf(config, path := tmp_path / "model.gguf", kind)
    sizes = {tensor.name: tensor.n_bytes for tensor in GGUFReader(path).tensors}
    assert size == path.stat().st_size - (0 if tied else sizes["token_embd.weight"])
