"""A backup of the bucket that was killed leaves incomplete files. They are neither kept nor restored."""

from pathlib import Path

from s3transfer.utils import OSUtils

from core.infra import bucket_backup
from core.infra.bucket_backup import OWNER
from core.infra.storage import Storage


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_owner_of_a_bucket_is_not_copied(storage: Storage, tmp_path: Path) -> None:
    storage.put("datasets/a.jsonl", b"1")
    storage.put(OWNER, b"svc_1")
    assert bucket_backup.save(storage, tmp_path) == 1
    assert files(tmp_path) == ["datasets/a.jsonl"]
    (tmp_path / OWNER).write_text("svc_2")
    assert bucket_backup.load(storage, tmp_path) == 1
    assert storage.read(OWNER) == b"svc_1"


def test_the_remains_of_a_killed_backup_are_not_restored_and_the_next_backup_deletes_them(
    storage: Storage, tmp_path: Path
) -> None:
    storage.put("datasets/a.part.jsonl", b"1")
    storage.put("datasets/b.jsonl", b"2")
    assert bucket_backup.save(storage, tmp_path) == 2
    complete = files(tmp_path)
    part = f"{tmp_path / 'datasets/c.jsonl'}{bucket_backup.PART}"
    for remains in (part, OSUtils().get_temp_filename(part)):  # boto3 writes the second, and then renames it
        Path(remains).write_text("incomplete")
    storage.delete(storage.keys(""))
    assert bucket_backup.load(storage, tmp_path) == 2
    assert storage.keys("") == complete == ["datasets/a.part.jsonl", "datasets/b.jsonl"]
    assert bucket_backup.save(storage, tmp_path) == 0
    assert files(tmp_path) == complete
