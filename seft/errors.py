"""The one family of errors that this library raises.

Each has a stable `code` for programs and a message for people that names the rule, the value seen and the way out.
"""


class SeftError(Exception):
    """Base of all errors of this library."""

    code = "seft_error"


class ConfigError(SeftError):
    """A setting is out of its range or contradicts another one."""

    code = "invalid_config"

    def __init__(self, field: str, rule: str, value: object, way_out: str) -> None:
        super().__init__(f"{field} {rule}; it is {value!r}. {way_out}")
        self.field = field


class SourceError(SeftError):
    """A model reference names nothing that may be loaded. `code` tells which rule it broke."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RecordError(SeftError):
    """One line of a dataset breaks a rule. `line` counts from 1."""

    code = "invalid_record"

    def __init__(self, line: int, rule: str, value: str, way_out: str) -> None:
        super().__init__(f"line {line}: {rule}; it is {value}. {way_out}")
        self.line, self.rule, self.value, self.way_out = line, rule, value, way_out


class FileError(SeftError):
    """A dataset's file cannot be unpacked, or holds more than it may."""

    code = "invalid_file"

    def __init__(self, rule: str, value: str, way_out: str) -> None:
        super().__init__(f"the file {rule}; it is {value}. {way_out}")
        self.rule, self.value, self.way_out = rule, value, way_out


class DataError(SeftError):
    """There is not enough text for what was asked."""

    code = "not_enough_text"


class PruneError(SeftError):
    """The statistics do not let this pruner go on: a Hessian without a factor, an activation that is not finite."""

    code = "prune_failed"


class TrainError(SeftError):
    """Training left the finite numbers, or a law of the method was about to be broken."""

    code = "train_failed"


class EvaluateError(SeftError):
    """A model's losses are not finite, so it cannot be judged."""

    code = "evaluate_failed"


class StateError(SeftError):
    """A resumable state does not belong to this model and configuration."""

    code = "state_mismatch"


class VerifyError(SeftError):
    """An exported checkpoint, read again in a clean process, is not what was written."""

    code = "verify_failed"


class Cancelled(Exception):  # noqa: N818 (no error: the caller asked for it)
    """Raised by a reporter to end the work; it passes through this library untouched."""
