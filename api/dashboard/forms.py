"""The form of a new job, generated from the request model: its fields, defaults, ranges and help texts."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from itertools import starmap
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from api.dashboard import formatting
from api.flaws import guess, limits, shown
from core.errors import Flaw
from core.specs import JobSpec
from core.tables import Json


class InputKind(StrEnum):
    """Type of the HTML input of a form field."""

    TEXT = "text"
    NUMBER = "number"
    CHOICE = "choice"
    SWITCH = "switch"
    LIST = "list"
    PAIRS = "pairs"


HELP = {
    "dataset": "Texts to repair the model on.",
    "repair.retain_dataset": "The dataset to retain, if `retain` is `dataset`. It must not be the training dataset.",
    "repair.clip_norm": "Gradient clipping: the maximum norm. A larger gradient is scaled down. Empty: no limit.",
    "evaluate.dataset": "The dataset to evaluate on, in place of a part of the training dataset.",
    "auto_start": "If it is off, the job waits until you start it on its page.",
}
"""Help texts of fields whose description is about the API."""
TECHNICAL = {"csrf", "clone", "nonce"}
"""Fields of the form that are not fields of a job."""
DERIVED = {"sparsity", "repair.batch_tokens", "repair.steps", "evaluate.held_out"}
"""Fields that may be empty, because their default depends on other fields."""


@dataclass(frozen=True, slots=True)
class FormField:
    """A field of the form."""

    name: str
    """Dotted path of the field in the request."""
    group: str
    """Name of the part of the request that contains the field. Empty for the top level."""
    label: str
    kind: InputKind
    value: str
    description: str
    help: str
    choices: tuple[str, ...]
    range: str
    required: bool
    numeric: bool
    """Whether a number is a valid value. A TEXT input can accept a number as well as some words."""


def form_fields(values: Mapping[str, str], model: type[BaseModel] = JobSpec, prefix: str = "") -> Iterator[FormField]:
    """Yield all fields of the form, nested ones included, in the order of the model.

    The value of a field comes from `values`. If it is not there, the field has its default.
    """
    for name, field in model.model_fields.items():
        path = prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from form_fields(values, field.annotation, f"{path}.")
        else:
            yield _form_field(path, field, values.get(path))


def field_of(param: str) -> str:
    """Return the name of the field to which an error belongs. `metadata.team` belongs to `metadata`.

    Returns `param` itself if no field fits.
    """
    names = (field.name for field in form_fields({}))
    return next((name for name in names if param == name or param.startswith(f"{name}.")), param)


def by_field(flaws: Iterable[Flaw]) -> dict[str, Flaw]:
    """Return errors by the name of their field. A field has its first error only.

    The description of the field is left out of the advice, because the form shows its help.
    """
    descriptions = {field.name: field.description for field in form_fields({})}
    found: dict[str, Flaw] = {}
    for flaw in flaws:
        name = field_of(flaw.param)
        advice = flaw.way_out.replace(descriptions.get(name, ""), "")
        found.setdefault(name, replace(flaw, way_out=" ".join(advice.split())))
    return found


def submitted_values(form: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of a submitted form by field name, also of fields that the form does not have.

    Browsers omit a checkbox that is off. The result has the value `false` for it.
    """
    texts = {name: text.strip() for name, text in form.items() if isinstance(text, str) and name not in TECHNICAL}
    return {field.name: "false" for field in form_fields({}) if field.kind is InputKind.SWITCH} | texts


def request_body(values: Mapping[str, str]) -> tuple[Json, list[Flaw]]:
    """Build the request from form values, and return it with a list of input errors.

    An input error is a field that the form does not have, or a line of a `name=value` field that has another format.
    Fields that are empty or have their default are omitted. So a default that is too long for the model is shortened,
    as in a request without the field.
    """
    body: Json = {}
    fields = list(form_fields({}))
    names = [field.name for field in fields]
    flaws = [_unknown(name, text, names) for name, text in values.items() if name not in names]
    for field in fields:
        text = values.get(field.name, "")
        if text in {"", field.value}:
            continue
        target = body
        *parts, last = field.name.split(".")
        for part in parts:
            target = target.setdefault(part, {})
        match field.kind:
            case InputKind.PAIRS:
                lines = [line.strip() for line in text.splitlines() if line.strip()]
                pairs = {line: _read_pairs(line) for line in lines}
                flaws += [_not_a_pair(field.name, line) for line in lines if not pairs[line]]
                target[last] = {name: value for line in lines for name, value in pairs[line].items()}
            case InputKind.LIST:
                target[last] = [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]
            case InputKind.SWITCH:
                target[last] = {"true": True, "false": False}.get(text, text)
            case _:
                target[last] = _number(text) if field.numeric else text
    return body, flaws


def values_of_spec(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the form values for the settings of an existing job, by field name."""
    return flatten(spec, {field.name for field in form_fields({}) if field.kind is InputKind.PAIRS})


def flatten(spec: Mapping[str, Any], whole: Collection[str] = (), prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to one level: dotted name -> value as text. Settings named in `whole` are not split."""
    flat: dict[str, str] = {}
    for name, value in spec.items():
        path = prefix + name
        if isinstance(value, dict) and path not in whole:
            flat |= flatten(value, whole, f"{path}.")
        else:
            flat[path] = _text(value)
    return flat


def _form_field(path: str, field: FieldInfo, value: str | None) -> FormField:
    fixed = not field.is_required() and path not in DERIVED
    default = field.get_default(call_default_factory=True) if fixed else None
    return FormField(
        name=path,
        group=path.rpartition(".")[0].partition(".")[0],
        label=path.rpartition(".")[2].replace("_", " ").capitalize(),
        kind=_kind(field.annotation),
        value=_text(default) if value is None else value,
        description=field.description or "",
        help=HELP.get(path, field.description or ""),
        choices=tuple(_choices(field.annotation)),
        range=_range(field),
        required=field.is_required() and path not in DERIVED,
        numeric=_is_numeric(field.annotation),
    )


def _range(field: FieldInfo) -> str:
    """Return the range of the numbers that the field accepts. Empty if it has no limits."""
    bounds = {word: _bound(limit) for word, limit in limits(field).items()}
    if list(bounds) == ["at least", "at most"]:
        return " \N{EN DASH} ".join(bounds.values())
    return ", ".join(f"{word} {bound}" for word, bound in bounds.items())


def _bound(value: Any) -> str:
    return formatting.count(value) if value == int(value) else f"{value:g}".replace("e-0", "e-")


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


def _number(text: str) -> int | float | str | None:
    """Convert a text to a number, and `null` to None.

    Other text is returned unchanged, and the request model then rejects it.
    """
    if text == "null":
        return None
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
            return "\n".join(starmap(_pair, value.items()))
        case _:
            return str(value)


def _pair(name: str, value: str) -> str:
    """Return a pair as a line `name=value`, or as a JSON object if reading this line would give another pair.

    This happens if the name contains a `=`, or if the name or the value contains a line break, or begins or ends with
    space.
    """
    line = f"{name}={value}"
    same = line.splitlines() == [line.strip()] and _read_pairs(line) == {name: value}
    return line if same else json.dumps({name: value})


def _read_pairs(line: str) -> dict[str, str]:
    """Return the pairs in a line, which has one pair or a JSON object. Empty if the line has another format."""
    with suppress(ValueError, RecursionError):
        pairs = json.loads(line)
        if isinstance(pairs, dict):
            return pairs
    name, equals, value = line.partition("=")
    return {name.strip(): value.strip()} if equals else {}


def _unknown(name: str, text: str, known: list[str]) -> Flaw:
    way_out = f"{guess(name, known)}Leave it out, or use a field of this form."
    return Flaw(shown(name)[1:-1], "There is no such field", shown(text), way_out)


def _not_a_pair(name: str, line: str) -> Flaw:
    return Flaw(name, "must have one name=value pair per line", repr(line), "Write it as team=search, or remove it.")
