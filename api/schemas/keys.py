"""What the API takes and answers about keys, and about what was done with them."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from api.schemas.shared import JOB_ID, TIME, example
from core.access.keys import Scope
from core.specs import Spec, StorableText
from core.tables import ApiKey, AuditEntry


class KeyRequest(Spec):
    """A key to be made."""

    model_config = example({"name": "nightly jobs", "scope": "write"})

    name: StorableText = Field(min_length=1, max_length=255, description="Who or what will use it.")
    scope: Scope = Field(
        default=Scope.WRITE,
        description="`read` sees, `write` also makes and changes, `admin` also has keys and audit;"
        " `metrics` has `GET /metrics` and nothing else.",
    )


_KEY = {
    "id": "key_01jz5h4c8m2v9q7w3t6x0y1b2d",
    "name": "nightly jobs",
    "scope": "write",
    "created_at": TIME,
    "last_used_at": None,
    "revoked_at": None,
}


class KeyView(BaseModel):
    """An API key without its secret."""

    model_config = example(_KEY)

    id: str
    name: str
    scope: Scope
    created_at: datetime
    last_used_at: datetime | None = Field(description="To within a minute.")
    revoked_at: datetime | None

    @classmethod
    def of(cls, row: ApiKey, **more: Any) -> Self:
        """The view of a row, and what the row does not know."""
        return cls.model_validate({name: getattr(row, name) for name in KeyView.model_fields} | more)


class KeySecret(KeyView):
    """A new API key."""

    model_config = example({**_KEY, "secret": "seft_…"})

    secret: str = Field(description="Send it as `Authorization: Bearer …`. It is shown this once and kept nowhere.")


class KeyPage(BaseModel):
    """Keys, newest first. The next page is `after` the last one's id."""

    model_config = example({"data": [_KEY], "has_more": False})

    data: list[KeyView]
    has_more: bool


class AuditView(BaseModel):
    """A change that somebody made."""

    id: int
    key_id: str = Field(description="The key that the request came with.")
    request_id: str = Field(description="As in the answer's `X-Request-Id`, and in the log.")
    action: str = Field(description="Name of the operation, such as `create_job`.")
    target: str = Field(description="Id of what was made or changed.")
    created_at: datetime

    @classmethod
    def of(cls, row: AuditEntry) -> Self:
        """The view of a row."""
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})


class AuditPage(BaseModel):
    """Changes, newest first. The next page is `after` the last one's id."""

    model_config = example(
        {
            "data": [
                {
                    "id": 42,
                    "key_id": _KEY["id"],
                    "request_id": "req_01jz5h4c8m2v9q7w3t6x0y1b2d",
                    "action": "cancel_job",
                    "target": JOB_ID,
                    "created_at": TIME,
                }
            ],
            "has_more": False,
        }
    )

    data: list[AuditView]
    has_more: bool
