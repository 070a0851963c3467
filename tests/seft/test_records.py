"""Records: what a line of a dataset may be, what is said of a flaw, and that held-out text is never trained on."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seft.errors import ConfigError, DataError, RecordError
from seft.records import parse_line, read, split


def test_a_line_gives_its_text_and_other_keys_are_ignored() -> None:
    assert parse_line(1, b'{"id": 7, "text": "\\u00e9t\xc3\xa9", "meta": {}}\r\n') == "été"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_any_text_that_was_written_as_json_comes_back(text: str) -> None:
    assert parse_line(1, json.dumps({"text": text}).encode()) == text
    assert parse_line(1, json.dumps({"text": text}, ensure_ascii=False).encode()) == text


@pytest.mark.parametrize(
    ("raw", "rule", "value"),
    [
        (b"\xff{}", "must be UTF-8", "byte 0xff at offset 0"),
        (b"{text: 1}", "must be JSON", "{text: 1}"),
        (b"\n", "must be JSON", r"b'\n'"),
        (b"[" * 100_000, "must be JSON", "[[["),
        (b'["text"]', "must be a JSON object", '["text"]'),
        (b'{"messages": [], "x": 1}', "must have the key `text`", "the keys 'messages', 'x'"),
        (b"{}", "must have the key `text`", "the keys none"),
        (b'{"text": 5}', "must be a string", "5"),
        (b'{"text": null}', "must be a string", "null"),
        (b'{"text": " \\t"}', "must not be blank", '" \\t"'),
        (b'{"text": "a\\ud800"}', "must be Unicode", "surrogate at character 1"),
    ],
)
def test_a_flaw_is_told_with_line_rule_and_value(raw: bytes, rule: str, value: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_line(3, raw)
    error = caught.value
    assert error.line == 3
    assert rule in error.rule
    assert value in error.value
    assert error.way_out
    assert str(error).startswith("line 3: ")
    assert len(str(error)) < 300


def test_a_jsonl_file_is_read_line_by_line_and_a_flaw_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert read(path) == ["a", "b"]
    path.write_text('{"text": "a"}\n{"text": "b"}\n{"text": \n')
    with pytest.raises(RecordError, match="line 3: "):
        read(path)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a"}', encoding="utf-8-sig")
    assert read(tmp_path / "data.jsonl") == ["a"]


def test_a_text_file_is_one_record_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(b" one \r\n\n two\n")
    assert read(tmp_path / "data.txt") == [" one \r\n\n two\n"]


@pytest.mark.parametrize("name", ["data.csv", "data.parquet", "data"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"must end in \.jsonl or \.txt"):
        read(tmp_path / name)


def test_a_file_that_is_not_there_or_empty_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a file"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="no record"):
        read(tmp_path / "empty.jsonl")


@given(
    st.lists(st.text("abc", min_size=1, max_size=3), min_size=2),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
)
def test_a_split_loses_nothing_leaks_nothing_and_leaves_no_side_empty(
    texts: list[str], held_out: float, seed: int
) -> None:
    if len(set(texts)) < 2:
        with pytest.raises(DataError, match="two distinct records"):
            split(texts, held_out, seed)
        return
    training, judging = split(texts, held_out, seed)
    assert training
    assert judging
    assert not set(training) & set(judging)
    assert training == [text for text in texts if text in training]
    assert judging == [text for text in texts if text in judging]
    assert sorted(training + judging) == sorted(texts)


def test_a_split_holds_out_the_share_asked_for_and_depends_on_the_seed_alone() -> None:
    texts = [f"record {number}" for number in range(100)]
    training, judging = split(texts, 0.1, seed=0)
    assert len(judging) == 10
    assert split(texts, 0.1, seed=0) == (training, judging)
    assert set(split(texts[::-1], 0.1, seed=0)[1]) == set(judging)
    assert split(texts, 0.1, seed=1)[1] != judging
