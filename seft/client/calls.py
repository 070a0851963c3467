"""The calls that operations are made of: send a request with retries, read its JSON, and read all pages of a list."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from seft.client.errors import ApiProblem, Unreachable
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


def answer(reply: Reply) -> Json:
    """Return the JSON of a successful reply. Raises ApiProblem if the reply is not successful."""
    if not reply.is_success:
        raise ApiProblem.read(reply)
    try:
        content = json.loads(reply.content)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise Unreachable(
            f"{reply.url} did not answer with a JSON object. Check that SEFT_URL is the address of the service."
        )
    return content
