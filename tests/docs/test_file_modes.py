"""Containers run as users of their own. They can read the files of the checkout that are mounted in them."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.docs.test_compose import DOCKER, ROOT, SERVICES

MOUNTED = {
    mount.split(":")[0] for each in SERVICES.values() for mount in each.get("volumes", []) if "./deploy" in mount
}


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that only its owner can read, and a program in place of Docker."""
    docker = tmp_path / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FOLDER", str(tmp_path))
    (tmp_path / "images").write_text("seft-api:local")
    (tmp_path / "models").mkdir()
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "docker-compose.yml"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("deploy", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    subprocess.run(["chmod", "-R", "go-rwx", folder], check=True)
    return folder


def unreadable(folder: Path) -> set[str]:
    """Return the mounted files that other users cannot read."""
    return {name for name in MOUNTED if not stat.S_IMODE((folder / name).stat().st_mode) & stat.S_IROTH}


def make(folder: Path, *words: str) -> None:
    subprocess.run(["make", "--silent", *words], cwd=folder, check=True)


def test_the_mounted_files_are_readable_after_make_secrets(private: Path) -> None:
    assert unreadable(private) == MOUNTED
    make(private, "secrets")
    assert unreadable(private) == set()
    assert stat.S_IMODE((private / ".env").stat().st_mode) == 0o600


def test_the_mounted_files_of_a_bundle_are_readable_after_make_load(private: Path, tmp_path: Path) -> None:
    make(private, "bundle", f"FILE={tmp_path / 'bundle.tar'}")
    offline = tmp_path / "offline"
    offline.mkdir()
    for archive in (tmp_path / "bundle.tar", "files.tar"):
        subprocess.run(["tar", "--extract", "--file", archive], cwd=offline, check=True)
    assert unreadable(offline) == MOUNTED
    make(offline, "load", f"FILE={tmp_path / 'bundle.tar'}")
    assert unreadable(offline) == set()
