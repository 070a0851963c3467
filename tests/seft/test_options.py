"""The command line has an option for every field of the settings, with the same name, type, default and help."""

from dataclasses import MISSING, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from typing_extensions import Doc

from seft import cli
from seft.cli import DERIVED, REPAIR, UsageError, make_parser, read_settings
from seft.config import (
    EvaluateConfig,
    Pattern,
    PruneConfig,
    PruneMethod,
    PruneSchedule,
    RateSchedule,
    RepairConfig,
    RepairMethod,
    Retain,
)
from seft.errors import ConfigError
from seft.exit_codes import Exit
from seft.report import silent

COMMANDS: dict[type[Any], list[str]] = {
    PruneConfig: ["prune", "model", "--out", "out"],
    RepairConfig: ["repair", "folder", "--data", "data.txt", "--out", "out"],
    EvaluateConfig: ["evaluate", "model", "--data", "data.txt"],
}
WITHOUT_OPTION: set[tuple[type[Any], str]] = set()
"""Fields that have no option."""
OTHER_NAMES = {(PruneConfig, "order"): "--calibration-order"}
"""Options that are not named like their field."""

FIELDS = [
    (config, field) for config in COMMANDS for field in fields(config) if (config, field.name) not in WITHOUT_OPTION
]
every_field = pytest.mark.parametrize(("config", "field"), FIELDS, ids=lambda value: getattr(value, "name", None))


def option(config: type[Any], name: str) -> str:
    return OTHER_NAMES.get((config, name), "--" + name.replace("_", "-"))


def parse(config: type[Any], *words: str) -> dict[str, Any]:
    return vars(make_parser("seft").parse_args([*COMMANDS[config], *words]))


def sample(config: type[Any], name: str) -> object:
    """A value of the type of the field that is not its default."""
    kind, default = get_type_hints(config)[name], {field.name: field.default for field in fields(config)}[name]
    if kind is Pattern:
        return Pattern(2, 4)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return next(each for each in kind if each is not default)
    return True if kind is bool else 7 if kind is int else 0.125


@every_field
def test_every_field_has_an_option_of_its_type(config: type[Any], field: Any) -> None:
    value = sample(config, field.name)
    words = [] if value is True else [str(value)]
    parsed = parse(config, option(config, field.name), *words)[field.name]
    assert parsed == value
    assert type(parsed) is type(value)


@every_field
def test_every_option_has_the_default_of_its_field(config: type[Any], field: Any) -> None:
    if field.default is not MISSING and field.name not in DERIVED:
        assert parse(config)[field.name] == field.default


@every_field
def test_every_option_has_the_help_text_of_its_field(
    config: type[Any], field: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        make_parser("seft").parse_args([COMMANDS[config][0], "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    hint = get_type_hints(config, include_extras=True)[field.name]
    text = next(extra.documentation for extra in hint.__metadata__ if isinstance(extra, Doc))
    assert option(config, field.name) in shown
    assert text in shown


def test_words_are_accepted_where_a_number_may_be_one() -> None:
    assert parse(RepairConfig, "--learning-rate", "auto")["learning_rate"] == "auto"
    with pytest.raises(UsageError, match="invalid float or auto value: 'fast'"):
        parse(RepairConfig, "--learning-rate", "fast")


def test_settings_that_others_imply_are_not_required() -> None:
    assert parse(PruneConfig)["sparsity"] is None, "an N:M pattern implies it"
    words = [*COMMANDS[RepairConfig], "--sequence-tokens", "256"]
    for more, expected in (
        ((), (512, 16384)),
        (("--batch-tokens", "1024"), (1024, 8192)),
        (("--steps", "3"), (512, 3)),
    ):
        options = make_parser("seft").parse_args([*words, *more])
        config = read_settings(options, RepairConfig)
        assert (config.batch_tokens, config.steps) == expected


def test_compress_has_the_options_of_both_settings_with_one_seed_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_context", lambda *_: None)
    words = ["compress", "model", "--data", "data.txt", "--out", "out", "--sparsity", "0.5", "--steps", "3"]
    more = ["--schedule", "gradual", "--rate-schedule", "cosine", "--prune-method", "ria", "--repair-method", "spp"]
    options = make_parser("seft").parse_args([*words, *more, "--seed", "5", "--tokens", "64", "--warmup-steps", "2"])
    values = vars(options)
    assert {name: values[name] for name in ("schedule", "method", "seed", "tokens")} == {
        "schedule": PruneSchedule.GRADUAL,
        "method": PruneMethod.RIA,
        "seed": 5,
        "tokens": 64,
    }
    repair = read_settings(options, RepairConfig, prefix=REPAIR, seed=options.seed)
    assert repair == RepairConfig(
        3, RepairMethod.SPP, schedule=RateSchedule.COSINE, warmup_steps=2, retain=Retain.WRITTEN, seed=5
    )


def test_the_options_make_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_context", lambda *_: None)
    options = make_parser("seft").parse_args([*COMMANDS[RepairConfig], "--steps", "3", "--warmup-steps", "2"])
    assert read_settings(options, RepairConfig) == RepairConfig(steps=3, warmup_steps=2)
    assert read_settings(options, RepairConfig, seed=5) == RepairConfig(steps=3, warmup_steps=2, seed=5)


@pytest.mark.parametrize("context", [None, 100, 100_000])
def test_a_default_length_is_lowered_to_the_context_of_the_model(
    context: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_context", lambda *_: context)
    lengths: list[tuple[type[Any], int]] = [(PruneConfig, 2048), (RepairConfig, 512), (EvaluateConfig, 1024)]
    for kind, length in lengths:
        expected = length if context is None else min(length, context)
        more: dict[str, Any] = {"sparsity": 0.5} if kind is PruneConfig else {}
        name, words = "sequence_tokens" if kind is RepairConfig else "tokens", COMMANDS[kind]
        settings = cli.read_settings(make_parser("seft").parse_args(words), kind, **more)
        assert getattr(settings, name) == expected
        if isinstance(settings, RepairConfig):
            assert (settings.batch_tokens, settings.steps) == (2 * expected, 2**23 // (2 * expected))
        given = make_parser("seft").parse_args([*words, f"--{name.replace('_', '-')}", "3000"])
        assert getattr(cli.read_settings(given, kind, **more), name) == 3000, "the library rejects it"


@pytest.mark.parametrize(
    ("command", "unknown", "message"),
    [
        (PruneConfig, ["--data", "x"], "--data x. Did you mean --calibration? See seft prune --help."),
        (RepairConfig, ["--calibration=x"], "--calibration=x. Did you mean --data? See seft repair --help."),
        (PruneConfig, ["--dampign", "9"], "--dampign 9. Did you mean --damping? See seft prune --help."),
        (PruneConfig, ["more"], "more. See seft prune --help."),
    ],
)
def test_an_unknown_argument_names_a_similar_option_and_the_command(
    command: type[Any], unknown: list[str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        make_parser("seft").parse_args([*COMMANDS[command], *unknown])
    assert str(caught.value) == f"unrecognized arguments: {message}"


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        (["--data", "text.jsonl", "--task-folder", "tasks"], "--task-folder needs --task"),
        (["--choices", "questions.jsonl", "--tokens", "64"], "--tokens and --windows need --data"),
        (["--task", "arc_easy", "--windows", "3"], "--tokens and --windows need --data"),
    ],
)
def test_options_that_would_have_no_effect_are_rejected(options: list[str], needed: str) -> None:
    parsed = make_parser("seft").parse_args(["evaluate", "model", *options])
    with pytest.raises(UsageError, match=needed):
        parsed.run(parsed, silent)


UNUSED = [
    # command, an option without effect, and the options with which it has one
    (RepairConfig, "--update-interval 1", "--density 0.1"),
    (RepairConfig, "--drop-rate 0.2", "--density 0.1"),
    (RepairConfig, "--drop-decay=cosine", "--density 0.1"),
    (RepairConfig, "--settle 0", "--density 0.1"),
    (RepairConfig, "--settle 0", "--swap-tokens 64"),
    (RepairConfig, "--retain-share 0.3", "--retain written"),
    (RepairConfig, "--retain-tokens 4096", "--retain written"),
    (PruneConfig, "--rise 0.5", "--schedule gradual"),
    (PruneConfig, "--rise-interval 1", "--schedule gradual"),
    (PruneConfig, "--damping 0.1", "--method alps"),
    (PruneConfig, "--method magnitude --reconstruct-learning-rate 1e-3", "--reconstruct-epochs 1"),
    (PruneConfig, "--method magnitude --calibration text.jsonl", "--refine dsnot"),
    (PruneConfig, "--method magnitude --calibration-order random", "--allocation owl"),
    (PruneConfig, "--method magnitude --samples 4", "--allocation owl"),
]


@pytest.mark.parametrize(("config", "unused", "more"), UNUSED)
def test_an_option_that_has_no_effect_is_refused_with_its_name(
    config: type[Any], unused: str, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_context", lambda *_: None)
    values: dict[str, Any] = {"sparsity": 0.5} if config is PruneConfig else {}
    option = unused[unused.rindex("--") :].replace("=", " ").split()[0]
    with pytest.raises(ConfigError, match=f"^{option} has no effect .* Leave it out"):
        read_settings(make_parser("seft").parse_args([*COMMANDS[config], *unused.split()]), config, **values)
    read_settings(make_parser("seft").parse_args([*COMMANDS[config], *unused.split(), *more.split()]), config, **values)


def test_the_zeros_of_a_model_are_kept_without_options_of_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_context", lambda *_: None)
    for words in (["--method", "ria"], ["--allocation", "owl"], ["--refine", "dsnot"], ["--reconstruct-epochs", "1"]):
        options = make_parser("seft").parse_args([*COMMANDS[PruneConfig], *words])
        with pytest.raises(ConfigError, match=f"^{words[0]} has no effect with the sparsity 0"):
            read_settings(options, PruneConfig, sparsity=0.0)


def test_a_revision_and_a_seed_without_effect_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["evaluate", str(tmp_path), "--task", "a", "--revision", "b"], "--revision has no effect for a model on this"),
        (["generate", "absent", "text", "--seed", "1"], "--seed has no effect at the temperature 0"),
        (["generate", "absent", "text", "--top-p", "0.9"], "--top-p has no effect at the temperature 0"),
    ):
        assert cli.main(words) == Exit.USAGE
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")


def test_an_error_names_the_option_and_not_the_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "_context", lambda *_: None)
    out = str(tmp_path / "out")
    (text := tmp_path / "text.jsonl").write_text('{"text": "a"}')
    compress = ["compress", "absent", "--sparsity", "0.5", "--data", str(text), "--out", out]
    repair = ["repair", str(tmp_path), "--data", str(text), "--out", out]
    for words, message in (
        ([*compress, "--schedule", "gradual", "--prune-method", "ria"], "--prune-method must be left out"),
        ([*compress, "--batch-tokens", "7"], "--batch-tokens must be a multiple of --sequence-tokens (512); it is 7."),
        ([*compress, "--samples", "0"], "--samples must be at least 1"),
        ([*repair, "--patience", "2"], "--patience must be 0 if --evaluate-interval is 0; it is 2. Set --evaluate-in"),
    ):
        monkeypatch.setattr("seft.checkpoint.folder.find_folder", lambda _: None)
        assert cli.main(words) == Exit.USAGE
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")
