"""The resumable state of a repair as a folder: one safetensors file, and a JSON file that says what it belongs to.

It is small: active sets, removed positions and the lists of an open window. The pruned weights themselves are not in
it. Files are flushed to disk before `save` returns; that the folder appears whole or not at all is the caller's care.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from seft.config import RepairConfig
from seft.errors import StateError
from seft.repair.active import Active
from seft.repair.linear import RepairedLinear
from seft.repair.window import Candidates, Window
from seft.targets import Target

TENSORS, FACTS = "repair.safetensors", "repair.json"
SAMPLED = 1024


def fingerprint(targets: Mapping[str, Target], text: Int[Tensor, "rows length"]) -> str:
    """Names a repair: its text, and of each pruned weight the shape, the dtype, the nonzeros and a sample of values."""
    digest = hashlib.sha256(text.cpu().contiguous().numpy().tobytes())
    for name, target in targets.items():
        weight = target.weight
        sample = weight.flatten()[:: max(1, weight.numel() // SAMPLED)]
        values = (sample.double() + 0.0).cpu().numpy().tobytes()  # -0.0 becomes 0.0
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {int(weight.count_nonzero())}".encode() + values)
    return digest.hexdigest()


def save(
    folder: Path, linears: Mapping[str, RepairedLinear], step: int, config: RepairConfig, fingerprint: str
) -> None:
    """Write the state after `step` into `folder`, which is made when missing."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}/{part}": tensor for name, linear in linears.items() for part, tensor in _parts(linear).items()}
    windows = {
        name: {"count": window.count, "observed": window.observed}
        for name, linear in linears.items()
        if (window := linear.window)
    }
    facts = {"step": step, "config": asdict(config), "fingerprint": fingerprint, "windows": windows}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
    (folder / FACTS).write_text(json.dumps(facts, indent=1))
    for path in (folder / TENSORS, folder / FACTS, folder):
        _flush(path)


def load(folder: Path, linears: Mapping[str, RepairedLinear], config: RepairConfig, fingerprint: str) -> int:
    """Put a state into linears that are as pruning left them, weights included; returns its step."""
    facts = _read_facts(folder)
    for field, seen in {"fingerprint": fingerprint, "config": json.loads(json.dumps(asdict(config)))}.items():
        if facts.get(field) != seen:
            raise StateError(
                f"a state must have the {field} of this repair; {folder} has {facts.get(field)!r} instead of {seen!r}."
                " Go on with the same pruned weights, text and configuration, or start again without the state."
            )
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in linears}
    for key, tensor in load_file(folder / TENSORS).items():
        name, part = key.split("/")
        parts[name][part] = tensor.to(linears[name].weight.device)
    for name, linear in linears.items():
        _restore(linear, parts[name], facts["windows"].get(name))
    return int(facts["step"])


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
    except (OSError, ValueError) as error:
        raise StateError(f"a state must have a readable {FACTS}; {folder}: {error}. Start again without it.") from error
    return facts


def _parts(linear: RepairedLinear) -> dict[str, Tensor]:
    window = linear.window
    lists = {"active": linear.active} | ({"growth": window.growth, "removal": window.removal} if window else {})
    parts = {f"{name}.{field}": tensor for name, each in lists.items() for field, tensor in each.tensors().items()}
    return {"removed": linear.removed, **parts}


def _restore(linear: RepairedLinear, parts: Mapping[str, Tensor], window: Mapping[str, int] | None) -> None:
    lists: dict[str, dict[str, Tensor]] = {}
    for key, tensor in parts.items():
        name, _, field = key.partition(".")
        lists.setdefault(name, {})[field] = tensor
    linear.resume(Active(**lists["active"]), parts["removed"])
    if window:
        linear.window = Window(linear.weight, window["count"])
        linear.window.resume(Candidates(**lists["growth"]), Candidates(**lists["removal"]), window["observed"])


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
