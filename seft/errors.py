"""All errors of this library.

Each has a stable `code` for programs, and a message for people that names the rule, the value and the way out.
"""


class SeftError(Exception):
    """Base class of all errors of this library."""

    code = "seft_error"


class ConfigError(SeftError):
    """A setting is out of range or contradicts another setting."""

    code = "invalid_config"

    def __init__(self, field: str, rule: str, value: object, way_out: str, *, lead: str = "it is") -> None:
        """Build the message. `lead` are the words before the value."""
        shown = "it is not given" if value is None else f"{lead} {value!r}"
        super().__init__(f"{field} {rule}; {shown}. {way_out}")
        self.field = field


class SourceError(SeftError):
    """A model reference names no model that may be loaded. `code` identifies the broken rule."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RecordError(SeftError):
    """A line of a dataset breaks a rule. `line` counts from 1."""

    code = "invalid_record"

    def __init__(self, line: int, rule: str, value: str, way_out: str) -> None:
        super().__init__(f"line {line}: {rule}; it is {value}. {way_out}")
        self.line, self.rule, self.value, self.way_out = line, rule, value, way_out


class FileError(SeftError):
    """A dataset file cannot be unpacked or is too large."""

    code = "invalid_file"

    def __init__(self, rule: str, value: str, way_out: str) -> None:
        super().__init__(f"the file {rule}; it is {value}. {way_out}")
        self.rule, self.value, self.way_out = rule, value, way_out


class DataError(SeftError):
    """There is not enough text for the requested windows."""

    code = "not_enough_text"


class PruneError(SeftError):
    """The pruner cannot use its statistics: a Hessian has no factorization, or an activation is not finite."""

    code = "prune_failed"


class TrainError(SeftError):
    """A loss or gradient is not finite, or the next step would break an invariant of the method."""

    code = "train_failed"


class EvaluateError(SeftError):
    """The losses of a model are not finite, so it cannot be evaluated."""

    code = "evaluate_failed"


class StateError(SeftError):
    """A resumable state does not belong to this model and configuration."""

    code = "state_mismatch"


class VerifyError(SeftError):
    """An exported checkpoint failed the verification in a separate process."""

    code = "verify_failed"


class Cancelled(Exception):  # noqa: N818 (not an error: the caller requested it)
    """Raised by a reporter to stop the work. The library does not catch it."""
