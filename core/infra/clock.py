"""Sign S3 requests with the clock of the storage, because this machine's clock may be wrong.

S3 rejects a request if its time is wrong by more than 15 minutes. The rejection contains the time of the storage in
the header `Date`. The request and all later ones are then signed with that time. Links are always signed with
this machine's time.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from botocore.auth import AUTH_TYPE_MAPS, SIGV4_TIMESTAMP, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from typing_extensions import override

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

TOLERANCE = timedelta(minutes=5)
"""Difference of the clocks that every storage accepts."""
OFFSET = "seft-clock-offset"


class Clock:
    """The difference between the clock of the storage and the clock of this machine, for one client."""

    def __init__(self, client: "S3Client") -> None:
        AUTH_TYPE_MAPS["s3v4"] = Signer
        client.meta.events.register("before-sign.s3", self._pass_offset)
        client.meta.events.register("needs-retry.s3", self._learn_offset)  # type: ignore[arg-type] # its result is used
        self.offset = timedelta()

    def _pass_offset(self, request: AWSRequest, **_: Any) -> None:
        request.context[OFFSET] = self.offset

    def _learn_offset(self, response: Any, **_: Any) -> int | None:
        """If the storage rejected the request because of its time, store the difference of the clocks.

        Returns the seconds to wait before a retry. Returns None for any other response.
        """
        if response is None or response[0].status_code != 403 or "date" not in response[0].headers:
            return None
        offset = parsedate_to_datetime(response[0].headers["date"]) - datetime.now(UTC)
        if abs(offset - self.offset) < TOLERANCE:
            return None
        self.offset = offset
        return 0


class Signer(S3SigV4Auth):
    """Signs a request with the time of this machine plus the difference in the request's `Clock`."""

    @override
    def canonical_request(self, request: AWSRequest) -> str:
        local = datetime.strptime(request.context["timestamp"], SIGV4_TIMESTAMP)  # noqa: DTZ007
        corrected = (local + request.context.get(OFFSET, timedelta())).strftime(SIGV4_TIMESTAMP)
        request.context["timestamp"] = corrected
        del request.headers["X-Amz-Date"]
        request.headers["X-Amz-Date"] = corrected
        return super().canonical_request(request)
