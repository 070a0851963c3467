"""How much memory does the API take for a large dataset? The peak of its process, for a small file and for a large one.

    python -m benchmarks.uploads --gigabytes 5

Real servers in a temporary folder, and the real client, which sends the file in parts; the disk has to hold it three
times: the file, its parts, the dataset.
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

from client import uploads
from client.http import Client
from core.database import make_engine, make_sessions
from core.keys import Scope, issue
from core.settings import Settings
from local.servers import Servers, make_settings
from local.stack import Api
from migrations import upgrade

SMALL = 1 << 20
LINE = '{"prompt": "What does entry %d of the register say? ", "completion": "%s"}\n'
WORDS = "The quick brown fox jumps over the lazy dog, and the register keeps the score of it. " * 12


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size of the large file, in units of 10^9 bytes")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    chosen = parser.parse_args()
    with TemporaryDirectory(dir=chosen.folder) as name, _api(Path(name)) as (api, secret):
        uploads.PARTS_FROM = 0
        for size in (SMALL, int(chosen.gigabytes * 1e9)):
            path = Path(name) / f"{size}.jsonl"
            _write(path, size)
            began = time.perf_counter()
            with Client(api.url, secret) as client:
                dataset = client.upload_dataset(path)
            path.unlink()
            told = {"bytes": dataset["bytes"], "records": dataset["records"], "api_peak_mb": round(_peak(api) / 1e3, 1)}
            print(json.dumps(told | {"seconds": round(time.perf_counter() - began, 1)}), flush=True)


@contextmanager
def _api(folder: Path) -> Iterator[tuple[Api, str]]:
    """A running API and a key to it."""
    with Servers(folder / "servers") as servers:
        variables = {**servers.environment(), "SEFT_MAX_DATASET_BYTES": str(1 << 40)}
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


def _write(path: Path, size: int) -> None:
    """Different records of about a kilobyte, until the file has this size."""
    with path.open("w") as file:
        number = 0
        while file.tell() < size:
            file.writelines(LINE % (each, WORDS) for each in range(number, number + 1000))
            number += 1000


def _peak(api: Api) -> int:
    """The largest resident set that the API's process ever had, in kB: VmHWM of Linux."""
    assert api.process is not None
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{api.process.pid}/status").read_text())
    assert found is not None
    return int(found[1])


if __name__ == "__main__":
    main()
