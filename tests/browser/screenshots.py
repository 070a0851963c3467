"""`make screenshots`: screenshots of every page in light and dark, for desktop and phone, with jobs of a tiny model.

They are written to `build/screenshots`; those of the README, to `docs/screenshots`.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from local.demo import write_topics
from local.stack import Stack
from seft.client import Client
from tests.api.receivers import receiving
from tests.browser import chromium
from tests.tiny import train_tiny

ROOT = Path(__file__).parents[2]
ALL_FOLDER, README_FOLDER = ROOT / "build" / "screenshots", ROOT / "docs" / "screenshots"
SIZES = {"desk": {"width": 1280, "height": 860}, "phone": {"width": 390, "height": 844}}
SETTLE_MS = 1200
README_PICTURES = {
    "overview-light-desk": "overview",
    "job-light-desk": "job",
    "job-dark-phone": "phone",
    "compare-dark-desk": "compare",
}
"""Screenshot -> its name in the README."""
MODEL = "tiny-llama"
SPEC: dict[str, Any] = {
    "model": MODEL,
    "prune": {"method": "wanda", "calibration": {"samples": 8, "tokens": 96}},
    "repair": {
        "steps": 150,
        "update_interval": 15,
        "batch_tokens": 768,
        "sequence_tokens": 96,
        "learning_rate": 0.01,
        "density": 0.02,
        "evaluate_interval": 30,
    },
    "evaluate": {"windows": 40, "tokens": 96},
}
GRADUAL: dict[str, Any] = {
    "prune": {"schedule": "gradual"},
    "repair": {
        "steps": 150,
        "batch_tokens": 768,
        "sequence_tokens": 96,
        "micro_batch": 8,
        "density": "all",
        "swap_tokens": 3 * 768,
        "retain": "written",
        "retain_tokens": 96 * 96,
        "evaluate_interval": 10,
    },
}


def main() -> None:
    """Start a service, run jobs in it, and take the screenshots."""
    for folder in (ALL_FOLDER, README_FOLDER):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="seft-screenshots-") as temporary, chromium.open_browser() as browser:
        if browser is None:
            raise SystemExit(
                "No browser: Chromium is not installed, and neither apt-get nor Playwright could install it."
            )
        train_tiny(Path(temporary) / "models" / MODEL)
        with _webhook_receiver() as hook, Stack(Path(temporary)) as stack, Client(stack.api.url, stack.key) as client:
            pages = _run_jobs(client, Path(temporary), hook)
            for scheme in ("light", "dark"):
                for size in SIZES:
                    _screenshot_all(browser, stack, pages, scheme, size)


@contextmanager
def _webhook_receiver() -> Iterator[str]:
    """Yield the URL of a server that accepts webhook deliveries."""
    os.environ["SEFT_WEBHOOK_NETWORKS"] = '["127.0.0.0/8"]'
    with receiving() as receiver:
        receiver.text = b"accepted"
        yield f"http://127.0.0.1:{receiver.server_address[1]}/seft"


def _run_jobs(client: Client, folder: Path, url: str) -> dict[str, str]:
    """Return the path of every page, after three jobs succeeded and one failed, while another one runs."""
    hook = client.create_webhook(url, events=["job.succeeded", "job.failed"])["id"]
    dataset = client.upload_dataset(write_topics(folder / "python-topics.jsonl"))["id"]
    spec = {**SPEC, "dataset": dataset}
    done = [client.create_job({**spec, "suffix": f"python-{round(100 * s)}", "sparsity": s})["id"] for s in (0.7, 0.6)]
    done.append(client.create_job({**spec, **GRADUAL, "suffix": "python-gradual", "sparsity": 0.7})["id"])
    short = folder / "two-lines.jsonl"
    short.write_text('{"text": "%s"}\n{"text": "to learn from."}\n' % ("Too little. " * 256))
    small_dataset = client.upload_dataset(short)["id"]
    failed = client.create_job({**spec, "suffix": "too-little", "sparsity": 0.6, "dataset": small_dataset})
    steps = {**SPEC["repair"], "steps": 3000, "update_interval": 60}
    running = client.create_job({**spec, "suffix": "python-80", "sparsity": 0.8, "repair": steps})
    client.create_job({**spec, "suffix": "python-2-4", "sparsity": 0.5, "pattern": "2:4"})
    client.create_job({**spec, "suffix": "tonight", "sparsity": 0.6, "auto_start": False, "metadata": {"team": "docs"}})
    for job in (*done, failed["id"]):
        _wait(client, job, "succeeded", "failed")
    while client.job(running["id"])["step"] < 150:
        time.sleep(1)
    return {
        "overview": "/",
        "jobs": "/jobs",
        "job": f"/jobs/{done[0]}",
        "gradual": f"/jobs/{done[2]}",
        "running": f"/jobs/{running['id']}",
        "failed": f"/jobs/{failed['id']}",
        "new": f"/jobs/new?clone={done[0]}",
        "compare": f"/compare?job={done[0]}&job={done[2]}",
        "models": f"/models?model={done[0]}",
        "datasets": "/datasets",
        "dataset": f"/datasets/{dataset}?model={MODEL}",
        "workers": "/workers",
        "webhooks": "/webhooks",
        "webhook": f"/webhooks/{hook}",
        "keys": "/keys",
    }


def _wait(client: Client, job: str, *statuses: str) -> None:
    while client.job(job)["status"] not in statuses:
        time.sleep(1)


def _screenshot_all(browser: Browser, stack: Stack, pages: dict[str, str], scheme: str, size: str) -> None:
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{stack.api.url}/dashboard/")
    _screenshot(page, f"sign-in-{scheme}-{size}")
    page.fill("#key", stack.key)
    page.keyboard.press("Enter")
    page.wait_for_url("**/dashboard/")
    for name, path in pages.items():
        page.goto(f"{stack.api.url}/dashboard{path}")
        _screenshot(page, f"{name}-{scheme}-{size}")
    context.close()


def _screenshot(page: Page, name: str) -> None:
    page.wait_for_timeout(SETTLE_MS)
    if name in README_PICTURES:
        page.screenshot(path=README_FOLDER / f"{README_PICTURES[name]}.png")
    viewport = page.viewport_size
    assert viewport
    # Show the whole page at once; otherwise elements that stick to the screen's edges would cover a part of it.
    page.set_viewport_size({**viewport, "height": page.evaluate("document.documentElement.scrollHeight")})
    page.screenshot(path=ALL_FOLDER / f"{name}.png")
    page.set_viewport_size(viewport)


if __name__ == "__main__":
    main()
