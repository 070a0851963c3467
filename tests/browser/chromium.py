"""The browser for the tests: an installed one, else Debian's package, else Playwright's download."""

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
def open_browser() -> Iterator[Browser | None]:
    """Open a headless browser with an empty profile; yield None if no browser is available."""
    with sync_playwright() as playwright:
        browser = _launch(playwright)
        yield browser
        if browser:
            browser.close()


def _launch(playwright: Playwright) -> Browser | None:
    path = program(*NAMES, package="chromium") or _from_playwright(playwright)
    return playwright.chromium.launch(executable_path=path, args=[*FLAGS]) if path else None


def _from_playwright(playwright: Playwright) -> str | None:
    with suppress(subprocess.SubprocessError, OSError, Error):
        command = [sys.executable, "-m", "playwright", "install", "chromium"]
        subprocess.run(command, check=True, capture_output=True, timeout=DOWNLOAD_SECONDS)
    path = playwright.chromium.executable_path
    return path if Path(path).exists() else None
