"""The formats besides the dense folder. Each is one file, which is made from the folder and verified against it.

A new format is one entry here: a function that writes the folder to a stream, from start to end, and one that compares
a written file with the folder. The verification of GGUF imports torch, so it is imported when it runs.

The file is on disk, or in a `Store`, so that no second copy of the model needs space on the disk.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from seft.checkpoint.compact.byte_sources import ByteSource, open_source
from seft.checkpoint.compact.output import verify_compact, write_compact
from seft.checkpoint.facts import ListedFile
from seft.checkpoint.gguf_file import write as write_gguf
from seft.config import OutputFormat
from seft.errors import ConfigError


class Store(Protocol):
    """Keeps files of formats outside of the folder. They are read from the place where they are stored."""

    def write(self, name: str, content: Callable[[BinaryIO], object]) -> ListedFile:
        """Store what the function `content` writes to a stream, as a new file."""

    def open(self, name: str) -> ByteSource:
        """Open a stored file to read it. Another process with the descriptor `fileno()` may do this too."""

    def fileno(self) -> int:
        """Return the descriptor with which a process reaches the store."""


class _Format(NamedTuple):
    """How a format is written and verified. Both raise an error of the library that says what is wrong."""

    write: Callable[[Path, OutputFormat, BinaryIO], None]
    verify: Callable[[Path, ByteSource, OutputFormat], None]


def _verify_gguf(folder: Path, file: ByteSource, format_: OutputFormat) -> None:
    from seft.checkpoint.gguf_verify import verify_gguf

    verify_gguf(folder, file, format_)


_COMPACT = _Format(write_compact, verify_compact)
_GGUF = _Format(write_gguf, _verify_gguf)
_FORMATS = {
    OutputFormat.COMPACT: _COMPACT,
    OutputFormat.COMPACT_INT8: _COMPACT,
    OutputFormat.COMPACT_NF4: _COMPACT,
    OutputFormat.GGUF_BF16: _GGUF,
    OutputFormat.GGUF_Q8_0: _GGUF,
    OutputFormat.GGUF_Q4_0: _GGUF,
}


def write_format(folder: Path, format_: OutputFormat, file: Path) -> None:
    """Write the model in a dense folder as a new file of another format.

    Raises the errors of `write_stream`. After an error there is no file.
    """
    with file.open("xb") as sink:
        try:
            write_stream(folder, format_, sink)
        except BaseException:
            file.unlink()
            raise


def write_stream(folder: Path, format_: OutputFormat, sink: BinaryIO) -> None:
    """Write the model in a dense folder to a stream in another format, from start to end.

    Raises ConfigError if the format cannot express the model, and ContainerError if a compact file exceeds a limit.
    """
    if format_ not in _FORMATS:
        rule, way_out = f"must be one of {', '.join(_FORMATS)}", "The folder is dense already."
        raise ConfigError("format", rule, str(format_), way_out)
    _FORMATS[format_].write(folder, format_, sink)


def require_place(folder: Path, format_: OutputFormat, file: Path) -> None:
    """Raise ConfigError if a file would be in the folder, unless it has the name of its format."""
    place, own = file.resolve(), folder.resolve()
    if place.is_relative_to(own) and place != own / (format_.file or ""):
        raise ConfigError("out", "must be outside of the model's folder", str(file), "Use another folder.")


def verify_format(folder: Path, file: Path, format_: OutputFormat) -> None:
    """Compare a file of a format with the dense folder from which it was written. Raises VerifyError."""
    with open_source(file) as source:
        verify_source(folder, source, format_)


def verify_source(folder: Path, source: ByteSource, format_: OutputFormat) -> None:
    """Compare an open file of a format with the dense folder from which it was written. Raises VerifyError."""
    _FORMATS[format_].verify(folder, source, format_)
