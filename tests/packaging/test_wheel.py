"""The wheel holds `seft` alone, and each extra installs what its modules import.

Every case reads from uv.lock what is installed for one extra, and imports every module that the extra promises while
all other packages are hidden. `telemetry` and `local` have all packages of `service`, so they need not import its
modules again. The service is not in the wheel: its modules are imported from the checkout.
"""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

from seft.command_texts import VERBS

ROOT = Path(__file__).parents[2]
HARNESS = "seft.harness"
"""Needs the extra `tasks`."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that no former build's files get into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in ("api", "core", "local", "migrations", "seft", "worker"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source
    )
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_library_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"seft"}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "seft").rglob("*.py")}
    compiled = {name for name in names if name.startswith("seft/native/_kernels.")}
    assert {name for name in names if name.startswith("seft/")} - compiled == files
    assert len(compiled) == (shutil.which("g++") is not None)


@pytest.mark.parametrize(
    ("extra", "promised"),
    [
        ("", ["seft", "seft.client", "seft.cli"]),
        ("service", ["api", "core", "migrations"]),
        ("telemetry", ["core.infra.tracing", "opentelemetry.exporter.otlp.proto.http", "opentelemetry.sdk"]),
        ("local", ["local"]),
        ("torch", ["seft"]),
        ("tasks", ["seft", HARNESS, "lm_eval"]),
    ],
)
def test_an_extra_installs_what_its_modules_import(extra: str, promised: list[str]) -> None:
    names = [name for top in promised for name in modules(top, whole=bool(extra) or top == "seft.client")]
    run(sys.executable, "-c", IMPORT, json.dumps(packages(extra)), *names)


def test_without_an_extra_a_command_of_the_library_has_help_and_names_the_extra_in_one_line() -> None:
    commands = [[verb, *words] for verb in VERBS for words in (["--help"], [*ARGUMENTS[verb], "--json"])]
    ended = json.loads(run(sys.executable, "-c", RUN, json.dumps(packages("")), json.dumps(commands)))
    for verb, (code, out, _) in zip(VERBS, ended[::2], strict=True):
        assert (code, out.startswith(f"usage: seft {verb}")) == (0, True), out
    for verb, (code, out, errors) in zip(VERBS, ended[1::2], strict=True):
        assert (code, json.loads(out)["error"]["code"]) == (2, "package_missing")
        assert re.fullmatch(
            rf"error: `seft {verb}` works .* needs the package \w+\. Run pip install '\.\[torch\]' .*",
            errors.splitlines()[-1],
        )


def test_a_package_that_is_not_installed_is_hidden() -> None:
    with pytest.raises(AssertionError, match="No module named 'torch'"):
        run(sys.executable, "-c", IMPORT, json.dumps(["seft", "jaxtyping"]), "seft.loss")


ARGUMENTS = {
    "prune": ["model", "--sparsity", "0.5", "--out", "new"],
    "repair": ["model", "--data", "torch-cpu.txt", "--out", "new"],
    "compress": ["model", "--data", "torch-cpu.txt", "--sparsity", "0.5", "--out", "new"],
    "evaluate": ["model", "--data", "torch-cpu.txt"],
    "inspect": ["model"],
    "verify": ["model"],
    "export": ["model", "--format", "gguf_q8_0", "new"],
    "pack": ["model", "new"],
    "expand": ["model", "new"],
    "generate": ["model", "text"],
    "serve": ["model", "--port", "0"],
    "reproduce": ["sparsity.json", "--out", "new"],
}
"""Arguments of each command of the library. The files of texts exist, the models do not."""
HIDE = """
import importlib, importlib.machinery, json, re, sys
from importlib.metadata import packages_distributions

def normal(name):
    return re.sub("[-_.]+", "-", name).lower()

installed = {normal(name) for name in json.loads(sys.argv[1])}
owners = packages_distributions()

find = importlib.machinery.PathFinder.find_spec

def find_installed(name, path=None, target=None):
    top = name.partition(".")[0]
    hidden = top in owners and not installed & {normal(owner) for owner in owners[top]}
    return None if hidden else find(name, path, target)

importlib.machinery.PathFinder.find_spec = staticmethod(find_installed)
"""
"""Begin of a program that can import only the packages in its first argument."""
IMPORT = HIDE + "for name in sys.argv[2:]: importlib.import_module(name)"
RUN = (
    HIDE
    + """
import contextlib, io
from seft.cli import main

ended = []
for words in json.loads(sys.argv[2]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    ended.append((code, out.getvalue(), errors.getvalue()))
json.dump(ended, sys.stdout)
"""
)
"""Runs commands of the library, and writes the exit code, the output and the messages of each."""


@cache
def packages(extra: str) -> list[str]:
    """The names of all packages that an installation with this extra has. An empty text means no extra."""
    options = ("--quiet", "--frozen", "--color=never", "--no-emit-project", "--no-hashes", "--no-annotate")
    extras = ("--extra", extra) if extra else ()
    locked = run(sys.executable, "-m", "uv", "export", *options, *extras)
    return ["seft", *re.findall(r"^([\w.-]+)==", locked, re.MULTILINE)]


def modules(top: str, *, whole: bool) -> list[str]:
    """The module `top` and, if `whole`, all modules below it that the checkout holds."""
    folder = ROOT / top.replace(".", "/")
    if not whole or not folder.is_dir():
        return [top]
    paths = sorted(folder.rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    runs = (".__main__", ".env")  # programs, not modules
    return [name.removesuffix(".__init__") for name in names if not name.endswith(runs) and ".versions." not in name]


def run(*command: str | Path) -> str:
    """Run a command in the checkout, and return its output. The output is the message if it fails."""
    parts = [str(part) for part in command]
    ended = subprocess.run(parts, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
