"""The command line without a service."""

import io
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer import BadParameter
from typer.testing import CliRunner

from core.specs import JobSpec
from seft import __version__
from seft.client import shell
from seft.client.cli import app
from seft.client.commands.estimates import as_options
from seft.client.config import Address
from seft.client.errors import ApiProblem, Flaw
from seft.client.shell import LISTS, Exit, assigned
from seft.command_texts import VERBS
from tests.seft.client.servers import Script

GOOD = '{"text": "one"}\n{"text": "two"}\n'


def run(*words: str, url: str = "", key: str = "") -> tuple[int, str, str]:
    result = CliRunner().invoke(app, words, env={"SEFT_URL": url, "SEFT_API_KEY": key, "XDG_CONFIG_HOME": "/nowhere"})
    return result.exit_code, result.stdout, result.stderr


def test_a_setting_reaches_any_depth_and_is_json_or_a_word() -> None:
    settings = ["repair.steps=100", "prune.method=wanda", "prune.calibration.samples=8", 'metadata={"a": "b"}']
    assert assigned(settings) == {
        "repair": {"steps": 100},
        "prune": {"method": "wanda", "calibration": {"samples": 8}},
        "metadata": {"a": "b"},
    }


def test_a_change_that_fits_reaches_the_service_through_a_shell() -> None:
    change: dict[str, object] = {"model": "my model", "repair": {"steps": 7}, "output": {"formats": ["dense"]}}
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {as_options(change)}"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert words[::2] == ["--set"] * 3
    assert assigned(words[1::2]) == change
    assert as_options({"devices": 1}) == "--set devices=1"


def test_one_word_is_enough_for_each_field_that_is_a_list() -> None:
    schema = JobSpec.model_json_schema()
    fields = dict(schema["properties"])
    for name, part in schema["properties"].items():
        inner = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else {}
        fields |= {f"{name}.{field}": kind for field, kind in inner.get("properties", {}).items()}
    assert sorted(name for name, kind in fields.items() if kind.get("type") == "array") == [*LISTS]
    assert assigned(["output.formats=compact"]) == {"output": {"formats": ["compact"]}}
    assert assigned(['output.formats=["compact"]']) == {"output": {"formats": ["compact"]}}
    assert assigned(["output.formats=null"]) == {"output": {"formats": None}}, "a clone gets the default"


def test_an_invalid_setting_is_rejected() -> None:
    with pytest.raises(BadParameter, match=r"repair\.steps=100"):
        assigned(["repair.steps"])
    with pytest.raises(BadParameter, match="repair must be set either to a value or to its fields"):
        assigned(["repair=1", "repair.steps=100"])


def test_a_number_that_json_does_not_have_is_text_or_is_rejected(tmp_path: Path) -> None:
    settings = ["repair.rise=NaN", "prune.seed=1e999", "suffix=Infinity"]
    assert assigned(settings) == {"repair": {"rise": "NaN"}, "prune": {"seed": "1e999"}, "suffix": "Infinity"}
    (tmp_path / "spec.json").write_text('{"sparsity": NaN}')
    with pytest.raises(BadParameter, match=r"spec\.json must contain JSON: a number must be finite"):
        assigned(None, tmp_path / "spec.json")
    (data := tmp_path / "data.jsonl").write_text(GOOD)
    for words in (
        ("jobs", "create", "--model", "m", "--dataset", "file_1", "--sparsity", "nan"),
        ("estimate", "--model", "m", "--sparsity", "inf"),
        ("datasets", "check", str(data), "--skip", "nan"),
    ):
        code, _, stderr = run(*words, url="http://127.0.0.1:1", key="k")
        assert (code, f"must be a finite number; it is {words[-1]}." in " ".join(stderr.split())) == (Exit.USAGE, True)


def test_two_values_of_a_metadata_name_are_rejected_because_no_job_has_both() -> None:
    words = ("jobs", "list", "--metadata", "team=a", "--metadata", "team=b")
    code, _, stderr = run(*words, url="http://127.0.0.1:1", key="k")
    assert (code, "A name can be given once" in stderr) == (Exit.USAGE, True)


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["old[/x].jsonl", "train[v2].jsonl", ":smile:.jsonl"]
    shell.show_rows((), as_json=False, head=("name",), rows=[[name] for name in names])
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == ["name", *names]


def test_a_bar_shows_the_name_of_the_file_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with shell.bytes_bar("data{v1}[x].jsonl") as bar:
        assert bar
        bar(1, 2)
    assert "data{v1}[x].jsonl" in terminal.getvalue()


def test_the_version_is_shown_without_a_command() -> None:
    assert run("--version") == (Exit.DONE, f"seft {__version__}\n", "")


def test_a_missing_file_is_a_usage_error() -> None:
    code, _, stderr = run("datasets", "upload", "nothing.jsonl")
    assert code == Exit.USAGE
    assert "does not exist" in stderr


def test_a_download_into_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (path := tmp_path / "file").touch()
    code, _, stderr = run("jobs", "download", "job_1", str(path), url="http://127.0.0.1:1", key="k")
    assert (code, "is a file" in stderr) == (Exit.USAGE, True)


def test_a_missing_address_is_one_clear_line() -> None:
    message = "SEFT_URL is not set. Run `seft login`, or set the variable to the value that `make up` prints.\n"
    assert run("jobs", "list") == (Exit.USAGE, "", message)


def test_login_from_a_pipe_needs_an_address() -> None:
    message = "The address of the service is missing. Run `seft login --url ADDRESS`, or set SEFT_URL.\n"
    assert run("login") == (Exit.USAGE, "", message)


def test_login_with_an_empty_key_tests_no_other_key_and_saves_nothing(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "SEFT_URL": "", "SEFT_API_KEY": "seft_env"}
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    saved = (path := Address(script.url, "seft_saved").save()).read_text()
    result = CliRunner().invoke(app, ["login", "--url", script.url], input="\n", env=environment)
    message = "The API key must not be empty. Check the variable or the file that you take it from.\n"
    assert (result.exit_code, result.stderr) == (Exit.USAGE, message)
    assert (path.read_text(), script.requests) == (saved, [])


@pytest.mark.parametrize(
    ("variable", "value"), [("SEFT_URL", "http://other"), ("SEFT_API_KEY", "seft_other"), ("SEFT_API_KEY", "seft_new")]
)
def test_login_names_a_variable_that_has_priority(script: Script, tmp_path: Path, variable: str, value: str) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "SEFT_URL": "", "SEFT_API_KEY": "", variable: value}
    script.will_answer({"version": "1"})
    script.will_answer({"data": [], "has_more": False})
    result = CliRunner().invoke(app, ["login", "--url", script.url], input="seft_new\n", env=environment)
    assert result.exit_code == 0
    assert (f"The variable {variable} is set to another value" in result.stderr) is (value != "seft_new")
    assert value not in result.stderr


def test_jobs_list_ends_at_the_limit(script: Script) -> None:
    script.will_answer({"data": [{"id": "job_3"}, {"id": "job_2"}], "has_more": True})
    code, stdout, _ = run("jobs", "list", "--limit", "2", "--json", url=script.url, key="k")
    assert (code, json.loads(stdout)) == (Exit.DONE, [{"id": "job_3"}, {"id": "job_2"}])
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("missing", "way_out"), [("core", "in the folder of the repo"), ("redis", "needs the package redis")]
)
def test_doctor_says_what_is_missing(missing: str, way_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "core.doctor", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    code, _, stderr = run("doctor")
    assert (code, way_out in stderr) == (Exit.USAGE, True)


def test_each_kind_of_error_has_its_exit_code(script: Script) -> None:
    words = ("jobs", "cancel", "job_1", "--json")
    script.will_answer(b"<h1>It works!</h1>")
    code, stdout, stderr = run(*words, url=script.url, key="k")
    assert (code, json.loads(stdout)["error"]["code"]) == (Exit.UNREACHABLE, "unreachable")
    assert "Check that SEFT_URL is the address of the service." in stderr
    script.will_answer(b"<h1>Nothing here</h1>", status=404)
    assert run(*words, url=script.url, key="k")[0] == Exit.UNREACHABLE
    flaw = {"param": "sparsity", "rule": "at most 0.99", "value": "1.2", "way_out": "0.6 is usual."}
    script.will_answer({"code": "conflict", "detail": "No.", "request_id": "req_1", "errors": [flaw]}, status=409)
    code, stdout, stderr = run(*words, url=script.url, key="k")
    assert (code, stderr.splitlines()[0]) == (Exit.REFUSED, "conflict: No.")
    assert json.loads(stdout) == {
        "error": {"code": "conflict", "message": "No.", "errors": [flaw], "request_id": "req_1"}
    }


def test_an_import_is_named_and_can_be_waited_for_again(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "PATIENT", (0.0, 0.0))
    script.will_answer({"id": "imp_1"}, status=201)
    script.answers += [None] * 3
    code, stdout, stderr = run("datasets", "import", "hf://datasets/a/b/c", "--name", "mine", url=script.url, key="k")
    assert (code, stdout) == (Exit.UNREACHABLE, "")
    assert stderr.startswith("imp_1 started. To wait for it again: seft datasets import imp_1\n")
    assert json.loads(script.requests[0][3])["name"] == "mine"
    script.answers.append(None)
    script.will_answer({"error": None, "dataset_id": "file_1"})
    script.will_answer({"id": "file_1", "records": 2, "skipped": 0})
    again = run("datasets", "import", "imp_1", url=script.url, key="k")
    assert again[:2] == (Exit.DONE, "file_1  2 records\n")
    assert [method for method, *_ in script.requests].count("POST") == 1
    for option in ("--name", "--skip"):
        code, _, stderr = run("datasets", "import", "imp_1", option, "9", url=script.url, key="k")
        assert (code, "must be left out" in stderr) == (Exit.USAGE, True)


def test_a_job_needs_no_option_whose_field_is_in_the_file(script: Script, tmp_path: Path) -> None:
    (file := tmp_path / "job.json").write_text('{"model": "m", "dataset": "file_1", "sparsity": 0.6}')
    job = {"id": "job_1", "status": "queued", "pausing": False, "stopping": False}
    script.will_answer(job)
    assert run("jobs", "create", "--file", str(file), url=script.url, key="k")[:2] == (0, "job_1  queued\n")
    script.will_answer(job)
    options = ("--file", str(file), "--model", "other", "--dataset", "file_2")
    assert run("jobs", "create", *options, url=script.url, key="k")[0] == 0
    sent = [json.loads(body) for *_, body in script.requests]
    assert [(each["model"], each["dataset"]) for each in sent] == [("m", "file_1"), ("other", "file_2")]
    cases: list[tuple[list[str], str]] = [([], "model"), (["--model", "m"], "dataset")]
    for words, name in cases:
        code, _, stderr = run("jobs", "create", *words, url=script.url, key="k")
        assert (code, f"must be set; it is not. Give --{name}" in " ".join(stderr.split())) == (Exit.USAGE, True)
    assert run("estimate", url=script.url, key="k")[0] == Exit.USAGE
    assert len(script.requests) == 2


def test_the_upload_of_a_new_job_has_a_bar(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data := tmp_path / "data.jsonl").write_text(GOOD)
    bars: list[str] = []

    def bar(name: str) -> nullcontext[None]:
        bars.append(name)
        return nullcontext()

    monkeypatch.setattr(shell, "bytes_bar", bar)
    script.will_answer({"id": "file_1"})
    script.will_answer({"id": "job_1", "status": "queued", "pausing": False, "stopping": False})
    code, *_ = run("jobs", "create", "--model", "m", "--dataset", str(data), url=script.url, key="k")
    assert (code, bars) == (0, ["data.jsonl"])
    code, _, stderr = run("jobs", "create", "--model", "m", "--dataset", "x" * 300, url=script.url, key="k")
    assert (code, "is neither a file nor the id of a dataset" in " ".join(stderr.split())) == (Exit.USAGE, True)


def test_each_flaw_is_shown_once() -> None:
    flaws = (
        Flaw("sparsity", "at most 0.99", "1.2", "0.6 is usual."),
        Flaw("model", "The hub has no 'm'.", "'m'", "Look."),
    )
    error = ApiProblem(
        422, "invalid_request", "sparsity: at most 0.99; The hub has no 'm'.", flaws, None, title="Wrong"
    )
    assert str(error).splitlines() == [
        "invalid_request: Wrong",
        "  sparsity: at most 0.99; it is 1.2. 0.6 is usual.",
        "  model: The hub has no 'm'. Look.",
    ]


def test_a_file_is_checked_locally_and_each_broken_line_is_numbered(tmp_path: Path) -> None:
    (data := tmp_path / "data.jsonl").write_text(GOOD)
    assert run("datasets", "check", str(data)) == (Exit.DONE, f"{data}  text  2 records\n", "")
    data.write_text(GOOD + '{"tex": 1}\n{"text": 7}\n')
    code, stdout, _ = run("datasets", "check", str(data), "--json")
    assert code == Exit.FAILED
    assert [error["param"] for error in json.loads(stdout)["errors"]] == ["line 3", "line 4"]
    data.write_text('{"text": "one"}\n' * 3)
    code, stdout, _ = run("datasets", "check", str(data))
    assert (code, "two different records" in stdout) == (Exit.FAILED, True)


def test_the_librarys_commands_are_available_and_passed_through(tmp_path: Path) -> None:
    for verb in VERBS:
        assert run(verb, "--help")[0] == 0
    code, stdout, _ = run("inspect", str(tmp_path), "--json")
    assert code == Exit.USAGE
    assert json.loads(stdout)["error"]["message"].endswith("Name a model's folder or a GGUF file.")


def test_every_argument_reaches_the_librarys_commands_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def main(words: list[str], *, program: str) -> int:
        given.append(words)
        return 0

    monkeypatch.setattr("seft.cli.main", main)
    for words in (["model", "--", "-hello"], ["--", "model", "-x"], ["--json", "model", "--help", "a b", "-"], []):
        assert run("generate", *words) == (Exit.DONE, "", "")
        assert given.pop() == ["generate", *words]


def test_the_shell_completes_words_and_options() -> None:
    for line, completions in (("seft jobs c", ["cancel", "clone", "compare", "create"]), ("seft login --u", ["--url"])):
        words = {"_SEFT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        result = CliRunner().invoke(app, [], prog_name="seft", env=words)
        assert sorted(result.stdout.split()) == completions


@pytest.mark.parametrize("words", [["--help"], ["jobs", "--help"], ["datasets", "upload", "--help"]])
def test_help_loads_few_modules_and_no_slow_ones(words: list[str]) -> None:
    slow = {"torch", "httpx2", "rich", "seft.cli", "seft.config", "sqlalchemy", "asyncio", "pydantic"}
    script = f"""
import sys
from seft.client.cli import app
from seft.client.commands.estimates import as_options
try: app({words})
except SystemExit: pass
print(len(sys.modules) < 200, sorted({slow} & set(sys.modules)))
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout.startswith("Usage")
    assert process.stdout.splitlines()[-1] == "True []"
