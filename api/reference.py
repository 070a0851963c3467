"""The page at `/docs`: the OpenAPI document as HTML. It uses no scripts and no files from other servers."""

import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

Json = dict[str, Any]
METHODS = ("get", "post", "put", "patch", "delete")
STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
summary { cursor: pointer } summary code { font-weight: 600 } details { border-top: 1px solid #8884; padding: .4rem 0 }
table { border-collapse: collapse; margin: .5rem 0 } td, th { border: 1px solid #8884; padding: .2rem .5rem;
text-align: left; vertical-align: top } pre { background: #8881; padding: .6rem; overflow: auto }
"""


def page(document: Json) -> str:
    """Return the page. It lists every operation with its parameters, body and responses, and then every schema."""
    info = document["info"]
    parts = [
        # Without an icon, browsers request /favicon.ico, which does not exist.
        '<!doctype html><html lang=en><meta charset=utf-8><link rel="icon" href="data:,">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])} API</title><style>{STYLE}</style>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        *(f"<p>{_text(part)}</p>" for part in info["description"].strip().split("\n\n")),
        '<p>For programs: <a href="/openapi.json">openapi.json</a>.</p>',
        *_operations(document),
        "<h2>Schemas</h2>",
        *(_schema(name, schema) for name, schema in document["components"]["schemas"].items()),
    ]
    return "\n".join(parts)


def _operations(document: Json) -> Iterator[str]:
    tag = None
    for path, methods in document["paths"].items():
        for method in (name for name in METHODS if name in methods):
            operation = methods[method]
            if operation["tags"] != tag:
                tag = operation["tags"]
                yield f"<h2>{escape(', '.join(tag))}</h2>"
            yield _operation(f"{method.upper()} {path}", operation)


def _operation(request: str, operation: Json) -> str:
    first, _, rest = operation["description"].partition("\n")
    body = operation.get("requestBody", {}).get("content", {})
    return "\n".join(
        [
            f'<details id="{escape(operation["operationId"])}">',
            f"<summary><code>{escape(request)}</code> {_text(first)}</summary>",
            f"<p>{_text(rest)}</p>" if rest.strip() else "",
            _parameters(operation.get("parameters", [])),
            *(f"<h4>Body, {escape(kind)}</h4>{_content(content)}" for kind, content in body.items()),
            _responses(operation["responses"]),
            "</details>",
        ]
    )


def _parameters(parameters: list[Json]) -> str:
    rows = [
        (
            f"<code>{escape(parameter['name'])}</code>",
            escape(parameter["in"]),
            _type(parameter["schema"]),
            _text(parameter.get("description", "")),
        )
        for parameter in parameters
    ]
    return _table(("parameter", "in", "type", "description"), rows)


def _responses(responses: Json) -> str:
    rows = []
    for status, response in responses.items():
        kinds = " or ".join(
            f"{escape(kind)} {_content(content)}" for kind, content in response.get("content", {}).items()
        )
        rows.append((escape(status), _text(response["description"]), kinds if status < "400" else ""))
    return _table(("status", "description", "body"), rows)


def _content(content: Json) -> str:
    schema, example = content.get("schema", {}), content.get("example", content.get("schema", {}).get("example"))
    shown = "" if example is None else f"<pre>{escape(_pretty(example))}</pre>"
    return _type(schema) + shown


def _schema(name: str, schema: Json) -> str:
    required = schema.get("required", [])
    rows = [
        (
            f"<code>{escape(field)}</code>{'' if field in required else ' (optional)'}",
            _type(rule) + (f" = <code>{escape(json.dumps(rule['default']))}</code>" if "default" in rule else ""),
            _text(rule.get("description", "")),
        )
        for field, rule in schema.get("properties", {}).items()
    ]
    example = f"<pre>{escape(_pretty(schema['example']))}</pre>" if "example" in schema else ""
    choices = f"<p>{_type(schema)}</p>" if "enum" in schema else ""
    head = f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code> '
    fields = _table(("field", "type", "description"), rows)
    return f"{head}{_text(schema.get('description', ''))}</summary>{choices}{fields}{example}</details>"


def _type(schema: Json) -> str:
    """Describe a schema in a few words. A named schema becomes a link."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = " ".join(f"{sign} {schema[word]}" for word, sign in words.items() if word in schema)
    return escape(f"{schema.get('type', 'anything')} {bounds}".strip())


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{lines}</table>"


def _text(text: str) -> str:
    """Escape text for HTML. Text between backticks becomes a `<code>` element."""
    return "".join(
        f"<code>{escape(part)}</code>" if number % 2 else escape(part) for number, part in enumerate(text.split("`"))
    )


def _pretty(example: Any) -> str:
    return example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)
