"""Responses about health, readiness and version."""

from typing import Literal

from pydantic import BaseModel, Field

from api.schemas.shared import example


class Alive(BaseModel):
    """Answer of a process that is running."""

    model_config = example({"status": "ok"})

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Readiness of the service, and the result of each check."""

    model_config = example({"status": "ready", "checks": {"database": "ok", "storage": "ok", "broker": "ok"}})

    status: Literal["ready", "degraded"] = Field(
        description="`degraded`: the broker does not answer. Running jobs continue. New jobs start when it answers."
    )
    checks: dict[str, str] = Field(description="Per server: `ok`, or the type of the error.")


class Version(BaseModel):
    """Version of the running software."""

    model_config = example({"version": "0.1.0"})

    version: str
