"""Previews and uploads: a few run at a time, the queue is short, and pages of the dashboard use the same queue."""

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest
from fastapi import FastAPI
from httpx2 import Client
from starlette.testclient import TestClient

from api import deps
from api.app import make_app
from api.concurrency import WorkQueue
from core.errors import ProblemError
from seft.data.preview import MEMORY_BYTES
from tests.api.conftest import problem, serving
from tests.api.dashboard.conftest import Browser, NewBrowser, new_browser, secret
from tests.waiting import alive, wait_for

__all__ = ["new_browser", "secret"]  # fixtures


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Replace the tokenizer process by one that hangs. Return a function that lists those that were started."""
    folder, script = tmp_path / "children", tmp_path / "hang"
    folder.mkdir()
    script.write_text(f"#!/bin/sh\ntouch {folder}/$$\nexec sleep 600\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    return lambda: [int(child.name) for child in folder.iterdir()]


def ask(live: Client, dataset: str) -> socket.socket:
    """Ask for a preview, and return the connection. The client leaves when it is closed."""
    connection = socket.create_connection((live.base_url.host, live.base_url.port or 80), timeout=20)
    request = f"GET /datasets/{dataset}/preview?model=tiny HTTP/1.1\r\nHost: x\r\n"
    connection.sendall(f"{request}Authorization: {live.headers['Authorization']}\r\n\r\n".encode())
    return connection


def test_no_tenant_takes_all_turns_or_fills_the_queue() -> None:
    async def run() -> None:
        queue = WorkQueue("previews", running=3, waiting=4, per_tenant=5)
        running: list[str] = []
        refused: list[str] = []

        async def work(tenant: str) -> None:
            try:
                async with queue.turn(tenant):
                    running.append(tenant)
                    await anyio.sleep_forever()
            except ProblemError as error:
                refused.append(f"{tenant} {error.code}")

        async with anyio.create_task_group() as group:
            for tenant in "aaaaaabbb":
                group.start_soon(work, tenant)
                await anyio.wait_all_tasks_blocked()
            assert running == ["a", "a", "b"]
            assert refused == ["a busy", "b busy"]
            group.cancel_scope.cancel()
        with anyio.fail_after(5):
            async with queue.turn("a"):
                pass

    anyio.run(run)


def test_a_preview_ends_with_its_client(live: Client, dataset: str, children: Callable[[], list[int]]) -> None:
    with ask(live, dataset):
        wait_for(lambda: len(children()) == 1)
        assert all(map(alive, children()))
    wait_for(lambda: not any(map(alive, children())))


def test_a_flood_of_previews_starts_few_processes_and_is_refused_by_the_api_and_the_dashboard(
    app: FastAPI, live: Client, dataset: str, children: Callable[[], list[int]], new_browser: NewBrowser
) -> None:
    browser: Browser = new_browser()
    with ExitStack() as flood:
        for _ in range(6):
            flood.enter_context(ask(live, dataset))
        wait_for(lambda: app.state.services.previews._open["ours"] == 6 and len(children()) == 1)
        refused = live.get(f"/datasets/{dataset}/preview", params={"model": "tiny"})
        problem(refused, 503, "busy")
        page = browser.get(f"/dashboard/datasets/{dataset}", params={"model": "tiny"})
        assert (page.status_code, "Too many previews are waiting" in page.text) == (503, True)
        assert [answer.headers["retry-after"] for answer in (refused, page)] == ["5", "5"]
        assert live.get("/readyz").status_code == 200
        assert len(children()) == 1
    wait_for(lambda: not any(map(alive, children())) and not app.state.services.previews._open)


def test_the_tokenizer_process_ends_with_the_api() -> None:
    command = "[sys.executable, '-m', 'seft.data.preview', str(os.getpid())]"
    start = f"import os, subprocess, sys, time; print(subprocess.Popen({command}).pid, flush=True); time.sleep(600)"
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", start], stdin=reader, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        # It sets this limit when it begins to read its request.
        wait_for(lambda: resource.prlimit(child, resource.RLIMIT_DATA)[0] == MEMORY_BYTES)
        parent.kill()
        wait_for(lambda: not alive(child))
    os.close(reader)
    os.close(writer)


def test_a_tenant_sends_a_limited_number_of_uploads_at_the_same_time(
    app: FastAPI, client: TestClient, new_browser: NewBrowser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deps, "TENANT_UPLOADS", 1)
    limited = make_app(app.state.services.settings)
    file = {"file": ("texts.jsonl", b'{"text": "a"}\n{"text": "b"}\n')}
    browser = new_browser()
    with serving(limited, client) as server:
        signed_in = {"Cookie": f"seft_session={browser.cookies['seft_session']}"}
        csrf = browser.csrf()
        head = f"POST /datasets HTTP/1.1\r\nHost: x\r\nAuthorization: {client.headers['Authorization']}\r\n"
        form = "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 99\r\n\r\n--b"
        with socket.create_connection((server.base_url.host, server.base_url.port or 80), timeout=20) as slow:
            slow.sendall((head + form).encode())
            wait_for(lambda: limited.state.services.open_uploads._open)
            problem(server.post("/datasets", files=file), 429, "rate_limited")
            page = server.post("/dashboard/datasets", files=file, data={"csrf": csrf}, headers=signed_in)
            assert (page.status_code, "Uploads are limited per tenant" in page.text) == (429, True)
        wait_for(lambda: server.post("/datasets", files=file).status_code == 201)
        page = server.post("/dashboard/datasets", files=file, data={"csrf": csrf}, headers=signed_in)
        assert page.status_code == 303
    limited.state.services.engine.dispose()
