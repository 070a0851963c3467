"""Where a checkpoint comes from: the SHA-256 of every file of the model that was read, and what the stages ran on."""

import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread
from typing import Any, cast

import torch

from seft.checkpoint.facts import Base, Machine, sha256
from seft.errors import ReproduceError, SeftError, SourceError
from seft.models.hub_files import REFUSED
from seft.models.model_files import TEXT_FILES, weight_files
from seft.models.source import Kind, ModelSource, fetch, folder_sizes, read_small
from seft.models.terms import read_terms

_SHA256 = re.compile("[0-9a-f]{64}")


WAIT_SECONDS = 1.0
"""Seconds between two calls of `heartbeat` while a model is hashed."""


def describe_model(source: ModelSource, heartbeat: Callable[[], None] = lambda: None) -> Callable[[], Base]:
    """Start a thread that describes a model with the hashes of its files. Returns the function that waits for it.

    Hashing a large model takes minutes. Meanwhile this process can load and prune the model. The thread does not keep
    the process alive. While the function waits, it calls `heartbeat` regularly, which may raise an error to stop. The
    function raises SourceError if a file is missing, and SeftError if a file cannot be read. An unreadable file is not
    the fault of the user, so a job is tried again.
    """
    found, path = Future[Base](), fetch(source)

    def describe() -> None:
        try:
            found.set_result(Base.of(source, read_terms(path), hash_model(path)))
        except FileNotFoundError as error:
            message = f"the files of {source.reference!r} are incomplete: {error}. Check that they are still there."
            found.set_exception(SourceError(REFUSED, message))
        except OSError as error:
            message = f"the files of {source.reference!r} cannot be read: {error}. Check the disk and try again."
            found.set_exception(SeftError(message))
        except BaseException as error:
            found.set_exception(error)

    def wait_for() -> Base:
        while not wait([found], WAIT_SECONDS).done:
            heartbeat()
        return found.result()

    Thread(target=describe, name="hashes", daemon=True).start()
    return wait_for


def hash_model(path: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of a model that a loader reads, by name. `path` is a folder or a GGUF file."""
    if path.is_file():
        return {path.name: _hash(path)}
    sizes = folder_sizes(path)
    names = weight_files(str(path), sizes, lambda name: read_small(path / name))
    return {name: _hash(path / name) for name in sorted({*names, *(TEXT_FILES & sizes.keys())})}


def _hash(path: Path) -> str:
    """Return the SHA-256 of a file. The hub's cache names a large file by its SHA-256, so it is not read again."""
    target = path.resolve()
    cached = path.absolute().parent.parent.name == "snapshots" and target.parent.name == "blobs"
    return target.name if cached and _SHA256.fullmatch(target.name) else sha256(path)


def this_machine(device: str, dtype: torch.dtype = torch.float32) -> Machine:
    """Return the description of the device `cpu` or `cuda` of this process, with weights of `dtype`."""
    cuda = torch.device(device).type == "cuda"
    hardware = torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability()
    deterministic, name = torch.are_deterministic_algorithms_enabled(), str(dtype).removeprefix("torch.")
    return Machine("cuda" if cuda else "cpu", hardware, cast("Any", name), torch.get_num_threads(), deterministic)


def require_same_files(recorded: Base, found: Mapping[str, str], option: str) -> None:
    """Raise ReproduceError unless a model has exactly the recorded files.

    `found` has the SHA-256 of its files by name. `option` is the command-line option for another model, which the error
    names. The name of a GGUF file does not matter.
    """
    expected = recorded.files
    if recorded.kind is Kind.GGUF and len(found) == 1:
        found = dict(zip(expected, found.values(), strict=True))
    names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if names:
        rule = f"the model {recorded.reference!r} must have the recorded files"
        found_files = f"these files have another SHA-256 than recorded: {', '.join(names)}"
        raise ReproduceError(f"{rule}; {found_files}. Give the original model as {option}.")
