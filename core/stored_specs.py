"""Read requests that the database has stored, also those of older versions."""

from typing import Any

from pydantic import ValidationError

from core.specs import Dtype, JobSpec


def read_stored(stored: dict[str, Any]) -> JobSpec:
    """Return a stored request. Raises ValidationError if it is invalid now.

    Versions before 12 stored no `dtype`. They ran every job in float32.
    """
    return JobSpec.model_validate({"dtype": Dtype.FLOAT32, **stored})


def read_if_valid(stored: dict[str, Any]) -> JobSpec | None:
    """Return a stored request, or None if it is invalid now, because another version of the software accepted it."""
    try:
        return read_stored(stored)
    except ValidationError:
        return None


def with_defaults(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a stored request, with the defaults of fields that were added since it was stored.

    A request of another version that is invalid now is returned without changes. So a page must expect that a field
    that was added later is missing.
    """
    spec = read_if_valid(stored)
    return spec.model_dump(mode="json") if spec else stored
