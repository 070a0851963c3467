"""The attack with texts that cannot be stored, at every place of the OpenAPI document that takes a text."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

from httpx2 import Response

from tests.api.conftest import Json
from tests.attack.attacks import Finding, code
from tests.attack.target import LINES, Target

TEXTS = ("a\0b", "a\ud800b")
NEEDS_HUB_TOKEN = "push_job"
"""Operation that is refused here whatever its body is."""
JSON, FORM = {"Content-Type": "application/json"}, {"Content-Type": "multipart/form-data; boundary=b"}


def unstorable_texts(target: Target) -> Iterator[Finding]:
    """NUL and half of a surrogate pair, in every string of every JSON body and in every parameter of a URL."""
    client = target.client("attacker")
    own = {"dataset": target.add_dataset(client), "model": "tiny"}
    job = client.post("/jobs", json={**own, "sparsity": 0.6}).raise_for_status().json()["id"]
    ids, document = {"job_id": job, "dataset_id": own["dataset"]}, client.get("/openapi.json").json()
    right, wrong, urls = list[Response](), list[Response](), list[Response]()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parameters = [each for each in operation.get("parameters", []) if each["in"] in {"path", "query"}]
            values = {each["name"]: ids.get(each["name"], "x") for each in parameters}
            required = [each["name"] for each in parameters if each["in"] == "query" and each["required"]]
            urls += [client.request(method, url) for url in _urls(path, values, {name: own[name] for name in required})]
            content = operation.get("requestBody", {}).get("content", {})
            if schema := content.get("application/json", {}).get("schema"):
                example = _resolve(document, schema)["example"]
                example = {name: own.get(name, value) for name, value in example.items()}
                send = partial(client.request, method, path.format_map(values))
                if operation["operationId"] != NEEDS_HUB_TOKEN:
                    right.append(send(json=example))
                bodies = [each for text in TEXTS for each in _bodies(document, schema, text)]
                wrong += [send(content=sent, headers=JSON) for each in bodies for sent in _encoded({**example, **each})]
    for name in (b"a\0b", b"a\xed\xa0\x80b"):
        form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n%s\r\n--b--' % (name, LINES)
        urls.append(client.post("/datasets", content=form, headers=FORM))
    yield Finding("the examples of the bodies: 2xx", _classes(right), all(each.is_success for each in right))
    good = all(each.is_client_error and code(each) for each in wrong)
    yield Finding(f"{len(wrong)} bodies: 4xx with a problem report", _classes(wrong), good)
    good = not any(each.is_server_error for each in urls)
    yield Finding(f"{len(urls)} URLs and names of files: no 5xx", _classes(urls), good)


def _urls(path: str, values: Mapping[str, str], query: Mapping[str, str]) -> Iterator[str]:
    """Yield the URL of an operation with a text that cannot be stored, for each parameter and in an unknown one."""
    for name, text in product([*values, "unknown"], ("%00", "%ED%A0%80")):
        sent = query if f"{{{name}}}" in path else {**query, name: text}
        pairs = "&".join(f"{key}={value}" for key, value in sent.items())
        yield f"{path.format_map({**values, name: text})}?{pairs}"


def _encoded(body: Json) -> Iterator[bytes]:
    """Yield the body with its special characters escaped, and with those that JSON need not escape as bytes."""
    for escaped in (True, False):
        yield json.dumps(body, ensure_ascii=escaped).encode(errors="surrogatepass")


def _resolve(document: Json, schema: Json) -> Json:
    """Return the schema that a reference of the OpenAPI document leads to."""
    if "$ref" in schema:
        found: Json = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return found
    return schema


def _bodies(document: Json, schema: Json, text: str) -> Iterator[Any]:
    """Yield a value for each place of a string in the schema: it has `text` there, and nothing else."""
    schema = _resolve(document, schema)
    for option in schema.get("anyOf", []):
        yield from _bodies(document, option, text)
    if schema.get("type") == "string":
        yield text
    if "items" in schema:
        yield from ([each] for each in _bodies(document, schema["items"], text))
    for name, field in schema.get("properties", {}).items():
        yield from ({name: each} for each in _bodies(document, field, text))
    if isinstance(more := schema.get("additionalProperties"), dict):
        yield {text: "a"}
        yield from ({"a": each} for each in _bodies(document, more, text))


def _classes(answers: list[Response]) -> str:
    return str(dict(Counter(f"{answer.status_code // 100}xx" for answer in answers)))
