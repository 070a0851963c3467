"""The device that a model runs on, and the settings of torch that make its results repeatable."""

import ctypes
import os
import sys
import warnings
from functools import partial
from typing import Any

import torch

from seft import processor
from seft.errors import ConfigError
from seft.float32_products import use_float32_products

AMPERE = 8
"""First compute capability of CUDA devices with instructions for bfloat16."""
ATTENTION = ("_scaled_dot_product_flash_attention_backward", "_scaled_dot_product_efficient_attention_backward")
"""Torch's gradients of attention on CUDA. With `warn_only`, they are added up in an order that changes."""

_registered: list[torch.library.Library] = []


def choose_device(name: str) -> str:
    """Return `cpu` or `cuda` for the setting `device`. `auto` is CUDA if it is available, else the CPU.

    Raises ConfigError if CUDA is requested and not available.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    require_device(name)
    return name


def require_device(device: str | torch.device) -> None:
    """Raise ConfigError if a device, such as `cuda:1`, is not in this machine."""
    asked = torch.device(device)
    if asked.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", "must be available", str(device), "Torch finds no CUDA device. Use cpu or auto.")
    if asked.type == "cuda" and (asked.index or 0) >= max(1, count := torch.cuda.device_count()):
        raise ConfigError("device", "must be available", str(device), f"Torch finds {count} CUDA devices.")


def has_bfloat16(device: str) -> bool:
    """Return whether a device, such as `cpu` or `cuda`, has instructions for bfloat16."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= AMPERE
    return processor.has_bfloat16()


def choose_dtype(name: str, device: str) -> torch.dtype:
    """Return the data type for the setting `dtype`. `auto` is bfloat16 if the device has instructions for it.

    Otherwise `auto` is float32.
    """
    chosen = ("bfloat16" if has_bfloat16(device) else "float32") if name == "auto" else name
    dtype: torch.dtype = getattr(torch, chosen)
    return dtype


def trim_memory() -> None:
    """Return freed memory to the operating system, so that it does not count towards the peak of what follows."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc only
        trim(0)


def configure_torch(threads: int, *, deterministic: bool = True) -> None:
    """Make torch deterministic and set its number of CPU threads. With 0, torch keeps its own number.

    Where torch has no fast products of bfloat16 matrices, they are computed in float32 (`seft.float32_products`).
    Results are equal only with the same number of threads. Call this before torch computes anything on CUDA.
    """
    # cuBLAS reads this when it starts; without it, its sums differ between runs.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if threads:
        torch.set_num_threads(threads)
    use_float32_products()
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    _fix_order_of_attention()
    # Filling memory that is overwritten anyway costs time and does not change results.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _fix_order_of_attention() -> None:
    """Make the gradients of attention on CUDA deterministic where the rest of this process is. This is idempotent.

    The kernels of cuDNN, which torch prefers on some devices, are not used, because they have no fixed order.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    if _registered or not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for name in ATTENTION:
            strict = partial(_call_strictly, torch.library.get_kernel(f"aten::{name}", "CUDA"))
            library.impl(name, strict, "CUDA", with_keyset=True, allow_override=True)  # type: ignore[no-untyped-call]
    _registered.append(library)


def _call_strictly(kernel: Any, keys: Any, *operands: Any, **options: Any) -> Any:
    """Call a kernel of torch without `warn_only`, if torch is deterministic."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        return kernel.call_boxed(keys, *operands, **options)
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
