"""Signing by the storage's clock: S3 refuses a request whose time is a quarter of an hour off, as a host's may be.

What time it is there, the refusal itself says; the same request is signed anew with it, and all later ones.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from botocore.auth import AUTH_TYPE_MAPS, SIGV4_TIMESTAMP, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from typing_extensions import override

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NEAR = timedelta(minutes=5)
"""No storage refuses a time that is off by less."""
AHEAD = "seft-ahead"


class Clock:
    """How far a client's storage is ahead of this host."""

    def __init__(self, client: "S3Client") -> None:
        AUTH_TYPE_MAPS["s3v4"] = Signer
        client.meta.events.register("before-sign.s3", self._tell)
        client.meta.events.register("needs-retry.s3", self._learn)  # type: ignore[arg-type] # its answer counts
        self.ahead = timedelta()

    def _tell(self, request: AWSRequest, **_: Any) -> None:
        request.context[AHEAD] = self.ahead

    def _learn(self, response: Any, **_: Any) -> int | None:
        """Seconds after which to try again, where it was refused and the time was wrong."""
        if response is None or response[0].status_code != 403 or "date" not in response[0].headers:
            return None
        ahead = parsedate_to_datetime(response[0].headers["date"]) - datetime.now(UTC)
        if abs(ahead - self.ahead) < NEAR:
            return None
        self.ahead = ahead
        return 0


class Signer(S3SigV4Auth):
    """Signs with the time that the request's `Clock` tells."""

    @override
    def canonical_request(self, request: AWSRequest) -> str:
        local = datetime.strptime(request.context["timestamp"], SIGV4_TIMESTAMP)  # noqa: DTZ007
        there = (local + request.context.get(AHEAD, timedelta())).strftime(SIGV4_TIMESTAMP)
        request.context["timestamp"] = there
        del request.headers["X-Amz-Date"]
        request.headers["X-Amz-Date"] = there
        return super().canonical_request(request)
