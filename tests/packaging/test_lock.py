"""Everything is installed from uv.lock, and only files with the locked hashes.

That uv.lock matches pyproject.toml is checked by `make lint`.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CPU = (ROOT / "torch-cpu.txt").read_text()
CUDA = re.compile(r"^(triton|nvidia-.*|cuda-.*)==", re.MULTILINE)
PIP = """#!/bin/sh
# Stands in for Python in an environment: `pip` copies the list of packages, and finds the CPU build if the file exists.
case "$*" in
*--dry-run*) test -e "$0.finds-cpu" ;;
*--requirement*)
    for last; do :; done
    cat "$last" >> "$0.installed"
    grep '^[a-z]' "$last" | sed 's/^/Collecting /' ;;
*) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that deploy/install.sh reads, next to an environment `env` that has pip and uv."""
    folder = tmp_path / "checkout"
    (folder / "deploy").mkdir(parents=True)
    for name in ("pyproject.toml", "uv.lock", "torch-cpu.txt", "deploy/install.sh"):
        shutil.copy(ROOT / name, folder / name)
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / "env/bin/uv").symlink_to(Path(sys.executable).parent / "uv")
    return folder


def install(
    checkout: Path, *options: str, environment: Path | str, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = ["deploy/install.sh", str(environment), *options]
    return subprocess.run(
        command, cwd=checkout, env=os.environ | variables, capture_output=True, text=True, check=False
    )


def chosen(checkout: Path, *options: str, finds_cpu: bool) -> str:
    """Return the packages with hashes that are installed if pip finds the CPU build of torch, or does not.

    Colours are forced, because pip cannot read them.
    """
    python = checkout.parent / "env/bin/python"
    python.write_text(PIP.format(python=sys.executable))
    python.chmod(0o755)
    if finds_cpu:
        Path(f"{python}.finds-cpu").touch()
    ended = install(checkout, *options, environment=checkout.parent / "env", FORCE_COLOR="1")
    assert ended.returncode == 0, ended.stderr
    packages = Path(f"{python}.installed").read_text()
    assert "\033" not in packages
    return packages


def test_the_cpu_build_needs_no_package_for_cuda(checkout: Path) -> None:
    packages = chosen(checkout, "--extra", "torch", finds_cpu=True)
    assert re.findall(r"^torch==\S+", packages, re.MULTILINE) == re.findall(r"^torch==\S+", CPU, re.MULTILINE)
    assert not CUDA.search(packages)
    assert {"sympy", "numpy", "setuptools"} <= set(re.findall(r"^([\w-]+)==", packages, re.MULTILINE))


def test_without_the_cpu_build_the_build_of_the_lock_is_installed_with_cuda(checkout: Path) -> None:
    packages = chosen(checkout, "--extra", "torch", finds_cpu=False)
    assert re.findall(r"^torch==[^ +]+", packages, re.MULTILINE) == [f"torch=={locked_version('torch')}"]
    assert CUDA.search(packages)


def test_the_api_needs_no_torch(checkout: Path) -> None:
    packages = chosen(checkout, "--extra", "service", finds_cpu=True)
    assert "fastapi==" in packages
    assert not re.search(r"^torch==", packages, re.MULTILINE)
    entries = re.split(r"\n(?=[a-z])", packages.strip())
    assert not [entry for entry in entries if "--hash=sha256:" not in entry]


def test_the_progress_is_shown(checkout: Path) -> None:
    chosen(checkout, "--extra", "service", finds_cpu=True)
    lines = install(checkout, "--extra", "service", environment=checkout.parent / "env").stdout.splitlines()
    assert lines[0] == "Installing uv and setuptools"
    (count,) = re.findall(r"^Downloading and installing (\d+) packages$", lines[1])
    assert lines[2:] == [f"  {done} of {count} packages" for done in range(10, int(count) + 1, 10)]


def test_a_file_with_another_hash_is_not_installed(checkout: Path) -> None:
    lock = checkout / "uv.lock"
    start = re.compile(r'(/rich-[^/"]*", hash = "sha256:)\w{8}')
    lock.write_text(start.sub(r"\g<1>00000000", lock.read_text()))
    ended = install(checkout, environment=sys.prefix, PIP_DRY_RUN="1", PIP_IGNORE_INSTALLED="1")
    assert (ended.returncode, "DO NOT MATCH THE HASHES" in ended.stderr) == (1, True), ended.stderr


def test_the_cpu_build_has_the_version_of_the_lock() -> None:
    assert re.findall(r"^torch==(\S+)", CPU, re.MULTILINE) == [f"{locked_version('torch')}+cpu"]


@pytest.mark.parametrize("name", ["Makefile", "Dockerfile"])
def test_only_the_project_itself_is_installed_without_the_script(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert [line for line in lines if "deploy/install.sh" in line]
    for line in lines:
        if "pip install" in line:
            assert re.search(r"--no-deps --no-build-isolation (--editable )?\.( \\)?$", line), line


def locked_version(name: str) -> str:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    (version,) = [package["version"] for package in packages if package["name"] == name]
    assert isinstance(version, str)
    return version
