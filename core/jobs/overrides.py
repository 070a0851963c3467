"""Create a job's request from an existing request and changes to some of its fields."""

from core.specs import JobSpec
from core.stored_specs import with_defaults
from core.tables import Json

ALTERNATIVES = ("dataset", "held_out")
"""Fields of `evaluate` that replace each other."""


def apply_overrides(original: Json, patch: Json) -> JobSpec:
    """Apply a JSON merge patch (RFC 7396) to a stored request. The value null resets a field to its default.

    If the patch changes `model`, the revision is removed, because it is a commit of the original model. If the patch
    sets one of `evaluate.dataset` and `evaluate.held_out`, the other one is removed. Raises pydantic's ValidationError
    if the result is not a valid request.
    """
    base = {**with_defaults(original), **({"revision": None} if "model" in patch else {})}
    evaluate = patch.get("evaluate")
    given = [name for name in ALTERNATIVES if isinstance(evaluate, dict) and evaluate.get(name) is not None]
    if len(given) == 1:
        base = _merge(base, {"evaluate": {name: None for name in ALTERNATIVES if name not in given}})
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
