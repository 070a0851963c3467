"""The dimensions of a model that determine memory and time. They are read from its config and its tensors' shapes.

The values of the weights are not read.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from seft.errors import SourceError
from seft.models.hub_files import REFUSED
from seft.models.limits import values
from seft.models.model_files import BLOCK_COUNTS, VOCABULARY_SIZE, require_counts
from seft.models.shapes import Shapes
from seft.models.source import Kind, ModelSource
from seft.models.tensors import EXPERT_COUNTS, HEAD, TIED, is_pruned, place_in_blocks

MAX_NUMBER = 1 << 31
"""Largest number of a config that is used. No model has a larger one."""
MAX_SHAPES = 5_000
"""Largest number of different weight matrices in all blocks. Equal matrices of a block count once."""
STORED_TRANSPOSED = frozenset({"gpt2"})
"""Model types that store the weight matrix of a linear layer in the shape (inputs, outputs), not (outputs, inputs)."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Equal weight matrices of linear layers that are pruned. Each has `rows` outputs and `cols` inputs."""

    rows: int
    cols: int
    use: float = 1.0
    """Fraction of all tokens that pass through the layer. It is less than 1 for an expert."""
    count: int = 1
    """Number of these matrices in the block, such as one per expert."""

    @property
    def weights(self) -> int:
        """Number of weights in one matrix."""
        return self.rows * self.cols

    @property
    def total(self) -> int:
        """Number of weights in all these matrices."""
        return self.count * self.weights


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
    keys: int
    """Number of key values per token, over all heads of an attention layer."""
    blocks: tuple[tuple[Matrix, ...], ...]
    """The weight matrices that are pruned, per decoder block."""
    vectors: int = 0
    """Number of values in norm layers and biases."""

    @property
    def targets(self) -> int:
        """Number of weights in all linear layers that are pruned."""
        return sum(matrix.total for block in self.blocks for matrix in block)

    @property
    def active_targets(self) -> float:
        """Average number of weights, among those that are pruned, that a token passes through."""
        return sum(matrix.use * matrix.total for block in self.blocks for matrix in block)


def read_dimensions(source: ModelSource, shapes: Shapes) -> Dimensions:
    """Compute the dimensions of a model from its config and the shapes of its tensors.

    Raises SourceError if these are not the tensors of a decoder model.
    """
    config = _Config(source)
    sizes = {name: values(shape) for name, shape in shapes.items()}
    if config.tied:
        sizes.pop(HEAD, None)
    blocks, block_names, numbered = _blocks(shapes, config)
    outside = [shapes[name] for name in sizes if name not in block_names]
    embeddings = [shape for shape in outside if len(shape) == 2 and min(shape) > 0]
    if not blocks or not embeddings:
        message = f"a model must have an embedding and blocks with linear layers; {source.reference!r} has not."
        raise SourceError(REFUSED, f"{message} Give a decoder-only language model.")
    config.require_at_most(numbered, *BLOCK_COUNTS)
    config.require_at_most(max(rows for rows, _ in embeddings), VOCABULARY_SIZE)
    vocabulary, hidden = max(embeddings, key=values)
    return Dimensions(
        architecture=config.architecture,
        context=config.number("max_position_embeddings", "n_positions", "context_length"),
        parameters=sum(sizes.values()),
        largest=max(sizes.values()),
        hidden=hidden,
        vocabulary=vocabulary,
        attention=config.attention or hidden,
        keys=round((config.attention or hidden) * config.grouped),
        blocks=blocks,
        vectors=sum(size for name, size in sizes.items() if len(shapes[name]) == 1 or name.endswith("bias")),
    )


class _Config:
    """Values of a model's config. Different architectures store them under different names.

    In a GGUF file, the keys start with the name of the architecture. That prefix is removed.
    """

    def __init__(self, source: ModelSource) -> None:
        config, self._reference = source.config, source.reference
        if source.kind is Kind.GGUF:
            self.architecture = str(config["general.architecture"])
            self._values: Mapping[str, Any] = {
                key.removeprefix(f"{self.architecture}."): value for key, value in config.items()
            }
        else:
            self.architecture = str(config["architectures"][0])
            inner = config.get("text_config")
            self._values = {**config, **inner} if isinstance(inner, dict) else config
        self.tied = self._values.get(TIED) is True
        self.transposed = str(self._values.get("model_type")) in STORED_TRANSPOSED
        self.experts = self.number(*EXPERT_COUNTS) or 0
        active = self.number("num_experts_per_tok", "num_experts_per_token", "expert_used_count") or 1
        self.use = min(1.0, active / self.experts) if self.experts else 1.0
        heads = self.number("num_attention_heads", "n_head", "attention.head_count")
        width = self.number("head_dim", "attention.key_length")
        self.attention = heads * width if heads and width else None
        grouped = self.number("num_key_value_heads", "attention.head_count_kv")
        self.grouped = min(1.0, grouped / heads) if grouped and heads else 1.0

    def number(self, *names: str) -> int | None:
        """Return the first value under one of these names that is a positive integer. Returns None if there is none.

        Raises SourceError if it is larger than `MAX_NUMBER`.
        """
        for name in names:
            value = self._values.get(name)
            if type(value) is int and value > 0:
                if value > MAX_NUMBER:
                    message = f"`{name}` of a model must be at most {MAX_NUMBER}; it has {len(str(value))} digits."
                    raise SourceError(REFUSED, f"{message} Choose a different model.")
                return value
        return None

    def require_at_most(self, most: int, *names: str) -> None:
        """Raise SourceError if a value under one of these names is not an integer from 1 to `most`.

        Without this check, a config can claim billions of layers, and a loader creates them before it reads weights.
        """
        require_counts(self._reference, self._values, dict.fromkeys(names, most))


def _blocks(shapes: Shapes, config: _Config) -> tuple[tuple[tuple[Matrix, ...], ...], set[str], int]:
    """Return the weight matrices that are pruned, per decoder block, and the names of all tensors of these blocks.

    The decoder blocks are the largest numbered list of modules in the model. The third value is the number of modules
    in the longest list.
    """
    lists: dict[str, dict[int, Counter[Matrix]]] = {}
    names: dict[str, set[str]] = {}
    different = 0
    for name, shape in shapes.items():
        if place := place_in_blocks(name):
            key, number, rest = place
            names.setdefault(key, set()).add(name)
            block = lists.setdefault(key, {}).setdefault(number, Counter())
            before = len(block)
            block.update(_matrices(rest, shape, config))
            different += len(block) - before
            if different > MAX_SHAPES:
                message = f"the blocks of a model may have at most {MAX_SHAPES} weight matrices of different shapes."
                raise SourceError(REFUSED, f"{message} Choose a different model.")
    blocks = {key: tuple(_counted(numbered[number]) for number in sorted(numbered)) for key, numbered in lists.items()}
    if not blocks:
        return (), set(), 0
    largest = max(blocks, key=lambda key: sum(each.total for block in blocks[key] for each in block))
    longest = max(map(len, blocks.values()))
    return (blocks[largest] if any(blocks[largest]) else ()), names[largest], longest


def _counted(block: Counter[Matrix]) -> tuple[Matrix, ...]:
    return tuple(replace(matrix, count=count) for matrix, count in block.items())


def _matrices(name: str, shape: tuple[int, ...], config: _Config) -> dict[Matrix, int]:
    """Return the weight matrices that are pruned in one tensor of a block, with their number.

    A tensor has none, one, or, if it contains several experts, several of them.
    """
    if not is_pruned(name, shape, config.experts):
        return {}
    expert = "expert" in name or "_exps." in name
    use = config.use if expert and "shared" not in name else 1.0
    if len(shape) == 3:
        return {Matrix(shape[1], shape[2], use): shape[0]}
    rows, cols = reversed(shape) if config.transposed else shape
    return {Matrix(rows, cols, use): 1}
