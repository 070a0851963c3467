"""The errors that the client raises."""

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from seft.client.steps import Reply


class ClientError(Exception):
    """Base class of all errors of the client."""


class SetupError(ClientError):
    """The address or the key of the service is missing or invalid."""


class Unreachable(ClientError):  # noqa: N818 (it states what the service is)
    """The service did not respond, the connection broke, or another server responded."""


class MissingField(Unreachable, KeyError):  # noqa: N818 (it states what the answer is)
    """An answer lacks a field: another server or another version of the service sent it."""

    __str__ = Exception.__str__  # a KeyError would quote the message


class IntegrityError(ClientError):
    """A downloaded file differs from the published file."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing that is wrong with a request: the field, the rule that it breaks, the value, and how to fix it."""

    param: str
    rule: str
    value: str
    way_out: str

    @classmethod
    def read(cls, fields: object) -> tuple[Self, ...]:
        """Return the flaws in a JSON value. Ignores fields of a newer service, and values that are no flaws."""
        found = [each for each in fields if isinstance(each, dict)] if isinstance(fields, list) else []
        return tuple(cls(*(str(flaw.get(name, "")) for name in cls.__slots__)) for flaw in found)

    def __str__(self) -> str:
        # A rule that is a full sentence already names the value.
        rule = self.rule if self.rule.endswith(".") else f"{self.rule}; it is {self.value}."
        return f"{self.param}: {rule} {self.way_out}"


class ApiProblem(ClientError):  # noqa: N818 (RFC 9457's word)
    """The service rejected a request (`application/problem+json`)."""

    def __init__(
        self, status: int, code: str, message: str, flaws: tuple[Flaw, ...], request_id: str | None, *, title: str = ""
    ) -> None:
        # The message may only repeat the rules of the flaws. Then the title is enough.
        head = title if title and flaws and all(flaw.rule in message for flaw in flaws) else message
        super().__init__("\n".join([f"{code}: {head}", *(f"  {flaw}" for flaw in flaws)]))
        self.status, self.code, self.message, self.flaws, self.request_id = status, code, message, flaws, request_id

    @classmethod
    def read(cls, reply: "Reply") -> Self:
        """Return the error for a failed reply, even if a proxy or another server wrote the reply."""
        try:
            body = json.loads(reply.content) if reply.is_problem else {}
        except ValueError:
            body = {}
        if not isinstance(body, dict):
            body = {}
        flaws = Flaw.read(body.get("errors"))
        unknown = f"HTTP {reply.status} from {reply.url}, which is not an answer of the service. Check the address."
        code, message = body.get("code", "unknown"), body.get("detail") or unknown
        return cls(reply.status, code, message, flaws, body.get("request_id"), title=body.get("title", ""))


def storage_rejection(reply: "Reply") -> str:
    """Return how the object storage rejected a request: its host, the HTTP status, and the code of its XML error."""
    code = re.search(rb"<Code>(\w{1,64})</Code>", reply.content)
    return f"{reply.url} answered HTTP {reply.status}{f' {code[1].decode()}' if code else ''}."
