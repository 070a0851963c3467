"""Find programs that tests need and that PyPI does not have. Install them from Debian if that is possible."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

SECONDS = 600


def program(*names: str, package: str) -> str | None:
    """Return the path of the first of these programs that is installed, or None.

    If none is installed, the process runs as root and apt-get exists, install the package first.
    """
    if (path := _find(names)) or os.geteuid() or not shutil.which("apt-get"):
        return path
    with (Path(tempfile.gettempdir()) / "seft-apt.lock").open("w") as lock:  # apt does not wait for its own lock
        fcntl.flock(lock, fcntl.LOCK_EX)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
        with suppress(subprocess.SubprocessError, OSError):
            for command in (["apt-get", "update", "-qq"], install):
                subprocess.run(command, check=True, env=environment, capture_output=True, timeout=SECONDS)
    return _find(names)


def _find(names: tuple[str, ...]) -> str | None:
    return next(filter(None, map(shutil.which, names)), None)
