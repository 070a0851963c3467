"""Answers of other servers and of newer services, and strange proxies, are reported in one line."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from seft.client import AsyncClient, Client, http, shell
from seft.client.cli import app
from seft.client.errors import ApiProblem, MissingField, SetupError, Unreachable
from seft.client.shell import Exit
from seft.command_texts import VERBS
from tests.seft.client.servers import Script


def service_commands(group: Any, *path: str) -> Iterator[tuple[list[str], list[Any]]]:
    """Yield the words and the parameters of each command that uses the service."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from service_commands(command, *path, name)
        elif name not in {*VERBS, "doctor"} and [*path, name] != ["datasets", "check"]:
            yield [*path, name], command.params


COMMANDS = list(service_commands(get_command(app)))


@pytest.mark.parametrize(
    ("answer", "headers"), [(b"{}", {}), (b"<h1>Hi</h1>", {}), (b"{}", {"Content-Encoding": "gzip"})]
)
@pytest.mark.parametrize(("words", "parameters"), COMMANDS, ids=lambda value: " ".join(map(str, value))[:20])
def test_no_command_ends_with_a_traceback_if_another_server_answers(
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    words: list[str],
    parameters: list[Any],
    answer: bytes,
    headers: dict[str, str],
) -> None:
    monkeypatch.setattr(shell, "HASTY", ())
    monkeypatch.setattr(shell, "PATIENT", ())
    monkeypatch.setattr(http.Client.__init__, "__kwdefaults__", {"pauses": ()})
    (data := tmp_path / "data.jsonl").write_text("{}")
    values = {"path": str(data), "dataset": str(data), "folder": str(tmp_path / "out"), "model": "m", "url": script.url}
    for each in parameters:
        if each.required or each.name in values:
            option = [each.opts[0]] if each.param_type_name == "option" else []
            words = [*words, *option, values.get(each.name, "text")]
    script.answers += [(200, headers, answer)] * 20
    environment = {"SEFT_URL": script.url, "SEFT_API_KEY": "k", "XDG_CONFIG_HOME": str(tmp_path)}
    result = CliRunner().invoke(app, words, input="secret\n", env=environment)
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code == Exit.UNREACHABLE or (words[:2], answer, headers) == (["jobs", "show"], b"{}", {})
    assert script.url in result.stderr or result.exit_code == Exit.DONE
    assert "Check" in result.stderr or result.exit_code == Exit.DONE


@pytest.mark.parametrize(("words", "parameters"), COMMANDS, ids=lambda value: " ".join(map(str, value))[:20])
def test_each_command_prints_a_wrong_command_line_as_json_too(words: list[str], parameters: list[Any]) -> None:
    assert "--json" in [option for each in parameters for option in each.opts]
    result = CliRunner().invoke(app, [*words, "--json", "--nonsense"])
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, error["code"]) == (Exit.USAGE, "usage")
    assert error["message"] in result.stderr
    assert CliRunner().invoke(app, [*words, "--nonsense"]).stdout == ""


def test_a_missing_field_is_reported_and_is_also_a_key_error(script: Script, client: Client) -> None:
    script.will_answer({"id": "job_1", "spec": {"model": "m"}})
    job: Any = client.job("job_1")
    assert job == {"id": "job_1", "spec": {"model": "m"}}
    for fields, name in ((job, "status"), (job["spec"], "dataset")):
        with pytest.raises(MissingField, match=f"^{script.url}/jobs/job_1 answered without the field '{name}'") as it:
            fields[name]
        assert isinstance(it.value, KeyError)


def test_an_error_of_another_server_names_its_address(script: Script, client: Client) -> None:
    script.will_answer({"detail": "Not Found"}, status=404, Content_Type="application/json")
    with pytest.raises(ApiProblem, match=f"unknown: HTTP 404 from {script.url}/jobs/job_1, .* Check the address"):
        client.job("job_1")


def test_a_failed_import_of_a_newer_service_may_have_more_fields(script: Script, client: Client) -> None:
    flaw = {"param": "line 1", "rule": "text", "value": "1", "way_out": "Write it.", "severity": "high"}
    script.will_answer({"id": "imp_1"})
    script.will_answer({"error": {"code": "invalid_dataset", "message": "No.", "errors": [flaw]}, "dataset_id": None})
    with pytest.raises(ApiProblem, match=r"line 1: text; it is 1\. Write it\."):
        client.import_dataset("s3://inbox/texts.jsonl")


def test_a_stream_that_is_not_one_of_events_is_reported(script: Script, client: Client) -> None:
    script.will_answer(b"<h1>It works!</h1>", Content_Type="text/html")
    with pytest.raises(Unreachable, match="did not answer with a stream of events"):
        list(client.live_events("job_1"))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PROXY", "socks5://user:secret@localhost"),
        ("ALL_PROXY", "socks4://user:secret@localhost"),
        ("HTTPS_PROXY", "http://[::1"),
        ("SSL_CERT_FILE", "/nonexistent/certificates"),
    ],
)
def test_a_proxy_or_a_certificate_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, kind: Callable[..., object], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=f"cannot be used: .* one of these variables: .*{name}") as caught:
        kind("http://127.0.0.1:1", "seft_key")
    assert "secret" not in str(caught.value)
    assert (value in str(caught.value)) is name.startswith("SSL_")
