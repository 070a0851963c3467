"""Laws of fetching: what is named is right, what is there is not sent again, nothing goes outside of the folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seft.client import Client, downloads
from seft.client.errors import ClientError, IntegrityError
from tests.seft.client.servers import Script, Store, described, serving

PART = downloads.PART_BYTES
CONTENT = bytes(range(256)) * ((2 * PART + PART // 2) // 256)


@pytest.fixture
def store() -> Iterator[Store]:
    server = Store(CONTENT)
    with serving(server):
        yield server


def published(script: Script, *files: dict[str, Any]) -> None:
    older = {"id": "ckpt_1", "files": [{"name": "old"}]}
    script.will_answer({"data": [older, {"id": "ckpt_2", "files": files}]})


def test_the_newest_checkpoint_is_fetched_in_parts_without_showing_the_key(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    published(script, store.file("deep/model.safetensors"), described("empty", b""))
    told: list[tuple[int, int]] = []
    paths = client.download("job_1", tmp_path / "out", progress=lambda *now: told.append(now))
    assert paths == [tmp_path / "out/deep/model.safetensors", tmp_path / "out/empty"]
    assert [path.read_bytes() for path in paths] == [CONTENT, b""]
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["deep", "empty", "model.safetensors"]
    assert script.requests[0][2]["Authorization"] == "Bearer seft_key"
    assert sorted(store.ranges) == [(0, PART), (PART, 2 * PART), (2 * PART, len(CONTENT))]
    assert told == sorted(told)
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_a_part_goes_on_at_the_byte_where_its_connection_broke(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    published(script, store.file())
    store.cuts = [PART // 2, 1000, 0]
    (path,) = client.download("job_1", tmp_path, at_once=1)
    assert path.read_bytes() == CONTENT
    starts = [start for start, _ in store.ranges]
    assert starts[:4] == [0, PART // 2, PART // 2 + 1000, PART // 2 + 1000]
    assert len(starts) == 6


def test_a_download_that_was_ended_fetches_what_is_missing_and_no_more(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    published(script, store.file())
    store.cuts = [PART, 10, 0, 0, 0]
    with pytest.raises(ClientError, match="Download again to resume"):
        client.download("job_1", tmp_path, at_once=1)
    assert not (tmp_path / "model.safetensors").exists()
    store.ranges.clear()
    published(script, store.file())
    (path,) = client.download("job_1", tmp_path, at_once=1)
    assert path.read_bytes() == CONTENT
    assert store.ranges == [(PART, 2 * PART), (2 * PART, len(CONTENT))]
    store.ranges.clear()
    published(script, store.file())
    assert client.download("job_1", tmp_path) == [path]
    assert store.ranges == []


def test_what_is_left_of_other_bytes_is_not_taken_up(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    other = Store(b"x" * len(CONTENT))
    with serving(other):
        published(script, other.file())
        other.cuts = [PART, 0, 0, 0]
        with pytest.raises(ClientError, match="Download again"):
            client.download("job_0", tmp_path, at_once=1)
    published(script, store.file())
    (path,) = client.download("job_1", tmp_path)
    assert path.read_bytes() == CONTENT


def test_a_file_with_other_bytes_never_gets_its_name_and_is_thrown_away(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    published(script, {**store.file(), "sha256": "0" * 64})
    with pytest.raises(IntegrityError, match=r"model\.safetensors must have the SHA-256"):
        client.download("job_1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_links_that_have_run_out_are_asked_for_again(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    published(script, store.file())
    store.signature = 2
    published(script, store.file())
    (path,) = client.download("job_1", tmp_path, at_once=1)
    assert path.read_bytes() == CONTENT
    assert len(script.requests) == 2


def test_a_link_that_is_never_right_is_given_up(script: Script, client: Client, store: Store, tmp_path: Path) -> None:
    for _ in range(4):
        published(script, {**store.file(), "url": store.file()["url"] + "0"})
    with pytest.raises(ClientError, match=r"model\.safetensors cannot be downloaded"):
        client.download("job_1", tmp_path, at_once=1)


def test_a_busy_storage_is_asked_again_and_another_refusal_told(
    script: Script, client: Client, store: Store, tmp_path: Path
) -> None:
    published(script, store.file())
    store.refusals = [(503, {"Retry-After": "0"}), (404, {})]
    with pytest.raises(ClientError, match="HTTP 404"):
        client.download("job_1", tmp_path, at_once=1)
    assert store.refusals == []


def test_a_storage_without_ranges_is_told(script: Script, client: Client, store: Store, tmp_path: Path) -> None:
    published(script, store.file())
    store.refusals = [(200, {})]
    with pytest.raises(ClientError, match="ignores byte ranges"):
        client.download("job_1", tmp_path, at_once=1)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil"])
def test_no_file_is_written_outside_of_the_folder(script: Script, client: Client, tmp_path: Path, name: str) -> None:
    published(script, described(name, b""))
    with pytest.raises(IntegrityError, match="outside"):
        client.download("job_1", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
