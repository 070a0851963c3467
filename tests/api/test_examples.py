"""The requests and answers in `docs/api.md` are those of the service."""

from pathlib import Path

from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.api.examples import MODEL, PAGE, block, examples
from tests.hollow import write_hollow


def test_the_page_shows_what_the_service_answers(app: FastAPI, client: TestClient, root: Path) -> None:
    write_hollow(root / MODEL)
    page = PAGE.read_text()
    assert block(page) == examples(app, client), "the page is outdated. Run: python -m tests.api.documents"
