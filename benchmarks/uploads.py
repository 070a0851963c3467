"""How much memory does the API use for a large dataset? The peak of its process for a small and for a large file.

    python -m benchmarks.uploads --gigabytes 5

Each file is uploaded in parts by our client, and as a form in one request. The servers run in a temporary folder. The
disk needs five times the size of the large file: for the file, the upload in progress, both datasets, and deleted parts
whose disk space is not yet free.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from benchmarks.turns import resident_bytes
from core.access.keys import Scope, issue
from core.infra.database import one_session
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
    """Upload each file in both ways, and print a line of JSON for each upload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size of the large file in 10^9 bytes")
    parser.add_argument("--folder", type=Path, help="where to create the temporary folder")
    arguments = parser.parse_args()
    with TemporaryDirectory(dir=arguments.folder) as name, _api(Path(name)) as (api, secret):
        for size in (SMALL, int(arguments.gigabytes * 1e9)):
            for way, send in WAYS.items():
                path = Path(name) / f"{way}.jsonl"
                _write(path, size, way)
                _reset_peak(api)
                began = time.perf_counter()
                dataset = send(api.url, secret, path)
                seconds = round(time.perf_counter() - began, 1)
                path.unlink()
                result = {"way": way, "bytes": dataset["bytes"], "records": dataset["records"]}
                print(json.dumps(result | {"api_peak_mb": round(_peak(api) / 1e6, 1), "seconds": seconds}), flush=True)


def _in_parts(url: str, secret: str, path: Path) -> Any:
    uploads.PARTS_FROM = 0
    with Client(url, secret) as client:
        return client.upload_dataset(path)


def _as_a_form(url: str, secret: str, path: Path) -> Any:
    """Upload a file as a form in one request, as curl does. Returns the response.

    There is no timeout, because the response comes after the file is checked and stored.
    """
    with path.open("rb") as file:
        headers = {"Authorization": f"Bearer {secret}"}
        return httpx2.post(f"{url}/datasets", files={"file": file}, headers=headers, timeout=None).json()


WAYS = {"parts": _in_parts, "form": _as_a_form}


@contextmanager
def _api(folder: Path) -> Iterator[tuple[Api, str]]:
    """Run an API while the `with` block runs. Yields the API and an API key."""
    with Servers(folder / "servers") as servers:
        limit = str(1 << 40)
        variables = {**servers.environment(), "SEFT_MAX_DATASET_BYTES": limit, "SEFT_MAX_UPLOAD_BYTES": limit}
        settings = make_settings(variables)
        upgrade(settings)
        api = Api(servers.lock, {**os.environ, **variables})
        try:
            api.start()
            yield api, _key(settings)
        finally:
            api.stop()


def _key(settings: Settings) -> str:
    with one_session(settings) as session:
        _, secret = issue(session, "default", "benchmark", Scope.ADMIN)
    return secret


def _write(path: Path, size: int, way: str) -> None:
    """Write distinct records of about 1 kB until the file has `size` bytes.

    Each `way` of upload gets different records.
    """
    with path.open("w") as file:
        number = 0
        while file.tell() < size:
            file.writelines(LINE % (each, way, WORDS) for each in range(number, number + 1000))
            number += 1000


def _reset_peak(api: Api) -> None:
    """Reset the peak memory that Linux records for the API's process."""
    assert api.process is not None
    Path(f"/proc/{api.process.pid}/clear_refs").write_text("5")


def _peak(api: Api) -> int:
    """Return the peak resident memory of the API's process in bytes since the reset."""
    assert api.process is not None
    return resident_bytes(api.process.pid, "VmHWM")


if __name__ == "__main__":
    main()
