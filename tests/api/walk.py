"""Every operation of the OpenAPI as something to be called: for laws that hold for all of them."""

from dataclasses import dataclass
from typing import Any

import httpx2
from fastapi import FastAPI
from starlette.testclient import TestClient

from core import ids
from tests.api.conftest import Json
from tests.api.documents import METHODS

RIGHT = b'{"text": "a"}\n{"text": "b"}\n'
HUB_TOKEN = "hf_example"
World = dict[str, str]
"""A tenant's things: the path parameter -> the id of one."""


@dataclass(frozen=True)
class Operation:
    """An operation, and the example of its body."""

    name: str
    method: str
    path: str
    guarded: bool
    example: Json | None
    uploads: bool
    query: Json
    """Examples of the parameters that it needs."""

    def send(self, client: TestClient, world: World) -> Any:
        """Call it with the world's ids in the path, and in the example body where that names a dataset or a model."""
        more: Json = {"files": {"file": ("texts.jsonl", RIGHT)}} if self.uploads else {}
        ours = {"dataset": world["dataset_id"], "model": "tiny"}
        more["params"] = {name: ours.get(name, value) for name, value in self.query.items()}
        if self.example is not None:
            more["json"] = {name: ours.get(name, value) for name, value in self.example.items()}
        return client.request(self.method, self.path.format_map(world), **more)


def operations(app: FastAPI) -> list[Operation]:
    """All of them, in the order of the OpenAPI."""
    document = app.openapi()
    return [
        _operation(path, method, methods[method], document["components"]["schemas"])
        for path, methods in document["paths"].items()
        for method in METHODS
        if method in methods
    ]


def make_world(client: TestClient) -> World:
    """One of everything, made over HTTP. The hub must know the token of the example."""
    hub_token = client.put("/hub-token", json={"token": HUB_TOKEN}).json()["id"]
    # Under a new name each time: an upload that is sent again makes no dataset, and a job may need the former one.
    dataset = client.post("/datasets", files={"file": (ids.new("file"), RIGHT)}).json()["id"]
    used = client.post("/datasets", files={"file": ("used.jsonl", RIGHT)}).json()["id"]
    job = client.post("/jobs", json={"model": "tiny", "dataset": used, "sparsity": 0.6}).json()["id"]
    key = client.post("/keys", json={"name": "ours"}).json()["id"]
    webhook = client.post("/webhooks", json={"url": "https://example.com/"}).json()["id"]
    coming = client.post("/imports", json={"name": "ours.jsonl", "bytes": len(RIGHT)}).json()["id"]
    (part,) = client.get(f"/imports/{coming}/parts").json()["data"]
    assert httpx2.put(part["url"], content=RIGHT).status_code == 200
    return {
        "dataset_id": dataset,
        "job_id": job,
        "key_id": key,
        "webhook_id": webhook,
        "model_id": "tiny",
        "import_id": coming,
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
