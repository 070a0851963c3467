"""Convert validation errors of pydantic to entries of a problem report: field, rule, value received, correction."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, get_origin

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from core.errors import Flaw
from core.request_fields import broken_rule
from core.specs import JobSpec

SHOWN = 80
"""Maximum number of characters of an invalid value that an error shows."""
SECRET = re.compile("key|secret|password|credential|authorization|token$", re.IGNORECASE)
"""Names of unknown fields whose values are not shown in errors, because they may be secrets."""


def flaws_of(request: Request, error: RequestValidationError) -> list[Flaw]:
    """Return one entry per invalid field. Errors of the alternatives of a union type are merged into one."""
    return _merged(_flaw(request, entry) for entry in error.errors())


def flaws_of_model(model: type[BaseModel], error: ValidationError) -> list[Flaw]:
    """Return the entries for data that was validated outside of a route, such as a form."""
    entries: list[dict[str, Any]] = [{**entry} for entry in error.errors()]
    return _merged(_body_flaw(model, entry["loc"], entry, broken_rule(entry)) for entry in entries)


def _merged(flaws: Iterable[Flaw]) -> list[Flaw]:
    merged: dict[str, Flaw] = {}
    for flaw in flaws:
        first = merged.get(flaw.param)
        merged[flaw.param] = flaw if first is None else _either(first, flaw)
    # A list is reported as too short if its entries are wrong; the flaws of the entries say more.
    return [flaw for flaw in merged.values() if not any(name.startswith(f"{flaw.param}.") for name in merged)]


def shown(value: object) -> str:
    """Return a value as Python prints it, without unprintable characters, in at most `SHOWN` characters."""
    text = repr(str(value)) if isinstance(value, str) else ascii(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def guess(unknown: str, known: Sequence[str]) -> str:
    """Return a question that names the known name that is most similar to an unknown one, or an empty text."""
    matches = difflib.get_close_matches(unknown, known, n=1)
    return f"Did you mean {matches[0]!r}? " if matches else ""


def _flaw(request: Request, entry: dict[str, Any]) -> Flaw:
    location, *path = entry["loc"]
    rule = broken_rule(entry)
    if entry["type"] == "json_invalid":
        rule = f"The body must be JSON: {entry['ctx']['error']} at character {path[0]}"
        return Flaw("body", rule, "invalid JSON", "Send a JSON object with the header Content-Type: application/json.")
    if location == "body":
        return _body_flaw(_body_model(request), path, entry, rule)
    name = str(path[0])
    return Flaw(name, rule, _value(entry), _parameter_way_out(request, name))


def _body_flaw(root: type[BaseModel], path: Sequence[str | int], entry: dict[str, Any], rule: str) -> Flaw:
    model, field, names, rest = _walk(root, path)
    if entry["type"] == "extra_forbidden":
        unknown = str(rest[0])
        value = "(not repeated)" if SECRET.search(unknown) else _value(entry)
        return Flaw(_dotted([*names, unknown]), "There is no such field", value, _did_you_mean(unknown, model))
    if field is not None and (get_origin(field.annotation) is dict or (rest and isinstance(rest[0], int))):
        names = [*names, *rest[:1]]
    known = _advice(field) if field is not None else f"Known fields: {', '.join(model.model_fields)}."
    way_out = _as_fraction(field, entry["input"]) + entry.get("ctx", {}).get("way_out", known)
    value = "(not repeated)" if field is not None and field.annotation is SecretStr else _value(entry)
    return Flaw(_dotted(names) or "body", rule, value, way_out)


def _as_fraction(field: FieldInfo | None, value: object) -> str:
    """Return advice for a percentage that was given for a fraction, or an empty text."""
    takes_fraction = field is not None and "fraction" in (field.description or "").lower()
    if not takes_fraction or isinstance(value, bool) or not isinstance(value, int | float) or not 2 <= value < 100:
        return ""
    return f"Write {value / 100:g} for {value:g} %. "


def _body_model(request: Request) -> type[BaseModel]:
    """Return the pydantic model of the operation's request body."""
    model = request.scope["route"].body_field.field_info.annotation
    # The only body without a model is the overrides of a clone: fields of a job.
    return model if isinstance(model, type) and issubclass(model, BaseModel) else JobSpec


def _walk(
    model: type[BaseModel], path: Sequence[str | int]
) -> tuple[type[BaseModel], FieldInfo | None, list[str | int], Sequence[str | int]]:
    """Follow a path into a model, as far as the model has fields.

    Returns the last model, the last field, the names of the fields so far, and the part of the path that is left.
    """
    field: FieldInfo | None = None
    for depth, part in enumerate(path):
        inner = model.model_fields.get(str(part))
        if inner is None:
            return model, field, list(path[:depth]), path[depth:]
        field = inner
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return model, field, list(path[: depth + 1]), path[depth + 1 :]
        model = field.annotation
    return model, field, list(path), ()


def _value(entry: dict[str, Any]) -> str:
    return "nothing" if entry["type"] == "missing" else shown(entry["input"])


def _either(one: Flaw, other: Flaw) -> Flaw:
    return Flaw(one.param, f"{one.rule}, or {other.rule[:1].lower()}{other.rule[1:]}", one.value, one.way_out)


def _dotted(names: Iterable[str | int]) -> str:
    return ".".join(shown(str(name))[1:-1] for name in names)


def _did_you_mean(unknown: str, model: type[BaseModel]) -> str:
    known = list(model.model_fields)
    return f"{guess(unknown, known)}Known fields: {', '.join(known)}."


def _advice(field: FieldInfo) -> str:
    text = " ".join([field.description or "See /docs.", *_range(field)])
    if field.is_required() or field.default_factory is not None:
        return text
    return f"{text} The default is {shown(field.default)}."


def _range(field: FieldInfo) -> Iterable[str]:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [
        f"{word} {getattr(rule, name)}"
        for name, word in words.items()
        for rule in field.metadata
        if getattr(rule, name, None) is not None
    ]
    return [f"It is {' and '.join(bounds)}."] if bounds else []


def _parameter_way_out(request: Request, name: str) -> str:
    """Return the OpenAPI description of a parameter of this operation, as advice on how to correct its value."""
    operation = request.app.openapi()["paths"][request.scope["route"].path_format][request.method.lower()]
    for parameter in operation["parameters"]:
        if parameter["name"].lower() == name.lower():
            default = parameter["schema"].get("default")
            text: str = parameter["description"]
            return text if default is None else f"{text} The default is {shown(default)}."
    return "See /docs."
