"""Documents that are generated from the code. `python -m tests.api.documents [NAME...]` writes them.

A name is that of a file in `docs`, such as `client.md`; without names all are written. With `api.md` it also writes the
examples of `tests.api.examples`, for which it starts servers. A test compares the documents with the code.
"""

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic.fields import FieldInfo
from typer.main import get_command

from api.app import routes
from api.errors import TABLE
from core.settings import Settings
from core.specs import JobSpec
from seft.client.cli import app
from seft.client.operations import Operations
from seft.client.shell import Exit
from seft.client.steps import flow, operation

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- made from the code -->", "<!-- end -->"
STUDIED = "SmolLM2-135M-Instruct.Q4_1.gguf"
METHODS = ("get", "post", "put", "patch", "delete")


def openapi() -> str:
    """Return the OpenAPI document."""
    return json.dumps(routes().openapi(), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def settings_table() -> str:
    """Return the table of all settings: variable, default, description."""
    rows = [
        (f"`SEFT_{name.upper()}`", _default(field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return _table(("variable", "default", "description"), rows)


def fields_table() -> str:
    """Return the table of all fields of a job: path, values, default, description."""
    schema = JobSpec.model_json_schema()
    return _table(("field", "values", "default", "description"), list(_fields(schema, schema["$defs"], "")))


def _fields(schema: Any, definitions: Any, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in schema["properties"].items():
        kind = definitions[field["$ref"].rpartition("/")[2]] if "$ref" in field else field
        if "properties" in kind:
            yield from _fields(kind, definitions, f"{prefix}{name}.")
            continue
        default = "must be set" if name in schema.get("required", ()) else f"`{json.dumps(field.get('default'))}`"
        yield f"`{prefix}{name}`", _values(kind), default, field.get("description", "")


def _values(kind: Any) -> str:
    """Describe the allowed values of a field: those of an enumeration, or the type with its range."""
    if "anyOf" in kind:
        return ", or ".join(_values(each) for each in kind["anyOf"])
    if "enum" in kind or "const" in kind:
        return ", ".join(f"`{value}`" for value in kind.get("enum", [kind.get("const")]))
    words = [
        f"{word} {kind[limit]:,}"
        for limit, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
        )
        if limit in kind
    ]
    return " ".join([kind["type"], *words])


def routes_table() -> str:
    """Return the table of all operations: request, operation id, first line of the description."""
    rows = [
        (f"`{method.upper()} {path}`", f"`{operation['operationId']}`", operation["description"].splitlines()[0])
        for path, methods in routes().openapi()["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
    ]
    return _table(("request", "operation", "description"), rows)


def codes_table() -> str:
    """Return the table of all error codes with their HTTP status."""
    return _table(("code", "status", "meaning"), [(f"`{c}`", str(int(s)), title) for c, (s, title) in TABLE.items()])


def methods_table() -> str:
    """Return the table of all methods of the Python client: call, what it returns, first line of the description."""
    rows = []
    for name, method in [pair for each in Operations.mro() for pair in vars(each).items()]:
        if isinstance(method, operation | flow):
            _, *parameters = inspect.signature(method.steps).parameters.values()
            call = f"`{name}({', '.join(each.name for each in parameters)})`"
            rows.append((call, "rows" if isinstance(method, flow) else "", str(method.__doc__).splitlines()[0]))
    return _table(("call", "returns", "description"), rows)


def commands_table() -> str:
    """Return the table of all commands of `seft` with the first line of their help."""
    return _table(("command", "description"), list(_commands(get_command(app), "seft")))


def exits_table() -> str:
    """Return the table of all exit codes of `seft`."""
    return _table(("exit code", "meaning"), [(str(int(code)), code.meaning) for code in Exit])


def study_table(name: str) -> str:
    """Return the table of a study of repair quality. Seconds are left out, because other programs were running."""
    from benchmarks.quality import table  # it loads torch

    columns = ("wikitext2", "gsm8k", "recovered", "accuracy", "trained", "peak_bytes")
    return table(*_study(name), columns) + "\n"


def seconds_table() -> str:
    """Return the table of what the methods recover in equal seconds."""
    from benchmarks.quality import equal_seconds

    study, results = _study("peers")
    return equal_seconds({label: cell for label, cell in study.items() if ", admm, " in label}, results) + "\n"


def steps_table(dtype: str) -> str:
    """Return the table of what a step of 1,024 tokens costs in a data type."""
    from benchmarks.step import table  # it loads torch

    shapes = ("2x512", "8x128")
    return (
        table([run for run in _steps() if run["dtype"] == dtype and run["shape"] in shapes and run["density"] == 0.005])
        + "\n"
    )


def steps_table_with_amx() -> str:
    """Return the table of what a step of 1,024 tokens costs on a processor with AMX."""
    from benchmarks.quality import SECONDS
    from benchmarks.step import table

    return table(json.loads(SECONDS.read_text())["runs"]) + "\n"


def steps_plot() -> str:
    """Return the plot of what a step in bfloat16 costs, as SVG."""
    from benchmarks.plots import plot_steps

    with TemporaryDirectory() as folder:
        return plot_steps(
            [run for run in _steps() if run["dtype"] == "bfloat16"], Path(folder) / "steps.svg"
        ).read_text()


def _steps() -> Any:
    from benchmarks.quality import SECONDS

    return json.loads(SECONDS.with_name("steps-avx512.json").read_text())["runs"]


def recovery_plot() -> str:
    """Return the plot of what each method recovers at 60 % over the seconds of its training, as SVG."""
    from benchmarks.plots import plot_recovery  # it loads matplotlib
    from benchmarks.quality import recoveries

    prefix, (study, results) = "60%, admm, ", _study("peers")
    chosen = {label.removeprefix(prefix): cell for label, cell in study.items() if label.startswith(prefix)}
    with TemporaryDirectory() as folder:
        return plot_recovery(recoveries(chosen, results), "peers", Path(folder)).read_text()


def _study(name: str) -> tuple[Any, Any]:
    """Return a study and the results of all versions of the code."""
    from benchmarks.quality import RESULTS, Results
    from benchmarks.studies import STUDIES

    return STUDIES[name](), Results(RESULTS, STUDIED, any_code=True)


def scaling_table(name: str) -> str:
    """Return a table of what large models would need."""
    from benchmarks import scaling  # it loads torch

    table: str = getattr(scaling, name)()
    return table


WHOLE = {"openapi.json": openapi, "recovered.svg": recovery_plot, "steps.svg": steps_plot}
"""Documents that are generated as a whole."""
MADE: dict[str, list[Callable[[], str]]] = {
    "configuration.md": [settings_table],
    "job-fields.md": [fields_table],
    "api.md": [routes_table, codes_table],
    "client.md": [methods_table, commands_table, exits_table],
    "results.md": [
        *(partial(study_table, name) for name in ("bases", "defaults", "allocations", "thousand", "long", "peers")),
        seconds_table,
        *(
            partial(study_table, name)
            for name in (
                "methods",
                "gradual",
                "rates",
                "schedules",
                "optimizers",
                "retention",
                "reads",
                "swaps",
                "ablations",
            )
        ),
    ],
    "step-cost.md": [partial(steps_table, "bfloat16"), partial(steps_table, "float32"), steps_table_with_amx],
    "scaling.md": [
        partial(scaling_table, f"{name}_table") for name in ("memory", "fit", "cards", "operations", "time", "check")
    ],
}
"""Documents with generated parts, in the order of the page."""


def documents() -> Iterator[tuple[Path, str]]:
    """Yield each document and its expected text."""
    for name in (*WHOLE, *MADE):
        yield DOCS / name, document(name)


def document(name: str) -> str:
    """Return the expected text of a document."""
    if name in WHOLE:
        return WHOLE[name]()
    text, *parts = (DOCS / name).read_text().split(BEGIN)
    for make, part in zip(MADE[name], parts, strict=True):
        text += f"{BEGIN}\n\n{make()}\n{END}{part.partition(END)[2]}"
    return text


def _commands(command: Any, name: str) -> Iterator[tuple[str, str]]:
    inner = getattr(command, "commands", {})
    if not inner:
        words = " ".join(
            word if param.required else f"[{word}]"
            for param in command.params
            if param.param_type_name == "argument"
            for word in (param.metavar or param.name.upper(),)
        )
        yield f"`{f'{name} {words}'.strip()}`", command.help.splitlines()[0]
    for each in inner.values():
        yield from _commands(each, f"{name} {each.name}")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be set"
    return "none" if field.default is None else f"`{field.default}`"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("--",) * len(head), *rows]  # as mdformat --compact-tables writes it
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    names = sys.argv[1:] or [*WHOLE, *MADE]
    for each in names:
        (DOCS / each).write_text(document(each))
    if "api.md" in names:
        from tests.api import examples  # it starts servers

        examples.write()
