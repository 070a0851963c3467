"""Requests and responses about API keys and the audit log."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from api.schemas.shared import JOB_ID, TIME, RowView, example
from core.access.keys import Scope
from core.request_fields import Spec, StorableText

TenantScope = Literal["read", "write", "admin"]
"""Scopes of the keys that a tenant can create. Only the operator can create a key of scope `metrics`."""


class KeyRequest(Spec):
    """A key to create."""

    model_config = example({"name": "nightly jobs", "scope": "write"})

    name: StorableText = Field(min_length=1, max_length=255, description="Who or what will use the key.")
    scope: TenantScope = Field(
        default="write",
        description="`read` may read, `write` may also create and change, `admin` may also manage keys, hub token and"
        " audit log. The operator creates keys of scope `metrics`.",
    )


_KEY = {
    "id": "key_01jz5h4c8m2v9q7w3t6x0y1b2d",
    "name": "nightly jobs",
    "scope": "write",
    "created_at": TIME,
    "last_used_at": None,
    "revoked_at": None,
}


class KeyView(RowView):
    """An API key without its secret."""

    model_config = example(_KEY)

    id: str
    name: str
    scope: Scope
    created_at: datetime
    last_used_at: datetime | None = Field(description="Time of the last use, accurate to one minute.")
    revoked_at: datetime | None


class KeySecret(KeyView):
    """A new API key with its secret."""

    model_config = example({**_KEY, "secret": "seft_…"})

    secret: str = Field(
        description="Secret to send as `Authorization: Bearer …`. Shown only once, because only its hash is stored."
    )


class KeyPage(BaseModel):
    """Keys, newest first. For the next page, send the last id as `after`."""

    model_config = example({"data": [_KEY], "has_more": False})

    data: list[KeyView]
    has_more: bool


class AuditView(RowView):
    """An entry of the audit log: one change."""

    id: int
    key_id: str = Field(
        description="Id of the API key that was used, or `retention` if the service deleted an expired dataset."
    )
    request_id: str = Field(description="Request id, as in the response header `X-Request-Id` and in the log.")
    action: str = Field(description="Name of the operation, such as `create_job`.")
    target: str = Field(description="Id of what was created, changed or deleted.")
    created_at: datetime


class AuditPage(BaseModel):
    """Audit entries, newest first. For the next page, send the last id as `after`."""

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
