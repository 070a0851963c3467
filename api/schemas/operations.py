"""Responses about health, readiness and version."""

from typing import Literal

from pydantic import BaseModel, Field

from api.schemas.shared import example


class Alive(BaseModel):
    """The process is alive."""

    model_config = example({"status": "ok"})

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Readiness of the service, and the result of each check."""

    model_config = example({"status": "ready", "checks": {"database": "ok", "storage": "ok", "broker": "ok"}})

    status: Literal["ready", "degraded"] = Field(
        description="`degraded` if the broker does not answer: running jobs continue, new ones start when it is back."
    )
    checks: dict[str, str] = Field(description="`ok` or the kind of error, per server.")


class Version(BaseModel):
    """Version of the running software."""

    model_config = example({"version": "0.1.0"})

    version: str
