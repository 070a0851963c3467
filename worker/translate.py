"""Convert the request of a job (`core.specs`) to configurations of the library (`seft.config`)."""

from core import specs
from core.specs import JobSpec
from seft.config import CalibrationOrder, EvaluateConfig, Pattern, PruneConfig, RepairConfig, RepairMethod


def prune_config(spec: JobSpec) -> PruneConfig:
    """Return the pruning configuration of the job.

    The calibration sequences are chosen at random, so that they come from all parts of the text.
    """
    return PruneConfig(
        sparsity=spec.sparsity,
        method=spec.prune.method,
        pattern=Pattern.parse(spec.pattern),
        compare=spec.prune.compare,
        refine=spec.prune.refine,
        allocation=spec.allocation,
        sparsity_of=spec.sparsity_of,
        samples=spec.prune.calibration.samples,
        tokens=spec.prune.calibration.tokens,
        order=CalibrationOrder.RANDOM,
        reconstruct_epochs=spec.prune.reconstruct_epochs,
        reconstruct_learning_rate=spec.prune.reconstruct_learning_rate,
        seed=spec.seed,
    )


def repair_config(spec: JobSpec, micro_batch: int | None = None) -> RepairConfig | None:
    """Return the repair configuration of the job, or None if the job only prunes.

    `micro_batch` overrides the value of the request, if it is set.
    """
    repair = spec.repair
    if repair.method is specs.RepairMethod.NONE:
        return None
    return RepairConfig(
        steps=repair.steps,
        method=RepairMethod(repair.method),
        density=repair.density,
        learning_rate=repair.learning_rate,
        update_interval=repair.update_interval,
        drop_rate=repair.drop_rate,
        drop_decay=repair.drop_decay,
        variant=repair.variant,
        batch_tokens=repair.batch_tokens,
        sequence_tokens=repair.sequence_tokens,
        micro_batch=micro_batch or repair.micro_batch,
        clip_norm=repair.clip_norm,
        norms_and_biases=repair.norms_and_biases,
        distill_weight=repair.distill_weight,
        hidden_weight=repair.hidden_weight,
        evaluate_interval=repair.evaluate_interval,
        patience=repair.patience,
        seed=spec.seed,
    )


def evaluate_config(spec: JobSpec) -> EvaluateConfig:
    """Return the evaluation configuration of the job."""
    return EvaluateConfig(tokens=spec.evaluate.tokens, windows=spec.evaluate.windows)
