"""What can go wrong for a caller."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from seft.client.steps import Reply


class ClientError(Exception):
    """The call could not be made, or what came back is not to be trusted."""


class SetupError(ClientError):
    """The address or the key of the service is missing, or cannot be one."""


class Unreachable(ClientError):  # noqa: N818 (it says what the service is)
    """Nobody answered, the connection broke, or somebody else answered."""


class IntegrityError(ClientError):
    """A downloaded file is not the one that was published."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing that is wrong with a request: the field, the rule, the value seen, the way out."""

    param: str
    rule: str
    value: str
    way_out: str

    def __str__(self) -> str:
        # A whole sentence has told the value already.
        told = self.rule if self.rule.endswith(".") else f"{self.rule}; it is {self.value}."
        return f"{self.param}: {told} {self.way_out}"


class ApiProblem(ClientError):  # noqa: N818 (RFC 9457's word)
    """A refusal by the service (`application/problem+json`)."""

    def __init__(
        self, status: int, code: str, message: str, flaws: tuple[Flaw, ...], request_id: str | None, *, title: str = ""
    ) -> None:
        # What the flaws say again, in more words, is said once.
        head = title if title and flaws and all(flaw.rule in message for flaw in flaws) else message
        super().__init__("\n".join([f"{code}: {head}", *(f"  {flaw}" for flaw in flaws)]))
        self.status, self.code, self.message, self.flaws, self.request_id = status, code, message, flaws, request_id

    @classmethod
    def read(cls, reply: "Reply") -> Self:
        """From a reply that is no success, even one that a proxy or another server wrote."""
        try:
            body = json.loads(reply.content)
        except ValueError:
            body = {}
        if not isinstance(body, dict):
            body = {}
        flaws = tuple(Flaw(*(str(flaw.get(name, "")) for name in Flaw.__slots__)) for flaw in body.get("errors", []))
        stranger = f"HTTP {reply.status} from {reply.url}, and not in the service's words. Is that its address?"
        code, message = body.get("code", "unknown"), body.get("detail") or stranger
        return cls(reply.status, code, message, flaws, body.get("request_id"), title=body.get("title", ""))
