"""A job's request with some of its fields changed."""

from core.specs import JobSpec
from core.tables import Json


def apply_overrides(former: Json, patch: Json) -> JobSpec:
    """The former request with a merge patch applied (RFC 7396): null stands for the default. ValidationError.

    Another model does not keep the revision, which is a commit of the former one.
    """
    kept = {**former, "revision": None} if "model" in patch else former
    return JobSpec.model_validate(_merged(kept, patch))


def _merged(old: Json, patch: Json) -> Json:
    new = dict(old)
    for name, value in patch.items():
        former = old.get(name)
        if value is None:
            new.pop(name, None)
        elif isinstance(value, dict):
            new[name] = _merged(former if isinstance(former, dict) else {}, value)
        else:
            new[name] = value
    return new
