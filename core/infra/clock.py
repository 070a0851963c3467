"""Sign requests with the storage's clock. S3 rejects a request if the host's clock is more than 15 minutes off.

The `Date` header of the rejection gives the storage's time. The request is signed again with that time, as are all
later ones.
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
"""Clock difference that every storage accepts."""
OFFSET = "seft-clock-offset"


class Clock:
    """The difference between the clock of a client's storage and the clock of this host."""

    def __init__(self, client: "S3Client") -> None:
        AUTH_TYPE_MAPS["s3v4"] = Signer
        client.meta.events.register("before-sign.s3", self._pass_offset)
        client.meta.events.register("needs-retry.s3", self._learn_offset)  # type: ignore[arg-type] # its result is used
        self.offset = timedelta()

    def _pass_offset(self, request: AWSRequest, **_: Any) -> None:
        request.context[OFFSET] = self.offset

    def _learn_offset(self, response: Any, **_: Any) -> int | None:
        """Return the seconds to wait before a retry if the request was rejected because of its time, else None."""
        if response is None or response[0].status_code != 403 or "date" not in response[0].headers:
            return None
        offset = parsedate_to_datetime(response[0].headers["date"]) - datetime.now(UTC)
        if abs(offset - self.offset) < TOLERANCE:
            return None
        self.offset = offset
        return 0


class Signer(S3SigV4Auth):
    """Signs with the host's time plus the offset of the request's `Clock`."""

    @override
    def canonical_request(self, request: AWSRequest) -> str:
        local = datetime.strptime(request.context["timestamp"], SIGV4_TIMESTAMP)  # noqa: DTZ007
        corrected = (local + request.context.get(OFFSET, timedelta())).strftime(SIGV4_TIMESTAMP)
        request.context["timestamp"] = corrected
        del request.headers["X-Amz-Date"]
        request.headers["X-Amz-Date"] = corrected
        return super().canonical_request(request)
