"""The resumable state of a repair as a folder: one safetensors file, and a JSON file that says what it belongs to.

The format is one for all methods: named tensors, and facts that JSON can hold. The pruned weights themselves are not in
it. Files are flushed to disk before `save` returns; that the folder appears whole or not at all is the caller's care.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seft.config import PruneConfig, RepairConfig
from seft.data.packing import Packed
from seft.errors import StateError
from seft.models.targets import Target
from seft.repair.schedule import peak

TENSORS, FACTS = "repair.safetensors", "repair.json"
KIND = 5
"""One more whenever training would not go on from the states of before to the same bits, a field more in `PruneConfig`
included, which is part of the fingerprint."""
SAMPLED = 1024
_FREE = {"micro_batch": None}
"""What may change between a state and those who go on from it: it decides about memory, and in a window of seft about
which newcomers are listed, so that an event after the change may choose others."""


@dataclass(frozen=True, slots=True)
class State:
    """Tensors by name, and facts that JSON can hold."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def fingerprint(
    targets: Mapping[str, Target], text: Packed, pruned: PruneConfig | None, taught_by: Mapping[str, Target]
) -> str:
    """Names a repair: its text with what is trained on and where records begin, how it was pruned, and of each weight
    of the pruned model and of the teacher the shape, dtype, nonzeros and a sample of values.
    """
    digest = hashlib.sha256(str(pruned).encode())
    for part in (text.tokens, text.trained, text.positions):
        digest.update(part.cpu().contiguous().numpy().tobytes())
    for name, target in (*targets.items(), *taught_by.items()):
        weight = target.weight
        sample = weight.flatten()[:: max(1, weight.numel() // SAMPLED)]
        values = (sample.double() + 0.0).cpu().numpy().tobytes()  # -0.0 becomes 0.0
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {int(weight.count_nonzero())}".encode() + values)
    return digest.hexdigest()


def save(folder: Path, state: State, config: RepairConfig, fingerprint: str) -> None:
    """Write a state into `folder`, which is made when missing."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {**state.facts, **_made_by(config), "fingerprint": fingerprint}
    save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, folder / TENSORS)
    (folder / FACTS).write_text(json.dumps(facts, indent=1))
    for path in (folder / TENSORS, folder / FACTS, folder):
        _flush(path)


def load(folder: Path, config: RepairConfig, fingerprint: str) -> State:
    """Read a state, its tensors on the host; StateError when it is of another repair."""
    facts = _read_facts(folder)
    if flaw := _flaw(facts, {**_made_by(config), "fingerprint": fingerprint}):
        raise StateError(
            f"{flaw}. It is in {folder}: go on with the same software, pruned weights, text and configuration, or start"
            " again without it."
        )
    try:
        return State(load_file(folder / TENSORS), facts)
    except (OSError, SafetensorError) as error:
        raise StateError(
            f"a state must have a readable {TENSORS}; {folder}: {error}. Start again without it."
        ) from error


def outdated(folder: Path, config: RepairConfig) -> str | None:
    """What is wrong with a state of the same job that other software left: it would not go on to the same bits."""
    return _flaw(_read_facts(folder), _made_by(config))


def _made_by(config: RepairConfig) -> dict[str, Any]:
    """What tells a state's software, as JSON gives it back; what `auto` stands for is part of it."""
    return {"kind": KIND, "config": {**json.loads(json.dumps(asdict(config))), **_FREE}, "rate": peak(config)}


def _flaw(facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    for field, seen in wanted.items():
        if (found := facts.get(field)) != seen:
            return f"a state must have the {field} of this repair; it has {found!r} instead of {seen!r}"
    return None


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = dict(json.loads((folder / FACTS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise StateError(f"a state must have a readable {FACTS}; {folder}: {error}. Start again without it.") from error
    return facts


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
