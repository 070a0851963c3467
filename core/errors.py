"""Errors that users can cause or see. Each has a stable code. Only `api` knows HTTP status codes."""

from dataclasses import astuple, dataclass
from enum import StrEnum

from seft.storable import printable


class Code(StrEnum):
    """Stable error codes for programs. A code is never renamed, and its meaning never changes."""

    INVALID_REQUEST = "invalid_request"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    RATE_LIMITED = "rate_limited"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    INVALID_DATASET = "invalid_dataset"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_REFUSED = "model_refused"
    HUB_UNREACHABLE = "hub_unreachable"
    HUB_BUSY = "hub_busy"
    BUSY = "busy"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    IDEMPOTENCY_IN_FLIGHT = "idempotency_in_flight"
    CONFLICT = "conflict"
    LIMIT_REACHED = "limit_reached"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal_error"


@dataclass(frozen=True, slots=True)
class Flaw:
    """One broken rule: the field or line, the rule, the value received, and how to correct it."""

    param: str
    rule: str
    value: str
    way_out: str


class ProblemError(Exception):
    """A request is rejected. Contains the reason for the sender of the request.

    If `retry_after` is set, the sender may retry after that many seconds. All texts can be sent and
    stored: characters of a quoted file or name for which this is impossible are replaced.
    """

    def __init__(
        self, code: Code, message: str, flaws: tuple[Flaw, ...] = (), *, retry_after: int | None = None
    ) -> None:
        super().__init__(message := printable(message))
        self.flaws = tuple(Flaw(*map(printable, astuple(flaw))) for flaw in flaws)
        self.code, self.message, self.retry_after = code, message, retry_after


class LeaseLostError(Exception):
    """The attempt is no longer the running one, so it must not write.

    The job has ended, or another attempt may be running it.
    """
