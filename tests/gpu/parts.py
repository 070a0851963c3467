"""The parts of `make gpu`. Their limits are less than 25 minutes together."""

from dataclasses import dataclass

TESTS = ("tests/gpu/test_card.py", "tests/seft/repair/test_cuda.py", "tests/seft/runtime/test_cuda.py")
STEP = ("benchmarks.step", "--device", "{device}", "--dtype", "bfloat16", "--out", "{out}", "--sides")
PRUNING = ("benchmarks.pruning", "--device", "{device}", "--dtype", "bfloat16", "--out", "{out}")
SERVICE = ("tests.gpu.service", "--out", "{out}")


@dataclass(frozen=True, slots=True)
class Part:
    """A module with its arguments, for a card and for a machine without one, and its time limit in seconds."""

    seconds: int
    full: tuple[str, ...]
    small: tuple[str, ...] | None
    """None if the part makes no sense at a small size."""
    takes_model: bool = False
    card_bytes: int = 0
    """Memory that the card must have. With less, the part is skipped."""


PARTS = {
    "tests": Part(300, ("pytest", "-rs", "-p", "no:cacheprovider", *TESTS), None),
    "step 1.1B": Part(
        180,
        (*STEP, "floor", "seft", "masked_lora", "all", "--model", "random:1.1B"),
        (*STEP, "floor", "all", "--model", "random:tiny", "--shapes", "2x32", "--rounds", "1"),
    ),
    "pruning 1.1B": Part(
        180,
        (*PRUNING, "--model", "random:1.1B", "--rounds", "3", "wanda 60%", "sparsegpt 60%", "alps 60%", "admm 60%"),
        (*PRUNING, "--model", "random:tiny", "--rounds", "1", "--windows", "2", "admm 60%"),
    ),
    # Three sides fit into 80 GB together: each has the 13.5 GB of the model, and up to 10 GB of its own.
    "step 7B": Part(
        240, (*STEP, "floor", "seft", "all", "--model", "random:7B", "--checkpointing"), None, card_bytes=72 * 10**9
    ),
    "pruning 7B": Part(
        180,
        (*PRUNING, "--model", "random:7B", "--rounds", "2", "wanda 60%", "sparsegpt 60%", "admm 60%"),
        None,
        card_bytes=30 * 10**9,
    ),
    "service": Part(240, SERVICE, (*SERVICE, "--small"), takes_model=True),
}
ENVIRONMENT_SECONDS = 150
"""Limit of the part that comes before these: `tests.gpu.environment`."""
