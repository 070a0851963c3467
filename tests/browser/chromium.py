"""A browser to test with: the one that is there, else Debian's, else Playwright's own download."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from playwright.sync_api import Browser, Error, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
APT_SECONDS, DOWNLOAD_SECONDS = 600, 300


@contextmanager
def opened() -> Iterator[Browser | None]:
    """A headless browser with a fresh profile; None where none can be had."""
    with sync_playwright() as playwright:
        browser = _launched(playwright)
        yield browser
        if browser:
            browser.close()


def _launched(playwright: Playwright) -> Browser | None:
    for find in (_installed, _from_debian, lambda: _from_playwright(playwright)):
        path = find()
        if path:
            return playwright.chromium.launch(executable_path=path, args=[*FLAGS])
    return None


def _installed() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def _from_debian() -> str | None:
    """Only root can install, and only where there is apt-get."""
    if os.geteuid() or not shutil.which("apt-get"):
        return None
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
    with suppress(subprocess.SubprocessError, OSError):
        for command in (["apt-get", "update", "-qq"], install):
            subprocess.run(command, check=True, env=environment, capture_output=True, timeout=APT_SECONDS)
    return _installed()


def _from_playwright(playwright: Playwright) -> str | None:
    with suppress(subprocess.SubprocessError, OSError, Error):
        command = [sys.executable, "-m", "playwright", "install", "chromium"]
        subprocess.run(command, check=True, capture_output=True, timeout=DOWNLOAD_SECONDS)
    path = playwright.chromium.executable_path
    return path if Path(path).exists() else None
