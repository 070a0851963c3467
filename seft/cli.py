"""The commands that use the library on this machine: `seft prune`, `repair`, `compress`, `evaluate` and others.

They need no service. Results go to stdout as text, or as one JSON object with `--json`. Progress goes to stderr. An
error ends with an exit code of `seft.exit_codes` and one line that says what must hold, what was given, and how to fix
it. `seft reproduce` ends with 1 if the bits differ. Torch is imported only when a command needs it.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from typing_extensions import override

from seft import file_commands as files
from seft import option_rules as rules
from seft.command_texts import VERBS
from seft.config import EvaluateConfig, PruneConfig, RepairConfig, Retain, default_batch, default_steps
from seft.console import describe_checkpoint, progress_reporter
from seft.errors import ConfigError, SeftError
from seft.exit_codes import accept_all_text, report_error, stoppable, write_json, write_line
from seft.options import Config, add_options, read_options
from seft.report import Phase, Progress, Reporter
from seft.runtime import commands as runtime

if TYPE_CHECKING:
    from seft.checkpoint.facts import Record

LOADING = Progress(Phase.LOADING, 0, 1)
REPAIR = "repair "
"""Prefix of the parsed settings of the repair in `seft compress`."""
LENGTHS = {"tokens", "sequence_tokens"}
"""Options with the length of a window. A default that is longer than the context of the model is lowered to it."""
ALIKE = {"--data": "--calibration", "--calibration": "--data"}
"""Option for a text -> option for the text of another command. An error suggests it for the command that has it."""
DERIVED = {*LENGTHS, "batch_tokens", "steps"}
"""Options whose defaults depend on the model or on other options."""


Result = tuple[dict[str, Any], str]
"""Result of a command, as JSON data for programs and as text for people."""


class UsageError(SeftError):
    """The command line is invalid. The message is one line."""

    code = "usage"


def main(arguments: Sequence[str] | None = None, *, program: str = "seft") -> int:
    """Run one command line and return its exit code. `program` is the command name in the usage text."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    accept_all_text()
    names: dict[str, str] = {}
    with stoppable() as codes:
        try:
            options = make_parser(program).parse_args(arguments)
            names = {**rules.names_of(options), **rules.names_of(options, REPAIR)}
            rules.require_used(options, rules.hub_uses(options))
            rules.require_texts(options)
            with progress_reporter() as report:
                data, text = options.run(options, report)
            if as_json:
                write_json(data)
            else:
                write_line(text)
        except BaseException as error:
            command, shown = " ".join([program, *arguments[:1]]), rules.naming_options(error, names)
            return codes[0] if codes else report_error(shown, command, as_json=as_json)
    return 0


@contextmanager
def _writing(out: Path, report: Reporter) -> Iterator[None]:
    """Check the folder `out` and start the process that will verify it. Then report, before torch is imported.

    The started process is a copy of this one, so it is not started if torch may already have computed something here.
    Torch is made deterministic, as in the service, so that `seft reproduce` gives the same bits.
    """
    from seft.checkpoint.outputs import require_empty

    require_empty(out)
    used = "torch" in sys.modules
    from seft.checkpoint.verify import standby

    with nullcontext() if used else standby():
        report(LOADING)
        from seft.devices import configure_torch

        configure_torch(0)
        yield


def _prune(options: argparse.Namespace, report: Reporter) -> Result:
    config = read_settings(options, PruneConfig, sparsity=options.pattern.sparsity(options.sparsity))
    with _writing(options.out, report):
        from seft import verbs

        record = verbs.prune(
            options.model,
            config,
            options.out,
            calibration=options.calibration,
            revision=options.revision,
            place=verbs.Place.of(options.device, options.dtype),
            report=report,
        )
    return _checkpoint(options.out, record)


def _repair(options: argparse.Namespace, report: Reporter) -> Result:
    from seft.checkpoint.folder import find_folder

    find_folder(options.folder)
    config = read_settings(options, RepairConfig)
    with _writing(options.out, report):
        from seft import verbs

        record = verbs.repair(
            options.folder,
            config,
            options.out,
            data=options.data,
            teacher=options.teacher,
            held_out=options.held_out,
            retain_data=options.retain_data,
            place=verbs.Place.of(options.device, options.dtype),
            report=report,
        )
    return _checkpoint(options.out, record)


def _compress(options: argparse.Namespace, report: Reporter) -> Result:
    pruning = read_settings(options, PruneConfig, sparsity=options.pattern.sparsity(options.sparsity))
    config = read_settings(options, RepairConfig, prefix=REPAIR, seed=options.seed)
    with _writing(options.out, report):
        from seft import verbs

        record = verbs.compress(
            options.model,
            pruning,
            config,
            options.out,
            data=options.data,
            held_out=options.held_out,
            retain_data=options.retain_data,
            revision=options.revision,
            place=verbs.Place.of(options.device, options.dtype),
            report=report,
        )
    return _checkpoint(options.out, record)


def read_settings(options: argparse.Namespace, kind: type[Config], *, prefix: str = "", **values: object) -> Config:
    """Return the settings that the parsed command line gives, with the defaults that fit the model.

    They are read with the usual defaults first, so that wrong settings are found before the model is looked up. An
    error names the option of this `kind`: in `seft compress`, settings of both kinds may have the same name.
    """
    try:
        config = _read_settings(options, kind, prefix, values)
        if isinstance(config, PruneConfig):
            swaps = getattr(options, REPAIR + "swap_tokens", 0) > 0
            rules.require_used(options, rules.prune_uses(config, swaps=swaps))
        if isinstance(config, RepairConfig):
            rules.require_used(options, rules.repair_uses(config), prefix)
    except ConfigError as error:
        raise rules.naming_options(error, rules.names_of(options, prefix)) from None
    return config


def _read_settings(options: argparse.Namespace, kind: type[Config], prefix: str, values: dict[str, Any]) -> Config:
    config = read_options(options, kind, prefix=prefix, **values, **default_sizes(options, kind, prefix))
    if not any(getattr(options, prefix + each.name) is None for each in fields(kind) if each.name in LENGTHS):
        return config
    reference = str(options.folder) if "folder" in options else options.model
    context = _context(reference, getattr(options, "revision", None))
    return read_options(options, kind, prefix=prefix, **values, **default_sizes(options, kind, prefix, context))


def default_sizes(
    options: argparse.Namespace, kind: type[Config], prefix: str = "", context: int | None = None
) -> dict[str, Any]:
    """Return the sizes that were not given: lengths of windows, size of a batch and number of steps.

    The size of a batch depends on the length of a sequence, and the number of steps on the size of a batch.
    """
    sizes: dict[str, Any] = {}

    def size(name: str, default: int) -> int:
        given: int | None = getattr(options, prefix + name)
        if given is None:
            sizes[name] = default
        return default if given is None else given

    (length,) = (each for each in fields(kind) if each.name in LENGTHS)
    tokens: Any = length.default
    tokens = size(length.name, tokens if context is None else min(tokens, context))
    if kind is RepairConfig:
        size("steps", default_steps(size("batch_tokens", default_batch(tokens))))
    return sizes


@cache
def _context(reference: str, revision: str | None) -> int | None:
    """Return the context length of a model, or None if it is unknown. Raises SourceError before torch is imported."""
    from seft.models.dimensions import context_length
    from seft.models.source import find

    return context_length(find(reference, revision=revision))


def _evaluate(options: argparse.Namespace, report: Reporter) -> Result:
    if options.task_folder and not options.task:
        raise UsageError("--task-folder needs --task. See seft evaluate --help.")
    if not options.data and (options.tokens is not None or options.windows != EvaluateConfig().windows):
        raise UsageError("--tokens and --windows need --data. See seft evaluate --help.")
    config = read_settings(options, EvaluateConfig) if options.data else None
    report(LOADING)
    from seft import verbs
    from seft.float32_products import use_float32_products

    use_float32_products()
    model = options.model
    common: Any = {
        "revision": options.revision,
        "place": verbs.Place.of(options.device, options.dtype),
        "report": report,
    }
    if options.choices:
        accuracy = verbs.evaluate_choices(model, choices=options.choices, **common)
        shares = f"accuracy {accuracy.accuracy:.2%}, per byte {accuracy.accuracy_per_byte:.2%}"
        return {"model": model, **asdict(accuracy)}, f"{shares}, {accuracy.questions} questions"
    if options.task:
        metrics = verbs.run_task(model, task=options.task, folder=options.task_folder, **common)
        text = "\n".join(f"{options.task}  {metric}  {value:.4f}" for metric, value in metrics.items())
        return {"model": model, "task": options.task, "metrics": metrics}, text
    assert config
    score = verbs.evaluate(model, config, data=options.data, **common)
    text = f"perplexity {score.perplexity:.4f} over {score.windows} windows of {score.tokens} tokens"
    return {"model": model, **asdict(score)}, text


class _Parser(argparse.ArgumentParser):
    """Argument parser that raises UsageError instead of printing the usage and exiting."""

    @override
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Reject unknown arguments here, so that the message points to the help of the command, not of `seft`."""
        parsed, unknown = super().parse_known_args(args, namespace)
        rules.note_options(self, args or (), parsed)
        if unknown:
            name = unknown[0].partition("=")[0]
            names = [option for action in self._actions for option in action.option_strings]
            matches = [ALIKE[name]] if ALIKE.get(name) in names else difflib.get_close_matches(name, names, n=1)
            meant = f" Did you mean {matches[0]}?" if matches else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}.{meant}")
        return parsed, unknown

    @override
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}{'' if message[-1] in '.?' else '.'} See {self.prog} --help.")


Command = Callable[[argparse.Namespace, Reporter], Result]


def make_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of all commands.

    The attribute `run` of a parsed command line is the function of its command.
    """
    parser = _Parser(prog=program, description="Make language models sparse and repair them.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    functions: dict[str, tuple[Command, Callable[[argparse.ArgumentParser], None]]] = {
        "prune": (_prune, _add_prune),
        "repair": (_repair, _add_repair),
        "compress": (_compress, _add_compress),
        "evaluate": (_evaluate, _add_evaluate),
        "export": (files.export, files.add_export),
        "inspect": (files.inspect, files.add_inspect),
        "verify": (files.verify, files.add_verify),
        "pack": (files.pack, files.add_pack),
        "expand": (files.expand, files.add_expand),
        "reproduce": (files.reproduce, files.add_reproduce),
        "generate": (runtime.generate, runtime.add_generate),
        "serve": (runtime.serve, runtime.add_serve),
    }
    for name, text in VERBS.items():
        run, add_arguments = functions[name]
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        add_arguments(command)
        command.add_argument("--json", action="store_true", help="Print one JSON object.")
        command.set_defaults(run=run)
    return parser


def _add_prune(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    add_options(command, PruneConfig, names={"order": "--calibration-order"}, optional={"sparsity", *LENGTHS})
    text = "Calibration text, .jsonl or .txt. Not needed for plain magnitude pruning."
    command.add_argument("--calibration", type=rules.text_file, help=text)
    _add_out(command)
    _add_place(command)


def _add_repair(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, help="Folder of a model that prune or another tool pruned.")
    _add_texts(command)
    add_options(command, RepairConfig, optional=DERIVED)
    command.add_argument(
        "--teacher", help="Dense model to distill from, or to retain: a folder, a GGUF file or a hub id."
    )
    _add_out(command)
    _add_place(command)


def _add_compress(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    _add_texts(command)
    names = {"order": "--calibration-order", "method": "--prune-method"}
    add_options(command, PruneConfig, names=names, optional={"sparsity", *LENGTHS})
    names = {"schedule": "--rate-schedule", "method": "--repair-method"}
    defaults = {"retain": Retain.WRITTEN}
    add_options(
        command, RepairConfig, names=names, optional=DERIVED, defaults=defaults, without={"seed"}, prefix=REPAIR
    )
    _add_out(command)
    _add_place(command)


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    measure = command.add_mutually_exclusive_group(required=True)
    text = 'Measure perplexity on a text: .jsonl with one {"text": "..."} per line, or .txt.'
    measure.add_argument("--data", type=rules.text_file, help=text)
    measure.add_argument(
        "--choices", type=Path, help="Measure accuracy on multiple-choice questions, .jsonl. See docs/method.md."
    )
    measure.add_argument("--task", help="Run a task of lm-evaluation-harness. Needs the extra `tasks`.")
    command.add_argument(
        "--task-folder", type=Path, help="Folder of task YAML files, used instead of the harness's tasks."
    )
    add_options(command, EvaluateConfig, optional=LENGTHS)
    _add_place(command, dtype="float32")  # so that the scores of two machines can be compared


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="Folder, GGUF file or hub id.")
    command.add_argument("--revision", help="Branch, tag or commit of a hub model.")


def _add_texts(command: argparse.ArgumentParser) -> None:
    text = "Training text: .jsonl with one record per line, or .txt with one text."
    command.add_argument("--data", type=rules.text_file, required=True, help=text)
    text = "Text to evaluate on, in a format of --data. Its records are not trained on. Needs --evaluate-interval."
    command.add_argument("--held-out", type=rules.text_file, help=text)
    text = "Text to retain, in a format of --data, with --retain dataset."
    command.add_argument("--retain-data", type=rules.text_file, help=text)


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, help="Folder to write. Must be new or empty.")


def _add_place(command: argparse.ArgumentParser, dtype: str = "auto") -> None:
    command.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="Device to run on. auto uses CUDA if available. Default: auto.",
    )
    command.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default=dtype,
        help="Data type of the weights in memory. auto is bfloat16 if the device has instructions for it, else float32."
        f" Default: {dtype}.",
    )


def _checkpoint(out: Path, record: "Record") -> Result:
    data = {"out": str(out), "sparsity": record.sparsity.data(), "grown_zeros": record.facts.grown_zeros}
    return data, describe_checkpoint(out, record)
