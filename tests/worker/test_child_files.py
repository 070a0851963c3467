"""The worker does not trust the files of the training process: it follows no link and accepts only plain names."""

import os
from pathlib import Path

import pytest

from core.infra import folders
from core.states import Status
from tests.worker.conftest import Backend, supervisor
from worker import child_files
from worker.child_files import RefusedFileError
from worker.files import Manifest

SECRET = b"of another job"
PATH_MAX = 4096
"""Bytes of the longest path, with the byte at its end, in Linux."""


@pytest.mark.parametrize("scenario", ["name_a_file_above", "link_a_result", "link_a_state", "link_the_states"])
def test_the_worker_stores_and_deletes_nothing_outside_of_the_jobs_folder(
    backend: Backend, job_id: str, scenario: str
) -> None:
    scratch = backend.settings.scratch
    (scratch / "3").mkdir(parents=True)
    (scratch / "secret").write_bytes(SECRET)
    (scratch / "3" / "run").write_bytes(SECRET)
    assert not supervisor(backend, scenario).run()
    assert (scratch / "secret").read_bytes() == (scratch / "3" / "run").read_bytes() == SECRET
    assert not [key for key in backend.storage.keys("jobs/") if SECRET in backend.storage.read(key)]
    assert backend.job(job_id).status == Status.QUEUED
    assert "a file or sent a request that the worker refuses" in str(backend.event_rows(job_id)[-1].data)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "a\0b", ".hidden", "a\n", "\ud800", "a" * 300])
def test_a_name_is_one_plain_segment(name: str) -> None:
    with pytest.raises(RefusedFileError, match="must match"):
        child_files.require_name(name)
    with pytest.raises(ValueError, match=r"files\.0\.name"):
        Manifest.model_validate({"files": [{"name": name, "size": 1, "sha256": "0" * 64}]})


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "linked").symlink_to("folder")
    (tmp_path / "folder" / "file").write_text("content")
    os.mkfifo(tmp_path / "pipe")
    for place in (("link",), ("linked", "file"), ("folder",), ("pipe",), ("absent",), ("file", "file")):
        with pytest.raises(RefusedFileError):
            child_files.open_file(tmp_path, *place)
    with child_files.open_file(tmp_path, "folder", "file") as file:
        assert file.read() == b"content"
    os.link(tmp_path / "file", tmp_path / "other")
    with pytest.raises(RefusedFileError, match="only one hard link"):
        child_files.open_file(tmp_path, "other")


def test_a_folder_of_any_depth_and_without_rights_is_deleted_and_no_link_is_followed(tmp_path: Path) -> None:
    (kept := tmp_path / "kept").mkdir()
    (kept / "file").write_text("content")
    top = tmp_path / "job"
    top.mkdir()
    (top / "link").symlink_to(kept)
    current = os.open(top, os.O_RDONLY)
    for number in range(2000):
        name = "n" * 200
        os.mkdir(name, dir_fd=current)
        inner = os.open(name, os.O_RDONLY, dir_fd=current)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        os.fchmod(current, 0o300 if number % 2 else 0o500)
        os.close(current)
        current = inner
    os.close(current)
    assert folders.size(top) == 0
    child_files.delete_folder(top)
    assert not top.exists()
    assert (kept / "file").read_text() == "content"
    child_files.delete_folder(top)


def test_a_file_whose_path_is_too_long_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"four")
    folder, current = tmp_path, os.open(tmp_path, os.O_RDONLY)
    while (left := PATH_MAX - 1 - len(os.fsencode(folder))) > 1:
        name = "n" * min(200, left - 1)
        os.mkdir(name, dir_fd=current)
        inner = os.open(name, os.O_RDONLY, dir_fd=current)
        os.close(current)
        folder, current = folder / name, inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=current))
    os.close(current)
    assert folders.size(tmp_path) == 4
    child_files.delete_folder(tmp_path)


def test_only_folders_of_former_attempts_are_deleted(tmp_path: Path) -> None:
    for name in ("1", "2", "10", "²", "lost+found"):
        (tmp_path / name).mkdir()
    child_files.delete_former_attempts(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"2", "10", "²", "lost+found"}


def test_an_attempt_whose_folder_exists_already_starts_with_an_empty_one(backend: Backend, job_id: str) -> None:
    """After a restore of the database, the number of an attempt is used again."""
    (old := backend.settings.scratch / job_id / "1").mkdir(parents=True)
    (old / "half").write_text("of the attempt before the restore")
    supervisor(backend, "succeed").run()
    assert backend.job(job_id).status == Status.SUCCEEDED


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    (folder := tmp_path / "job").mkdir()
    for name in ("end_training", "end_training.new"):
        (folder / name).symlink_to(target)
    child_files.write_file(folder, "end_training", "12")
    assert target.read_text() == "kept"
    assert (folder / "end_training").read_text() == "12"
    assert not (folder / "end_training").is_symlink()


@pytest.mark.parametrize("name", ["end_training", "end_training.new"])
def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(child_files.RefusedFileError, match="end_training must not be a folder"):
        child_files.write_file(tmp_path, "end_training", "12")


def test_folders_of_a_job_that_another_worker_deleted_are_no_error(tmp_path: Path) -> None:
    child_files.delete_former_attempts(tmp_path / "deleted", 3)
