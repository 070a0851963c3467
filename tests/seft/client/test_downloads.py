"""Downloads: a named file is correct, no byte is downloaded twice, and nothing is written outside the folder."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest

from seft.client import Client, downloads
from seft.client.errors import ClientError, IntegrityError
from tests.disks import full_disk
from tests.seft.client.conftest import PAUSES
from tests.seft.client.servers import Script, Store, file_view, serving

PART = downloads.PART_BYTES
CONTENT = bytes(range(256)) * ((2 * PART + PART // 2) // 256)


@pytest.fixture
def store() -> Iterator[Store]:
    server = Store(CONTENT)
    with serving(server):
        yield server


def publish(script: Script, *files: dict[str, Any]) -> None:
    older = {"id": "ckpt_1", "files": [{"name": "old"}]}
    script.will_answer({"data": [older, {"id": "ckpt_2", "files": files}]})


def test_the_newest_checkpoint_is_downloaded_in_parts_without_sending_the_key(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    publish(script, store.file("deep/model.safetensors"), file_view("empty", b""))
    progress: list[tuple[int, int]] = []
    paths = client.download("job_1", tmp_path / "out", progress=lambda *state: progress.append(state))
    assert paths == [tmp_path / "out/deep/model.safetensors", tmp_path / "out/empty"]
    assert [path.read_bytes() for path in paths] == [CONTENT, b""]
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["deep", "empty", "model.safetensors"]
    assert script.requests[0][2]["Authorization"] == "Bearer seft_key"
    assert sorted(store.ranges) == [(0, PART), (PART, 2 * PART), (2 * PART, len(CONTENT))]
    assert progress == sorted(progress)
    assert progress[-1] == (len(CONTENT), len(CONTENT))


def test_only_the_files_of_a_format_are_downloaded(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    files = {"manifest.json": None, "model.safetensors": "dense", "model-Q8_0.gguf": "gguf_q8_0"}
    publish(script, *(file_view(name, b"") | {"format": format_} for name, format_ in files.items()))
    paths = client.download("job_1", tmp_path, format="gguf_q8_0")
    assert [path.name for path in paths] == ["manifest.json", "model-Q8_0.gguf"]
    publish(script, *(file_view(name, b"") | {"format": format_} for name, format_ in files.items()))
    with pytest.raises(ClientError, match="ckpt_2 has the formats dense, gguf_q8_0; it has no gguf_q4_0"):
        client.download("job_1", tmp_path / "other", format="gguf_q4_0")


def test_a_folder_with_another_checkpoint_is_refused_and_left_as_it_is(
    script: Script, client: Client, tmp_path: Path
) -> None:
    with serving(one := Store(b"one")), serving(other := Store(b"other")):
        dense, more = ({**one.file(name), "format": name} for name in ("dense", "gguf_q8_0"))
        published = [one.file("manifest.json"), dense, more]
        for format_ in ("dense", "gguf_q8_0", None):  # formats are added, and a repeat is allowed
            publish(script, *published)
            client.download("job_1", tmp_path, format=format_)
        publish(script, other.file("manifest.json"), other.file("new"))
        with pytest.raises(ClientError, match=r"manifest\.json is not the one of ckpt_2\. Give another folder"):
            client.download("job_2", tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(
            ("manifest.json", "dense", "gguf_q8_0"), b"one"
        )


def test_a_part_resumes_at_the_byte_where_its_connection_broke(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    publish(script, store.file())
    store.cuts = [PART // 2, 1000, 0]
    (path,) = client.download("job_1", str(tmp_path), at_once=1)  # a path may also be text
    assert path.read_bytes() == CONTENT
    starts = [start for start, _ in store.ranges]
    assert starts[:4] == [0, PART // 2, PART // 2 + 1000, PART // 2 + 1000]
    assert len(starts) == 6


def test_an_interrupted_download_fetches_only_what_is_missing(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    publish(script, store.file())
    store.cuts = [PART, 10, 0, 0, 0]
    with pytest.raises(ClientError, match="Download again to resume"):
        client.download("job_1", tmp_path, at_once=1)
    assert not (tmp_path / "model.safetensors").exists()
    store.ranges.clear()
    publish(script, store.file())
    progress: list[tuple[int, int]] = []
    (path,) = client.download("job_1", tmp_path, at_once=1, progress=lambda *state: progress.append(state))
    assert path.read_bytes() == CONTENT
    assert store.ranges == [(PART, 2 * PART), (2 * PART, len(CONTENT))]
    assert (progress[0], progress[-1]) == ((PART, len(CONTENT)), (len(CONTENT), len(CONTENT)))
    store.ranges.clear()
    publish(script, store.file())
    assert client.download("job_1", tmp_path) == [path]
    assert store.ranges == []


def test_the_partial_file_of_another_download_is_not_used(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    other = Store(b"x" * len(CONTENT))
    with serving(other):
        publish(script, other.file())
        other.cuts = [PART, 0, 0, 0]
        with pytest.raises(ClientError, match="Download again"):
            client.download("job_0", tmp_path, at_once=1)
    publish(script, store.file())
    (path,) = client.download("job_1", tmp_path)
    assert path.read_bytes() == CONTENT


def test_a_file_with_a_wrong_hash_never_gets_its_name_and_is_deleted(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    publish(script, {**store.file(), "sha256": "0" * 64})
    with pytest.raises(IntegrityError, match=r"model\.safetensors must have the SHA-256"):
        client.download("job_1", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.partial", "model.safetensors.parts"])
@pytest.mark.parametrize("kind", ["checkpoint", "dataset"])
def test_a_file_that_no_download_wrote_is_never_replaced(
    script: Script, client: Client, tmp_path: Path, name: str, kind: str
) -> None:
    call: Callable[[], object]
    (mine := tmp_path / name).write_bytes(b"mine\xff")
    with serving(right := Store(b"right")):
        if kind == "checkpoint":
            publish(script, right.file("first"), right.file())
            call = partial(client.download, "job_1", tmp_path)
        else:
            script.will_answer(right.file())
            call = partial(client.download_dataset, "file_1", tmp_path / "model.safetensors")
        with pytest.raises(ClientError, match=f"must not replace other files; {mine} is not the one of .*move that"):
            call()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"mine\xff"}


def test_a_file_that_appears_during_the_download_is_not_replaced(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    publish(script, store.file())
    mine = tmp_path / "model.safetensors"

    def write_mine(*_: int) -> None:
        mine.write_bytes(b"mine")

    with pytest.raises(ClientError, match="must not replace other files"):
        client.download("job_1", tmp_path, progress=write_mine)
    assert mine.read_bytes() == b"mine"


def test_a_disk_without_space_for_the_missing_parts_is_reported_before_the_download(
    script: Script, client: Client, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for free in (len(CONTENT) - 1, len(CONTENT)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        publish(script, store.file())
        with nullcontext() if free == len(CONTENT) else pytest.raises(OSError, match="the download needs"):
            client.download("job_1", tmp_path)
        assert bool(store.ranges) is (free == len(CONTENT))


def test_a_part_whose_bytes_the_disk_does_not_take_is_fetched_again(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    publish(script, store.file())
    with full_disk(len(CONTENT) - 1), pytest.raises(OSError, match="too large"):
        client.download("job_1", tmp_path, at_once=1)
    store.ranges.clear()
    publish(script, store.file())
    (path,) = client.download("job_1", tmp_path)
    assert path.read_bytes() == CONTENT
    assert store.ranges == [(2 * PART, len(CONTENT))]


@pytest.mark.parametrize("number", [0, -1])
def test_fewer_than_one_part_at_once_is_rejected(
    script: Script, client: Client, store: Store, *, tmp_path: Path, number: int
) -> None:
    (data := tmp_path / "data.jsonl").write_bytes(b"x" * 9)
    calls: tuple[Callable[[], object], ...] = (
        lambda: client.download("job_1", tmp_path / "out", at_once=number),
        lambda: client.download_dataset("file_1", tmp_path / "out", at_once=number),
        lambda: client.upload_dataset(data, at_once=number),
    )
    publish(script, store.file())
    script.will_answer({"code": "too_large"}, status=413)
    for call in calls:
        with pytest.raises(ClientError, match=f"at_once must be at least 1; it is {number}"):
            call()
    assert [path for _, path, _, _ in script.requests] == ["/jobs/job_1/checkpoints", ANY]
    assert list(tmp_path.iterdir()) == [data]


def test_expired_links_are_requested_again(script: Script, client: Client, store: Store, tmp_path: Path) -> None:
    publish(script, store.file())
    store.signature = 2
    publish(script, store.file())
    (path,) = client.download("job_1", tmp_path, at_once=1)
    assert path.read_bytes() == CONTENT
    assert len(script.requests) == 2


def test_a_checkpoint_that_expires_during_its_download_is_reported(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    publish(script, store.file())
    store.signature = 2
    script.will_answer({"data": []})
    with pytest.raises(ClientError, match=r"^ckpt_2 was deleted during its download\."):
        client.download("job_1", tmp_path, at_once=1)


def test_a_dataset_is_downloaded_to_the_named_file_and_resumes(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    (path := tmp_path / "deep" / "mine.jsonl").parent.mkdir()
    script.will_answer(store.file("texts.jsonl"))
    store.cuts = [PART, 10, 0, 0, 0]
    with pytest.raises(ClientError, match=r"mine\.jsonl cannot be downloaded"):
        client.download_dataset("file_1", path, at_once=1)
    assert not path.exists()
    store.ranges.clear()
    script.will_answer(store.file("texts.jsonl"))
    store.signature = 2
    script.will_answer(store.file("texts.jsonl"))
    assert client.download_dataset("file_1", str(path), at_once=1) == path
    assert path.read_bytes() == CONTENT
    assert store.ranges == [(PART, 2 * PART), (2 * PART, len(CONTENT))]
    assert [url for _, url, _, _ in script.requests] == ["/datasets/file_1/file"] * 3
    assert [each.name for each in path.parent.iterdir()] == ["mine.jsonl"]


def test_a_download_fails_if_new_links_are_rejected_too(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    for _ in range(4):
        publish(script, {**store.file(), "url": store.file()["url"] + "0"})
    with pytest.raises(ClientError, match=r"model\.safetensors cannot be downloaded"):
        client.download("job_1", tmp_path, at_once=1)


def test_a_busy_storage_is_retried_and_another_rejection_is_reported(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    publish(script, store.file())
    store.rejections = [(503, {"Retry-After": "0"}), (404, {})]
    with pytest.raises(ClientError, match="HTTP 404"):
        client.download("job_1", tmp_path, at_once=1)
    assert store.rejections == []


def test_an_error_of_the_storage_names_its_host_and_code_and_shows_no_link(
    script: Script, client: Client, tmp_path: Path
) -> None:
    (data := tmp_path / "data.jsonl").write_bytes(b"x" * 9)
    link = f"{script.url}/bucket/object?X-Amz-Signature=secret"
    denied = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>secret</Message></Error>"
    publish(script, {**file_view("model.safetensors", b"x"), "url": link})
    script.will_answer(denied, status=404)
    with pytest.raises(ClientError) as download:
        client.download("job_1", tmp_path / "out")
    script.will_answer({"code": "too_large"}, status=413)
    script.will_answer({"id": "imp_1", "parts": 1, "part_bytes": 16}, status=201)
    script.will_answer({"data": [{"number": 1, "bytes": 9, "received": False, "url": link}], "has_more": False})
    script.will_answer(denied, status=403)
    with pytest.raises(ClientError) as upload:
        client.upload_dataset(data)
    for error in (str(download.value), str(upload.value)):
        assert f"{script.url} answered HTTP 40" in error
        assert "AccessDenied. " in error
        assert not any(word in error for word in ("secret", "bucket", "Check the address"))


@pytest.mark.parametrize("fault", ["busy", "broken", "links expire and the service is down"])
def test_a_part_is_requested_once_per_pause_and_each_wait_is_logged(
    script: Script, client: Client, store: Store, *, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    publish(script, store.file())
    if fault == "busy":
        store.rejections = [(503, {"Retry-After": "0"})] * 20
    elif fault == "broken":
        store.cuts = [0] * 20
    else:
        store.signature = 2
        script.answers += [None] * 20
    with pytest.raises(ClientError, match=r"Download again"):
        client.download("job_1", tmp_path, at_once=1)
    failed = {"busy": 20 - len(store.rejections), "broken": len(store.ranges)}
    assert failed.get(fault, len(script.requests) - 1) == len(PAUSES) + 1
    waits = [record.getMessage() for record in caplog.records if record.name == "seft.client"]
    assert len(waits) == len(PAUSES)
    assert all("The client tries again in 0.0 seconds." in wait for wait in waits)


def test_a_storage_without_ranges_is_reported(script: Script, client: Client, store: Store, tmp_path: Path) -> None:
    publish(script, store.file())
    store.rejections = [(200, {})]
    with pytest.raises(ClientError, match="ignores the header Range"):
        client.download("job_1", tmp_path, at_once=1)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil"])
def test_no_file_is_written_outside_the_folder(script: Script, client: Client, tmp_path: Path, name: str) -> None:
    publish(script, file_view(name, b""))
    with pytest.raises(IntegrityError, match="outside"):
        client.download("job_1", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
