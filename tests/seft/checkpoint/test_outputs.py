"""New files and folders get their names when they are complete, replace nothing, and leave nothing if they fail."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seft.checkpoint.compact import writer
from seft.checkpoint.compact.reader import open_container
from seft.checkpoint.compact.writer import pack
from seft.checkpoint.export import export
from seft.checkpoint.outputs import new_file, new_folder, require_empty
from seft.checkpoint.pruned_state import save_pruned
from seft.cli import main
from seft.config import RepairConfig
from seft.data.packing import Packed, Predictions
from seft.errors import ConfigError
from seft.repair import state
from seft.retain import save_retained
from tests.disks import full_disk
from tests.seft.checkpoint.test_compact_format import EXPECTED, content_of, fill
from tests.seft.checkpoint.test_export import FACTS, half_sparse
from tests.tiny import untrained_tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(folder := tmp_path / "model", EXPECTED)
    return folder


@pytest.mark.parametrize("parts", [("file",), ("full",), ("link",), ("file", "new"), ("locked", "new"), ("x" * 300,)])
def test_a_folder_that_cannot_become_a_checkpoint_is_refused(
    parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "locked").mkdir()
    (tmp_path / "link").symlink_to("nothing")
    require_empty(tmp_path / "new" / "deep")
    monkeypatch.setattr("os.access", lambda path, _: path != tmp_path / "locked")  # root may write everywhere
    with pytest.raises(ConfigError, match="out must be"):
        require_empty(tmp_path.joinpath(*parts))


@pytest.mark.parametrize("name", ["file", "link", "none/file", "x" * 300])
def test_a_path_that_cannot_become_a_file_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"own")
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(ConfigError, match="out must be"):
        pack(folder, tmp_path / name)
    assert content_of(tmp_path) == {f"model/{name}": content for name, content in EXPECTED.items()} | {"file": b"own"}
    assert not (tmp_path / "nothing").exists()


def test_a_name_may_be_as_long_as_the_system_allows(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / ("x" * 255))
    assert (tmp_path / ("x" * 255)).exists()


def test_files_with_similar_names_are_not_touched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.seft.partial").write_bytes(b"own")
    pack(folder, tmp_path / "a.seft")
    assert (tmp_path / "a.seft.partial").read_bytes() == b"own"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "a.seft", "a.seft.partial"}


def refuse(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_a_file_gets_its_name_and_its_bytes_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", refuse)  # the second step, where a system has no hard links
    with new_file(tmp_path / "out") as unfinished:
        unfinished.write_bytes(b"whole")
    assert content_of(tmp_path) == {"out": b"whole"}
    assert (tmp_path / "out").stat().st_nlink == 1


@pytest.mark.parametrize("links", [True, False])
def test_the_bytes_of_a_file_are_on_the_disk_before_it_gets_its_name(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, link, move = list[tuple[str, int, int]](), Path.hardlink_to, Path.replace

    def recorded(name: str, state: os.stat_result) -> None:
        done.append((name, state.st_ino, state.st_size))

    def linked(out: Path, made: Path) -> None:
        recorded("named", made.stat())
        link(out, made)

    def moved(made: Path, out: Path) -> None:
        recorded("named", made.stat())
        move(made, out)

    monkeypatch.setattr(os, "fsync", lambda file: recorded("flushed", os.fstat(file)))
    monkeypatch.setattr(Path, "hardlink_to", linked if links else refuse)
    monkeypatch.setattr(Path, "replace", moved)
    with new_file(out := tmp_path / "out") as unfinished:
        unfinished.write_bytes(b"whole")
    assert done == [(name, out.stat().st_ino, 5) for name in ("flushed", "named")]


@pytest.mark.parametrize("links", [True, False])
def test_one_of_two_writers_of_a_file_is_refused_and_the_file_of_the_other_is_intact(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)

    def write(out: Path, text: str, meanwhile: Callable[[], None]) -> None:
        with new_file(out) as unfinished:
            unfinished.write_text(text)
            meanwhile()

    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="does not exist yet"):
        write(out, "first", lambda: write(out, "second", lambda: None))
    assert content_of(tmp_path) == {"out": b"second"}


@pytest.mark.parametrize("existed", [False, True])
def test_one_of_two_writers_of_a_folder_is_refused_and_the_folder_of_the_other_is_intact(
    existed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if existed:
        out.mkdir()
    with new_folder(out) as first:
        (first / "file").write_bytes(b"first")
        with pytest.raises(ConfigError, match="new or an empty folder"), new_folder(out):
            pass
        monkeypatch.setattr("seft.checkpoint.outputs.require_empty", lambda _: None)  # as if both began at once
        with pytest.raises(ConfigError, match="new or an empty folder"), new_folder(out):
            pass
    assert content_of(tmp_path) == {"out/file": b"first"}


def test_a_file_that_another_process_writes_to_a_folder_is_not_replaced(tmp_path: Path) -> None:
    def write(out: Path) -> None:
        with new_folder(out) as unfinished:
            (unfinished / "file").write_bytes(b"first")
            (out / "file").write_bytes(b"second")

    with pytest.raises(ConfigError, match="new or an empty folder"):
        write(tmp_path / "out")
    assert content_of(tmp_path) == {"out/file": b"second"}


def test_an_interruption_while_the_files_move_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved, rename = list[Path](), Path.rename

    def interrupted(path: Path, target: Path) -> None:
        rename(path, target)
        moved.append(path)
        if len(moved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with suppress(KeyboardInterrupt), new_folder(tmp_path / "out") as unfinished:
        for name in "abc":
            (unfinished / name).touch()
    assert moved
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("existed", [False, True])
def test_a_folder_that_fails_is_as_before(existed: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if existed:
        out.mkdir()
    with suppress(KeyboardInterrupt), new_folder(out) as unfinished:
        (unfinished / "sub").mkdir()
        (unfinished / "sub" / "file").touch()
        raise KeyboardInterrupt
    assert out.exists() == existed
    assert not list(tmp_path.rglob("*/*"))


def test_the_files_have_the_permissions_of_new_files(folder: Path, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        pack(folder, file := tmp_path / "a.seft")
        with open_container(file) as container:
            container.expand(tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (file, tmp_path / "out", *(tmp_path / "out").iterdir())}
    assert modes == {"a.seft": 0o644, "out": 0o755, "a": 0o755, "config.json": 0o644, "empty": 0o644}


def test_a_full_disk_ends_every_command_with_1_and_leaves_nothing(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(tiny_folder, file := tmp_path / "tiny.seft")
    before = content_of(tmp_path)
    for command in (
        ["pack", tiny_folder, tmp_path / "new.seft"],
        ["expand", file, tmp_path / "new"],
        ["export", tiny_folder, "--format", "compact", tmp_path / "new.seft"],
        ["prune", tiny_folder, "--sparsity", "0.5", "--method", "magnitude", "--out", tmp_path / "new"],
    ):
        with full_disk(9000):
            assert main([str(word) for word in command]) == 1, command
        assert "files must be readable and writable: [Errno 27] File too large" in capsys.readouterr().err
        assert content_of(tmp_path) == before


def write_retained(folder: Path) -> None:
    windows = Packed.plain(torch.zeros(9, 999, dtype=torch.int64))
    known = Predictions(torch.zeros(9, 999, 1, dtype=torch.int64), torch.zeros(9, 999, 1), torch.ones(9).bool())
    save_retained(replace(windows, teacher=known), folder / "retained")


def write_tokenizer(folder: Path) -> None:
    """Write a checkpoint whose tokenizer is larger than its weights."""
    loaded = half_sparse()
    loaded.tokenizer.add_tokens(["x" * (1 << 20)])
    export(loaded, folder / "out", FACTS)


@pytest.mark.parametrize(
    ("write", "most"),
    [
        (lambda folder: save_pruned(untrained_tiny(), folder / "pruned"), 9000),
        (write_retained, 9000),
        (lambda folder: state.save(folder, state.State({"a": torch.ones(9999)}, {}), RepairConfig(1), ""), 9000),
        (lambda folder: export(half_sparse(), folder / "out", FACTS), 9000),
        (write_tokenizer, 1 << 20),
    ],
    ids=["pruned weights", "retained text", "training state", "weights", "tokenizer"],
)
def test_a_full_disk_is_an_error_of_the_system_in_every_library(
    write: Callable[[Path], None], most: int, tmp_path: Path
) -> None:
    with full_disk(most), pytest.raises(OSError, match="File too large") as caught:
        write(tmp_path)
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_and_leaves_nothing(
    number: signal.Signals, code: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:
            raise ImportError("as libraries in C convert it") from error

    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(writer, "write", interrupted)
    assert main(["pack", str(folder), str(tmp_path / "new.seft")]) == code
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_an_export_that_is_terminated_while_it_is_verified_leaves_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.seft"
    command = [sys.executable, "-m", "seft", "export", str(tiny_folder), "--format", "compact", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(tmp_path.glob("*/new.seft")):
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        verified = out.exists()
        process.terminate()
        process.send_signal(signal.SIGCONT)
    assert (verified, process.returncode) == (False, 143)
    assert not list(tmp_path.iterdir())


def test_unfinished_files_of_a_killed_command_are_named(tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    (out / ".seft-abc").mkdir()
    with pytest.raises(ConfigError, match=r"It has unfinished files of another command in \.seft-abc\. Wait until"):
        require_empty(out)
