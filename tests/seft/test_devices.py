"""The gradients of attention on a card are deterministic. Here, a kernel that notes the flags stands for torch's."""

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from seft import devices

CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
ARGUMENTS = {"Tensor": torch.ones(1), "int": 1, "float": 0.0, "bool": False, "List[bool]": [True] * 4}
Flags = tuple[bool, bool]


def flags() -> Flags:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Flags]]:
    """The flags that the kernels of a build of torch for CUDA would see. The flags are restored at the end."""
    deterministic, warn_only = flags()
    seen: list[Flags] = []

    def note(name: str, *operands: torch.Tensor, **_: Any) -> tuple[torch.Tensor | None, ...]:
        seen.append(flags())
        return (*operands[:3], None)[: len(schema(name).returns)]

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(devices, "_registered", [])
    with torch.library._scoped_library("aten", "IMPL") as library, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for name in devices.ATTENTION:
            library.impl(name, partial(note, name), "CUDA")
        yield seen
        devices._registered.clear()
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def schema(name: str) -> Any:
    return getattr(torch.ops.aten, name).default._schema


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", devices.ATTENTION)
def test_they_are_computed_without_warn_only(seen: list[Flags], name: str, deterministic: bool) -> None:
    for _ in range(2):
        devices.configure_torch(0, deterministic=deterministic)
    operands = [ARGUMENTS[str(argument.type)] for argument in schema(name).arguments if not argument.kwarg_only]
    results = getattr(torch.ops.aten, name).default.redispatch(CUDA, *operands, scale=0.5)
    assert seen == [(deterministic, False)]
    assert flags() == (deterministic, True)
    assert len(results) == len(schema(name).returns)
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
