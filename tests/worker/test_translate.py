"""Laws between what a request may say and what the library takes: equal defaults, equal ranges, nothing lost."""

from typing import Any

import pytest
from pydantic import ValidationError

from core import specs
from core.specs import JobSpec
from seft import config
from seft.errors import ConfigError
from worker.translate import evaluate_config, prune_config, repair_config

MODEL = {"model": "tiny", "dataset": "file_" + "0" * 26, "sparsity": 0.6}
REPAIR: dict[str, Any] = {
    "density": 0.01,
    "steps": 7,
    "learning_rate": 0.002,
    "update_interval": 3,
    "drop_rate": 0.1,
    "batch_tokens": 256,
    "sequence_tokens": 128,
}

EDGES: list[tuple[str, float, float]] = [
    # field, the last value that both take, the next one that both refuse
    ("sparsity", 0.0, -0.01),
    ("sparsity", 0.99, 0.991),
    ("prune.calibration.samples", 1, 0),
    ("prune.calibration.tokens", 2, 1),
    ("repair.density", 1e-6, 9e-7),
    ("repair.density", 1.0, 1.01),
    ("repair.steps", 1, 0),
    ("repair.learning_rate", 1e-8, 9e-9),
    ("repair.learning_rate", 1.0, 1.01),
    ("repair.update_interval", 1, 0),
    ("repair.drop_rate", 0.0, -0.01),
    ("repair.drop_rate", 1.0, 1.01),
    ("evaluate.windows", 1, 0),
    ("evaluate.tokens", 2, 1),
]


def asked(path: str = "", value: object = None) -> JobSpec:
    spec: dict[str, Any] = dict(MODEL)
    if path:
        *parents, field = path.split(".")
        inner = spec
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[field] = value
    return JobSpec.model_validate(spec)


def library_takes(path: str, value: Any) -> object:
    group, _, _ = path.partition(".")
    field = path.rpartition(".")[2]
    match group:
        case "repair":
            return config.RepairConfig(**{"steps": 1, field: value})
        case "evaluate":
            return config.EvaluateConfig(**{field: value})
        case _:
            return config.PruneConfig(**{"sparsity": 0.5, field: value})


@pytest.mark.parametrize(("path", "taken", "refused"), EDGES)
def test_the_ranges_are_equal(path: str, taken: float, refused: float) -> None:
    asked(path, taken)
    library_takes(path, taken)
    with pytest.raises(ValidationError):
        asked(path, refused)
    with pytest.raises(ConfigError):
        library_takes(path, refused)


@pytest.mark.parametrize(("batch", "sequence"), [(256, 100), (64, 128)])
def test_a_batch_of_broken_windows_is_refused_by_both(batch: int, sequence: int) -> None:
    with pytest.raises(ValidationError):
        asked("repair", {"batch_tokens": batch, "sequence_tokens": sequence})
    with pytest.raises(ConfigError):
        config.RepairConfig(steps=1, batch_tokens=batch, sequence_tokens=sequence)


def test_the_methods_are_the_same() -> None:
    assert [*specs.PruneMethod] == [*config.PruneMethod]


def test_what_is_not_asked_for_has_the_default_of_the_library() -> None:
    spec = asked("repair.steps", 7)
    assert repair_config(spec) == config.RepairConfig(steps=7)
    assert evaluate_config(spec) == config.EvaluateConfig()
    # The service prunes by the better method unless told otherwise; the library by the cheaper one.
    assert prune_config(spec) == config.PruneConfig(0.6, method=config.PruneMethod.SPARSEGPT)


def test_everything_that_is_asked_for_arrives() -> None:
    spec = JobSpec.model_validate(
        {
            **MODEL,
            "seed": 5,
            "prune": {"method": "wanda", "calibration": {"samples": 3, "tokens": 64}},
            "repair": REPAIR,
            "evaluate": {"windows": 4, "tokens": 32},
        }
    )
    assert prune_config(spec) == config.PruneConfig(0.6, config.PruneMethod.WANDA, samples=3, tokens=64, seed=5)
    assert repair_config(spec) == config.RepairConfig(**REPAIR, seed=5)
    assert evaluate_config(spec) == config.EvaluateConfig(windows=4, tokens=32)
    assert set(REPAIR) | {"method"} == set(specs.RepairSpec.model_fields)


def test_a_job_that_only_prunes_repairs_nothing() -> None:
    assert repair_config(asked("repair.method", "none")) is None
