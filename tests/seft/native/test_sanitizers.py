"""The kernels read and write only their arrays, and have no undefined behaviour, by the sanitizers of the compiler."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from seft.native.kernels import Level

DRIVER = Path(__file__).with_name("driver.cpp")
ARM, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
"""Programs of the Debian packages g++-aarch64-linux-gnu and qemu-user-static."""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_products_of_random_shapes_pass_the_sanitizers(tmp_path: Path) -> None:
    program = tmp_path / "driver"
    flags = ["-std=c++17", "-O1", "-g", "-pthread", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["g++", *flags, "-Wall", "-Wextra", "-Werror", DRIVER, "-o", program], check=True)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1"}
    ended = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "level 0" in ended.stdout


@pytest.mark.skipif(not (shutil.which(ARM) and shutil.which(EMULATOR)), reason="no compiler and emulator for Arm")
def test_products_of_random_shapes_are_right_on_arm(tmp_path: Path) -> None:
    program = tmp_path / "driver"
    flags = ["-std=c++17", "-O2", "-pthread", "-static", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([ARM, *flags, DRIVER, "-o", program], check=True)
    ended = subprocess.run([EMULATOR, program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"level {Level.NEON}" in ended.stdout
