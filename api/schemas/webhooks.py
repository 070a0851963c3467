"""Requests and responses about webhooks."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, JsonValue
from pydantic_core import PydanticCustomError

from api.schemas.shared import JOB_ID, TIME, RowView, example
from core.request_fields import Spec
from core.states import STATUS_EVENT_PREFIX, Transition
from core.webhooks import DeliveryState

HOOK_ID = "hook_01jz5h4c8m2v9q7w3t6x0y1b2d"
MESSAGE_ID = "msg_01jz5h4c8m2v9q7w3t6x0y1b2d"
EVENTS = [f"{STATUS_EVENT_PREFIX}{change}" for change in Transition]


def _known_event(value: str) -> str:
    if value not in EVENTS:
        expected = f"{', '.join(map(repr, EVENTS[:-1]))} or {EVENTS[-1]!r}"
        raise PydanticCustomError("enum", "Input should be {expected}", {"expected": expected})
    return value


EventType = Annotated[str, AfterValidator(_known_event), Field(json_schema_extra={"enum": list[JsonValue](EVENTS)})]


class WebhookRequest(Spec):
    """A webhook to create."""

    model_config = example({"url": "https://example.com/seft", "events": ["job.succeeded", "job.failed"]})

    url: str = Field(
        pattern=r"^https?://[!-~]+$", max_length=2048, description="URL that receives events by POST; http or https."
    )
    events: list[EventType] = Field(
        default_factory=list,
        max_length=len(Transition),
        description="Types of events to send. An empty list sends all of them.",
    )


_HOOK = {
    "id": HOOK_ID,
    "url": "https://example.com/seft",
    "events": ["job.succeeded", "job.failed"],
    "created_at": TIME,
    "failing_since": None,
    "disabled_at": None,
}


class WebhookView(RowView):
    """A webhook without its secret."""

    model_config = example(_HOOK)

    id: str
    url: str
    events: list[str]
    created_at: datetime
    failing_since: datetime | None = Field(
        description="Time of the first failure after the last success. `null` if the last try succeeded."
    )
    disabled_at: datetime | None = Field(
        description="Time when the webhook was disabled. Nothing is sent until you enable it. `null` if it is enabled."
    )


class WebhookSecret(WebhookView):
    """A webhook with its secret."""

    model_config = example({**_HOOK, "secret": "whsec_…"})

    secret: str = Field(description="Secret that signs the messages (see standardwebhooks.com). Shown only once.")


class WebhookList(BaseModel):
    """All webhooks of a tenant, newest first."""

    model_config = example({"data": [_HOOK]})

    data: list[WebhookView]


class TryView(BaseModel):
    """One try to send a message."""

    at: datetime
    status: int | None = Field(description="HTTP status of the response. `null` if there was none.")
    text: str = Field(description="Start of the response body, or why there was no response.")


_DELIVERY: dict[str, Any] = {
    "id": MESSAGE_ID,
    "type": "job.succeeded",
    "state": "succeeded",
    "body": f'{{"type": "job.succeeded", "timestamp": "{TIME}", "data": {{"job_id": "{JOB_ID}", "attempt": 1}}}}',
    "log": [{"at": TIME, "status": 204, "text": ""}],
    "due_at": None,
    "created_at": TIME,
}


class DeliveryView(RowView):
    """A delivery: one message to a webhook."""

    model_config = example(_DELIVERY)

    id: str = Field(description="Value of the header `webhook-id`. It is the same at every try.")
    type: str
    state: DeliveryState
    body: str
    log: list[TryView] = Field(description="All tries so far.")
    due_at: datetime | None = Field(
        description="Time of the next try. `null` if there will be none, or while the webhook is disabled."
    )
    created_at: datetime


class DeliveryPage(BaseModel):
    """Deliveries, newest first. For the next page, send the last id as `after`."""

    model_config = example({"data": [_DELIVERY], "has_more": False})

    data: list[DeliveryView]
    has_more: bool
