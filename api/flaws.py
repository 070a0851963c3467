"""Convert validation errors of pydantic to entries of a problem report: field, rule, value received, correction."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, get_args, get_origin

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from core.errors import Flaw
from core.request_fields import broken_rule
from core.specs import JobSpec

SHOWN = 80
"""Maximum number of characters of an invalid value that an error shows."""
SECRET = re.compile("key|secret|password|credential|authorization|token$", re.IGNORECASE)
"""Names of unknown fields whose values are not shown in errors, because they may be secrets."""

JSON_TYPES = {
    "string": "a string",
    "int": "a number without a fraction",
    "float": "a number",
    "bool": "true or false",
    "list": "an array",
    "tuple": "an array",
    "dict": "an object",
    "model": "an object",
    "model_attributes": "an object",
}
"""The expected type in words of JSON, by the type of pydantic's error without `_type`."""


def flaws_of(request: Request, error: RequestValidationError) -> list[Flaw]:
    """Return one entry per invalid field. Errors of the alternatives of a union type are merged into one."""
    return _merged(_flaw(request, entry) for entry in error.errors())


def flaws_of_model(model: type[BaseModel], error: ValidationError) -> list[Flaw]:
    """Return the entries for data that was validated outside of a route, such as a form."""
    entries: list[dict[str, Any]] = [{**entry} for entry in error.errors()]
    return _merged(_body_flaw(model, entry["loc"], entry, _rule(entry)) for entry in entries)


def first_flaw(model: type[BaseModel], error: ValidationError) -> str:
    """Return the first flaw of a form with few fields: the field, the rule and the way out."""
    flaw = flaws_of_model(model, error)[0]
    return f"{flaw.param}: {flaw.rule}. {flaw.way_out}"


def _rule(entry: Mapping[str, Any]) -> str:
    wanted = JSON_TYPES.get(entry["type"].removesuffix("_type"))
    return f"Input should be {wanted}" if wanted else broken_rule(entry)


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
    rule = _rule(entry)
    if entry["type"] == "json_invalid":
        rule = f"The body must be JSON: {entry['ctx']['error']} at character {path[0] + 1}"
        return Flaw("body", rule, "invalid JSON", "Send a JSON object with the header Content-Type: application/json.")
    if location == "body":
        return _body_flaw(_body_model(request), path, entry, rule)
    name = str(path[0])
    return Flaw(name, rule, _value(entry), _meant(entry) + _parameter_way_out(request, name))


def _body_flaw(root: type[BaseModel], path: Sequence[str | int], entry: dict[str, Any], rule: str) -> Flaw:
    model, field, names, rest = _walk(root, path)
    if entry["type"] == "extra_forbidden":
        unknown = str(rest[0])
        value = "(not shown)" if SECRET.search(unknown) else _value(entry)
        way_out = _did_you_mean(root, names, unknown, model)
        return Flaw(_dotted([*names, unknown]), "There is no such field", value, way_out)
    advice = _body_advice(model) if field is None else _advice(field, _example(root, names, field))
    if field is not None and (get_origin(field.annotation) is dict or (rest and isinstance(rest[0], int))):
        names = [*names, *rest[:1]]
    way_out = _meant(entry) + _as_fraction(field, entry["input"]) + entry.get("ctx", {}).get("way_out", advice)
    value = "(not shown)" if field is not None and field.annotation is SecretStr else _value(entry)
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
        field, part_model = inner, _model_of(inner)
        if part_model is None:
            return model, field, list(path[: depth + 1]), path[depth + 1 :]
        model = part_model
    return model, field, list(path), ()


def _value(entry: dict[str, Any]) -> str:
    return "nothing" if entry["type"] == "missing" else shown(entry["input"])


def _either(one: Flaw, other: Flaw) -> Flaw:
    # Both texts contain the advice of the field. The longer text may also name the word that was probably meant.
    way_out = max(one.way_out, other.way_out, key=len)
    return Flaw(one.param, f"{one.rule}, or {other.rule[:1].lower()}{other.rule[1:]}", one.value, way_out)


def _dotted(names: Iterable[str | int]) -> str:
    return ".".join(shown(str(name))[1:-1] for name in names)


def _did_you_mean(root: type[BaseModel], names: Sequence[str | int], unknown: str, model: type[BaseModel]) -> str:
    """Return advice for an unknown field of `model`, which is at `names` in `root`.

    It suggests fields of the same name in the request. If the same part has such fields, it suggests only these.
    """
    known = list(model.model_fields)
    same = [path for path in _paths(root) if path.rpartition(".")[2] == unknown]
    inside = [path for path in same if path.startswith(_dotted([*names, ""]))] if names else []
    meant = " or ".join(map(repr, inside or same))
    return f"{f'Did you mean {meant}? ' if meant else guess(unknown, known)}Known fields: {', '.join(known)}."


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of all fields of a model and of the models inside it."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if inner := _model_of(field):
            yield from _paths(inner, f"{prefix}{name}.")


def _meant(entry: Mapping[str, Any]) -> str:
    """Return a question that names the allowed word that is most similar to a wrong one, or an empty text."""
    if entry["type"] not in {"enum", "literal_error"} or not isinstance(entry["input"], str):
        return ""
    return guess(entry["input"], re.findall("'([^']*)'", entry["ctx"]["expected"]))


def _body_advice(model: type[BaseModel]) -> str:
    example = _examples(model)
    such = f" such as {_as_json(example)}" if example else ""
    return f"Send a JSON object{such}. Known fields: {', '.join(model.model_fields)}."


def _advice(field: FieldInfo, example: object) -> str:
    parts = [field.description or "See /docs."]
    if bounds := limits(field):
        parts.append(f"It is {' and '.join(f'{word} {limit}' for word, limit in bounds.items())}.")
    if not field.is_required() and field.default_factory is None:
        parts.append(f"The default is {_as_json(field.default)}.")
    if example is not None:
        parts.append(f"Example: {_as_json(example)}.")
    return " ".join(parts)


def _as_json(value: object) -> str:
    return json.dumps(to_jsonable_python(value), ensure_ascii=False)


def _example(root: type[BaseModel], names: Sequence[str | int], field: FieldInfo) -> object:
    """Return a valid value of the field at `names` in `root`. Returns None if its definition has none.

    The example of a part of a request has one of its fields: the first that has an example or a default.
    """
    if field.examples:
        return field.examples[0]
    if len(names) == 1 and names[0] in (known := _examples(root)):
        return known[str(names[0])]
    if inner := _model_of(field):
        for name, part in inner.model_fields.items():
            value = _example(inner, [name], part) or part.default
            if not part.is_required() and value is not None:
                return {name: value}
    return None


@cache
def _examples(model: type[BaseModel]) -> Mapping[str, Any]:
    """Return the example of a model in the API's documentation. Returns nothing if there is none."""
    example: Mapping[str, Any] = model.model_json_schema().get("example", {})
    return example


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field whose value is a part of a request."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def limits(field: FieldInfo) -> dict[str, Any]:
    """Return the limits of the numbers that a field accepts, by the words before them, for example `at least`."""
    parts = [entry for part in get_args(field.annotation) for entry in getattr(part, "__metadata__", ())]
    rules = [*field.metadata, *(rule for entry in parts if isinstance(entry, FieldInfo) for rule in entry.metadata)]
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return {
        word: getattr(rule, name)
        for name, word in words.items()
        for rule in rules
        if getattr(rule, name, None) is not None
    }


def _parameter_way_out(request: Request, name: str) -> str:
    """Return the OpenAPI description of a parameter of this operation, as advice on how to correct its value."""
    operation = request.app.openapi()["paths"][request.scope["route"].path_format][request.method.lower()]
    for parameter in operation["parameters"]:
        if parameter["name"].lower() == name.lower():
            default = parameter["schema"].get("default")
            text: str = parameter["description"]
            return text if default is None else f"{text} The default is {_as_json(default)}."
    return "See /docs."
