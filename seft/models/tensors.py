"""Finds the tensors of a model file that are pruned, by their names and shapes. Reads no weights and needs no torch.

`seft.models.targets` finds the same weights, but needs the model itself.
"""

from collections.abc import Mapping
from typing import Any

HEAD = "lm_head.weight"
TIED = "tie_word_embeddings"
"""Key of a config. If it is true, the head has the weights of the embedding, and a file may contain them twice."""
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "expert_count", "moe_num_experts")
"""Keys of a config. The first one that a config has gives the number of experts in a block."""
ROUTERS = (
    "gate.weight",
    "gate.wg.weight",
    "router.weight",
    "router.layer.weight",
    "router.proj.weight",
    "gate_inp.weight",
    "gate_inp_shexp.weight",
)
"""Endings of the names of tensors that route tokens to experts. These tensors are not pruned."""


def expert_count(config: Mapping[str, Any]) -> int:
    """Return the number of experts in a block, from the content of config.json, or 0."""
    values = text_config(config)
    return next((values[key] for key in EXPERT_COUNTS if isinstance(values.get(key), int)), 0)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the content of config.json with the values of its text model, if the model has several parts."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def place_in_blocks(name: str) -> tuple[str, int, str] | None:
    """Split a tensor's name into the list of modules, the number in it and the rest. Returns None without a number."""
    parts = name.split(".")
    for at, part in enumerate(parts[:-1]):
        if part.isascii() and part.isdigit():
            return ".".join(parts[:at]), int(part), ".".join(parts[at + 1 :])
    return None


def is_pruned(name: str, shape: tuple[int, ...], experts: int) -> bool:
    """Return whether a tensor of a block is a weight matrix that is pruned, or a stack of such matrices.

    `experts` is the number of experts in a block, or 0.
    """
    if name.endswith("bias") or len(shape) not in {2, 3} or min(shape) < 1:
        return False
    if len(shape) == 3:
        return min(shape) > 1
    return not (experts and shape[0] in {1, experts} and name.endswith(ROUTERS))
