"""Triton is used only where it can compile."""

import sysconfig
from pathlib import Path

import pytest

from seft.native import kernels


@pytest.mark.parametrize("headers", [True, False])
def test_triton_needs_the_headers_of_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, headers: bool) -> None:
    if headers:
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    monkeypatch.setenv("CC", "gcc")
    assert kernels.can_compile_for_cuda.__wrapped__() is headers
