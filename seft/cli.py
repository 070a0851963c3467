"""`seft VERB`: the library from a shell, without the service.

Results go to stdout, for people or with `--json` as one JSON object; how far the work is goes to stderr. What cannot be
done ends with exit code 2 and one line that names the rule, the value and the way out. Torch is loaded only to work.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from seft.config import EvaluateConfig, Pattern, PruneConfig, RepairConfig
from seft.console import inspection, shown, written
from seft.errors import SeftError
from seft.report import Reporter

if TYPE_CHECKING:
    from seft.checkpoint.facts import Record

BAD_INPUT, INTERRUPTED = 2, 130


@dataclass(frozen=True, slots=True)
class Answer:
    """A result, for programs and for people."""

    data: dict[str, Any]
    text: str


class UsageError(SeftError):
    """The command line cannot be understood."""

    code = "usage"


def main(arguments: Sequence[str] | None = None, *, program: str = "seft") -> int:
    """Run one command line; its exit code. `program` is what its usage calls it."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    try:
        options = _parser(program).parse_args(arguments)
        with shown() as report:
            answer: Answer = options.run(options, report)
    except SeftError as error:
        sys.stderr.write(f"error: {error}\n")
        if as_json:
            _write_json({"error": {"code": error.code, "message": str(error)}})
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    if as_json:
        _write_json(answer.data)
    else:
        sys.stdout.write(answer.text + "\n")
    return 0


def _prune(options: argparse.Namespace, report: Reporter) -> Answer:
    config = PruneConfig(
        sparsity=options.pattern.sparsity(options.sparsity),
        method=options.method,
        pattern=options.pattern,
        compare=options.compare,
        refine=options.refine,
        allocation=options.allocation,
        sparsity_of=options.sparsity_of,
        samples=options.samples,
        tokens=options.tokens,
        order=options.calibration_order,
        damping=options.damping,
        reconstruct_epochs=options.reconstruct_epochs,
        reconstruct_learning_rate=options.reconstruct_learning_rate,
        seed=options.seed,
    )
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
    return _written(options.out, record)


def _repair(options: argparse.Namespace, report: Reporter) -> Answer:
    config = RepairConfig(
        steps=options.steps,
        method=options.method,
        density=options.density,
        learning_rate=options.learning_rate,
        schedule=options.schedule,
        warmup_steps=options.warmup_steps,
        weight_decay=options.weight_decay,
        settle=options.settle,
        update_interval=options.update_interval,
        drop_rate=options.drop_rate,
        drop_decay=options.drop_decay,
        batch_tokens=options.batch_tokens,
        sequence_tokens=options.sequence_tokens,
        micro_batch=options.micro_batch,
        clip_norm=options.clip_norm,
        distill_weight=options.distill_weight,
        hidden_weight=options.hidden_weight,
        evaluate_interval=options.evaluate_interval,
        patience=options.patience,
        seed=options.seed,
    )
    from seft import verbs

    place = verbs.Place.of(options.device, options.dtype)
    record = verbs.repair(
        options.folder,
        config,
        options.out,
        data=options.data,
        teacher=options.teacher,
        held_out=options.held_out,
        place=place,
        report=report,
    )
    return _written(options.out, record)


def _evaluate(options: argparse.Namespace, report: Reporter) -> Answer:
    config = EvaluateConfig(tokens=options.tokens, windows=options.windows)
    from seft import verbs

    model = options.model
    common: Any = {
        "revision": options.revision,
        "place": verbs.Place.of(options.device, options.dtype),
        "report": report,
    }
    if options.choices:
        found = verbs.answer(model, choices=options.choices, **common)
        text = f"accuracy {found.accuracy:.2%}, {found.accuracy_per_byte:.2%} per byte, of {found.questions} questions"
        return Answer({"model": model, **asdict(found)}, text)
    if options.task:
        metrics = verbs.run_task(model, task=options.task, folder=options.tasks, **common)
        text = "\n".join(f"{options.task}  {metric}  {value:.4f}" for metric, value in metrics.items())
        return Answer({"model": model, "task": options.task, "metrics": metrics}, text)
    score = verbs.evaluate(model, config, data=options.data, **common)
    text = f"perplexity {score.perplexity:.4f} over {score.windows} windows of {score.tokens} tokens"
    return Answer({"model": model, **asdict(score)}, text)


def _inspect(options: argparse.Namespace, _: Reporter) -> Answer:
    from seft import verbs

    counted, record = verbs.inspect(options.folder)
    said = record.data() if record else {"facts": None, "versions": None}
    data = {
        "folder": str(options.folder),
        "sparsity": counted.data(),
        **{key: said[key] for key in ("facts", "versions")},
    }
    return Answer(data, inspection(counted, record))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything here does."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See {self.prog} --help.")


def _parser(program: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=program, description="Make language models sparse, and repair them.", allow_abbrev=False)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, run, add, text in (
        ("prune", _prune, _add_prune, "set a share of a model's weights to zero"),
        ("repair", _repair, _add_repair, "train a pruned model; it stays as sparse as it is"),
        ("evaluate", _evaluate, _add_evaluate, "judge a model: perplexity, multiple choice, or a named task"),
        ("inspect", _inspect, _add_inspect, "count the zeros in a folder's files"),
    ):
        verb = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        add(verb)
        verb.add_argument("--json", action="store_true", help="print one JSON object")
        verb.set_defaults(run=run)
    return parser


def _add_prune(verb: argparse.ArgumentParser) -> None:
    default = PruneConfig(sparsity=0.0)
    verb.add_argument("model", help="a folder, a GGUF file, or a hub id")
    verb.add_argument("--sparsity", type=float, help="share of zeros; an N:M pattern has its own")
    _add_choice(verb, "--sparsity-of", default.sparsity_of, "weights of the linear layers, or all of the model's")
    _add_choice(verb, "--method", default.method, "how importance is judged")
    _add(verb, "--pattern", Pattern.parse, default.pattern, "or N:M, as 2:4: N nonzeros in every M inputs")
    _add_choice(verb, "--compare", default.compare, "importance within rows or layers; auto is the method's own way")
    _add_choice(verb, "--refine", default.refine, "what improves the mask that the method chose")
    _add_choice(verb, "--allocation", default.allocation, "how zeros are shared out over blocks")
    verb.add_argument(
        "--calibration", type=Path, help="text to calibrate on, .jsonl or .txt; magnitude alone needs none"
    )
    _add(verb, "--samples", int, default.samples, "windows of calibration text")
    _add(verb, "--tokens", int, default.tokens, "tokens in each window")
    _add_choice(verb, "--calibration-order", default.order, "which windows of the text")
    _add(
        verb, "--damping", float, default.damping, "share of a Hessian's mean diagonal added to it, sparsegpt and alps"
    )
    _add(verb, "--reconstruct-epochs", int, default.reconstruct_epochs, "how often blocks are tuned on these windows")
    _add(verb, "--reconstruct-learning-rate", float, default.reconstruct_learning_rate, "of that tuning")
    _add_out(verb)
    _add_revision(verb)
    _add_place(verb)
    _add(verb, "--seed", int, default.seed, "of everything random")


def _add_repair(verb: argparse.ArgumentParser) -> None:
    default = RepairConfig(steps=1)
    verb.add_argument("folder", type=Path, help="what prune wrote")
    _add_data(verb)
    verb.add_argument("--steps", type=int, required=True, help="optimizer steps")
    _add_choice(verb, "--method", default.method, "what is trained")
    _add(verb, "--density", float, default.density, "share of the weights that is trained")
    _add(verb, "--learning-rate", rate, default.learning_rate, "peak rate, or auto")
    _add_choice(verb, "--schedule", default.schedule, "how the rate goes on after the warm-up")
    _add(verb, "--warmup-steps", int, default.warmup_steps, "steps in which the rate rises to its peak")
    _add(verb, "--weight-decay", float, default.weight_decay, "pull of trained values to where they began")
    _add(verb, "--settle", float, default.settle, "share of the steps, at the end, that has no event")
    _add(verb, "--update-interval", int, default.update_interval, "steps between two events")
    _add(verb, "--drop-rate", float, default.drop_rate, "share of the active set replaced at an event, at most")
    _add_choice(verb, "--drop-decay", default.drop_decay, "how that share falls to none")
    _add(verb, "--batch-tokens", int, default.batch_tokens, "tokens of a step")
    _add(verb, "--sequence-tokens", int, default.sequence_tokens, "tokens of a window")
    _add(verb, "--micro-batch", int, default.micro_batch, "windows held in memory at a time")
    verb.add_argument("--clip-norm", type=float, help="largest norm of a step's gradient; no limit if not given")
    verb.add_argument("--teacher", help="the dense model to distil from: a folder, a GGUF file, or a hub id")
    _add(verb, "--distill-weight", float, default.distill_weight, "share of its predictions in what is learnt")
    _add(verb, "--hidden-weight", float, default.hidden_weight, "weight of its hidden states")
    verb.add_argument("--held-out", type=Path, help="records to evaluate on, as --data")
    _add(
        verb, "--evaluate-interval", int, default.evaluate_interval, "steps between evaluations; the best state is kept"
    )
    _add(verb, "--patience", int, default.patience, "evaluations without a better one that end training; 0 is never")
    _add_out(verb)
    _add_place(verb)
    _add(verb, "--seed", int, default.seed, "of everything random")


def _add_evaluate(verb: argparse.ArgumentParser) -> None:
    default = EvaluateConfig()
    verb.add_argument("model", help="a folder, a GGUF file, or a hub id")
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help='perplexity on a text, .jsonl (one {"text": …} a line) or .txt')
    what.add_argument("--choices", type=Path, help="accuracy on multiple-choice questions, .jsonl; see docs/method.md")
    what.add_argument("--task", help="any task of lm-evaluation-harness; needs the extra `tasks`")
    verb.add_argument("--tasks", type=Path, help="folder with YAML files of tasks, instead of the harness's own")
    _add(verb, "--tokens", int, default.tokens, "tokens in each window")
    _add(verb, "--windows", int, default.windows, "the first so many windows")
    _add_revision(verb)
    _add_place(verb)


def _add_inspect(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, help="a Hugging Face folder")


def _add(verb: argparse.ArgumentParser, name: str, kind: Callable[[str], object], default: object, text: str) -> None:
    verb.add_argument(name, type=kind, default=default, help=f"{text}; {default} if not given")


def _add_choice(verb: argparse.ArgumentParser, name: str, default: StrEnum, text: str) -> None:
    choices = [str(choice) for choice in type(default)]

    def read(value: str) -> StrEnum:
        if value not in choices:
            raise argparse.ArgumentTypeError(f"invalid choice: {value!r} (choose from {', '.join(choices)})")
        return type(default)(value)

    metavar = f"{{{','.join(choices)}}}"
    verb.add_argument(name, type=read, metavar=metavar, default=default, help=f"{text}; {default} if not given")


def _add_data(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--data", type=Path, required=True, help="records, .jsonl (one a line) or .txt (one text)")


def _add_out(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")


def _add_revision(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--revision", help="branch, tag or commit of a hub model")


def _add_place(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to work; auto if not given"
    )
    verb.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of the weights meanwhile; float32 if not given",
    )


def rate(text: str) -> float | Literal["auto"]:
    """Of learning; argparse shows this function's name when it fails."""
    return "auto" if text == "auto" else float(text)


def _written(out: Path, record: "Record") -> Answer:
    data = {"out": str(out), "sparsity": record.sparsity.data(), "grown_zeros": record.facts.grown_zeros}
    return Answer(data, written(out, record))


def _write_json(data: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
