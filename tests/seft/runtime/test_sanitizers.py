"""The kernels read and write only their arrays, and have no undefined behaviour, by the sanitizers of the compiler."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("driver.cpp")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_products_of_random_shapes_pass_the_sanitizers(tmp_path: Path) -> None:
    program = tmp_path / "driver"
    flags = ["-std=c++17", "-O1", "-g", "-pthread", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["g++", *flags, "-Wall", "-Wextra", "-Werror", DRIVER, "-o", program], check=True)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1"}
    ended = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "level 0" in ended.stdout
