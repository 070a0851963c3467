"""A browser to test with: the one that is there, else Debian's, else Playwright's own download."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from playwright.sync_api import Browser, Error, Playwright, sync_playwright

from tests.debian import program

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
DOWNLOAD_SECONDS = 300


@contextmanager
def opened() -> Iterator[Browser | None]:
    """A headless browser with a fresh profile; None where none can be had."""
    with sync_playwright() as playwright:
        browser = _launched(playwright)
        yield browser
        if browser:
            browser.close()


def _launched(playwright: Playwright) -> Browser | None:
    path = program(*NAMES, package="chromium") or _from_playwright(playwright)
    return playwright.chromium.launch(executable_path=path, args=[*FLAGS]) if path else None


def _from_playwright(playwright: Playwright) -> str | None:
    with suppress(subprocess.SubprocessError, OSError, Error):
        command = [sys.executable, "-m", "playwright", "install", "chromium"]
        subprocess.run(command, check=True, capture_output=True, timeout=DOWNLOAD_SECONDS)
    path = playwright.chromium.executable_path
    return path if Path(path).exists() else None
