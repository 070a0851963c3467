"""A request with changed fields is a request."""

import pytest
from pydantic import ValidationError

from core.jobs.overrides import apply_overrides
from core.specs import JobSpec

SPEC = JobSpec.model_validate(
    {
        "model": "owner/name",
        "revision": "0123",
        "dataset": f"file_{'0' * 26}",
        "sparsity": 0.6,
        "repair": {"steps": 7, "density": 0.1},
        "metadata": {"team": "a", "run": "1"},
    }
)
FORMER = SPEC.model_dump(mode="json")


def test_nothing_changed_is_the_same_request() -> None:
    assert apply_overrides(FORMER, {}) == SPEC


def test_a_field_is_changed_at_any_depth_and_null_is_its_default() -> None:
    made = apply_overrides(FORMER, {"seed": 3, "repair": {"density": None}, "metadata": {"run": None, "of": "1"}})
    assert (made.seed, made.repair.steps, made.repair.density) == (3, 7, 0.005)
    assert made.metadata == {"team": "a", "of": "1"}
    assert apply_overrides(FORMER, {"repair": None}).repair.steps == 500


def test_another_model_does_not_keep_the_revision() -> None:
    assert apply_overrides(FORMER, {"sparsity": 0.5}).revision == "0123"
    assert apply_overrides(FORMER, {"model": "tiny"}).revision is None
    assert apply_overrides(FORMER, {"model": "a/b", "revision": "main"}).revision == "main"


def test_what_breaks_a_rule_is_refused() -> None:
    for wrong in ({"sparsity": None}, {"sparsity": 2}, {"repair": 5}, {"repair": {"stepps": 1}}):
        with pytest.raises(ValidationError):
            apply_overrides(FORMER, wrong)


def test_the_former_request_stays_as_it_was() -> None:
    before = SPEC.model_dump(mode="json")
    apply_overrides(FORMER, {"repair": {"steps": 9}, "metadata": {"team": None}})
    assert before == FORMER
