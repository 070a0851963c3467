"""A store keeps the files of formats outside of the folder. They have the same bytes, and are verified in the store."""

import io
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import pytest

from seft.checkpoint.export import export, remove_dense
from seft.checkpoint.facts import MANIFEST, ListedFile
from seft.checkpoint.verify import check
from seft.config import OutputFormat
from seft.errors import SeftError
from tests.seft.checkpoint.test_export import FACTS
from tests.seft.checkpoint.test_gguf import sparse

SINGLE = [each for each in OutputFormat if each.file]


class Source:
    """Bytes in memory. Any range of them can be read."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name, self.content, self.size = name, content, len(content)

    def read(self, begin: int, size: int) -> bytes:
        return self.content[begin : begin + size]

    def close(self) -> None:
        """Do nothing."""


class Memory:
    """Keeps files in memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def write(self, name: str, content: Callable[[BinaryIO], object]) -> ListedFile:
        content(stream := io.BytesIO())
        self.files[name] = stream.getvalue()
        return ListedFile(name, len(self.files[name]), sha256(self.files[name]).hexdigest())

    def open(self, name: str) -> Source:
        return Source(name, self.files[name])

    def fileno(self) -> int:
        raise AssertionError("no other process reads it")


def test_a_store_gets_the_same_bytes_as_the_folder_and_the_manifest_is_the_same(tmp_path: Path) -> None:
    (folder, rest), store = (tmp_path / name for name in ("folder", "rest")), Memory()
    export(sparse("mistral"), folder, FACTS, SINGLE)
    stored = export(sparse("mistral"), rest, FACTS, SINGLE, store)
    check(rest, store)
    for dense in (True, False):
        assert (folder / MANIFEST).read_bytes() == (rest / MANIFEST).read_bytes()
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert {path.name: path.read_bytes() for path in rest.iterdir()} | store.files == files
        assert store.files.keys() == {each.file for each in SINGLE} == {each.name for each in stored}
        if dense:
            remove_dense(folder)
            remove_dense(rest, stored)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Memory]:
    """A folder, and a store with its files of formats."""
    folder, store = tmp_path_factory.mktemp("stored") / "folder", Memory()
    export(sparse("mistral"), folder, FACTS, SINGLE, store)
    return folder, store


@pytest.mark.parametrize("format_", SINGLE)
def test_every_damage_of_a_stored_file_is_found(exported: tuple[Path, Memory], format_: OutputFormat) -> None:
    folder, store = exported
    name = str(format_.file)
    whole = store.files[name]
    places = [0, 100, len(whole) // 3, len(whole) // 2, len(whole) - 1]
    flipped = [bytes([*whole[:at], whole[at] ^ 1, *whole[at + 1 :]]) for at in places]
    for content in (*flipped, whole[:-1], whole + b"0", b""):
        damaged = Memory()
        damaged.files = {**store.files, name: content}
        with pytest.raises(SeftError, match=f"{name} must have the"):
            check(folder, damaged)


def test_a_file_that_is_only_in_a_store_is_missing_without_it(exported: tuple[Path, Memory]) -> None:
    with pytest.raises(SeftError, match=r"model\S+ must have .* it has no file"):
        check(exported[0])
