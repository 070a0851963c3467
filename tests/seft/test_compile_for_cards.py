"""The Triton kernels compile to the machine code of cards, on a machine that has none."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

CAPABILITIES = ("75", "80", "90", "100")
"""Cards with tensor cores: Turing, Ampere, Hopper and Blackwell."""


@pytest.mark.skipif(find_spec("triton") is None, reason="no triton")
def test_every_kernel_compiles_for_every_card() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.seft.compile_for_cards", *CAPABILITIES]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == 21 * len(CAPABILITIES) * 2
