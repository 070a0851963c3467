"""A test that fails ends what it started, and no thread keeps the run alive."""

import ast
import socket
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from local.servers import Servers
from tests import databases
from tests.api.receivers import Dripping, Receiver, dripping, receiving
from tests.conftest import own_settings
from tests.e2e.collector import Collector, collecting

TESTS = sorted(Path(__file__).parents[1].rglob("*.py"))


def is_daemon(call: ast.Call) -> bool:
    return any(each.arg == "daemon" and ast.unparse(each.value) == "True" for each in call.keywords)


def threads_of(tree: ast.AST) -> list[ast.Call]:
    """Return the calls that make a thread. A subclass of Thread makes it in its constructor."""
    names = {"Thread", "threading.Thread"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and names.intersection(map(ast.unparse, node.bases)):
            starts = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
            calls += [each for each in starts if ast.unparse(each.func) == "super().__init__"]
    return calls


def test_no_thread_of_a_test_keeps_the_run_alive_when_the_test_fails() -> None:
    made = [(path, call) for path in TESTS for call in threads_of(ast.parse(path.read_text()))]
    assert len(made) > 10
    assert [f"{path}:{call.lineno}" for path, call in made if not is_daemon(call)] == []


@pytest.mark.parametrize("server", [receiving(), dripping(b""), collecting()], ids=["stores", "drips", "collects"])
def test_a_server_ends_when_the_test_that_uses_it_fails(
    server: AbstractContextManager[Receiver | Dripping | Collector],
) -> None:
    ports = list[int]()

    def fail() -> None:
        with server as running:
            ports.append(running.port if isinstance(running, Dripping) else running.server_port)
            socket.create_connection(("127.0.0.1", ports[0])).close()
            raise AssertionError("of the test")

    with pytest.raises(AssertionError, match="of the test"):
        fail()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]))


def test_the_database_of_a_test_that_fails_is_used_again(servers: Servers, template: str, tmp_path: Path) -> None:
    def fail() -> None:
        with own_settings(servers, template, tmp_path):
            raise AssertionError("of the test")

    before = len(databases.spare)
    with pytest.raises(AssertionError, match="of the test"):
        fail()
    assert len(databases.spare) == max(before, 1)
