"""Arguments that several benchmarks have. A wrong one is an error before anything is loaded."""

from argparse import ArgumentTypeError
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FLOATS = ("float32", "bfloat16", "float16")


def one_of(kind: str, names: Collection[str]) -> Callable[[str], str]:
    """Return a function that accepts these names only. `choices` of argparse would reject an empty list of names."""

    def accept(text: str) -> str:
        if text not in names:
            raise ArgumentTypeError(f"{text!r} is no {kind}; they are {', '.join(names)}")
        return text

    return accept


def float_dtype(text: str) -> "torch.dtype":
    """Return the torch dtype with this name."""
    import torch

    if text not in FLOATS:
        raise ArgumentTypeError(f"must be one of {', '.join(FLOATS)}; it is {text!r}")
    dtype: torch.dtype = getattr(torch, text)
    return dtype


def positive(text: str) -> int:
    """Return a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number above 0; it is {text!r}")
    return int(text)


def fraction(text: str) -> float:
    """Return a number above 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ArgumentTypeError(f"must be a number above 0 and at most 1; it is {text!r}")
    return value


def output_file(text: str) -> Path:
    """Return the path of a file that can be written, and create its folder. An existing file is not changed."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        path.open("a").close()
    except OSError as error:
        raise ArgumentTypeError(f"must be a file that can be written; it is {text!r}: {error.strerror}") from error
    if not existed:
        path.unlink()
    return path
