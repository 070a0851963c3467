"""`make screenshots`: pictures of every page, light and dark, on a desk and on a phone. Real jobs of a tiny model.

They go to `build/screenshots`; those of the README, to `docs/screenshots`.
"""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from local.demo import write_topics
from local.stack import Stack
from seft.client import Client
from tests.api.test_courier import Receiver
from tests.browser import chromium
from tests.tiny import train_tiny

ROOT = Path(__file__).parents[2]
ALL, README = ROOT / "build" / "screenshots", ROOT / "docs" / "screenshots"
SIZES = {"desk": {"width": 1280, "height": 860}, "phone": {"width": 390, "height": 844}}
SETTLED_MS = 1200
CHOSEN = {
    "overview-light-desk": "overview",
    "job-light-desk": "job",
    "job-dark-phone": "phone",
    "compare-dark-desk": "compare",
}
"""Picture -> its name in the README."""
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


def main() -> None:
    """Start a service, let jobs live in it, and take the pictures."""
    for made in (ALL, README):
        made.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="seft-screenshots-") as folder, chromium.opened() as browser:
        if browser is None:
            raise SystemExit("No browser: Chromium is not installed, apt-get and Playwright's download brought none.")
        train_tiny(Path(folder) / "models" / MODEL)
        with _listening() as hook, Stack(Path(folder)) as stack, Client(stack.api.url, stack.key) as service:
            pages = _lived(service, Path(folder), hook)
            for scheme in ("light", "dark"):
                for size in SIZES:
                    _pictures(browser, stack, pages, scheme, size)


@contextmanager
def _listening() -> Iterator[str]:
    """The address of a server that takes what webhooks send."""
    os.environ["SEFT_WEBHOOK_NETWORKS"] = '["127.0.0.0/8"]'
    with Receiver() as receiver:
        receiver.text = b"taken"
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{receiver.server_address[1]}/seft"
        receiver.shutdown()


def _lived(service: Client, folder: Path, address: str) -> dict[str, str]:
    """The addresses of all pages, after two jobs have succeeded, one has failed, and while one runs."""
    hook = service.create_webhook(address, events=["job.succeeded", "job.failed"])["id"]
    dataset = service.upload_dataset(write_topics(folder / "python-topics.jsonl"))["id"]
    spec = {**SPEC, "dataset": dataset}
    done = [service.create_job({**spec, "suffix": f"python-{round(100 * s)}", "sparsity": s})["id"] for s in (0.7, 0.6)]
    short = folder / "two-lines.jsonl"
    short.write_text('{"text": "Too little"}\n{"text": "to learn from."}\n')
    little = service.upload_dataset(short)["id"]
    failed = service.create_job({**spec, "suffix": "too-little", "sparsity": 0.6, "dataset": little})
    steps = {**SPEC["repair"], "steps": 3000, "update_interval": 60}
    running = service.create_job({**spec, "suffix": "python-80", "sparsity": 0.8, "repair": steps})
    service.create_job({**spec, "suffix": "python-2-4", "sparsity": 0.5, "pattern": "2:4"})
    service.create_job(
        {**spec, "suffix": "tonight", "sparsity": 0.6, "auto_start": False, "metadata": {"team": "docs"}}
    )
    for job in (*done, failed["id"]):
        _wait(service, job, "succeeded", "failed")
    while service.job(running["id"])["step"] < 150:
        time.sleep(1)
    return {
        "overview": "/",
        "jobs": "/jobs",
        "job": f"/jobs/{done[0]}",
        "running": f"/jobs/{running['id']}",
        "failed": f"/jobs/{failed['id']}",
        "new": f"/jobs/new?clone={done[0]}",
        "compare": f"/compare?job={done[0]}&job={done[1]}",
        "models": f"/models?model={done[0]}",
        "datasets": "/datasets",
        "dataset": f"/datasets/{dataset}?model={MODEL}",
        "workers": "/workers",
        "webhooks": "/webhooks",
        "webhook": f"/webhooks/{hook}",
        "keys": "/keys",
    }


def _wait(service: Client, job: str, *ends: str) -> None:
    while service.job(job)["status"] not in ends:
        time.sleep(1)


def _pictures(browser: Browser, stack: Stack, pages: dict[str, str], scheme: str, size: str) -> None:
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{stack.api.url}/dashboard/")
    _picture(page, f"sign-in-{scheme}-{size}")
    page.fill("#key", stack.key)
    page.keyboard.press("Enter")
    page.wait_for_url("**/dashboard/")
    for name, path in pages.items():
        page.goto(f"{stack.api.url}/dashboard{path}")
        _picture(page, f"{name}-{scheme}-{size}")
    context.close()


def _picture(page: Page, name: str) -> None:
    page.wait_for_timeout(SETTLED_MS)
    if name in CHOSEN:
        page.screenshot(path=README / f"{CHOSEN[name]}.png")
    seen = page.viewport_size
    assert seen
    # As on a screen that shows all of it at once: what sticks to the screen's edges would lie across the page.
    page.set_viewport_size({**seen, "height": page.evaluate("document.documentElement.scrollHeight")})
    page.screenshot(path=ALL / f"{name}.png")
    page.set_viewport_size(seen)


if __name__ == "__main__":
    main()
