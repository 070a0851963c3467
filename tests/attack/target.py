"""The service that is attacked: an API process with real servers, and a fake hub with hostile models."""

import json
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import anyio
from anyio.from_thread import start_blocking_portal
from httpx2 import Client, HTTPError

from core.access.keys import Scope, issue
from core.infra.database import make_engine, make_sessions
from core.infra.storage import Storage
from core.settings import Settings
from local.folder import LOOPBACK
from local.processes import children_of
from tests.hollow import TEXTS, safetensors, write_hollow
from tests.hub import Repo, hub
from tests.serving import running_api
from tests.worker.conftest import variables

INBOX = "attack-inbox"
"""Bucket with one place that tenants can import from."""
TENANT_BYTES = 40 << 20
LINES = TEXTS
CHAT = b"".join(
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "%s"}]}\n' % word
    for word in (b"b", b"answer")
)
TEMPLATE = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
"""A chat template that does not end."""
EXPERTS = [10**12, 2, 2]
BOMBS = {"bomb-short": 8, "bomb-long": 8 * 10**12}
"""Models whose header claims `EXPERTS`, with this number of bytes. The file has only eight."""
HUGE = 3 << 30
SLOW_SECONDS = 4.0


class Target:
    """The running service, as a context manager."""

    def __init__(self, settings: Settings, folder: Path, rate: float = 200) -> None:
        """`rate` is the number of requests per second of a flood."""
        self.folder, self.rate = folder.resolve(), rate
        self.cache, self.models = self.folder / "cache", self.folder / "models"
        update = {
            "model_roots": [self.models],
            "dataset_buckets": [f"{INBOX}/open/"],
            "tenant_bytes": TENANT_BYTES,
            "webhook_networks": ["127.0.0.0/8"],
        }
        self.settings = settings.model_copy(update=update)
        self.storage = Storage(self.settings)
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            engine = make_engine(self.settings)
            stack.callback(engine.dispose)
            self.sessions = make_sessions(engine)
            self._write_models()
            inbox = Storage(self.settings.model_copy(update={"s3_bucket": INBOX}))
            inbox.ensure_bucket()
            stack.callback(inbox._s3.delete_bucket, Bucket=INBOX)
            for key in ("open/texts.jsonl", "shut.jsonl"):
                inbox.put(key, LINES)
                stack.callback(inbox.delete, [key])
            endpoint = stack.enter_context(hub(self._repos(), {"hf_example": "attacker"}))
            hub_variables = {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(self.cache), "NO_PROXY": LOOPBACK}
            running = running_api(self.folder / "server", {**variables(self.settings), **hub_variables})
            self.api = stack.enter_context(running)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def client(self, tenant: str, scope: Scope = Scope.ADMIN) -> Client:
        """Return a client of a tenant with a new key that has been used once."""
        with self.sessions.begin() as session:
            _, secret = issue(session, tenant, "attack", scope)
        client = self.stack.enter_context(
            Client(base_url=self.api.url, headers={"Authorization": f"Bearer {secret}"}, timeout=30)
        )
        time.sleep(0.3)  # the network may have to wait, because it has sent unknown keys
        client.get("/jobs").raise_for_status()
        return client

    def add_dataset(self, client: Client, content: bytes = LINES) -> str:
        answer = client.post("/datasets", files={"file": (secrets.token_hex(4), content)})
        dataset_id: str = answer.raise_for_status().json()["id"]
        return dataset_id

    @property
    def pid(self) -> int:
        assert self.api.process is not None
        return self.api.process.pid

    def children(self) -> list[int]:
        return children_of(self.pid)

    def kill_api(self) -> None:
        """Kill the API process alone. Its children get no signal from here."""
        assert self.api.process is not None
        self.api.process.send_signal(signal.SIGKILL)
        self.api.process.wait()

    @contextmanager
    def costs(self) -> Iterator["Costs"]:
        """Measure the memory of the API, and the response times of another tenant, while the `with` block runs."""
        costs = Costs(self)
        thread = threading.Thread(target=costs.watch, daemon=True)
        thread.start()
        try:
            yield costs
        finally:
            costs.stop.set()
            thread.join()

    @contextmanager
    def flood(self, requests: Sequence[tuple[str, dict[str, str]]]) -> Iterator[list[int]]:
        """Send GET requests (path and headers), each on its own connection. Yield the list of the answers' statuses.

        The list grows while answers arrive. At the end of the `with` block, all clients leave.
        """
        statuses: list[int] = []

        async def send(number: int, path: str, headers: dict[str, str]) -> None:
            await anyio.sleep(number / self.rate)
            lines = [f"GET {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
            async with await anyio.connect_tcp(LOOPBACK, self.api.port) as stream:
                await stream.send(("\r\n".join(lines) + "\r\n\r\n").encode())
                statuses.append(int((await stream.receive()).split()[1]))
                await anyio.sleep_forever()

        with start_blocking_portal() as portal:
            clients: list[Future[None]] = [portal.start_task_soon(send, n, *each) for n, each in enumerate(requests)]
            yield statuses
            for client in clients:
                client.cancel()

    def _write_models(self) -> None:
        write_hollow(self.models / "tiny")
        write_hollow(self.folder / "secret")  # beside the folder of the models
        looping = write_hollow(self.models / "looping") / "tokenizer_config.json"
        looping.write_text(json.dumps({**json.loads(looping.read_text()), "chat_template": TEMPLATE}))
        for name, end in BOMBS.items():
            claim = {"dtype": "BF16", "shape": EXPERTS, "data_offsets": [0, end]}
            header = {"model.layers.0.mlp.experts.gate_up_proj": claim}
            (write_hollow(self.models / name) / "model.safetensors").write_bytes(safetensors(header, 8))

    def _repos(self) -> dict[str, Repo]:
        good = write_hollow(self.folder / "repo")
        return {
            "good/model": Repo(good),
            "evil/slow": Repo(good, delay=SLOW_SECONDS),
            "evil/honest": Repo(good, padding=HUGE),
            "evil/liar": Repo(good, padding=HUGE, honest=False),
            **{f"evil/{name}": Repo(self.models / name) for name in BOMBS},
        }


class Costs:
    """What an attack costs: memory of the API, and the slowest answers to another tenant."""

    def __init__(self, target: Target) -> None:
        self.target, self.stop = target, threading.Event()
        self.victim = target.client("victim")
        self.slowest = {"/readyz": (0.0, 0.0), "/jobs": (0.0, 0.0)}
        """Seconds of the slowest answer per path, and how many of them the API waited for a processor."""
        self.failed: list[str] = []
        self.most_children = 0
        Path(f"/proc/{target.pid}/clear_refs").write_text("5")  # resets the peak
        self.before = self._peak()

    def watch(self) -> None:
        """Ask for each path until the end of the block."""
        while not self.stop.wait(0.05):
            for path in self.slowest:
                began, waited = time.monotonic(), self._waited()
                try:
                    status = str(self.victim.get(path).status_code)
                except HTTPError as error:
                    status = type(error).__name__
                seconds = time.monotonic() - began
                self.slowest[path] = max(self.slowest[path], (seconds, self._waited() - waited))
                self.failed += [f"{path} {status}"] if status != "200" else []
                self.most_children = max(self.most_children, len(self.target.children()))

    @property
    def megabytes(self) -> float:
        """How much the API's memory has grown at most, in MB."""
        return (self._peak() - self.before) / 1000

    def _waited(self) -> float:
        """Return the seconds that the main thread of the API was ready to run, but other programs ran."""
        statistics = Path(f"/proc/{self.target.pid}/schedstat")
        return int(statistics.read_text().split()[1]) / 1e9 if statistics.exists() else 0.0

    def _peak(self) -> int:
        status = Path(f"/proc/{self.target.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])
