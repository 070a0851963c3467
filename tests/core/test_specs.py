"""Validation, defaults and fingerprints of a job's request."""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from api.schemas.imports import ImportRequest
from core import ids
from core.spec_parts import RepairMethod
from core.specs import SPEC_VERSION, JobSpec
from core.stored_specs import with_defaults
from seft.config import DEFAULT_PRUNER

MINIMAL: dict[str, Any] = {"model": "tiny", "dataset": "file_" + "0" * 26, "sparsity": 0.6}
SHARDED: dict[str, Any] = {"devices": 2, "sharded": True}
OTHER = "file_" + "1" * 26


def test_three_fields_are_enough_and_the_rest_has_defaults() -> None:
    dumped = JobSpec.model_validate(MINIMAL).model_dump(mode="json")
    assert JobSpec.model_validate(dumped) == JobSpec.model_validate(MINIMAL)
    assert set(dumped) == set(JobSpec.model_fields)


@pytest.mark.parametrize(
    "invalid",
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
        {"repair": {"variant": "draft"}},
        {"repair": {"retain": "dataset", "retain_dataset": "file_1"}},
        {"repair": {"method": "spp", "variant": "published"}},
        {"repair": {"learning_rate": float("nan")}},
        {"repair": {"batch_tokens": 512 * 10**30}},
        {"evaluate": {"held_out": 1.0}},
        {"evaluate": {"dataset": "file_1"}},
        {"output": {"retention_days": -1}},
        {"output": {"format": "gguf_q8_0"}},
        {"output": {"formats": []}},
        {"output": {"formats": "dense"}},
        {"output": {"formats": ["dense", "dense"]}},
        {"output": {"formats": ["safetensors"]}},
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
        {"prune": {"rise": 1.5}},
        {"prune": {"rise_interval": 0}},
        {"prune": {"schedule": "slow"}},
        {"repair": {"density": "some"}},
        {"repair": {"density": 0}},
    ],
    ids=str,
)
def test_an_invalid_request_is_rejected(invalid: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JobSpec.model_validate(MINIMAL | invalid)


GRADUAL: dict[str, Any] = {"prune": {"schedule": "gradual"}, "repair": {"density": "all"}}


@pytest.mark.parametrize(
    ("request_", "field", "value"),
    [
        ({"prune": GRADUAL["prune"], "repair": {"density": 0.005}}, "repair.density", 0.005),
        (GRADUAL | {"repair": {"method": "none", "density": "all"}}, "repair.method", "none"),
        ({"repair": {"retain": "written", "retain_share": 0.01, "steps": 1}}, "repair.retain_share", 0.01),
        (GRADUAL | {"repair": {"method": "spp"}}, "repair.density", "auto"),
        (GRADUAL | {"prune": {"schedule": "gradual", "method": "wanda"}}, "prune.method", "wanda"),
        (GRADUAL | {"prune": {"schedule": "gradual", "refine": "dsnot"}}, "prune.refine", "dsnot"),
        (GRADUAL | {"prune": {"schedule": "gradual", "reconstruct_epochs": 1}}, "prune.reconstruct_epochs", 1),
        (GRADUAL | {"sparsity": 0}, "sparsity", 0.0),
        (GRADUAL | {"prune": {"schedule": "gradual", "rise": 0.0001}}, "prune.rise", 0.0001),
        (GRADUAL | {"prune": {"schedule": "gradual", "rise": 0}}, "prune.rise", 0.0),
        (GRADUAL | {"prune": {"schedule": "gradual", "rise": 1e-310}}, "prune.rise", 1e-310),
        ({"prune": {"method": "wanda", "compare": "model"}}, "prune.compare", "model"),
        (
            GRADUAL | {"pattern": "2:4", "sparsity": 0.5, "prune": {"schedule": "gradual", "compare": "model"}},
            "prune.compare",
            "model",
        ),
        ({"pattern": "2:4", "sparsity": 0.5, "allocation": "owl"}, "allocation", "owl"),
        ({"pattern": "2:4", "sparsity": 0.6}, "sparsity", 0.6),
        ({"repair": {"method": "masked_full", "density": "all"}}, "repair.density", "all"),
        ({"repair": {"clip_norm": 1.0}}, "repair.clip_norm", 1.0),
        ({"repair": {"swap_tokens": 4096, "density": 0.1}}, "repair.swap_tokens", 4096),
        ({"repair": {"batch_tokens": 1000}}, "repair.batch_tokens", 1000),
        ({"repair": {"patience": 1}}, "repair.patience", 1),
        ({"devices": 2, "repair": {"swap_tokens": 2048}}, "repair.swap_tokens", 2048),
        ({"devices": 4}, "repair.batch_tokens", 2),
        ({"devices": 4, "repair": {"batch_tokens": 4096}}, "repair.micro_batch", 2),
        ({"sharded": True}, "sharded", True),
        (SHARDED | {"repair": {"method": "spp"}}, "repair.method", "spp"),
        (SHARDED | {"repair": {"distill_weight": 0.5}}, "repair.distill_weight", 0.5),
        (SHARDED | {"prune": {"reconstruct_epochs": 1}}, "prune.reconstruct_epochs", 1),
        ({"repair": {"retain": "dataset"}}, "repair.retain_dataset", None),
        ({"repair": {"retain_dataset": OTHER}}, "repair.retain_dataset", OTHER),
        ({"repair": {"retain": "none", "retain_dataset": OTHER}}, "repair.retain_dataset", OTHER),
        (
            {"repair": {"retain": "dataset", "retain_dataset": MINIMAL["dataset"]}},
            "repair.retain_dataset",
            MINIMAL["dataset"],
        ),
        ({"evaluate": {"dataset": OTHER, "held_out": 0.1}}, "evaluate.held_out", 0.1),
        ({"evaluate": {"dataset": MINIMAL["dataset"]}}, "evaluate.dataset", MINIMAL["dataset"]),
        (
            {"repair": {"retain": "dataset", "retain_dataset": OTHER}, "evaluate": {"dataset": OTHER}},
            "evaluate.dataset",
            OTHER,
        ),
    ],
    ids=str,
)
def test_a_contradiction_is_an_error_of_one_field_with_a_rule_of_the_library(
    request_: dict[str, Any], field: str, value: object
) -> None:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(MINIMAL | request_)
    (error,) = caught.value.errors()
    assert (".".join(map(str, error["loc"])), error["input"]) == (field, value)
    assert error["msg"].startswith("must ")
    assert error["ctx"]["way_out"].endswith(".")


def test_a_gradual_job_is_scored_twice_and_an_older_request_is_one_shot() -> None:
    spec = JobSpec.model_validate(MINIMAL | GRADUAL)
    assert spec.scored == ("dense", "repaired")
    stored = JobSpec.model_validate(MINIMAL).model_dump(mode="json")
    for name in ("schedule", "rise", "rise_interval"):
        del stored["prune"][name]
    del stored["repair"]["swap_tokens"]
    assert JobSpec.model_validate(stored) == JobSpec.model_validate(MINIMAL)
    assert JobSpec.model_validate(stored).scored == ("dense", "pruned", "repaired")


def test_a_pattern_implies_the_sparsity_which_is_required_without_one() -> None:
    request = {name: value for name, value in MINIMAL.items() if name != "sparsity"}
    with pytest.raises(ValidationError, match="sparsity"):
        JobSpec.model_validate(request)
    spec = JobSpec.model_validate({**request, "pattern": "1:4"})
    assert (spec.sparsity, spec.repair.method) == (0.75, "seft")
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({**request, "pattern": "1:3", "sparsity": 0.666667})
    (advised,) = re.findall(r"must be (0\.\d+),", caught.value.errors()[0]["msg"])
    JobSpec.model_validate({**request, "pattern": "1:3", "sparsity": float(advised)})


def fields(model: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str, Any]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation)
        else:
            yield model, name, field.annotation


def kinds(annotation: Any) -> set[Any]:
    """Return the plain types of an annotation, without those of the entries of lists and dictionaries."""
    if get_origin(annotation) in (list, tuple, dict, Literal):
        return set()
    return set().union(*map(kinds, get_args(annotation))) if get_args(annotation) else {annotation}


@pytest.mark.parametrize("request_model", [JobSpec, ImportRequest])
def test_strings_numbers_and_booleans_are_not_converted(request_model: type[BaseModel]) -> None:
    checked = 0
    for model, name, annotation in fields(request_model):
        types = kinds(annotation)
        wrong = ["1", True] if types & {int, float} else ["true", 1, 0] if bool in types else []
        for value in wrong:
            with pytest.raises(ValidationError) as caught:
                model.model_validate({name: value})
            assert any(entry["loc"][0] == name for entry in caught.value.errors()), (name, value)
        checked += len(wrong)
    assert checked


def test_an_integer_can_be_written_as_a_float() -> None:
    spec = JobSpec.model_validate({**MINIMAL, "seed": 5.0, "repair": {"steps": 1e3}})
    assert (spec.seed, spec.repair.steps) == (5, 1000)
    assert isinstance(spec.repair.steps, int)
    with pytest.raises(ValidationError, match="seed"):
        JobSpec.model_validate({**MINIMAL, "seed": 5.5})


def test_every_repair_method_accepts_a_pattern() -> None:
    request = {**MINIMAL, "sparsity": 0.5, "pattern": "2:4"}
    for method in RepairMethod:
        assert JobSpec.model_validate({**request, "repair": {"method": method}}).repair.method is method


def test_equal_requests_have_equal_fingerprints() -> None:
    one = JobSpec.model_validate(MINIMAL | {"metadata": {"a": "1", "b": "2"}})
    other = JobSpec.model_validate({"metadata": {"b": "2", "a": "1"}, **MINIMAL, "seed": 0})
    assert one.fingerprint() == other.fingerprint()
    assert one.fingerprint() != JobSpec.model_validate(MINIMAL | {"seed": 1}).fingerprint()


def test_the_retained_dataset_is_a_part_of_the_fingerprint() -> None:
    plain, *retaining = (
        JobSpec.model_validate(MINIMAL | {"repair": repair})
        for repair in ({}, *({"retain": "dataset", "retain_dataset": each} for each in (OTHER, ids.new("file"))))
    )
    assert len({spec.fingerprint() for spec in (plain, *retaining)}) == 3


def test_a_dataset_to_evaluate_on_takes_the_place_of_a_part_that_is_held_out() -> None:
    plain, written, null, own = (
        JobSpec.model_validate(MINIMAL | {"evaluate": evaluate})
        for evaluate in ({}, {"held_out": 0.1}, {"held_out": None, "dataset": None}, {"dataset": OTHER})
    )
    assert plain == written == null
    assert plain.evaluate.held_out == 0.1
    assert (own.evaluate.dataset, own.evaluate.held_out) == (OTHER, None)
    assert JobSpec.model_validate(own.model_dump(mode="json")) == own
    assert plain.fingerprint() == written.fingerprint() == null.fingerprint() != own.fingerprint()


def test_a_new_field_does_not_change_fingerprints() -> None:
    class Later(JobSpec):
        invented: int = 3

    request = {**MINIMAL, "repair": {"steps": 7}}
    assert Later.model_validate(request).fingerprint() == JobSpec.model_validate(request).fingerprint()
    assert (
        Later.model_validate({**request, "invented": 4}).fingerprint() != JobSpec.model_validate(request).fingerprint()
    )


def test_a_stored_request_keeps_its_pruning_method_when_the_default_changes() -> None:
    stored = JobSpec.model_validate(MINIMAL).model_dump(mode="json")
    assert stored["prune"]["method"] == DEFAULT_PRUNER
    stored["prune"]["method"] = "sparsegpt"  # the default of versions before 5
    assert with_defaults(stored) == stored


def test_a_stored_request_without_a_data_type_is_one_in_float32() -> None:
    stored = JobSpec.model_validate(MINIMAL).model_dump(mode="json")
    assert (stored["dtype"], with_defaults(stored)["dtype"]) == ("auto", "auto")
    stored.pop("dtype")  # as versions before 12 stored it
    assert with_defaults(stored)["dtype"] == "float32"


def test_the_schema_of_a_request_has_not_changed_without_its_version() -> None:
    digest = hashlib.sha256(
        json.dumps(without_annotations(JobSpec.model_json_schema()), sort_keys=True).encode()
    ).hexdigest()
    assert (SPEC_VERSION, digest[:16]) == (17, "292ff2c2a3d1e69d"), "raise SPEC_VERSION, and put it and the digest here"


def without_annotations(schema: Any) -> Any:
    """Return a JSON schema without texts and defaults. Every stored request contains its defaults."""
    if isinstance(schema, list):
        return [without_annotations(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    ignored = ("description", "title", "default", "example", "examples")
    return {name: without_annotations(value) for name, value in schema.items() if name not in ignored}


def test_a_stored_request_with_a_single_format_is_read() -> None:
    stored = JobSpec.model_validate(MINIMAL).model_dump(mode="json")
    assert stored["output"].pop("formats") == ["dense"]
    stored["output"]["format"] = "dense"  # as versions before 9 stored it
    request = JobSpec.model_validate(stored)
    assert request.output.formats == ("dense",)
    assert request.fingerprint() == JobSpec.model_validate(MINIMAL).fingerprint()
    assert with_defaults(stored)["output"]["formats"] == ["dense"]


def test_a_stored_request_with_tasks_is_read() -> None:
    stored = JobSpec.model_validate(MINIMAL).model_dump(mode="json")
    stored["evaluate"]["tasks"] = ["perplexity"]  # as versions before 16 stored it
    request = JobSpec.model_validate(stored)
    assert request == JobSpec.model_validate(MINIMAL)
    assert request.fingerprint() == JobSpec.model_validate(MINIMAL).fingerprint()
    assert "tasks" not in with_defaults(stored)["evaluate"]


def test_a_stored_request_without_a_push_is_read() -> None:
    stored = JobSpec.model_validate(MINIMAL).model_dump(mode="json")
    stored["output"].pop("push")  # as versions before 10 stored it
    assert JobSpec.model_validate(stored) == JobSpec.model_validate(MINIMAL)
    assert JobSpec.model_validate(stored).fingerprint() == JobSpec.model_validate(MINIMAL).fingerprint()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gguf_q4_1", "Q4_1 has a minimum per block"),
        ("gguf_q5_1", "Q5_1 has a minimum per block"),
        ("gguf_q4_k", "most K-quants have a minimum per block"),
        ("Q6_K", "most K-quants have a minimum per block"),
        ("gguf_f16", "F16 has a smaller range than bfloat16"),
        ("gguf", "must be one of dense, compact, compact_int8, compact_nf4, gguf_bf16, gguf_q8_0, gguf_q4_0"),
    ],
)
def test_a_format_that_would_not_keep_the_model_is_rejected_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason) as caught:
        JobSpec.model_validate(MINIMAL | {"output": {"formats": ["dense", name]}})
    assert caught.value.errors()[0]["loc"] == ("output", "formats", 1)


@given(st.lists(st.sampled_from(["job", "file", "req"]), min_size=1, max_size=5))
def test_ids_have_their_prefix_and_differ(prefixes: list[Any]) -> None:
    created = [ids.new(prefix) for prefix in prefixes]
    assert all(ids.is_id(prefix, value) for prefix, value in zip(prefixes, created, strict=True))
    assert len(set(created)) == len(created)
    assert not ids.is_id("key", created[0])
    assert not ids.is_id(prefixes[0], created[0] + "\n")
