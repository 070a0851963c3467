"""The dimensions of a model, read from its config and the shapes of its tensors. No value of a weight is read.

They determine memory and time, and which settings fit the model (`seft.fit`).
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from seft.errors import SourceError
from seft.models.hub_files import REFUSED
from seft.models.model_files import BLOCK_COUNTS, VOCABULARY_SIZE, require_counts
from seft.models.shapes import Shapes
from seft.models.source import Kind, ModelSource
from seft.models.tensors import EXPERT_COUNTS, HEAD, TIED, is_pruned, place_in_blocks, text_config

HEAD_BIASES = frozenset({"lm_head.bias", "embed_out.bias", "output.bias"})
CONTEXTS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "model_max_length",
    "max_sequence_length",
    "context_length",
    "n_ctx",
)
"""Names of the context length in a configuration. The first one that a configuration has is used."""
EXTENDED_BY_FACTOR = frozenset({"linear", "dynamic", "yarn"})
"""Types of scaled position embeddings that extend the stated context length by a factor. For other types, the stated
length already includes the scaling."""
ALREADY_EXTENDED = frozenset({"gemma3", "gemma3_text"})
"""Model types whose stated context length already includes the scaling, although they have such a factor."""
MAX_NUMBER = 1 << 31
"""Largest number of a config that is used. No model has a larger one."""
MAX_SHAPES = 5_000
"""Largest number of different weight matrices in all blocks. Equal matrices of a block count once."""
STORED_TRANSPOSED = frozenset({"gpt2", "openai-gpt"})
"""Model types that store the weight matrix of a linear layer in the shape (inputs, outputs), not (outputs, inputs)."""
STACKS_TRANSPOSED = frozenset({"gpt_oss"})
"""Model types that store the matrices of experts in the shape (experts, inputs, outputs)."""
GATES = ((".gate_proj.", ".up_proj."), (".w1.", ".w3."), (".ffn_gate_exps.", ".ffn_up_exps."))
"""Parts of the names of two tensors of experts. A loaded model joins the two to one linear layer with the outputs of
both."""
SAME_INPUTS = {
    ".k_proj.": ".q_proj.",
    ".v_proj.": ".q_proj.",
    ".up_proj.": ".gate_proj.",
    ".w3.": ".w1.",
    ".attn_k.": ".attn_q.",
    ".attn_v.": ".attn_q.",
    ".ffn_up.": ".ffn_gate.",
}
"""Part of the name of a linear layer -> this part for another layer with the same inputs. Both share one Hessian."""
CHANGED_LOGITS = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
)
"""Names of a cap or factor of the logits in a configuration. If it has none, or only the factor 1, the logits are the
outputs of the head."""
ACTIVE_EXPERTS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "expert_used_count",
    "moe_topk",
    "moe_k",
    "top_k_experts",
)
"""Names of the number of experts that a token uses in a block. The first one that a configuration has is used."""
HIDDEN_SIZES = ("hidden_size", "n_embd", "d_model", "embedding_length")
"""Names of the width of the hidden state in a configuration. If it has none, this is the width of the largest
embedding. That may be a different width: Gemma 3n has a wider embedding, with values for each block."""
EXTRA_BLOCKS = ("num_nextn_predict_layers", "num_mtp_layers")
"""Names of the number of blocks for multi-token prediction in a configuration. A file has them after the decoder
blocks."""
EXTRA_PARTS = re.compile(r"(^|\.)mtp[._]")
"""Part of the names of other tensors for multi-token prediction."""
BUFFERS = (".masked_bias", ".inv_freq", "rope_freqs.weight")
"""Endings of the names of tensors in older files that are not parameters."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Equal weight matrices of linear layers that are pruned. Each has `rows` outputs and `cols` inputs."""

    rows: int
    cols: int
    use: float = 1.0
    """Fraction of all tokens that pass through the layer. It is less than 1 for an expert."""
    shares_inputs: bool = False
    """Whether another matrix of the block has the same inputs, so that this one needs no Hessian of its own."""
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
    """The dimensions of a decoder model. They count weights, tokens or vector entries, not bytes."""

    architecture: str
    """Type of the model, such as `llama`: `model_type` of a config, or `general.architecture` of a GGUF file."""
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
    """Number of values in norm layers and biases, without the bias of the head."""
    stacked: bool = False
    """Whether a loaded model has the matrices of several experts in one parameter."""
    shares_keys: bool = False
    """Whether some blocks use the keys and values of other blocks."""
    changes_logits: bool = False
    """Whether the model caps or scales its logits, so that it computes those of all tokens at once."""

    @property
    def targets(self) -> int:
        """Number of weights in all linear layers that are pruned."""
        return sum(matrix.total for block in self.blocks for matrix in block)

    @property
    def sizes(self) -> dict[str, int | None]:
        """Sizes that a pruned model has in common with the dense model, by their names in a config of transformers."""
        return {"vocab_size": self.vocabulary, "hidden_size": self.hidden, "num_hidden_layers": len(self.blocks)}

    @property
    def active_targets(self) -> float:
        """Average number of weights, among those that are pruned, that a token passes through."""
        return sum(matrix.use * matrix.total for block in self.blocks for matrix in block)


def read_dimensions(source: ModelSource, shapes: Shapes) -> Dimensions:
    """Compute the dimensions of a model from its config and the shapes of its tensors.

    Raises SourceError if these are not the tensors of a decoder model.
    """
    config = _Config(source)
    shapes = _loaded(shapes, config)
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if _is_parameter(name, shape)}
    if config.tied:
        sizes.pop(HEAD, None)
    blocks, block_names, numbered = _blocks(shapes, config)
    outside = [shapes[name] for name in sizes if name not in block_names]
    embeddings = [shape for shape in outside if len(shape) == 2 and min(shape) > 0]
    if not blocks or not embeddings:
        message = f"a model must have an embedding and blocks with linear layers; {source.reference!r} has not."
        raise SourceError(REFUSED, f"{message} Give a decoder-only language model.")
    most = dict.fromkeys(BLOCK_COUNTS, numbered) | {VOCABULARY_SIZE: max(rows for rows, _ in embeddings)}
    require_counts(source.reference, config.values, most)
    vocabulary, width = max(embeddings, key=math.prod)
    hidden = config.hidden or width
    return Dimensions(
        architecture=config.architecture,
        context=config.context,
        parameters=sum(sizes.values()),
        largest=max(sizes.values()),
        hidden=hidden,
        vocabulary=vocabulary,
        attention=config.attention or hidden,
        keys=round((config.attention or hidden) * config.grouped),
        blocks=blocks,
        vectors=sum(size for name, size in sizes.items() if _is_vector(name, shapes[name])),
        stacked=any(_is_stacked(name, shapes[name]) for name in block_names),
        shares_keys=config.number("num_kv_shared_layers", "attention.shared_kv_layers") is not None,
        changes_logits=config.changes_logits,
    )


def context_length(source: ModelSource) -> int | None:
    """Return the maximum number of tokens in a sequence, or None if the config does not say it.

    Raises SourceError if it is larger than `MAX_NUMBER`.
    """
    return _Config(source).context


class _Config:
    """Values of a model's config. Different architectures store them under different names.

    In a GGUF file, the keys start with the name of the architecture. That prefix is removed.
    """

    def __init__(self, source: ModelSource) -> None:
        config = source.config
        if source.kind is Kind.GGUF:
            self.architecture = str(config["general.architecture"])
            self.values: Mapping[str, Any] = {
                key.removeprefix(f"{self.architecture}."): value for key, value in config.items()
            }
        else:
            # GGUF files use this name too. Few of them name the class, such as LlamaForCausalLM.
            self.architecture = str(config.get("model_type") or config["architectures"][0])
            self.values = text_config(config)
        self.tied = self.values.get(TIED) is True
        self._type = str(self.values.get("model_type"))
        self.transposed, self.stacks_transposed = (
            self._type in types for types in (STORED_TRANSPOSED, STACKS_TRANSPOSED)
        )
        self.hidden = self.number(*HIDDEN_SIZES)
        self.experts = self.number(*EXPERT_COUNTS) or 0
        active = self.number(*ACTIVE_EXPERTS) or 1
        self.use = min(1.0, active / self.experts) if self.experts else 1.0
        heads = self.number("num_attention_heads", "n_head", "attention.head_count")
        width = self.number("head_dim", "attention.key_length")
        self.attention = heads * width if heads and width else None
        grouped = self.number("num_key_value_heads", "attention.head_count_kv")
        self.grouped = min(1.0, grouped / heads) if grouped and heads else 1.0

    @property
    def context(self) -> int | None:
        """Maximum number of tokens in a sequence, including the extension by scaled position embeddings.

        None if the config does not say it.
        """
        stated = self.number(*CONTEXTS)
        scaling = self.values.get("rope_parameters") or self.values.get("rope_scaling")
        if stated is None or not isinstance(scaling, dict) or self._type in ALREADY_EXTENDED:
            return stated
        kind, factor = str(scaling.get("rope_type", scaling.get("type"))), scaling.get("factor")
        if kind not in EXTENDED_BY_FACTOR or not isinstance(factor, int | float):
            return stated
        before = scaling.get("original_max_position_embeddings")
        before = min(before, MAX_NUMBER) if type(before) is int else stated
        return max(stated, min(int(before * min(max(1, factor), MAX_NUMBER)), MAX_NUMBER))

    @property
    def changes_logits(self) -> bool:
        """Whether the model caps or scales its logits."""
        base = self.number("dim_model_base")  # MiniCPM3 scales by the ratio of the width to this number.
        if base is not None and base != self.hidden:
            return True
        values = (self.values.get(name) for name in CHANGED_LOGITS)
        return any(isinstance(value, int | float) and value not in {0, 1} for value in values)

    def number(self, *names: str) -> int | None:
        """Return the first value under one of these names that is a positive integer. Returns None if there is none.

        Raises SourceError if it is larger than `MAX_NUMBER`.
        """
        for name in names:
            value = self.values.get(name)
            if type(value) is int and value > 0:
                if value > MAX_NUMBER:
                    message = f"`{name}` of a model must be at most {MAX_NUMBER}; it has {len(str(value))} digits."
                    raise SourceError(REFUSED, f"{message} Choose a different model.")
                return value
        return None


def _loaded(shapes: Shapes, config: _Config) -> Shapes:
    """Return the tensors that transformers loads: those that are not for multi-token prediction."""
    blocks = config.number(*BLOCK_COUNTS) if config.number(*EXTRA_BLOCKS) else None

    def extra(name: str) -> bool:
        place = place_in_blocks(name)
        after = blocks is not None and place is not None and place[0].endswith("layers") and place[1] >= blocks
        return after or EXTRA_PARTS.search(name) is not None

    return {name: shape for name, shape in shapes.items() if not extra(name)}


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
            matrices = _matrices(rest, shape, config, _gate_of(name, shapes))
            block.update({replace(each, shares_inputs=_shares(name, shapes)): n for each, n in matrices.items()})
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


def _matrices(name: str, shape: tuple[int, ...], config: _Config, gate: bool | None) -> dict[Matrix, int]:
    """Return the weight matrices that are pruned in one tensor of a block, with their number.

    A tensor has no such matrix, or one, or one per expert that it contains. `gate` is the result of `_gate_of`.
    """
    if gate is False or not is_pruned(name, shape, config.experts):
        return {}
    *stack, rows, cols = shape
    use = config.use if stack or _is_expert(name) else 1.0
    if config.stacks_transposed if stack else config.transposed:
        rows, cols = cols, rows
    return {Matrix(2 * rows if gate else rows, cols, use): stack[0] if stack else 1}


def _gate_of(name: str, shapes: Shapes) -> bool | None:
    """Return True for the gate and False for the second of two expert tensors that a loaded model joins (`GATES`).

    Returns None for every other tensor.
    """
    if _is_expert(name):
        for gate, up in GATES:
            if gate in name and name.replace(gate, up) in shapes:
                return True
            if up in name and name.replace(up, gate) in shapes:
                return False
    return None


def _shares(name: str, shapes: Shapes) -> bool:
    """Return whether the model has the other linear layer that has the same inputs (`SAME_INPUTS`)."""
    return any(part in name and name.replace(part, other) in shapes for part, other in SAME_INPUTS.items())


def _is_expert(name: str) -> bool:
    """Return whether a tensor of this name contains weights of experts, of which a token uses only some."""
    return ("expert" in name or "_exps." in name) and "shared" not in name


def _is_stacked(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a loaded model has this tensor of a block in a parameter with the matrices of several experts.

    A file may contain these matrices one by one. If it contains a stack, the name may not say that it is of experts.
    """
    return (len(shape) > 1 and _is_expert(name)) or (len(shape) == 3 and is_pruned(name, shape, 0))


def _is_parameter(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is a parameter. Older files have buffers too, such as masks with four dimensions."""
    return len(shape) < 4 and not name.endswith(BUFFERS)


def _is_vector(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor contains weights of norm layers, or biases except the bias of the head."""
    return (len(shape) == 1 or name.endswith("bias")) and name not in HEAD_BIASES
