"""What is accepted as a dataset, and which errors are reported otherwise."""

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
