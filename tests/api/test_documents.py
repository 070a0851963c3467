"""The generated documents equal the code, and the OpenAPI document is complete."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI

from api.app import routes
from api.errors import MEDIA_TYPE
from core.specs import JobSpec
from tests.api.documents import METHODS, documents


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in routes().openapi()["paths"].items():
        yield from ((f"{name} {path}", methods[name]) for name in METHODS if name in methods)


def test_documents_equal_the_code() -> None:
    for path, expected in documents():
        assert path.read_text() == expected, f"{path.name} is outdated. Run: python -m tests.api.documents {path.name}"


def has_example(content: dict[str, Any], schemas: dict[str, Any]) -> bool:
    schema = content.get("schema", {})
    return "example" in content or "example" in schemas.get(schema.get("$ref", "").rpartition("/")[2], {})


def test_every_operation_has_a_name_an_example_and_its_errors() -> None:
    schemas = routes().openapi()["components"]["schemas"]
    names = set()
    for name, operation in operations():
        names.add(operation["operationId"])
        statuses = operation["responses"]
        success = next(statuses[status] for status in ("200", "201", "202") if status in statuses)
        contents = [*success["content"].values(), *operation.get("requestBody", {}).get("content", {}).values()]
        assert any(has_example(content, schemas) for content in contents), name
        for status, answer in statuses.items():
            if status >= "400":
                assert list(answer["content"]) == [MEDIA_TYPE], f"{name} {status}"
        if "security" in operation:
            assert {"401", "422"} <= set(statuses), name
        assert ("{" in name) <= ("404" in statuses), name
    assert len(names) == len(list(operations()))


def test_examples_are_right() -> None:
    JobSpec.model_validate(JobSpec.model_json_schema()["example"])


@pytest.mark.parametrize("reference", ["Problem", "FlawView", "JobDetail"])
def test_every_schema_that_is_named_is_there(reference: str) -> None:
    document = json.dumps(routes().openapi())
    names = {part.partition('"')[0] for part in document.split("#/components/schemas/")[1:]}
    assert reference in names
    assert names <= set(json.loads(document)["components"]["schemas"])


def test_the_description_needs_no_service() -> None:
    assert isinstance(routes(), FastAPI)
    assert not hasattr(routes().state, "services")
