"""Loads the compiled kernels and chooses their level of instructions.

The extension is a plain shared library with C functions (`kernels.cpp`), built when the package is installed if a C++
compiler is there. ctypes calls it and releases the GIL. Without it, torch computes the same: it multiplies with
expanded matrices, and samples products and computes Gram matrices more slowly.
"""

import ctypes
import logging
import os
import sysconfig
from enum import IntEnum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any, NoReturn

import torch

from seft.errors import AccelerateError

log = logging.getLogger(__name__)
LIBRARY = Path(__file__).with_name("_kernels" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so"))


class Level(IntEnum):
    """Instructions that the kernels use. `AVX512` needs VBMI2, BF16 and VNNI."""

    PLAIN = 0
    AVX2 = 1
    AVX512 = 2
    NEON = 3


DTYPES = {torch.bfloat16: 0, torch.float32: 1}
"""The dtypes of the inputs of kernels, by the numbers of `matrix.h`."""


class Matrix(ctypes.Structure):
    """The struct `Matrix` of `matrix.h`, with the addresses of its arrays."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("masks", "values", "starts", "scales", "bias")),
    )

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: the copy would keep the addresses of the original tensors."""
        raise AccelerateError("an accelerated model cannot be copied or pickled. Load it again and accelerate it.")


class Factored(ctypes.Structure):
    """The struct `Factored` of `matrix.h`, with the addresses of its arrays."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("row_sums", "row_scales", "col_scales")),
        ("random", ctypes.c_int64),
    )


@cache
def can_compile_for_cuda() -> bool:
    """Return whether Triton is installed, with what it needs before it runs its first kernel.

    It needs a C compiler and the headers of Python.
    """
    headers = Path(sysconfig.get_paths("posix_prefix")["include"], "Python.h")
    return find_spec("triton") is not None and has_compiler() and headers.exists()


def has_compiler() -> bool:
    """Return whether there is a C compiler that Triton finds."""
    return "CC" in os.environ or bool(which("gcc") or which("clang"))


@cache
def library() -> Any:
    """Return the loaded library, or None if it was not built. The first call without it logs a warning."""
    if not LIBRARY.exists():
        log.warning(
            "%s has no compiled kernels: pruning, repair and compressed models run correctly but slowly. Install a C++"
            " compiler, then seft again. If seft runs from a checkout, use pip install --editable.",
            LIBRARY.parent,
        )
        return None
    loaded = ctypes.CDLL(str(LIBRARY))
    address, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    loaded.seft_multiply.argtypes = (address, address, address, size, flag, flag)
    loaded.seft_expand.argtypes = (address, size, size, address, flag)
    loaded.seft_expand.restype = None
    loaded.seft_sample.argtypes = (address, address, size, size, size, address, size, address, flag, flag)
    loaded.seft_gram.argtypes = (address, size, size, ctypes.c_float, address, flag)
    loaded.seft_squares.argtypes = (address, address, size, flag, flag, flag)
    loaded.seft_scaled_squares.argtypes = loaded.seft_change.argtypes = (address, flag, flag, flag)
    for name in ("seft_squares", "seft_scaled_squares", "seft_change"):
        getattr(loaded, name).restype = None
    loaded.seft_use_parallel.argtypes = (address,)
    # torch loads its OpenMP library for the whole process. Products share its threads.
    if parallel := getattr(ctypes.CDLL(None), "GOMP_parallel", None):
        loaded.seft_use_parallel(ctypes.cast(parallel, address))
    else:
        log.warning(
            "the kernels of seft.native run correctly, but in one thread: the function GOMP_parallel of torch's OpenMP"
            " library is not visible in this process. Install another build of torch, such as the one of PyPI."
        )
    return loaded


def level() -> Level | None:
    """Return the level in use, or None if the kernels were not compiled."""
    loaded = library()
    return None if loaded is None else Level(loaded.seft_level())
