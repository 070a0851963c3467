"""Llamas of usual sizes: their dimensions without any weight, and models with random weights.

Benchmarks of speed and memory take `--model random:7B` in place of a real model and its text. A random model is created
on its device, in its data type. So a model never passes through the memory of the host, even if it is as large as the
device's memory. `tiny` is for tests and for machines without a card.
"""

from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from seft.data.records import read
from seft.data.text import tokenize
from seft.models.dimensions import Dimensions, read_dimensions
from seft.models.load import load
from seft.models.source import Kind, ModelSource, find

SHAPES = {
    "tiny": (128, 352, 4, 4, 2, 1024),
    "135M": (576, 1536, 30, 9, 3, 49152),
    "1.1B": (2048, 5632, 22, 32, 4, 32000),
    "7B": (4096, 11008, 32, 32, 32, 32000),
    "13B": (5120, 13824, 40, 40, 40, 32000),
    "70B": (8192, 28672, 80, 64, 8, 32000),
}
"""Hidden size, inner size of the MLP, blocks, heads, heads of keys and values, and vocabulary.

135M has the sizes of SmolLM2-135M, and 1.1B has those of TinyLlama. The other shapes have the sizes of Llama 2.
"""
RANDOM = "random:"
"""Beginning of the name of a model with random weights. The name of its shape follows."""
RANDOM_TOKENS = 1 << 18
TIED = {"135M"}
"""Shapes whose head shares the weights of the embedding."""


def config_of(shape: str, blocks: int | None = None) -> LlamaConfig:
    """Return the config of a shape, with all of its blocks or only the first ones."""
    hidden, inner, all_blocks, heads, groups, vocabulary = SHAPES[shape]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=all_blocks if blocks is None else blocks,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=4096,
        tie_word_embeddings=shape in TIED,
    )


def dimensions_of(config: LlamaConfig) -> Dimensions:
    """Return the dimensions of a model with this config, as the service reads them from the files of a model."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    source = ModelSource("random", Kind.FOLDER, None, None, config.to_dict(), None)
    return read_dimensions(source, {name: tuple(weight.shape) for name, weight in model.named_parameters()})


def random_model(config: LlamaConfig, device: str, dtype: torch.dtype) -> Any:
    """Return a model with random weights. It is the same on every call with the same device and dtype."""
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.config.use_cache = False
    return model.eval()


def model_name(text: str) -> str:
    """Return the argument `--model`. Raises ArgumentTypeError if no known shape follows `random:`."""
    shape = text.removeprefix(RANDOM)
    if text.startswith(RANDOM) and shape not in SHAPES:
        raise ArgumentTypeError(f"{text!r} names no shape; the shapes are {', '.join(SHAPES)}. Example: {RANDOM}7B")
    return text


def model_and_text(
    name: str, text: Path | None, device: str, dtype: torch.dtype, blocks: int | None = None
) -> tuple[Any, Int[Tensor, "tokens"]]:
    """Return a model on a device with all or only its first blocks, and the tokens of a text, on the CPU.

    A random model gets random tokens, so that `text` is not read. Raises ValueError if `text` is missing for any other
    model.
    """
    if name.startswith(RANDOM):
        config = config_of(name.removeprefix(RANDOM), blocks)
        tokens = torch.randint(config.vocab_size, (RANDOM_TOKENS,), generator=torch.Generator().manual_seed(0))
        return random_model(config, device, dtype), tokens
    if text is None:
        raise ValueError(f"A text must be given for the model {name}. Only {RANDOM}SHAPE needs none.")
    loaded = load(find(name), dtype=dtype)
    model: Any = loaded.model
    decoder = model.get_decoder()
    decoder.layers = decoder.layers[:blocks]
    return model.to(device), tokenize(read(text), loaded.tokenizer)
