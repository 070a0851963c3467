"""Counts the zeros of a model: per target (a linear layer that is pruned), over all targets, and over the model.

The published count comes from the written files, which are read tensor by tensor. Nothing is estimated.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from seft.checkpoint.counts import Count, Sparsity
from seft.errors import VerifyError
from seft.models.targets import count_nonzeros, target_linears

Layout = dict[str, list[str]]
"""Names of the targets that each tensor contains: one target, or one per slice of the tensor."""


def of_folder(folder: Path) -> Sparsity:
    """Return the counts of weights and zeros of a Hugging Face folder.

    The safetensors files are read with one tensor in memory at a time. The targets follow from config.json. Raises
    VerifyError if the files lack the weights of a target.
    """
    model = skeleton(folder)
    layout = _layout_on_disk(model)
    tied, targets = _tied(model), target_linears(model)
    layers, total = dict.fromkeys(targets, Count(0, 0)), Count(0, 0)
    for name, tensor in _tensors(folder):
        if name in tied:
            continue
        total += _zeros(tensor)
        owners = layout.get(name, [])
        parts = tensor if len(owners) > 1 else [tensor] * len(owners)
        for owner, part in zip(owners, parts, strict=True):
            layers[owner] += _zeros(part)
    for name, target in targets.items():
        if layers[name].weights != target.weight.numel():
            raise VerifyError(
                f"{name} must have all its {target.weight.numel()} weights in the safetensors files; it has"
                f" {layers[name].weights}. Create or download the checkpoint again."
            )
    return Sparsity(layers, sum(layers.values(), Count(0, 0)), total)


def skeleton(folder: Path) -> Any:
    """Return the model that a folder's config.json describes, without memory for its weights (on the device `meta`)."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _tied(model: nn.Module) -> set[str]:
    """Return the names of tensors that share memory with a tensor of an earlier name."""
    names: dict[int, str] = {}
    return {
        name for name, tensor in model.state_dict(keep_vars=True).items() if names.setdefault(id(tensor), name) != name
    }


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)


def _zeros(tensor: Tensor) -> Count:
    return Count(tensor.numel() - count_nonzeros(tensor), tensor.numel())


def _layout(model: nn.Module) -> Layout:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layout: Layout = {}
    for name, target in target_linears(model).items():
        layout.setdefault(names[id(target.parameter)], []).append(name)
    return layout


def _layout_on_disk(model: nn.Module) -> Layout:
    """Return the layout of the saved tensors. Files may store stacked experts one by one under other names.

    The conversion of transformers is run on small tensors that contain the numbers of their targets. The results show
    where each target is saved.
    """
    targets = list(target_linears(model))
    numbers = {name: number for number, name in enumerate(targets)}
    marks = {
        name: torch.tensor([numbers[owner] for owner in owners]).view(-1, 1, 1).expand(-1, 2, 2)
        for name, owners in _layout(model).items()
    }
    written = revert_weight_conversion(
        model, {name: mark if len(mark) > 1 else mark[0] for name, mark in marks.items()}
    )
    return {name: [targets[number] for number in mark.unique().tolist()] for name, mark in written.items()}
