"""The saved state of a repair as a folder: a safetensors file, and a JSON file that identifies the repair.

All methods use the same format: named tensors, and facts as JSON. The pruned weights are not saved. Files are flushed
to disk before `save` returns. The caller makes the folder appear atomically.
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

from seft.checkpoint.outputs import disk_errors
from seft.config import RATED_WIDTH, PruneConfig, RepairConfig
from seft.data.packing import Packed
from seft.errors import StateError
from seft.models.targets import Target, count_nonzeros

TENSORS, FACTS = "repair.safetensors", "repair.json"
FORMAT_VERSION = 16
"""Version of the format. Increase it if training from an older state would not give the same bits. This includes a new
field in `PruneConfig`, because the pruning settings are part of the fingerprint."""
SAMPLED = 1024
"""Approximate number of values of each weight matrix that the fingerprint reads."""
_CHANGEABLE = {"micro_batch": None, "activation_checkpointing": None}
"""Settings that may change when a repair resumes, because they change the memory use. In `seft`, `micro_batch` also
changes which candidates for growth are listed, so a later topology event may choose other positions."""


@dataclass(frozen=True, slots=True)
class State:
    """A state: tensors by name, and facts that can be written as JSON."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def fingerprint(
    targets: Mapping[str, Target],
    text: Packed,
    pruned: PruneConfig | None,
    teacher: Mapping[str, Target],
    retained: Packed | None,
) -> str:
    """Return a hash that identifies a repair by its text, pruning settings and weights.

    It covers the text with its trained tokens and record boundaries, the retained text with the predictions of the
    dense model, the pruning settings, and every weight matrix of the pruned model and the teacher. Of each matrix it
    covers the shape, the dtype, the number of nonzeros and a sample of the values.
    """
    digest = hashlib.sha256(str(pruned).encode())
    parts = [text.tokens, text.trained, text.positions]
    if retained is not None and retained.teacher is not None:
        parts += [retained.tokens, retained.trained, retained.positions]
        parts += [retained.teacher.tokens, retained.teacher.logarithms]
    for part in parts:
        digest.update(part.cpu().contiguous().numpy().tobytes())
    for name, target in (*targets.items(), *teacher.items()):
        weight = target.weight
        sample = weight.flatten()[:: max(1, weight.numel() // SAMPLED)]
        values = (sample.double() + 0.0).cpu().numpy().tobytes()  # -0.0 becomes 0.0
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {count_nonzeros(weight)}".encode() + values)
    return digest.hexdigest()


def save(folder: Path, state: State, config: RepairConfig, fingerprint: str) -> None:
    """Save a state in `folder`. Creates the folder if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {**state.facts, **_software(config), "fingerprint": fingerprint}
    with disk_errors(folder):
        save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, folder / TENSORS)
    (folder / FACTS).write_text(json.dumps(facts, indent=1))
    for path in (folder / TENSORS, folder / FACTS, folder):
        _flush(path)


def load(folder: Path, config: RepairConfig, fingerprint: str) -> State:
    """Read a state, with its tensors in host memory.

    Raises StateError if the state is unreadable or belongs to another repair.
    """
    facts = _read_facts(folder)
    if flaw := _flaw(facts, {**_software(config), "fingerprint": fingerprint}):
        raise StateError(
            f"{flaw}. The state is in {folder}. Resume with the same software, pruned weights, text and configuration,"
            " or start again without it."
        )
    try:
        return State(load_file(folder / TENSORS), facts)
    except (OSError, SafetensorError) as error:
        raise StateError(
            f"a state must have a readable {TENSORS}; {folder}: {error}. Start again without it."
        ) from error


def outdated(folder: Path, config: RepairConfig) -> str | None:
    """Return the reason why this software cannot resume a saved state of the same job, or None if it can.

    Raises StateError if the state is unreadable.
    """
    return _flaw(_read_facts(folder), _software(config))


def _software(config: RepairConfig) -> dict[str, Any]:
    """Return the facts that identify the software that wrote a state, as read back from JSON.

    They include the peak learning rate, and the width above which it falls, or None if it does not depend on the width.
    """
    return {
        "kind": FORMAT_VERSION,
        "config": {**json.loads(json.dumps(asdict(config))), **_CHANGEABLE},
        "rate": config.peak_rate(),
        "rated_width": RATED_WIDTH if config.peak_rate(2 * RATED_WIDTH) != config.peak_rate() else None,
    }


def _flaw(facts: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    for field, value in expected.items():
        if (saved := facts.get(field)) != value:
            return f"a state must have the {field} of this repair; it has {saved!r} instead of {value!r}"
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
