"""The form of a new job, generated from the request model: its fields, defaults, ranges and help texts."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from api.dashboard import formatting
from core.errors import Flaw
from core.specs import JobSpec
from core.tables import Json


class InputKind(StrEnum):
    """Type of a form field's input."""

    TEXT = "text"
    NUMBER = "number"
    CHOICE = "choice"
    SWITCH = "switch"
    LIST = "list"
    PAIRS = "pairs"


@dataclass(frozen=True, slots=True)
class FormField:
    """A field of the form."""

    name: str
    """Dotted path of the setting in the request."""
    group: str
    """Part of the request that the setting belongs to; empty for the top level."""
    label: str
    kind: InputKind
    value: str
    help: str
    choices: tuple[str, ...]
    minimum: str
    maximum: str
    required: bool
    numeric: bool
    """Whether the value may be a number. A field of kind TEXT may accept a number or one of a few words."""


def form_fields(values: Mapping[str, str], model: type[BaseModel] = JobSpec, prefix: str = "") -> Iterator[FormField]:
    """Yield all fields in the model's order, nested ones included. Each holds its value or else its default."""
    for name, field in model.model_fields.items():
        path = prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from form_fields(values, field.annotation, f"{path}.")
        else:
            yield _form_field(path, field, values.get(path))


def submitted_values(form: Mapping[str, Any]) -> dict[str, str]:
    """Return a submitted form's values by field. A browser does not send a switch that is off; it is `false` here."""
    values = {}
    for field in form_fields({}):
        text = form.get(field.name)
        if isinstance(text, str):
            values[field.name] = text.strip()
        elif field.kind is InputKind.SWITCH:
            values[field.name] = "false"
    return values


def request_body(values: Mapping[str, str]) -> tuple[Json, list[Flaw]]:
    """Return the request for these values, and a flaw per line that is not a name=value pair.

    A field with an empty value is left out, so that it gets its default.
    """
    body: Json = {}
    flaws: list[Flaw] = []
    for field in form_fields({}):
        text = values.get(field.name, "")
        if not text:
            continue
        target = body
        *parts, last = field.name.split(".")
        for part in parts:
            target = target.setdefault(part, {})
        match field.kind:
            case InputKind.PAIRS:
                lines = [line.strip() for line in text.splitlines() if line.strip()]
                flaws += [_not_a_pair(field.name, line) for line in lines if "=" not in line]
                target[last] = dict(line.split("=", 1) for line in lines if "=" in line)
            case InputKind.LIST:
                target[last] = [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]
            case InputKind.SWITCH:
                target[last] = {"true": True, "false": False}.get(text, text)
            case _:
                target[last] = _number(text) if field.numeric else text
    return body, flaws


def values_of_spec(spec: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the form values of an earlier job's spec, by field."""
    values: dict[str, str] = {}
    pairs = {field.name for field in form_fields({}) if field.kind is InputKind.PAIRS}
    for name, value in spec.items():
        path = prefix + name
        if path in pairs:
            values[path] = "\n".join(f"{key}={text}" for key, text in value.items())
        elif isinstance(value, dict):
            values |= values_of_spec(value, f"{path}.")
        else:
            values[path] = _text(value)
    return values


def _form_field(path: str, field: FieldInfo, value: str | None) -> FormField:
    bounds = [rule for rule in field.metadata if isinstance(rule, Ge | Gt | Le | Lt)]
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return FormField(
        name=path,
        group=path.rpartition(".")[0].partition(".")[0],
        label=path.rpartition(".")[2].replace("_", " ").capitalize(),
        kind=_kind(field.annotation),
        value=_text(default) if value is None else value,
        help=(field.description or "").replace("`", ""),
        choices=tuple(_choices(field.annotation)),
        minimum=next((_bound(rule.ge) for rule in bounds if isinstance(rule, Ge)), ""),
        maximum=next((_bound(rule.le) for rule in bounds if isinstance(rule, Le)), ""),
        required=field.is_required(),
        numeric=_is_numeric(field.annotation),
    )


def _bound(value: Any) -> str:
    return formatting.count(value) if value == int(value) else f"{value:.6f}".rstrip("0")


def _kind(annotation: Any) -> InputKind:
    origin = get_origin(annotation)
    if annotation is bool:
        return InputKind.SWITCH
    if annotation in (int, float):
        return InputKind.NUMBER
    if _choices(annotation):
        return InputKind.CHOICE
    if origin is dict:
        return InputKind.PAIRS
    if origin in (list, tuple):
        return InputKind.LIST
    return InputKind.TEXT


def _is_numeric(annotation: Any) -> bool:
    return annotation in (int, float) or any(_is_numeric(part) for part in get_args(annotation))


def _number(text: str) -> int | float | str:
    """Return the text as a number. Other text is returned unchanged; the model rejects it."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _choices(annotation: Any) -> list[str]:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return []


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case list() | tuple():
            return ", ".join(map(str, value))
        case dict():
            return "\n".join(f"{key}={text}" for key, text in value.items())
        case _:
            return str(value)


def _not_a_pair(name: str, line: str) -> Flaw:
    return Flaw(name, "must have one name=value pair per line", repr(line), "Write it as team=search, or remove it.")
