"""The calls that operations are made of: send a request with retries, read its JSON, and read all pages of a list."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import quote

from seft.client.errors import ApiProblem, ClientError, MissingField, Unreachable
from seft.client.responses import Json
from seft.client.retries import tried
from seft.client.steps import Flow, Reply, Request, Row, Send, Steps


class Calls:
    """Base class of the operations. `pauses` are the seconds between retries."""

    pauses: Sequence[float]

    def _tried(self, request: Request) -> Steps[Reply]:
        return tried(Send(request), self.pauses)

    def _call(self, request: Request) -> Steps[Json]:
        return answer((yield from self._tried(request)))

    def _call_once(self, request: Request) -> Steps[Json]:
        """Send a request without retries. If only the reply was lost, a retry would create or send something twice."""
        return answer((yield from tried(Send(request), ())))

    def _delete(self, path: str) -> Steps[Json]:
        """Delete an object. Returns its last state.

        If the reply is lost, the retry does not find the object: then the deletion has succeeded.
        """
        last = yield from self._get(path)
        try:
            return (yield from self._call(Request("DELETE", path)))
        except ApiProblem as problem:
            if problem.code != "not_found":
                raise
            return last

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> Steps[Json]:
        return (yield from self._call(Request("GET", path, query=query or {})))

    def _pages(self, path: str, cursor: str, query: Mapping[str, Any], *, whole: bool = False) -> Flow[Any]:
        """Yield all rows of a paged route, or the `whole` pages.

        `next` of a page, or `cursor` of its last row, selects the next page.
        """
        name = "after" if cursor == "id" else f"after_{cursor}"
        page = yield from self._get(path, query)
        yield from map(Row, [page] if whole else page["data"])
        while page["has_more"]:
            page = yield from self._get(path, {**query, name: page.get("next") or page["data"][-1][cursor]})
            yield from map(Row, [page] if whole else page["data"])


def path_of(*segments: str, safe: str = "") -> str:
    """Return the path of a request. Each segment is quoted, except for the `safe` characters.

    Raises ClientError for an id with which the path would be the one of another request.
    """
    for segment in segments:
        if not segment or {".", ".."} & {*segment.split("/")} or re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", segment):
            raise ClientError(
                "The request cannot be sent: an id must not be empty, have control characters, or have the parts"
                f" '.' or '..'; it is {segment!r}. Copy the id from a list of the service."
            )
    return "".join(f"/{quote(segment, safe=safe)}" for segment in segments)


def answer(reply: Reply) -> Json:
    """Return the JSON of a successful reply. Raises ApiProblem if the reply is not successful."""
    if not reply.is_success:
        raise ApiProblem.read(reply)
    try:
        content = json.loads(reply.content, object_hook=lambda fields: _Answer(fields, reply.url))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise Unreachable(
            f"{reply.url} did not answer with a JSON object. Check that SEFT_URL is the address of the service."
        )
    return content


class _Answer(dict[str, Any]):
    """JSON object of an answer. To read a missing field raises MissingField."""

    def __init__(self, fields: Json, url: str) -> None:
        super().__init__(fields)
        self.url = url

    def __missing__(self, name: str) -> NoReturn:
        raise MissingField(
            f"{self.url} answered without the field {name!r}. Check that SEFT_URL is the address of the service, and"
            " that client and service have the same version."
        )
