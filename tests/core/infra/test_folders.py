"""The content of a folder that changes meanwhile."""

from pathlib import Path

from core.infra import folders


def test_a_folder_that_disappears_is_skipped(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "file").write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to("one")
    assert folders.size(tmp_path) == 2000
    seen = []
    for entry in folders.entries(tmp_path):
        seen.append(entry.name)
        if entry.name == "inner":
            (path := Path(entry.path, "file")).unlink()
            path.parent.rmdir()
    assert sorted(seen) == ["inner", "inner", "link", "one", "two"]
    assert folders.size(tmp_path) == 0
