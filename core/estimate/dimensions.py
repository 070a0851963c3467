"""The dimensions of a model that determine memory and time. They are read from its config and its tensors' shapes.

The values of the weights are not read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from seft.errors import SourceError
from seft.models.shapes import Shapes
from seft.models.source import REFUSED, Kind, ModelSource

BLOCK_TENSOR = re.compile(r"(?P<list>.*?)\.?(?P<number>\d+)\.(?P<rest>.+)")
HEAD = "lm_head.weight"
ROUTERS = ("gate.weight", "router.weight", "gate_inp.weight", "gate_inp_shexp.weight")
"""Endings of the names of tensors that route tokens to experts. These tensors are not pruned."""
STORED_TRANSPOSED = frozenset({"gpt2"})
"""Model types that store the weight matrix of a linear layer in the shape (inputs, outputs), not (outputs, inputs)."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """The weight matrix of a linear layer that is pruned. It has `rows` outputs and `cols` inputs."""

    rows: int
    cols: int
    use: float = 1.0
    """Fraction of all tokens that pass through the layer. It is less than 1 for an expert."""

    @property
    def weights(self) -> int:
        """Number of weights in the matrix."""
        return self.rows * self.cols


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The dimensions of a decoder model, as numbers of weights, tokens or vector entries. None of them is in bytes."""

    architecture: str
    context: int | None
    """Maximum number of tokens in a sequence. None if the config does not say it."""
    parameters: int
    largest: int
    """Number of weights in the largest tensor."""
    hidden: int
    vocabulary: int
    attention: int
    """Number of query values per token, over all heads of an attention layer."""
    blocks: tuple[tuple[Matrix, ...], ...]
    """The weight matrices that are pruned, per decoder block."""
    vectors: int = 0
    """Number of values in norm layers and biases."""

    @property
    def targets(self) -> int:
        """Number of weights in all linear layers that are pruned."""
        return sum(matrix.weights for block in self.blocks for matrix in block)

    @property
    def active_targets(self) -> float:
        """Average number of weights, among those that are pruned, that a token passes through."""
        return sum(matrix.use * matrix.weights for block in self.blocks for matrix in block)


def read_dimensions(source: ModelSource, shapes: Shapes) -> Dimensions:
    """Compute the dimensions of a model from its config and the shapes of its tensors.

    Raises SourceError if these are not the tensors of a decoder model.
    """
    config = _Config(source)
    sizes = {name: _product(shape) for name, shape in shapes.items()}
    if config.tied:
        sizes.pop(HEAD, None)
    blocks, block_names = _blocks(shapes, config)
    embeddings = [shapes[name] for name in sizes if name not in block_names and len(shapes[name]) == 2]
    if not blocks or not embeddings:
        message = f"a model must have an embedding and blocks with linear layers; {source.reference!r} has not."
        raise SourceError(REFUSED, f"{message} Give a decoder-only language model.")
    vocabulary, hidden = max(embeddings, key=_product)
    return Dimensions(
        architecture=config.architecture,
        context=config.number("max_position_embeddings", "n_positions", "context_length"),
        parameters=sum(sizes.values()),
        largest=max(sizes.values()),
        hidden=hidden,
        vocabulary=vocabulary,
        attention=config.attention or hidden,
        blocks=blocks,
        vectors=sum(size for name, size in sizes.items() if len(shapes[name]) == 1 or name.endswith("bias")),
    )


class _Config:
    """Values of a model's config. Different architectures store them under different names.

    In a GGUF file, the keys start with the name of the architecture. That prefix is removed.
    """

    def __init__(self, source: ModelSource) -> None:
        config = source.config
        if source.kind is Kind.GGUF:
            self.architecture = str(config["general.architecture"])
            self._values: Mapping[str, Any] = {
                key.removeprefix(f"{self.architecture}."): value for key, value in config.items()
            }
        else:
            self.architecture = str(config["architectures"][0])
            inner = config.get("text_config")
            self._values = {**config, **inner} if isinstance(inner, dict) else config
        self.tied = self._values.get("tie_word_embeddings") is True
        self.transposed = self._values.get("model_type") in STORED_TRANSPOSED
        self.experts = self.number("num_experts", "num_local_experts", "n_routed_experts", "expert_count") or 0
        active = self.number("num_experts_per_tok", "num_experts_per_token", "expert_used_count") or 1
        self.use = min(1.0, active / self.experts) if self.experts else 1.0
        heads = self.number("num_attention_heads", "n_head", "attention.head_count")
        width = self.number("head_dim", "attention.key_length")
        self.attention = heads * width if heads and width else None

    def number(self, *names: str) -> int | None:
        """Return the first value under one of these names that is a positive integer. Returns None if there is none."""
        values = (self._values.get(name) for name in names)
        return next((value for value in values if type(value) is int and value > 0), None)


def _blocks(shapes: Shapes, config: _Config) -> tuple[tuple[tuple[Matrix, ...], ...], set[str]]:
    """Return the weight matrices that are pruned, per decoder block, and the names of all tensors of these blocks.

    The decoder blocks are the largest numbered list of modules in the model.
    """
    lists: dict[str, dict[int, list[Matrix]]] = {}
    names: dict[str, set[str]] = {}
    for name, shape in shapes.items():
        if match := BLOCK_TENSOR.fullmatch(name):
            names.setdefault(match["list"], set()).add(name)
            block = lists.setdefault(match["list"], {}).setdefault(int(match["number"]), [])
            block += _matrices(match["rest"], shape, config)
    blocks = {key: tuple(tuple(numbered[number]) for number in sorted(numbered)) for key, numbered in lists.items()}
    if not blocks:
        return (), set()
    largest = max(blocks, key=lambda key: sum(each.weights for block in blocks[key] for each in block))
    return (blocks[largest] if any(blocks[largest]) else ()), names[largest]


def _matrices(name: str, shape: tuple[int, ...], config: _Config) -> Iterator[Matrix]:
    """Yield the weight matrices that are pruned in one tensor of a block.

    A tensor has none, one, or, if it contains several experts, several of them.
    """
    expert = "expert" in name or "_exps." in name
    use = config.use if expert and "shared" not in name else 1.0
    if name.endswith("bias") or len(shape) not in {2, 3} or min(shape) < 1:
        return
    if len(shape) == 3:
        if min(shape) > 1:
            yield from (Matrix(shape[1], shape[2], use) for _ in range(shape[0]))
    elif not (config.experts and shape[0] in {1, config.experts} and name.endswith(ROUTERS)):
        rows, cols = reversed(shape) if config.transposed else shape
        yield Matrix(rows, cols, use)


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
