"""Command-line options derived from the fields of a settings dataclass (`seft.config`).

A field `batch_tokens` becomes the option `--batch-tokens`. Type, choices and default follow from the field, and the
help text is its `Doc`.
"""

import argparse
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields
from enum import StrEnum
from types import MappingProxyType, NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from typing_extensions import Doc

from seft.config import EvaluateConfig, Pattern, PruneConfig, RepairConfig

Config = TypeVar("Config", PruneConfig, RepairConfig, EvaluateConfig)
Reader = Callable[[str], object]
_NONE: Mapping[str, Any] = MappingProxyType({})


def add_options(
    parser: argparse.ArgumentParser,
    config: type[PruneConfig | RepairConfig | EvaluateConfig],
    *,
    names: Mapping[str, str] = _NONE,
    optional: Collection[str] = (),
    defaults: Mapping[str, object] = _NONE,
    without: Collection[str] = (),
    prefix: str = "",
) -> None:
    """Add one command-line option per field of `config`, except those in `without`.

    `names` maps a field to its option name if the two differ. A field in `optional` may be missing on the command line.
    Its value is None then, instead of its default. `defaults` replaces defaults of fields. `prefix` is for commands
    with two settings classes: it separates the parsed values of fields that both have.
    """
    hints = get_type_hints(config, include_extras=True)
    for field in fields(config):
        if field.name not in without:
            missing = field.default is MISSING or field.name in optional
            default = defaults.get(field.name, None if missing else field.default)
            required = field.default is MISSING and field.name not in optional
            name = names.get(field.name, "--" + field.name.replace("_", "-"))
            _add_option(parser, name, prefix + field.name, default, hints[field.name], required=required)


def read_options(options: argparse.Namespace, config: type[Config], *, prefix: str = "", **values: object) -> Config:
    """Return the settings that the parsed command line gives. `values` replace single fields."""
    given = {each.name: getattr(options, prefix + each.name) for each in fields(config) if each.name not in values}
    return config(**{**given, **values})


def _add_option(
    parser: argparse.ArgumentParser, name: str, dest: str, default: object, hint: Any, *, required: bool
) -> None:
    text = next(extra.documentation for extra in hint.__metadata__ if isinstance(extra, Doc))
    if hint.__origin__ is bool:
        parser.add_argument(name, dest=dest, action="store_true", help=text)
        return
    read, metavar = _reader(hint.__origin__)
    parser.add_argument(
        name,
        dest=dest,
        type=read,
        metavar=metavar or dest.rpartition(" ")[2].upper(),
        default=default,
        required=required,
        help=(text if default is None else f"{text} Default: {default}.").replace("%", "%%"),
    )


def _reader(kind: Any) -> tuple[Reader, str | None]:
    """Return the function that parses an option of type `kind`, and its placeholder in the help text or None."""
    if kind is Pattern:
        return Pattern.parse, None
    if not isinstance(kind, type):
        return _number_or_word(kind), None
    if issubclass(kind, StrEnum):
        return _choice(kind), f"{{{','.join(kind)}}}"
    return kind, None


def _choice(kind: type[StrEnum]) -> Reader:
    def read(text: str) -> StrEnum:
        if text not in list(kind):
            raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(kind)})")
        return kind(text)

    return read


def _number_or_word(union: Any) -> Reader:
    """Return the function that parses an option whose type is a number, or a number and None or certain words."""
    members = get_args(union)
    words = [word for member in members if get_origin(member) is Literal for word in get_args(member)]
    (number,) = (member for member in members if isinstance(member, type) and member is not NoneType)

    def read(text: str) -> object:
        return text if text in words else number(text)

    read.__name__ = " or ".join([number.__name__, *words])  # argparse shows it in error messages
    return read
