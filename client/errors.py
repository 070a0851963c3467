"""What can go wrong for a caller."""

from dataclasses import dataclass
from typing import Self

import httpx2


class ClientError(Exception):
    """The call could not be made, or what came back is not to be trusted."""


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
        return f"{self.param}: {self.rule}; it is {self.value}. {self.way_out}"


class ApiProblem(ClientError):  # noqa: N818 (RFC 9457's word)
    """A refusal by the service (`application/problem+json`)."""

    def __init__(self, status: int, code: str, message: str, flaws: tuple[Flaw, ...], request_id: str | None) -> None:
        super().__init__("\n".join([f"{code}: {message}", *(f"  {flaw}" for flaw in flaws)]))
        self.status, self.code, self.message, self.flaws, self.request_id = status, code, message, flaws, request_id

    @classmethod
    def read(cls, response: httpx2.Response) -> Self:
        """From a response that is no success, even one that a proxy wrote."""
        try:
            body = response.json()
        except ValueError:
            body = {}
        if not isinstance(body, dict):
            body = {}
        flaws = tuple(Flaw(*(str(flaw.get(name, "")) for name in Flaw.__slots__)) for flaw in body.get("errors", []))
        message = body.get("detail") or f"HTTP {response.status_code} from {response.request.url}"
        return cls(response.status_code, body.get("code", "unknown"), message, flaws, body.get("request_id"))
