"""Rules for the options of a command line: an option without effect is refused, and errors name options.

A parsed command line has `names`, the options by the names of their values; `given`, the names of the values that the
user wrote; and `texts`, the names of the values that are files of records. The rules are for people who type. A stored
job may have settings without effect.
"""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from seft.config import PruneConfig, PruneMethod, RepairConfig, RepairMethod
from seft.data.records import require_file
from seft.errors import ConfigError

_LEAVE_OUT = "Leave it out"


class Use(NamedTuple):
    """What uses the values `names`: they have an effect only if `used`. `without` says when they have none."""

    names: Sequence[str]
    used: bool
    without: str
    way_out: str


def text_file(text: str) -> Path:
    """Return the path of a file of records. `require_texts` checks the file, after all options are parsed."""
    return Path(text)


def note_options(parser: argparse.ArgumentParser, words: Iterable[str], parsed: argparse.Namespace) -> None:
    """Add `names`, `given` and `texts` to a parsed command line, unless the parser of a subcommand has added them."""
    if "names" in parsed:
        return
    given = {word.partition("=")[0] for word in takewhile(lambda word: word != "--", words)}
    options = {action.dest: action.option_strings for action in parser._actions if action.option_strings}
    parsed.names = {dest: strings[-1] for dest, strings in options.items()}
    parsed.texts = [action.dest for action in parser._actions if action.type is text_file]
    parsed.given = {dest for dest, strings in options.items() if not given.isdisjoint(strings)}


def require_texts(options: argparse.Namespace) -> None:
    """Raise ConfigError if a text that an option names is not a file of records."""
    for name in options.texts:
        if path := getattr(options, name):
            require_file(path, options.names[name])


def require_used(options: argparse.Namespace, uses: Iterable[Use], prefix: str = "") -> None:
    """Raise ConfigError if an option was given and has no effect. `prefix` is before the names of the values."""
    for use in uses:
        for name in use.names:
            if not use.used and prefix + name in options.given:
                value = getattr(options, prefix + name)
                shown = value if isinstance(value, int | float) else str(value)
                raise ConfigError(options.names[prefix + name], f"has no effect {use.without}", shown, use.way_out)


def repair_uses(config: RepairConfig) -> list[Use]:
    """Return what uses the settings of a repair that are not always used."""
    moves = config.method is RepairMethod.SEFT and not config.trains_all
    of_seft = "unless the method seft trains a part of the weights"
    of_swaps = f"{of_seft}, or swap_tokens is set"
    density = f"{_LEAVE_OUT}, or give the method seft a --density below 1, such as 0.005."
    retain = f"{_LEAVE_OUT}, or set retain to written or dataset."
    return [
        Use(("update_interval", "drop_rate", "drop_decay"), moves, of_seft, density),
        Use(("settle",), moves or config.swap_tokens > 0, of_swaps, density),
        Use(("retain_share", "retain_tokens"), config.retains, "if no text is retained", retain),
    ]


def prune_uses(config: PruneConfig, *, swaps: bool) -> list[Use]:
    """Return what uses the settings of pruning that are not always used. `swaps` is true if the repair swaps zeros."""
    keeps, damps = config.keeps_zeros, config.method in {PruneMethod.SPARSEGPT, PruneMethod.ALPS}
    kept = ("method", "compare", "refine", "allocation", "sparsity_of", "reconstruct_epochs")
    windows = config.reads_calibration or config.gradual or swaps
    method = f"{_LEAVE_OUT}, or use a method that reads text, such as admm."
    one_shot = not (config.gradual or keeps)
    return [
        Use(kept, not keeps, "with the sparsity 0, which keeps the zeros of the model", f"{_LEAVE_OUT}."),
        Use(("rise", "rise_interval"), config.gradual, "unless --schedule is gradual", f"{_LEAVE_OUT}."),
        Use(
            ("reconstruct_learning_rate",),
            config.reconstruct_epochs > 0 and one_shot,
            "if no block is reconstructed",
            f"{_LEAVE_OUT}, or set reconstruct_epochs.",
        ),
        Use(("damping",), damps and one_shot, "unless sparsegpt or alps prunes the model", f"{_LEAVE_OUT}."),
        Use(("calibration",), config.reads_calibration, "if pruning reads no text", method),
        Use(("samples", "tokens", "order"), windows, "if pruning reads no text", method),
    ]


def hub_uses(options: argparse.Namespace) -> list[Use]:
    """Return what uses the revision of a model: only a model of the hub has revisions."""
    local = False
    if "revision" in options.given:
        with suppress(OSError, RuntimeError, ValueError):  # it is no path
            local = Path(options.model).expanduser().exists()
    return [Use(("revision",), not local, "for a model on this machine", f"{_LEAVE_OUT}, or give the id of a model.")]


def sampling_uses(temperature: float) -> list[Use]:
    """Return what uses the settings of the random choice of tokens."""
    greedy = "at the temperature 0, which takes the most probable token"
    return [Use(("top_p", "seed"), temperature > 0, greedy, f"{_LEAVE_OUT}, or set --temperature above 0.")]


def names_of(options: argparse.Namespace, prefix: str = "") -> dict[str, str]:
    """Return the options by the names of their settings. `prefix` is before the names of the values."""
    return {dest.removeprefix(prefix): name for dest, name in options.names.items() if dest.startswith(prefix)}


def naming_options(error: BaseException, names: Mapping[str, str]) -> BaseException:
    """Return an error of a setting with the names of options instead of those of settings, and any other unchanged."""
    if not isinstance(error, ConfigError):
        return error

    def renamed(text: str) -> str:
        # A name without an underscore, such as method, is also a word.
        return re.sub("[a-z]+(_[a-z]+)+", lambda match: names.get(match[0], match[0]), text)

    field = names.get(error.field, error.field)
    return ConfigError(field, renamed(error.rule), error.value, renamed(error.way_out), lead=error.lead)
