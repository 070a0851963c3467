"""The page at /docs shows the whole OpenAPI document and loads nothing from other servers."""

import re
from html.parser import HTMLParser

from fastapi import FastAPI
from starlette.testclient import TestClient

from api import reference
from tests.api.walk import operations

VOID = {"meta", "link"}


class Links(HTMLParser):
    """Collects the links and ids of a page, and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.to: list[str] = []
        self.names: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.to += [value or "" for name, value in attrs if name in {"href", "src"}]
        self.names |= {value or "" for name, value in attrs if name == "id"}
        if tag not in VOID | {"html"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_every_operation_and_has_no_external_links(app: FastAPI, client: TestClient) -> None:
    answer = client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    page = Links()
    page.feed(answer.text)
    assert page.open == []
    assert {operation.name for operation in operations(app)} <= page.names
    assert {f"schema-{name}" for name in app.openapi()["components"]["schemas"]} <= page.names
    assert page.to[0] == "data:,", "the page has an empty icon, so that browsers do not request /favicon.ico"
    assert all(link == "/openapi.json" or (link[0] == "#" and link[1:] in page.names) for link in page.to[1:])
    assert "<script" not in answer.text
    assert not re.search(r"url\(|@import", answer.text)


def test_nothing_in_the_document_becomes_markup() -> None:
    evil = "<script>`</code>`&"
    parameter = {"name": evil, "in": "query", "schema": {"type": evil}, "description": evil}
    operation = {
        "operationId": evil,
        "tags": [evil],
        "description": evil,
        "parameters": [parameter],
        "responses": {"200": {"description": evil, "content": {evil: {"example": evil}}}},
    }
    schema = {"description": evil, "properties": {evil: {"enum": [evil], "default": evil}}, "example": {evil: evil}}
    html = reference.page(
        {
            "info": {"title": evil, "version": evil, "description": evil},
            "paths": {evil: {"get": operation}},
            "components": {"schemas": {evil: schema}},
        }
    )
    assert "<script" not in html
