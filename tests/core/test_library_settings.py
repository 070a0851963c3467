"""Every option of a request reaches the library. The tests of `seft.config` check that the ranges agree."""

from typing import Any

import pytest

from core import spec_parts
from core.specs import JobSpec
from seft import config

REPAIR: dict[str, Any] = {
    "method": "fixed_mask",
    "density": 0.01,
    "steps": 7,
    "learning_rate": 0.002,
    "update_interval": 3,
    "drop_rate": 0.1,
    "drop_decay": "cosine",
    "variant": "improved",
    "swap_tokens": 0,
    "batch_tokens": 256,
    "sequence_tokens": 128,
    "micro_batch": 2,
    "activation_checkpointing": True,
    "clip_norm": 0.5,
    "norms_and_biases": True,
    "distill_weight": 0.5,
    "hidden_weight": 2.0,
    "retain": "written",
    "retain_share": 0.25,
    "retain_tokens": 4096,
    "evaluate_interval": 3,
    "patience": 2,
}


def job_spec(**more: Any) -> JobSpec:
    return JobSpec.model_validate({"model": "tiny", "dataset": "file_" + "0" * 26, "sparsity": 0.6, **more})


def test_the_repair_methods_are_those_of_the_library_and_none() -> None:
    library = [(method.name, method.value) for method in config.RepairMethod]
    assert [(method.name, method.value) for method in spec_parts.RepairMethod] == [*library, ("NONE", "none")]


def test_options_that_are_not_set_have_the_defaults_of_the_library_and_a_job_retains_text() -> None:
    spec = job_spec(repair={"steps": 7})
    assert spec.repair_config() == config.RepairConfig(steps=7, retain=config.Retain.WRITTEN)
    assert spec.evaluate_config() == config.EvaluateConfig()
    assert spec.prune_config() == config.PruneConfig(0.6)


def test_every_option_is_translated() -> None:
    spec = job_spec(
        seed=5,
        allocation="owl",
        sparsity_of="model",
        prune={
            "method": "wanda",
            "compare": "layer",
            "refine": "dsnot",
            "reconstruct_epochs": 2,
            "reconstruct_learning_rate": 0.001,
            "calibration": {"samples": 3, "tokens": 64},
        },
        repair=REPAIR,
        evaluate={"windows": 4, "tokens": 32},
    )
    assert spec.prune_config() == config.PruneConfig(
        0.6,
        config.PruneMethod.WANDA,
        compare=config.Compare.LAYER,
        refine=config.Refinement.DSNOT,
        allocation=config.Allocation.OWL,
        sparsity_of=config.SparsityOf.MODEL,
        samples=3,
        tokens=64,
        reconstruct_epochs=2,
        reconstruct_learning_rate=0.001,
        seed=5,
    )
    kinds = {
        "method": config.RepairMethod,
        "drop_decay": config.DropDecay,
        "variant": config.Variant,
        "retain": config.Retain,
    }
    enums = {name: kind(REPAIR[name]) for name, kind in kinds.items()}
    assert spec.repair_config() == config.RepairConfig(**{**REPAIR, **enums}, seed=5)
    assert spec.evaluate_config() == config.EvaluateConfig(windows=4, tokens=32)
    assert {*REPAIR, "retain_dataset"} == set(spec_parts.RepairSpec.model_fields)


def test_the_settings_of_a_rise_are_translated() -> None:
    prune = {"schedule": "gradual", "compare": "model", "rise": 0.5, "rise_interval": 3}
    spec = job_spec(prune=prune, repair={"steps": 500, "swap_tokens": 4096, "retain": "none"})
    assert spec.prune_config() == config.PruneConfig(
        0.6, compare=config.Compare.MODEL, schedule=config.PruneSchedule.GRADUAL, rise=0.5, rise_interval=3
    )
    assert spec.repair_config() == config.RepairConfig(steps=500, swap_tokens=4096)


def test_a_dataset_to_retain_is_translated() -> None:
    spec = job_spec(repair={"steps": 7, "retain": "dataset", "retain_dataset": "file_" + "1" * 26})
    assert spec.repair_config() == config.RepairConfig(steps=7, retain=config.Retain.DATASET)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:3", "7:10", "9998:9999"])
def test_a_pattern_is_translated_with_its_sparsity(pattern: str) -> None:
    spec = JobSpec.model_validate({"model": "m", "dataset": "file_" + "0" * 26, "pattern": pattern})
    result = spec.prune_config()
    assert str(result.pattern) == pattern
    assert result.sparsity == spec.sparsity == result.pattern.sparsity(None)


def test_a_job_that_only_prunes_has_no_repair_config() -> None:
    assert job_spec(repair={"method": "none"}).repair_config() is None
