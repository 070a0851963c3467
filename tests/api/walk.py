"""All operations of the OpenAPI document as calls, for tests of rules that apply to all of them."""

from dataclasses import dataclass
from typing import Any, cast

import httpx2
from fastapi import FastAPI
from starlette.testclient import TestClient

from core import ids
from core.tables import Checkpoint
from tests.api.conftest import Json
from tests.api.documents import METHODS
from tests.hollow import TEXTS

HUB_TOKEN = "hf_example"
World = dict[str, str]
"""Resources of a tenant: from the name of the path parameter to an id."""


@dataclass(frozen=True)
class Operation:
    """An operation, with the example of its body."""

    name: str
    method: str
    path: str
    guarded: bool
    example: Json | None
    uploads: bool
    query: Json
    """Examples of the required query parameters."""

    def send(self, client: TestClient, world: World) -> Any:
        """Call it with the world's ids in the path, and in the body if that has a dataset or a model."""
        arguments: Json = {"files": {"file": ("texts.jsonl", TEXTS)}} if self.uploads else {}
        own = {"dataset": world["dataset_id"], "model": "tiny"}
        ended = self.name in ("delete_job", "push_job")
        path = self.path.format_map({**world, "job_id": world["ended_job_id"]} if ended else world)
        arguments["params"] = {name: own.get(name, value) for name, value in self.query.items()}
        if self.example is not None:
            arguments["json"] = {name: own.get(name, value) for name, value in self.example.items()}
        return client.request(self.method, path, **arguments)


def operations(app: FastAPI) -> list[Operation]:
    """Return all operations, in the order of the document."""
    document = app.openapi()
    return [
        _operation(path, method, methods[method], document["components"]["schemas"])
        for path, methods in document["paths"].items()
        for method in METHODS
        if method in methods
    ]


def make_world(client: TestClient) -> World:
    """Create one of every resource over HTTP, except a checkpoint. The hub must accept the token of the example."""
    hub_token = client.put("/hub-token", json={"token": HUB_TOKEN}).json()["id"]
    # A new name each time: the same file under the same name creates no dataset, and a job may use the earlier one.
    dataset = client.post("/datasets", files={"file": (ids.new("file"), TEXTS)}).json()["id"]
    used_dataset = client.post("/datasets", files={"file": ("used.jsonl", TEXTS)}).json()["id"]
    job, ended_job = (
        client.post("/jobs", json={"model": "tiny", "dataset": used_dataset, "sparsity": 0.6}).json()["id"]
        for _ in range(2)
    )
    client.post(f"/jobs/{ended_job}/cancel")
    with cast("FastAPI", client.app).state.services.sessions.begin() as session:
        values = {"attempt": 1, "step": 1, "prefix": "p", "sha256": "0", "files": [], "scores": {}}
        session.add(Checkpoint(id=ids.new("ckpt"), job_id=ended_job, **values))
    key = client.post("/keys", json={"name": "ours"}).json()["id"]
    webhook = client.post("/webhooks", json={"url": "https://example.com/"}).json()["id"]
    import_id = client.post("/imports", json={"name": "ours.jsonl", "bytes": len(TEXTS)}).json()["id"]
    (part,) = client.get(f"/imports/{import_id}/parts").json()["data"]
    assert httpx2.put(part["url"], content=TEXTS).status_code == 200
    return {
        "dataset_id": dataset,
        "job_id": job,
        "ended_job_id": ended_job,
        "key_id": key,
        "webhook_id": webhook,
        "model_id": "tiny",
        "import_id": import_id,
        "hub_token_id": hub_token,
    }


def _operation(path: str, method: str, described: Json, schemas: Json) -> Operation:
    content = described.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    schema = schemas.get(schema.get("$ref", "").rpartition("/")[2], schema)
    return Operation(
        name=described["operationId"],
        method=method.upper(),
        path=path,
        guarded="security" in described,
        example=schema.get("example"),
        uploads="multipart/form-data" in content,
        query={
            each["name"]: each["schema"]["examples"][0]
            for each in described.get("parameters", [])
            if each["in"] == "query" and each["required"]
        },
    )
