"""Health, readiness and version of the service."""

from typing import Literal

from pydantic import BaseModel, Field

from api.schemas.shared import example


class Alive(BaseModel):
    """The process answers."""

    model_config = example({"status": "ok"})

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Whether the service can do its work, and what each server that it needs says."""

    model_config = example({"status": "ready", "checks": {"database": "ok", "storage": "ok", "broker": "ok"}})

    status: Literal["ready", "degraded"] = Field(
        description="`degraded` while the broker is down: running jobs go on, and new ones start when it is back."
    )
    checks: dict[str, str]


class Version(BaseModel):
    """What runs here."""

    model_config = example({"version": "0.1.0"})

    version: str
