"""What a request may ask for."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from api.schemas.imports import ImportRequest
from core import ids
from core.specs import SPEC_VERSION, JobSpec, RepairMethod

LEAST: dict[str, Any] = {"model": "tiny", "dataset": ids.new("file"), "sparsity": 0.6}


def test_three_fields_are_enough_and_the_rest_is_shown() -> None:
    shown = JobSpec.model_validate(LEAST).model_dump(mode="json")
    assert JobSpec.model_validate(shown) == JobSpec.model_validate(LEAST)
    assert set(shown) == set(JobSpec.model_fields)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sparsity": 1.2},
        {"sparsity": float("nan")},
        {"sparsity": float("inf")},
        {"sparcity": 0.5},
        {"model": ""},
        {"model": "a\0b"},
        {"suffix": "\ud800"},
        {"metadata": {"\udfff": "a"}},
        {"model": "\ud800"},
        {"dataset": "file_1"},
        {"seed": 2**63},
        {"seed": 10**400},
        {"priority": 101},
        {"metadata": {"a": "\0"}},
        {"metadata": {"\0": "a"}},
        {"metadata": {str(n): "" for n in range(17)}},
        {"metadata": {"a": "x" * 513}},
        {"repair": {"batch_tokens": 1000, "sequence_tokens": 512}},
        {"repair": {"learning_rate": "fast"}},
        {"repair": {"distill_weight": 1.5}},
        {"repair": {"hidden_weight": -1}},
        {"repair": {"clip_norm": 0}},
        {"repair": {"patience": 1}},
        {"repair": {"evaluate_interval": -1}},
        {"repair": {"drop_decay": "sudden"}},
        {"repair": {"learning_rate": float("nan")}},
        {"repair": {"batch_tokens": 512 * 10**30}},
        {"evaluate": {"held_out": 1.0}},
        {"output": {"retention_days": -1}},
        {"prune": {"calibration": {"samples": 0}}},
        {"prune": {"method": "sparsegpt", "compare": "row"}},
        {"prune": {"reconstruct_epochs": 101}},
        {"pattern": "4:2"},
        {"pattern": "2:2"},
        {"pattern": "2:4\n"},
        {"pattern": "2:4"},
        {"pattern": "2:4", "sparsity": 0.5, "allocation": "owl"},
        {"pattern": "2:4", "sparsity": 0.5, "sparsity_of": "model"},
        {"pattern": "2:4", "sparsity": 0.5, "prune": {"method": "ria", "compare": "row"}},
    ],
    ids=str,
)
def test_what_breaks_a_rule_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JobSpec.model_validate(LEAST | wrong)


def test_sparsity_follows_from_a_pattern_and_is_required_without() -> None:
    asked = {name: value for name, value in LEAST.items() if name != "sparsity"}
    with pytest.raises(ValidationError, match="sparsity"):
        JobSpec.model_validate(asked)
    spec = JobSpec.model_validate({**asked, "pattern": "1:4"})
    assert (spec.sparsity, spec.repair.method) == (0.75, "seft")
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


def fields(model: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str, Any]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation)
        else:
            yield model, name, field.annotation


def kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of; the entries of a list and a dictionary are not looked at."""
    if get_origin(annotation) in (list, tuple, dict, Literal):
        return set()
    return set().union(*map(kinds, get_args(annotation))) if get_args(annotation) else {annotation}


@pytest.mark.parametrize("request_model", [JobSpec, ImportRequest])
def test_numbers_and_truth_values_are_taken_for_nothing_else(request_model: type[BaseModel]) -> None:
    looked_at = 0
    for model, name, annotation in fields(request_model):
        found = kinds(annotation)
        wrong = ["1", True] if found & {int, float} else ["true", 1, 0] if bool in found else []
        for value in wrong:
            with pytest.raises(ValidationError) as caught:
                model.model_validate({name: value})
            assert any(entry["loc"][0] == name for entry in caught.value.errors()), (name, value)
        looked_at += len(wrong)
    assert looked_at


def test_a_whole_number_may_be_written_as_a_fraction() -> None:
    spec = JobSpec.model_validate({**LEAST, "seed": 5.0, "repair": {"steps": 1e3}})
    assert (spec.seed, spec.repair.steps) == (5, 1000)
    assert isinstance(spec.repair.steps, int)
    with pytest.raises(ValidationError, match="seed"):
        JobSpec.model_validate({**LEAST, "seed": 5.5})


def test_a_pattern_may_be_repaired_by_every_method() -> None:
    asked = {**LEAST, "sparsity": 0.5, "pattern": "2:4"}
    for method in RepairMethod:
        assert JobSpec.model_validate({**asked, "repair": {"method": method}}).repair.method is method


def test_equal_requests_have_equal_fingerprints() -> None:
    one = JobSpec.model_validate(LEAST | {"metadata": {"a": "1", "b": "2"}})
    other = JobSpec.model_validate({"metadata": {"b": "2", "a": "1"}, **LEAST, "seed": 0})
    assert one.fingerprint() == other.fingerprint()
    assert one.fingerprint() != JobSpec.model_validate(LEAST | {"seed": 1}).fingerprint()


def test_a_field_that_a_later_version_adds_changes_no_fingerprint() -> None:
    class Later(JobSpec):
        invented: int = 3

    asked = {**LEAST, "repair": {"steps": 7}}
    assert Later.model_validate(asked).fingerprint() == JobSpec.model_validate(asked).fingerprint()
    assert Later.model_validate({**asked, "invented": 4}).fingerprint() != JobSpec.model_validate(asked).fingerprint()


def test_what_a_request_may_hold_is_what_its_version_says() -> None:
    taken = hashlib.sha256(json.dumps(bare(JobSpec.model_json_schema()), sort_keys=True).encode()).hexdigest()
    assert (SPEC_VERSION, taken[:16]) == (4, "a579d8071448fca3"), "raise SPEC_VERSION, and put it and the digest here"


def bare(schema: Any) -> Any:
    """A JSON schema without what is for people, and without defaults, which stand in every stored request."""
    if isinstance(schema, list):
        return [bare(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    told = ("description", "title", "default", "example")
    return {name: bare(value) for name, value in schema.items() if name not in told}


@given(st.lists(st.sampled_from(["job", "file", "req"]), min_size=1, max_size=5))
def test_ids_are_of_their_kind_and_differ(prefixes: list[Any]) -> None:
    made = [ids.new(prefix) for prefix in prefixes]
    assert all(ids.is_id(prefix, value) for prefix, value in zip(prefixes, made, strict=True))
    assert len(set(made)) == len(made)
    assert not ids.is_id("key", made[0])
    assert not ids.is_id(prefixes[0], made[0] + "\n")
