"""Handle running out of memory: detect kills by the kernel, choose a retry, and advise the user.

A smaller micro-batch with more gradient accumulation gives the same training result with less memory. So do activations
that are computed again in the backward pass. The job is first retried with both, and then on a larger device of the
same kind. If that does not help, the job fails and the user is asked to change the request.
"""

from pathlib import Path

from core.estimate.training_memory import has_several_micro_batches
from core.specs import JobSpec
from core.states import Phase
from seft.config import Retain

KILLS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
"""Files that count out-of-memory kills: in the container of the worker, and on the whole machine."""


def oom_kills() -> int:
    """Return the number of processes that the kernel has killed for lack of memory.

    Only processes of the worker's container count. Outside of a container, those of the whole machine count.
    """
    file = next(file for file in KILLS if file.exists())
    counts = dict(line.split() for line in file.read_text().splitlines())
    return int(counts.get("oom_kill", 0))


def smaller_micro_batch(spec: JobSpec, phase: Phase | None, *, of_host: bool) -> int | None:
    """Return the micro-batch for a retry, which also computes activations again.

    Returns None if a retry would need the same memory. If the memory of the machine was full (`of_host`), the job is
    always retried: it may fit even with the same micro-batch, because other processes use that memory too.
    """
    repair = spec.repair
    stored = not repair.activation_checkpointing
    smallest = spec.devices
    if not of_host and not (phase is Phase.TRAINING and (stored or repair.micro_batch > smallest)):
        return None
    # Several micro-batches need more memory, because the gradients of all nonzeros are added up. With experts on
    # several devices they are added up in any case, but the request does not say whether the model has experts.
    whole = stored and spec.trains_all and not has_several_micro_batches(spec)
    return repair.micro_batch if whole else smallest


def advice(spec: JobSpec, phase: Phase | None, micro_batch: int | None) -> str:
    """Return sentences that tell the user how to change the request.

    `micro_batch` is the micro-batch of the failed attempt, or None if the attempt used the value of the request.
    """
    repair, calibration = spec.repair, spec.prune.calibration
    windows = min(micro_batch or repair.micro_batch, repair.batch_tokens // repair.sequence_tokens)
    if phase in {Phase.LOADING, Phase.EXPORTING}:
        # The lengths of sequences do not matter here. The loader of GGUF files holds the weights twice.
        is_gguf = phase is Phase.EXPORTING and any(each.is_gguf for each in spec.output.formats)
        way_out = "Leave the GGUF formats out of output.formats" if is_gguf else "Use a smaller model"
        return f"The job was {phase} the model. {way_out}, or run the job on a larger device."
    if phase is Phase.WRITING and repair.retain is Retain.DATASET:
        return (
            f"The dense model read the text to retain, in sequences of {repair.sequence_tokens} tokens. Set"
            f" repair.sequence_tokens to {max(2, repair.sequence_tokens // 2)}, or run the job on a larger device."
        )
    if phase is Phase.WRITING:
        return (
            "The dense model wrote the text to retain. Set repair.retain to none, which makes the model worse on text"
            " of other kinds, or run the job on a larger device."
        )
    if phase is not Phase.TRAINING and "pruned" not in spec.scored:
        return (
            f"The job used sequences of {spec.evaluate.tokens} tokens for evaluation. Set evaluate.tokens to"
            f" {max(2, spec.evaluate.tokens // 2)}, or run the job on a larger device."
        )
    if phase is not Phase.TRAINING:
        return (
            f"The job used sequences of {calibration.tokens} tokens for calibration and of {spec.evaluate.tokens}"
            f" tokens for evaluation. Set prune.calibration.tokens to {max(2, calibration.tokens // 2)} and"
            f" evaluate.tokens to {max(2, spec.evaluate.tokens // 2)}, or run the job on a larger device."
        )
    fewer = windows // 2 // spec.devices * spec.devices
    if fewer and spec.trains_all:
        option = f"repair.batch_tokens to {fewer * repair.sequence_tokens}"
    elif fewer:
        option = f"repair.micro_batch to {fewer}"
    else:
        option = f"repair.sequence_tokens to {repair.sequence_tokens // 2}"
    return (
        f"Training had {windows // spec.devices} sequences of {repair.sequence_tokens} tokens on a device at a time."
        f" Set {option}, which needs about half the memory, or run the job on a larger device."
    )
