"""Translate the settings of a job (`core.specs`) into those of the library (`seft.config`)."""

from core import specs
from core.specs import JobSpec
from seft.config import (
    Allocation,
    CalibrationOrder,
    Compare,
    DropDecay,
    EvaluateConfig,
    Pattern,
    PruneConfig,
    PruneMethod,
    Refinement,
    RepairConfig,
    RepairMethod,
    SparsityOf,
)


def prune_config(spec: JobSpec) -> PruneConfig:
    """Return how the job prunes. Calibration windows are random, so that they cover the whole text."""
    return PruneConfig(
        sparsity=spec.sparsity,
        method=PruneMethod(spec.prune.method),
        pattern=Pattern.parse(spec.pattern),
        compare=Compare(spec.prune.compare),
        refine=Refinement(spec.prune.refine),
        allocation=Allocation(spec.allocation),
        sparsity_of=SparsityOf(spec.sparsity_of),
        samples=spec.prune.calibration.samples,
        tokens=spec.prune.calibration.tokens,
        order=CalibrationOrder.RANDOM,
        reconstruct_epochs=spec.prune.reconstruct_epochs,
        reconstruct_learning_rate=spec.prune.reconstruct_learning_rate,
        seed=spec.seed,
    )


def repair_config(spec: JobSpec, micro_batch: int | None = None) -> RepairConfig | None:
    """Return how the job repairs, or None if it only prunes. `micro_batch` overrides that of the job."""
    asked = spec.repair
    if asked.method is specs.RepairMethod.NONE:
        return None
    return RepairConfig(
        steps=asked.steps,
        method=RepairMethod(asked.method),
        density=asked.density,
        learning_rate=asked.learning_rate,
        update_interval=asked.update_interval,
        drop_rate=asked.drop_rate,
        drop_decay=DropDecay(asked.drop_decay),
        batch_tokens=asked.batch_tokens,
        sequence_tokens=asked.sequence_tokens,
        micro_batch=micro_batch or asked.micro_batch,
        clip_norm=asked.clip_norm,
        distill_weight=asked.distill_weight,
        hidden_weight=asked.hidden_weight,
        evaluate_interval=asked.evaluate_interval,
        patience=asked.patience,
        seed=spec.seed,
    )


def evaluate_config(spec: JobSpec) -> EvaluateConfig:
    """Return how the job evaluates its models."""
    return EvaluateConfig(tokens=spec.evaluate.tokens, windows=spec.evaluate.windows)
