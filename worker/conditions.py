"""Write and read the machine, micro-batch and versions of each attempt. They are saved with the state of a job."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from seft.checkpoint.facts import Conditions, canonical_json

CONDITIONS = "conditions.json"
_LIST = TypeAdapter(list[Conditions])


def write_conditions(folder: Path, conditions: Sequence[Conditions]) -> None:
    """Write the conditions of the attempts that led to a saved state. The first attempt pruned the model."""
    (folder / CONDITIONS).write_bytes(canonical_json(_LIST.dump_python(list(conditions), mode="json")))


def read_conditions(folder: Path) -> list[Conditions]:
    """Read the conditions of a saved state. The list is empty if an older version of this software saved it."""
    path = folder / CONDITIONS
    return _LIST.validate_json(path.read_bytes()) if path.exists() else []
