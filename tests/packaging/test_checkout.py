"""The documented commands that install the API and the workers build the kernels in the checkout, which they run."""

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs/operations.md").read_text().partition("\n## Install without Docker\n")[2].partition("\n## ")[0]
COMMANDS = [
    *re.findall(r"`(pip install [^`]*\bservice\b[^`]*)`", SECTION),
    *re.findall(r"^\.venv/bin/(pip install .*?) *#", SECTION, re.MULTILINE),
]
"""For the API, for a worker, and for both after their dependencies were installed from uv.lock."""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_the_checkout_has_the_kernels_after_each_command(tmp_path: Path) -> None:
    assert len(COMMANDS) == 3
    for number, command in enumerate(COMMANDS):
        checkout = tmp_path / str(number)
        shutil.copytree(ROOT / "seft/native", checkout / "seft/native", ignore=shutil.ignore_patterns("*.so"))
        for name in ("pyproject.toml", "README.md", "LICENSE", "seft/__init__.py"):
            shutil.copy(ROOT / name, checkout / name)
        (checkout / "seft/native/kernels.cpp").write_text("")  # compiles at once
        # pip itself would replace the package in the environment of this test. It calls this function first.
        build = "build_editable" if "--editable" in shlex.split(command) else "build_wheel"
        code = f"from setuptools.build_meta import {build}; {build}('wheels')"
        subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, check=True)
        kernels = checkout / f"seft/native/_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
        assert kernels.exists(), command
