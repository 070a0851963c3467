"""The process that reads a dataset with a tokenizer of other people can reach nothing else."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from core.infra import sandbox
from seft.models.loadable import loadable
from tests.probe import OUTCOME

PROBE = (
    OUTCOME
    + """
import json, os, socket, sys
if "seft.data.preview" in sys.orig_argv:
    actions = {
        "network": lambda: socket.create_connection(("127.0.0.1", PORT)),
        "a secret": lambda: open("SECRET").read(),
        "the parent": lambda: open("/proc/%s/environ" % os.getppid()).read(),
        "the tokenizer": lambda: open("TOKENIZER").read(),
        "change the tokenizer": lambda: open("TOKENIZER", "a"),
    }
    print(json.dumps({name: outcome(action) for name, action in actions.items()}), file=sys.stderr)
"""
)
"""A module that Python imports at its start. It looks around at the moment at which the tokenizer is read."""


def test_it_reads_only_the_tokenizer_and_has_no_network(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("hidden")
    (modules := tmp_path / "modules").mkdir()
    request = {"lines": ['{"text": "one two"}'], "show": 1}
    with socket.create_server(("127.0.0.1", 0)) as server, loadable(tiny_folder) as tokenizer:
        port = server.getsockname()[1]
        code = PROBE.replace("PORT", str(port)).replace("SECRET", str(tmp_path / "secret"))
        (modules / "sitecustomize.py").write_text(code.replace("TOKENIZER", str(tiny_folder / "tokenizer.json")))
        process = subprocess.run(
            [sys.executable, "-m", "core.datasets.tokenizer_process", str(tokenizer), str(os.getpid())],
            input=json.dumps({**request, "path": str(tokenizer)}),
            env={**os.environ, "PYTHONPATH": f"{modules}:{sandbox.ROOT}", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
    assert json.loads(process.stdout)["lines"] == 1
    found = json.loads(process.stderr.splitlines()[0])
    assert found.pop("the tokenizer") == "done"
    assert found.pop("network") == "PermissionError"
    if sandbox.landlock_abi():
        assert set(found.values()) == {"PermissionError"}, found
