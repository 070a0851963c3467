"""All errors of this library.

Each has a stable `code` for programs, and a message for people that says what must hold, what was given and what to do.
"""

import errno
import sys

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors of a disk without space, and of a user who may use no more of it."""
NO_HOST_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""Part of the message of torch if the machine has no memory for a tensor. torch has no class of its own for this."""
NO_DEVICE_MEMORY = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",  # NCCL
)
"""Parts of the messages if a device has no memory for something other than a tensor, such as a kernel."""


def is_host_memory_full(error: BaseException) -> bool:
    """Return whether an error means that the machine ran out of memory."""
    return isinstance(error, MemoryError) or NO_HOST_MEMORY in str(error)


def is_device_memory_full(error: BaseException) -> bool:
    """Return whether an error means that a device ran out of memory. Imports no torch."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in NO_DEVICE_MEMORY)


class SeftError(Exception):
    """Base class of all errors of this library. `seft.exit_codes` has the exit codes of a command that fails."""

    code = "seft_error"


class ConfigError(SeftError):
    """A setting is out of range or contradicts another setting."""

    code = "invalid_config"

    def __init__(self, field: str, rule: str, value: object, way_out: str, *, lead: str = "it is") -> None:
        """Build the message. `lead` is the text directly before the rejected value, as `it gives` in `it gives 12`."""
        shown = "it is not given" if value is None else f"{lead} {value!r}"
        super().__init__(f"{field} {rule}; {shown}. {way_out}")
        self.field, self.rule, self.value, self.way_out, self.lead = field, rule, value, way_out, lead


class SourceError(SeftError):
    """A model reference names no model that may be loaded. `code` tells which rule it breaks."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RecordError(SeftError):
    """A line of a dataset breaks a rule. `line` counts from 1. `file` is the name of the file, if it is known."""

    code = "invalid_record"

    def __init__(self, line: int, rule: str, value: str, way_out: str, file: str = "") -> None:
        super().__init__(f"{place(line, file)}: {rule}; it is {value}. {way_out}")
        self.line, self.rule, self.value, self.way_out = line, rule, value, way_out


def place(line: int, file: str = "") -> str:
    """Return where a record is, for people. `file` is the name of its file, if it is known."""
    return f"line {line} of {file}" if file else f"line {line}"


class FileError(SeftError):
    """A dataset file cannot be read, is too large or has too few records."""

    code = "invalid_file"

    def __init__(self, rule: str, value: str, way_out: str) -> None:
        super().__init__(f"the file {rule}; it is {value}. {way_out}")
        self.rule, self.value, self.way_out = rule, value, way_out


class DataError(SeftError):
    """The text is too short to fill the requested windows (sequences of tokens)."""

    code = "not_enough_text"


class PruneError(SeftError):
    """The statistics of a linear's inputs cannot be used: a Hessian has no factorization, or a value is not finite."""

    code = "prune_failed"


class TrainError(SeftError):
    """A loss or gradient is not finite, or the next step would break a rule of the repair method."""

    code = "train_failed"


class EvaluateError(SeftError):
    """A model cannot be evaluated: its losses are not finite, or the data of a task is unavailable."""

    code = "evaluate_failed"


class AccelerateError(SeftError):
    """A model or an input does not fit the runtime."""

    code = "accelerate_failed"


class StateError(SeftError):
    """A saved state does not belong to this model and these settings."""

    code = "state_mismatch"


class VerifyError(SeftError):
    """An exported checkpoint failed its verification."""

    code = "verify_failed"


class RecordFileError(VerifyError):
    """The `sparsity.json` of a checkpoint is missing, is damaged, or has another version."""


class VerifierKilledError(VerifyError):
    """The process that verifies an exported checkpoint was killed, for example because the memory was full."""

    code = "verifier_killed"


class ReproduceError(SeftError):
    """A recipe cannot be run again: its record is incomplete, or an input is missing or has another SHA-256."""

    code = "not_reproducible"


class BitsDifferError(SeftError):
    """A recipe was run again, and its result has other bits than the recorded one."""

    code = "bits_differ"


class ContainerError(SeftError):
    """A compact container is damaged, is another file, or exceeds a limit of the format."""

    code = "invalid_container"


class Cancelled(Exception):  # noqa: N818 (not an error: the caller requested it)
    """Raised by a reporter to stop the work. The library does not catch it."""
