"""Overrides of a job's request."""

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
ORIGINAL = SPEC.model_dump(mode="json")


def test_an_empty_patch_changes_nothing() -> None:
    assert apply_overrides(ORIGINAL, {}) == SPEC


def test_a_clone_of_an_old_job_has_the_data_type_in_which_that_job_ran() -> None:
    old = {name: value for name, value in ORIGINAL.items() if name != "dtype"}
    assert apply_overrides(old, {}).dtype == "float32"
    assert apply_overrides(old, {"dtype": None}).dtype == "auto"


def test_fields_change_at_any_depth_and_null_resets_to_the_default() -> None:
    changed = apply_overrides(ORIGINAL, {"seed": 3, "repair": {"density": None}, "metadata": {"run": None, "of": "1"}})
    assert (changed.seed, changed.repair.steps, changed.repair.density) == (3, 7, "auto")
    assert changed.metadata == {"team": "a", "of": "1"}
    assert apply_overrides(ORIGINAL, {"repair": None}).repair.steps == 8192


def test_a_new_model_drops_the_revision() -> None:
    assert apply_overrides(ORIGINAL, {"sparsity": 0.5}).revision == "0123"
    assert apply_overrides(ORIGINAL, {"model": "tiny"}).revision is None
    assert apply_overrides(ORIGINAL, {"model": "a/b", "revision": "main"}).revision == "main"


def test_a_dataset_to_evaluate_on_and_a_part_that_is_held_out_replace_each_other() -> None:
    other = f"file_{'1' * 26}"
    own = apply_overrides(ORIGINAL, {"evaluate": {"dataset": other, "windows": 3}})
    assert (own.evaluate.dataset, own.evaluate.held_out, own.evaluate.windows) == (other, None, 3)
    stored = own.model_dump(mode="json")
    for patch, held_out in (({"held_out": 0.2}, 0.2), ({"dataset": None}, 0.1)):
        shared = apply_overrides(stored, {"evaluate": patch}).evaluate
        assert (shared.dataset, shared.held_out, shared.windows) == (None, held_out, 3)
    assert apply_overrides(stored, {"evaluate": {"tokens": 64}}).evaluate.dataset == other
    with pytest.raises(ValidationError, match="must be left out"):
        apply_overrides(ORIGINAL, {"evaluate": {"dataset": other, "held_out": 0.2}})


def test_an_invalid_result_is_rejected() -> None:
    for patch in ({"sparsity": None}, {"sparsity": 2}, {"repair": 5}, {"repair": {"stepps": 1}}):
        with pytest.raises(ValidationError):
            apply_overrides(ORIGINAL, patch)


def test_the_original_request_is_not_changed() -> None:
    before = SPEC.model_dump(mode="json")
    apply_overrides(ORIGINAL, {"repair": {"steps": 9}, "metadata": {"team": None}})
    assert before == ORIGINAL
