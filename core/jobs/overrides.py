"""Create a job's request from an existing request and changes to some of its fields."""

from core.specs import JobSpec
from core.tables import Json


def apply_overrides(original: Json, patch: Json) -> JobSpec:
    """Apply a JSON merge patch (RFC 7396) to a request. The value null resets a field to its default.

    If the patch changes `model`, the revision is removed, because it is a commit of the original model. Raises
    pydantic's ValidationError if the result is not a valid request.
    """
    base = {**original, "revision": None} if "model" in patch else original
    return JobSpec.model_validate(_merge(base, patch))


def _merge(original: Json, patch: Json) -> Json:
    merged = dict(original)
    for name, value in patch.items():
        before = original.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            merged[name] = _merge(before if isinstance(before, dict) else {}, value)
        else:
            merged[name] = value
    return merged
