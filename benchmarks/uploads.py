"""How much memory does the API take for a large dataset? The peak of its process, for a small file and for a large one.

    python -m benchmarks.uploads --gigabytes 5

Each is sent in parts by our client, and as a form in one request. Real servers in a temporary folder; the disk has to
hold the large file five times: the file, what came of it on its way, both datasets, parts whose room is not yet free.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from core.access.keys import Scope, issue
from core.infra.database import make_engine, make_sessions
from core.settings import Settings
from local.servers import Servers, make_settings
from local.stack import Api
from migrations import upgrade
from seft.client import uploads
from seft.client.http import Client

SMALL = 1 << 20
LINE = '{"prompt": "What does entry %d of the register of %s say? ", "completion": "%s"}\n'
WORDS = "The quick brown fox jumps over the lazy dog, and the register keeps the score of it. " * 12


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size of the large file, in units of 10^9 bytes")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    chosen = parser.parse_args()
    with TemporaryDirectory(dir=chosen.folder) as name, _api(Path(name)) as (api, secret):
        for size in (SMALL, int(chosen.gigabytes * 1e9)):
            for way, send in WAYS.items():
                path = Path(name) / f"{way}.jsonl"
                _write(path, size, way)
                _forget_peak(api)
                began = time.perf_counter()
                dataset = send(api.url, secret, path)
                seconds = round(time.perf_counter() - began, 1)
                path.unlink()
                told = {"way": way, "bytes": dataset["bytes"], "records": dataset["records"]}
                print(json.dumps(told | {"api_peak_mb": round(_peak(api) / 1e3, 1), "seconds": seconds}), flush=True)


def _in_parts(url: str, secret: str, path: Path) -> Any:
    uploads.PARTS_FROM = 0
    with Client(url, secret) as client:
        return client.upload_dataset(path)


def _as_a_form(url: str, secret: str, path: Path) -> Any:
    """As curl would. The answer comes when all is checked and stored, later than our client waits for one."""
    with path.open("rb") as file:
        headers = {"Authorization": f"Bearer {secret}"}
        return httpx2.post(f"{url}/datasets", files={"file": file}, headers=headers, timeout=None).json()


WAYS = {"parts": _in_parts, "form": _as_a_form}


@contextmanager
def _api(folder: Path) -> Iterator[tuple[Api, str]]:
    """A running API and a key to it."""
    with Servers(folder / "servers") as servers:
        most = str(1 << 40)
        variables = {**servers.environment(), "SEFT_MAX_DATASET_BYTES": most, "SEFT_MAX_UPLOAD_BYTES": most}
        settings = make_settings(variables)
        upgrade(settings)
        api = Api(servers.lock, {**os.environ, **variables})
        try:
            api.start()
            yield api, _key(settings)
        finally:
            api.stop()


def _key(settings: Settings) -> str:
    engine = make_engine(settings)
    with make_sessions(engine).begin() as session:
        _, secret = issue(session, "default", "benchmark", Scope.ADMIN)
    engine.dispose()
    return secret


def _write(path: Path, size: int, way: str) -> None:
    """Different records of about a kilobyte, until the file has this size; for each way others."""
    with path.open("w") as file:
        number = 0
        while file.tell() < size:
            file.writelines(LINE % (each, way, WORDS) for each in range(number, number + 1000))
            number += 1000


def _forget_peak(api: Api) -> None:
    """Linux counts the peak anew from now on."""
    assert api.process is not None
    Path(f"/proc/{api.process.pid}/clear_refs").write_text("5")


def _peak(api: Api) -> int:
    """The largest resident set of the API's process since then, in kB: VmHWM of Linux."""
    assert api.process is not None
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{api.process.pid}/status").read_text())
    assert found is not None
    return int(found[1])


if __name__ == "__main__":
    main()
