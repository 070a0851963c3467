"""`make backup` and `make restore`, with a program in place of Docker. `make containers` runs them with Docker."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = r"""#!/bin/sh
# In place of `docker compose`. The bucket has one object more in each run. The run with the number BROKEN fails.
set -eu
umask 022 # that of a container
case "$*" in
"run "*" api python -m api bucket save /backup/bucket")
    folder=$(echo "$*" | sed 's/.*--volume \(.*\):\/backup api .*/\1/')
    mkdir -p "$folder/bucket/datasets"
    number=$(ls "$folder/bucket/datasets" | wc -l)
    test "$number" != "${BROKEN:-}"
    echo text > "$folder/bucket/datasets/$number"
    ;;
"exec --no-TTY postgres pg_dump "*) echo "dump $(ls "$FOLDER/bucket/datasets" | wc -l)" ;;
*) exit 1 ;;
esac
"""


@pytest.fixture(autouse=True)
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o700)
    monkeypatch.setenv("COMPOSE", str(tmp_path / "docker"))


def make(target: str, folder: Path, name: str = "", **variables: str) -> int:
    """Run a target of the Makefile for this folder. `name` is another way to write it. Return the exit status."""
    command = ["make", "--silent", target, f"FOLDER={name or folder}"]
    environment = {**os.environ, "FOLDER": str(folder), **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False).returncode


def test_a_backup_that_fails_leaves_the_backup_before_it_complete(tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    assert make("backup", folder) == 0
    assert (folder / "database").read_text() == "dump 1\n"
    for broken in ("2", "3"):  # the bucket before the dump of the database, and after it
        assert make("backup", folder, BROKEN=broken) != 0
        assert (folder / "database").read_text() == "dump 1\n"
    assert make("backup", folder) == 0
    assert (folder / "database").read_text() == "dump 4\n"


def test_only_the_operator_can_read_a_backup(tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    folder.mkdir(mode=0o755)
    assert make("backup", folder) == 0
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in folder.iterdir()), "others can read it"


def test_the_folder_of_a_backup_can_have_spaces_in_its_name_and_be_in_the_home_folder(tmp_path: Path) -> None:
    for folder, name in ((tmp_path / "my backup", str(tmp_path / "my backup")), (tmp_path / "saved", "~/saved")):
        assert make("backup", folder, name, HOME=str(tmp_path)) == 0
        assert {path.name for path in folder.iterdir()} == {"database", "bucket"}
