"""Counts the zeros of a model: per target (a linear layer that is pruned), over all targets, and over the model.

The published count comes from the written files, which are read tensor by tensor. Counting a model in memory is for
progress and tests. Nothing is estimated.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import TypeAdapter, computed_field
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from seft.errors import VerifyError
from seft.models.targets import target_linears

Layout = dict[str, list[str]]
"""Names of the targets that each tensor contains: one target, or one per slice of the tensor."""


@dataclass(frozen=True, slots=True)
class Count:
    """Number of zeros, and number of all weights. -0.0 counts as zero."""

    zeros: int
    weights: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def share(self) -> float:
        """Fraction of zeros; 0 if there are no weights."""
        return self.zeros / self.weights if self.weights else 0.0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.zeros + other.zeros, self.weights + other.weights)


@dataclass(frozen=True, slots=True)
class Sparsity:
    """Counts of zeros per target (`layers`), over all targets (`linears`) and over all saved weights (`model`).

    A weight that is saved once and used twice is counted once.
    """

    layers: dict[str, Count]
    linears: Count
    model: Count

    def data(self) -> dict[str, Any]:
        """Return the counts as JSON data. Each also has the computed `share`, the fraction of zeros."""
        return cast("dict[str, Any]", TypeAdapter(Sparsity).dump_python(self, mode="json"))


def of_model(model: nn.Module) -> Sparsity:
    """Return the counts of weights and zeros of a model in memory."""
    return _count(model, model.state_dict().items(), _layout(model))


def of_folder(folder: Path) -> Sparsity:
    """Return the counts of weights and zeros of a Hugging Face folder.

    The safetensors files are read with one tensor in memory at a time. The targets follow from config.json. Raises
    VerifyError if the files lack the weights of a target.
    """
    model = skeleton(folder)
    return _count(model, _tensors(folder), _layout_on_disk(model))


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


def _count(model: nn.Module, weights: Iterable[tuple[str, Tensor]], layout: Layout) -> Sparsity:
    tied, targets = _tied(model), target_linears(model)
    layers, total = dict.fromkeys(targets, Count(0, 0)), Count(0, 0)
    for name, tensor in weights:
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


def _zeros(tensor: Tensor) -> Count:
    return Count(tensor.numel() - int(tensor.count_nonzero()), tensor.numel())


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
