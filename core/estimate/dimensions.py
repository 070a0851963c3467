"""A model's sizes, as far as they decide about memory and time: from its config and the shapes of its tensors."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from seft.errors import SourceError
from seft.models.shapes import Shapes
from seft.models.source import REFUSED, Kind, ModelSource

IN_BLOCK = re.compile(r"(?P<list>.*?)\.?(?P<number>\d+)\.(?P<rest>.+)")
HEAD = "lm_head.weight"
ROUTERS = ("gate.weight", "router.weight", "gate_inp.weight", "gate_inp_shexp.weight")
"""What chooses experts, and is left whole."""
STORED_TRANSPOSED = frozenset({"gpt2"})
"""Architectures whose linears are stored (inputs, outputs)."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A target linear; `use` is the share of tokens that come to it, less than 1 for an expert."""

    rows: int
    cols: int
    use: float = 1.0

    @property
    def weights(self) -> int:
        """How many."""
        return self.rows * self.cols


@dataclass(frozen=True, slots=True)
class Dimensions:
    """A decoder. Sizes are counts of weights, tokens or entries of a vector, never bytes."""

    architecture: str
    context: int | None
    parameters: int
    largest: int
    """Weights of the largest tensor."""
    hidden: int
    vocabulary: int
    attention: int
    """Entries of all heads' queries for a token."""
    blocks: tuple[tuple[Matrix, ...], ...]
    """The target linears of each decoder block."""

    @property
    def targets(self) -> int:
        """Weights of all target linears, which are what is made sparse."""
        return sum(matrix.weights for block in self.blocks for matrix in block)

    @property
    def used(self) -> float:
        """Target weights that a token meets."""
        return sum(matrix.use * matrix.weights for block in self.blocks for matrix in block)


def read_dimensions(source: ModelSource, shapes: Shapes) -> Dimensions:
    """The anatomy of a model whose files hold tensors of these shapes; SourceError where they make no decoder."""
    said = _Config(source)
    sizes = {name: _product(shape) for name, shape in shapes.items()}
    if said.tied:
        sizes.pop(HEAD, None)
    blocks, inner = _blocks(shapes, said)
    tables = [shapes[name] for name in sizes if name not in inner and len(shapes[name]) == 2]
    if not blocks or not tables:
        told = f"a decoder has blocks with linears, and an embedding; the files of {source.reference!r} hold none."
        raise SourceError(REFUSED, f"{told} Give a decoder-only language model.")
    vocabulary, hidden = max(tables, key=_product)
    return Dimensions(
        architecture=said.architecture,
        context=said.number("max_position_embeddings", "n_positions", "context_length"),
        parameters=sum(sizes.values()),
        largest=max(sizes.values()),
        hidden=hidden,
        vocabulary=vocabulary,
        attention=said.attention or hidden,
        blocks=blocks,
    )


class _Config:
    """What a config says, under whichever name; a GGUF file's keys begin with its architecture."""

    def __init__(self, source: ModelSource) -> None:
        said = source.config
        if source.kind is Kind.GGUF:
            self.architecture = str(said["general.architecture"])
            self._values: Mapping[str, Any] = {
                key.removeprefix(f"{self.architecture}."): value for key, value in said.items()
            }
        else:
            self.architecture = str(said["architectures"][0])
            inner = said.get("text_config")
            self._values = {**said, **inner} if isinstance(inner, dict) else said
        self.tied = self._values.get("tie_word_embeddings") is True
        self.transposed = self._values.get("model_type") in STORED_TRANSPOSED
        self.experts = self.number("num_experts", "num_local_experts", "n_routed_experts", "expert_count") or 0
        active = self.number("num_experts_per_tok", "num_experts_per_token", "expert_used_count") or 1
        self.use = min(1.0, active / self.experts) if self.experts else 1.0
        heads = self.number("num_attention_heads", "n_head", "attention.head_count")
        width = self.number("head_dim", "attention.key_length")
        self.attention = heads * width if heads and width else None

    def number(self, *names: str) -> int | None:
        """The first of these that is a positive whole number."""
        found = (self._values.get(name) for name in names)
        return next((value for value in found if type(value) is int and value > 0), None)


def _blocks(shapes: Shapes, said: _Config) -> tuple[tuple[tuple[Matrix, ...], ...], set[str]]:
    """The target linears of the largest numbered list of the model, and the names of all that lies in it."""
    lists: dict[str, dict[int, list[Matrix]]] = {}
    names: dict[str, set[str]] = {}
    for name, shape in shapes.items():
        if place := IN_BLOCK.fullmatch(name):
            names.setdefault(place["list"], set()).add(name)
            block = lists.setdefault(place["list"], {}).setdefault(int(place["number"]), [])
            block += _matrices(place["rest"], shape, said)
    blocks = {key: tuple(tuple(found[number]) for number in sorted(found)) for key, found in lists.items()}
    if not blocks:
        return (), set()
    largest = max(blocks, key=lambda key: sum(each.weights for block in blocks[key] for each in block))
    return (blocks[largest] if any(blocks[largest]) else ()), names[largest]


def _matrices(name: str, shape: tuple[int, ...], said: _Config) -> Iterator[Matrix]:
    """The linears that a tensor of a block holds: one, as many as it stacks, or none."""
    expert = "expert" in name or "_exps." in name
    use = said.use if expert and "shared" not in name else 1.0
    if name.endswith("bias") or len(shape) not in {2, 3} or min(shape) < 1:
        return
    if len(shape) == 3:
        if min(shape) > 1:
            yield from (Matrix(shape[1], shape[2], use) for _ in range(shape[0]))
    elif not (said.experts and shape[0] in {1, said.experts} and name.endswith(ROUTERS)):
        rows, cols = reversed(shape) if said.transposed else shape
        yield Matrix(rows, cols, use)


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
