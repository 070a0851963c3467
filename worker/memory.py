"""Memory that did not do: how a kill by the kernel is told from others, and what would have fitted.

A smaller micro-batch with more accumulation is the same optimisation in less memory, so it is tried before the user is
told to ask for less.
"""

from pathlib import Path

from core.specs import JobSpec
from core.states import Phase

SMALLEST = 1
VMSTAT = Path("/proc/vmstat")


def kills() -> int:
    """Processes that the kernel has ended for want of memory since the machine started."""
    counts = dict(line.split() for line in VMSTAT.read_text().splitlines())
    return int(counts.get("oom_kill", 0))


def smaller_micro_batch(spec: JobSpec, phase: Phase | None, *, by_kernel: bool) -> int | None:
    """The micro-batch to try once more with; None where another try would be like this one.

    A machine's memory is shared: what the kernel ended may fit the next time even when it takes no less.
    """
    if by_kernel or (phase is Phase.TRAINING and spec.repair.micro_batch > SMALLEST):
        return SMALLEST
    return None


def advice(spec: JobSpec, phase: Phase | None, micro_batch: int | None) -> str:
    """What to ask for instead; `micro_batch` is what the attempt had in the place of the request's."""
    repair, calibration = spec.repair, spec.prune.calibration
    held = micro_batch or repair.micro_batch
    if phase is not Phase.TRAINING:
        return (
            f"It looked at windows of {calibration.tokens} tokens for pruning and {spec.evaluate.tokens} for judging."
            f" Ask for prune.calibration.tokens {max(2, calibration.tokens // 2)} and evaluate.tokens"
            f" {max(2, spec.evaluate.tokens // 2)}, or run it on a larger device."
        )
    less = f"repair.micro_batch {held // 2}" if held > 1 else f"repair.sequence_tokens {repair.sequence_tokens // 2}"
    return (
        f"It held {held} x {repair.sequence_tokens} tokens of each step's {repair.batch_tokens} at a time."
        f" Ask for {less}, which takes about half, or run it on a larger device."
    )
