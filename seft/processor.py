"""The instructions of this machine's processor. Torch is not needed."""

from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags of a processor that multiplies in bfloat16. `bf16` is the flag of ARM.

Without such instructions, bfloat16 is slower than float32 (docs/log.md).
"""


def has_bfloat16() -> bool:
    """Return whether the processor has instructions for bfloat16."""
    return bool(BFLOAT16_FLAGS.intersection(_value("flags").split() + _value("Features").split()))


def name() -> str:
    """Return the model of the processor. Empty if it is unknown."""
    return _value("model name")


def _value(field: str) -> str:
    """Return the value of a field for the first core. Empty if there is no such field, or if this is not Linux."""
    text = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == field), "")
