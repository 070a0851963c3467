"""New files and folders that get their names when they are complete. An error or an interruption leaves nothing.

Until then they are in a folder with a name that nobody can guess. A file or a folder that exists is never replaced.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from seft.errors import ConfigError

UNFINISHED = ".seft-"
"""Beginning of the name of a folder with unfinished files."""


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """Yield a path at which the `with` block creates a file. It becomes `out` if the block raises no error.

    Raises ConfigError if `out` exists, also if another process created it in the meantime.
    """
    require_new(out)
    with TemporaryDirectory(prefix=UNFINISHED, dir=out.absolute().parent) as name:
        yield (made := Path(name, out.name))
        with made.open("rb") as file:
            os.fsync(file.fileno())  # otherwise a machine that stops may leave the name without the bytes
        try:
            _give_name(made, out)
        except FileExistsError:
            raise _exists(out) from None


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder. The files that the `with` block creates in it move to `out` if it raises no error.

    The folder is in `out`, because `out` may be the only place that can be written. Raises ConfigError if `out` is not
    new or empty, also if another process writes to it. If two processes start at once, at most one of them sees only
    its own folder in `out` and continues.
    """
    require_empty(out)
    existed = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=UNFINISHED, dir=out) as name:
            if sum(1 for _ in out.iterdir()) > 1:
                raise _not_empty(out)
            yield (made := Path(name))
            if not all(path.name.startswith(UNFINISHED) for path in out.iterdir()):
                raise _not_empty(out)
            paths = list(made.iterdir())
            try:
                for path in paths:
                    path.rename(out / path.name)
            except BaseException:
                for path in paths:
                    if not path.exists():
                        (out / path.name).rename(path)  # it is then deleted with the temporary folder
                raise
    finally:
        if not existed:
            with suppress(OSError):  # it has files
                out.rmdir()


def _give_name(made: Path, out: Path) -> None:
    """Give a file the name `out`. Raises FileExistsError if `out` exists."""
    try:
        out.hardlink_to(made)
    except FileExistsError:
        raise
    except OSError:  # the file system has no hard links
        out.open("xb").close()
        try:
            made.replace(out)
        except BaseException:
            out.unlink()
            raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Convert an error of the disk, which the libraries safetensors and tokenizers raise as their own, to OSError."""
    try:
        yield
    except Exception as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def require_empty(out: Path) -> None:
    """Raise ConfigError unless `out` is a new or empty folder that can be written."""
    with _usable(out):
        if any(out.iterdir()) if out.is_dir() else out.exists() or out.is_symlink():
            raise _not_empty(out)
        place = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir() or path.is_file())
        _require_writable(place, out)


def require_new(out: Path) -> None:
    """Raise ConfigError unless `out` is the path of a file that does not exist, in a folder that can be written."""
    with _usable(out):
        if out.exists() or out.is_symlink():
            raise _exists(out)
        _require_writable(out.absolute().parent, out)


@contextmanager
def _usable(out: Path) -> Iterator[None]:
    """Convert an error of the system to ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError("out", f"must be a usable path ({error.strerror})", str(out), "Use another path.") from error


def _require_writable(place: Path, out: Path) -> None:
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise ConfigError("out", "must be in a folder that you can write to", str(out), "Use another folder.")


def _exists(out: Path) -> ConfigError:
    return ConfigError("out", "must be a file that does not exist yet", str(out), "Use another name.")


def _not_empty(out: Path) -> ConfigError:
    way_out = "Use another folder, or empty it."
    with suppress(OSError, StopIteration):
        name = next(path.name for path in out.iterdir() if path.name.startswith(UNFINISHED))
        way_out = f"It has unfinished files of another command in {name}. Wait until it ends; if it was killed, delete"
        way_out += " them. Or use another folder."
    return ConfigError("out", "must be a new or an empty folder", str(out), way_out)
