"""What may be a dataset, and what its sender is told otherwise."""

import gzip
import hashlib
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from core.datasets import datasets
from core.errors import Code, Flaw, ProblemError
from core.infra.storage import Storage
from seft.data.records import Format
from tests.core.conftest import Sessions


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def refused(content: bytes) -> tuple[Flaw, ...]:
    with pytest.raises(ProblemError) as caught:
        datasets.read_content(io.BytesIO(content), 1000)
    assert caught.value.code is Code.INVALID_DATASET
    return caught.value.flaws


def test_a_right_file_is_counted_hashed_and_stored(storage: Storage) -> None:
    content = lines("one", "zwei 🙂", "one")
    for packed in (content, gzip.compress(content)):
        found = datasets.read_content(io.BytesIO(packed), 1000)
        datasets.upload(storage, io.BytesIO(packed), 1000, found)
        assert found == datasets.Content(hashlib.sha256(content).hexdigest(), len(content), 3, Format.TEXT)
    assert storage.keys("") == [f"datasets/{found.sha256}.jsonl"]
    assert storage.read(found.object_key) == content
    with pytest.raises(ProblemError, match="must not change"):
        datasets.upload(storage, io.BytesIO(content * 2), 1000, replace(found, sha256="0" * 64))
    assert storage.keys("") == [found.object_key]


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
def test_the_first_record_tells_the_format(records: list[object], form: str) -> None:
    content = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    (flaw,) = refused(content + lines("a"))
    assert flaw.param == "line 3"
    assert form in flaw.rule
    (flaw,) = refused(content[: len(content) // 2] * 2)
    assert "two different records" in flaw.rule
    assert datasets.read_content(io.BytesIO(content.rstrip()), 1000).format == form


def test_every_broken_line_is_named_with_rule_value_and_way_out() -> None:
    flaws = refused(lines("a", "b") + b'{"txt": "c"}\n' + lines("d") + b"nonsense\n\xff\n\n")
    assert [flaw.param for flaw in flaws] == ["line 3", "line 5", "line 6", "line 7"]
    assert "`text`" in flaws[0].rule
    assert "'txt'" in flaws[0].value
    assert all(flaw.way_out for flaw in flaws)
    assert len(refused(b"x\n" * 100)) == 20


@pytest.mark.parametrize("content", [b"", lines("only one"), lines("same", "same"), lines("a", "b" * 1000)])
def test_a_file_with_too_little_or_too_much_is_refused(content: bytes) -> None:
    (flaw,) = refused(content)
    assert flaw.param == "file"


@pytest.mark.parametrize(
    ("given", "kept"),
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
def test_a_file_name_is_fit_to_be_shown(given: str, kept: str) -> None:
    assert datasets.clean_name(given) == kept


def test_equal_uploads_at_once_make_one_dataset(sessions: Sessions) -> None:
    content = datasets.Content("0" * 64, 30, 2, Format.TEXT)
    start = threading.Barrier(4)

    def store(_: int) -> str:
        start.wait()
        with sessions.begin() as session:
            row = datasets.find_equal(session, "ours", "x.jsonl", content)
            time.sleep(0.05)  # for the others to look before this one has written
            return (row or datasets.add(session, "ours", "x.jsonl", content)).id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(store, range(4)))) == 1


def test_datasets_are_their_tenants_own_and_listed_newest_first(sessions: Sessions) -> None:
    content = datasets.Content("0" * 64, 30, 2, Format.TEXT)
    with sessions.begin() as session:
        made = [datasets.add(session, "ours", f"{number}.jsonl", content).id for number in range(3)]
        foreign = datasets.add(session, "theirs", "x.jsonl", content).id
    with sessions.begin() as session:
        rows, more = datasets.page(session, "ours", limit=2)
        rest, end = datasets.page(session, "ours", after=rows[-1].id, limit=2)
        assert [row.id for row in (*rows, *rest)] == sorted(made, reverse=True)
        assert (more, end) == (True, False)
        for unknown in (foreign, "file_", "a\0b"):
            with pytest.raises(ProblemError) as caught:
                datasets.get(session, "ours", unknown)
            assert caught.value.code is Code.NOT_FOUND
