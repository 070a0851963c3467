"""Programs that tests need and Python's index has not: from Debian, where one may install."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

SECONDS = 600


def program(*names: str, package: str) -> str | None:
    """Path of the first of these programs that there is; else root installs the package, where there is apt-get."""
    if (found := _found(names)) or os.geteuid() or not shutil.which("apt-get"):
        return found
    with (Path(tempfile.gettempdir()) / "seft-apt.lock").open("w") as lock:  # apt itself does not wait for another
        fcntl.flock(lock, fcntl.LOCK_EX)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
        with suppress(subprocess.SubprocessError, OSError):
            for command in (["apt-get", "update", "-qq"], install):
                subprocess.run(command, check=True, env=environment, capture_output=True, timeout=SECONDS)
    return _found(names)


def _found(names: tuple[str, ...]) -> str | None:
    return next(filter(None, map(shutil.which, names)), None)
