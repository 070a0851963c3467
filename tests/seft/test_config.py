"""Contradictory settings are rejected with a helpful message; the library accepts all that a request may have."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from core import spec_parts, specs
from seft.config import EvaluateConfig, Pattern, PruneConfig, RepairConfig, RepairMethod, Retain, Variant
from seft.errors import ConfigError

Maker = Callable[..., object]

BOTH: list[tuple[type[BaseModel], Maker, dict[str, Any]]] = [
    # part of a request, the library's settings, and their required fields
    (specs.JobSpec, PruneConfig, {"sparsity": 0.5}),
    (spec_parts.CalibrationSpec, PruneConfig, {"sparsity": 0.5}),
    (spec_parts.PruneSpec, PruneConfig, {"sparsity": 0.5}),
    (spec_parts.RepairSpec, RepairConfig, {"steps": 1}),
    (spec_parts.EvaluateSpec, EvaluateConfig, {}),
]


def shared_numbers() -> list[tuple[dict[str, Any], str, Maker, dict[str, Any]]]:
    """Return every number that both have under one name: its JSON schema, and how to make the settings."""
    pairs = []
    for spec, config, required in BOTH:
        schema = spec.model_json_schema()["properties"]
        for name in {field.name for field in fields(config)} & schema.keys():  # type: ignore[arg-type]
            kinds = [schema[name], *schema[name].get("anyOf", [])]
            pairs += [(kind, name, config, required) for kind in kinds if kind.get("type") in ("integer", "number")]
    return sorted(pairs, key=lambda each: (str(each[2]), each[1]))


def numbers(schema: dict[str, Any]) -> st.SearchStrategy[float]:
    low, high = schema["minimum"], schema.get("maximum", 1 << 40)
    return st.integers(low, high) if schema["type"] == "integer" else st.floats(low, high)


@pytest.mark.parametrize(("schema", "name", "config", "required"), shared_numbers(), ids=lambda value: str(value)[:32])
@given(data=st.data())
def test_the_library_accepts_every_number_of_a_request(
    data: st.DataObject, schema: dict[str, Any], name: str, config: Maker, required: dict[str, Any]
) -> None:
    value = data.draw(numbers(schema))
    # A batch must be whole windows, for either of the two sizes.
    sizes = (
        dict.fromkeys(("batch_tokens", "sequence_tokens"), value) if name in {"batch_tokens", "sequence_tokens"} else {}
    )
    others: dict[str, dict[str, Any]] = {"patience": {"evaluate_interval": 1}, "clip_norm": {"density": 0.1}}
    assert config(**{**required, name: value, **sizes, **others.get(name, {})})


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        (lambda value: PruneConfig(sparsity=value), "sparsity", 1.2),
        (lambda value: PruneConfig(sparsity=value), "sparsity", float("nan")),
        (lambda value: PruneConfig(sparsity=0.5, samples=value), "samples", 0),
        (lambda value: PruneConfig(sparsity=0.5, damping=value), "damping", 0.0),
        (lambda value: PruneConfig(sparsity=0.5, reconstruct_epochs=value), "reconstruct_epochs", -1),
        (lambda value: RepairConfig(steps=value), "steps", 0),
        (lambda value: RepairConfig(steps=1, learning_rate=value), "learning_rate", 2.0),
        (lambda value: RepairConfig(steps=1, drop_rate=value), "drop_rate", -0.1),
        (lambda value: RepairConfig(steps=1, batch_tokens=value), "batch_tokens", 700),
        (lambda value: RepairConfig(steps=1, distill_weight=value), "distill_weight", 1.5),
        (lambda value: RepairConfig(steps=1, hidden_weight=value), "hidden_weight", -1.0),
        (lambda value: RepairConfig(steps=1, evaluate_interval=value), "evaluate_interval", -1),
        (lambda value: RepairConfig(steps=1, patience=value), "patience", 2),
        (lambda value: RepairConfig(steps=1, evaluate_interval=5, patience=value), "patience", -1),
        (lambda value: RepairConfig(steps=1, clip_norm=value), "clip_norm", 0.0),
        (lambda value: RepairConfig(1, RepairMethod.SPP, variant=Variant(value)), "variant", "published"),
        (lambda value: EvaluateConfig(windows=value), "windows", 0),
    ],
    ids=lambda value: None if callable(value) else str(value),
)
def test_an_error_names_the_field_the_rule_the_value_and_a_way_out(make: Maker, field: str, value: float | str) -> None:
    with pytest.raises(ConfigError) as error:
        make(value)
    assert error.value.field == field
    message = str(error.value)
    assert message.startswith(f"{field} must be ")
    assert f"it is {value!r}. " in message
    assert message.split(f"it is {value!r}. ")[1]


def test_a_pattern_with_too_many_zeros_is_an_error_of_the_pattern() -> None:
    pattern = Pattern(1, 200)
    with pytest.raises(ConfigError, match=r"^pattern must set at most 0.99 of the weights to zero"):
        PruneConfig(pattern.sparsity(None), pattern=pattern)


def test_one_swap_may_be_all_that_the_settled_end_leaves_time_for() -> None:
    settings = RepairConfig(10, settle=0.9, swap_tokens=1024)
    assert settings.last_event == 1


def test_a_warm_up_as_long_as_the_training_is_rejected() -> None:
    assert RepairConfig(steps=10, warmup_steps=9)
    with pytest.raises(ConfigError, match="warmup_steps must be from 0 to 9; it is 10"):
        RepairConfig(steps=10, warmup_steps=10)


def test_the_suggested_number_of_retained_tokens_is_valid() -> None:
    with pytest.raises(ConfigError, match=r"Try 4194304\.") as error:
        RepairConfig(1, sequence_tokens=1 << 16, batch_tokens=1 << 17, retain=Retain.WRITTEN, retain_tokens=1 << 16)
    tokens = int(str(error.value).split()[-1].strip("."))
    assert RepairConfig(1, sequence_tokens=1 << 16, batch_tokens=1 << 17, retain=Retain.WRITTEN, retain_tokens=tokens)


def test_the_suggested_batch_size_is_valid() -> None:
    with pytest.raises(ConfigError, match=r"Try 512\.") as error:
        RepairConfig(steps=1, batch_tokens=700)
    assert RepairConfig(steps=1, batch_tokens=int(str(error.value).split()[-1].strip(".")))
