"""What is accepted as a dataset, and which errors are reported otherwise."""

import gzip
import hashlib
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime

import pytest
from sqlalchemy import func, select, text

from core.datasets import datasets
from core.datasets.uploads import DatasetStore
from core.errors import Code, Flaw, ProblemError
from core.infra.database import make_engine, make_sessions
from core.infra.storage import Storage
from core.settings import Settings
from seft.data.records import Format
from tests.core.conftest import Sessions


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def flaws_of(content: bytes) -> tuple[Flaw, ...]:
    with pytest.raises(ProblemError) as caught:
        datasets.read_content(io.BytesIO(content), 1000)
    assert caught.value.code is Code.INVALID_DATASET
    return caught.value.flaws


def test_a_valid_file_is_counted_hashed_and_stored(storage: Storage) -> None:
    content = lines("one", "zwei 🙂", "one")
    for packed in (content, gzip.compress(content)):
        checked = datasets.read_content(io.BytesIO(packed), 1000)
        datasets.upload(storage, io.BytesIO(packed), 1000, checked)
        assert checked == datasets.Content(hashlib.sha256(content).hexdigest(), len(content), 3, Format.TEXT)
    assert storage.keys("") == [f"datasets/{checked.sha256}.jsonl"]
    assert storage.read(checked.object_key) == content
    with pytest.raises(ProblemError, match="must not change"):
        datasets.upload(storage, io.BytesIO(content * 2), 1000, replace(checked, sha256="0" * 64))
    assert storage.keys("") == [checked.object_key]


@pytest.mark.parametrize(
    ("records", "form"),
    [
        ([{"prompt": "a", "completion": n} for n in "bc"], "prompt_completion"),
        ([{"instruction": "a", "output": n} for n in "bc"], "instruction"),
        (
            [{"messages": [{"role": "user", "content": n}, {"role": "assistant", "content": "d"}]} for n in "bc"],
            "messages",
        ),
    ],
)
def test_the_first_record_decides_the_format(records: list[object], form: str) -> None:
    content = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    (flaw,) = flaws_of(content + lines("a"))
    assert flaw.param == "line 3"
    assert form in flaw.rule
    (flaw,) = flaws_of(content[: len(content) // 2] * 2)
    assert "two different records" in flaw.rule
    assert flaw.way_out.startswith("Add different records. ")
    assert datasets.read_content(io.BytesIO(content.rstrip()), 1000).format == form


def test_every_broken_line_is_reported_with_rule_value_and_way_out() -> None:
    flaws = flaws_of(lines("a", "b") + b'{"txt": "c"}\n' + lines("d") + b"nonsense\n\xff\n\n")
    assert [flaw.param for flaw in flaws] == ["line 3", "line 5", "line 6", "line 7"]
    assert "`text`" in flaws[0].rule
    assert "'txt'" in flaws[0].value
    assert all(flaw.way_out for flaw in flaws)
    assert len(flaws_of(b"x\n" * 100)) == 20


@pytest.mark.parametrize("content", [b"", lines("only one"), lines("same", "same"), lines("a", "b" * 1000)])
def test_a_file_that_is_too_small_or_too_large_is_rejected(content: bytes) -> None:
    (flaw,) = flaws_of(content)
    assert flaw.param == "file"


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("texts.jsonl", "texts.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\größe 🙂.jsonl", "größe 🙂.jsonl"),
        ("a\0b\nc\u202e.jsonl", "abc.jsonl"),
        ("\ud800", "dataset.jsonl"),
        ("", "dataset.jsonl"),
        ("x" * 999, "x" * 255),
    ],
)
def test_a_file_name_is_cleaned_for_display(name: str, cleaned: str) -> None:
    assert datasets.clean_name(name) == cleaned


def test_equal_concurrent_uploads_create_one_dataset(sessions: Sessions) -> None:
    content = datasets.Content("0" * 64, 30, 2, Format.TEXT)
    start = threading.Barrier(4)

    def store(_: int) -> str:
        start.wait()
        with sessions.begin() as session:
            row = datasets.reuse_equal(session, "ours", "x.jsonl", content)
            time.sleep(0.05)  # so that the others look before this one has written
            return (row or datasets.add(session, "ours", "x.jsonl", content)).id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(store, range(4)))) == 1


def test_a_tenant_sees_only_its_own_datasets_newest_first(sessions: Sessions) -> None:
    content = datasets.Content("0" * 64, 30, 2, Format.TEXT)
    with sessions.begin() as session:
        own = [datasets.add(session, "ours", f"{number}.jsonl", content).id for number in range(3)]
        foreign = datasets.add(session, "theirs", "x.jsonl", content).id
    with sessions.begin() as session:
        rows, more = datasets.page(session, "ours", limit=2)
        rest, end = datasets.page(session, "ours", after=rows[-1].id, limit=2)
        assert [row.id for row in (*rows, *rest)] == sorted(own, reverse=True)
        assert (more, end) == (True, False)
        for unknown in (foreign, "file_", "a\0b"):
            with pytest.raises(ProblemError) as caught:
                datasets.get(session, "ours", unknown)
            assert caught.value.code is Code.NOT_FOUND


class Slow(Storage):
    """A storage that answers a request for a time only after `answer` is set. Meanwhile `busy` is set."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.busy, self.answer = threading.Event(), threading.Event()

    def modified(self, key: str) -> datetime | None:
        self.busy.set()
        assert self.answer.wait(30)
        return super().modified(key)


def is_locked(sessions: Sessions, name: str) -> bool:
    """Return whether another transaction holds the advisory lock of this name."""
    with sessions.begin() as session:
        return not session.scalar(select(func.pg_try_advisory_xact_lock(func.hashtextextended(name, 0))))


def test_an_object_stays_locked_while_the_storage_answers_slowly(
    settings: Settings, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.infra.database.STATEMENT_SECONDS", 1)
    sessions = make_sessions(engine := make_engine(settings))
    storage.put("datasets/x.jsonl", b"1")

    def delete() -> bool:
        with sessions.begin() as session:
            return datasets.delete_object(session, slow, "datasets/x.jsonl")

    slow = Slow(settings)
    with ThreadPoolExecutor(1) as pool:
        deleted = pool.submit(delete)
        slow.busy.wait()
        time.sleep(1.5)
        assert is_locked(sessions, "datasets/x.jsonl"), "an upload would add a row for an object that is deleted now"
        slow.answer.set()
        assert deleted.result()
    assert not is_locked(sessions, "datasets/x.jsonl")
    with sessions.begin() as session:
        assert session.scalar(text("SHOW idle_in_transaction_session_timeout")) == "1s", (
            "only that transaction may idle"
        )
    engine.dispose()


def test_a_slow_storage_does_not_block_the_other_requests_of_a_tenant(
    sessions: Sessions, settings: Settings, storage: Storage
) -> None:
    content = datasets.Content("0" * 64, 30, 2, Format.TEXT)
    storage.put(content.object_key, b"1")
    limited, slow = settings.model_copy(update={"tenant_bytes": 1000}), Slow(settings)
    store = DatasetStore(limited, sessions, slow)

    def add() -> bool:
        with sessions.begin() as session:
            return store.find_or_add(session, "ours", "x.jsonl", content)[1]

    with ThreadPoolExecutor(1) as pool:
        added = pool.submit(add)
        slow.busy.wait()
        assert not is_locked(sessions, "bytes of ours")
        slow.answer.set()
        assert added.result()
