"""Records: the lines that are accepted, the errors for the others, and a split without leaks."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seft.data.records import Chat, Completion, Format, Message, Parser, Record, Role, exclude, read, split
from seft.errors import ConfigError, DataError, FileError, RecordError

CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def parse(record: object, line: int = 1) -> Record:
    return Parser()(line, json.dumps(record).encode())


def test_a_line_gives_its_text_and_other_keys_are_ignored() -> None:
    assert Parser()(1, b'{"id": 7, "text": "\\u00e9t\xc3\xa9", "meta": {}}\r\n') == "été"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_any_text_survives_a_round_trip_through_json(text: str) -> None:
    assert parse({"text": text}) == text
    assert Parser()(1, json.dumps({"text": text}, ensure_ascii=False).encode()) == text


@pytest.mark.parametrize(
    ("raw", "rule", "value"),
    [
        (b"\xff{}", "must be UTF-8", "byte 0xff at offset 0"),
        (
            b"{text: 1}",
            "must be JSON (Expecting property name enclosed in double quotes at character 2)",
            "'{text: 1}'",
        ),
        (
            b'{"text":"with bad"\r\n',
            "must be JSON (Expecting ',' delimiter at character 19)",
            '\'{"text":"with bad"\'',
        ),
        (b"\n", "must not be blank", "a blank line"),
        (b" \t\r\n", "must not be blank", "a blank line"),
        (b"[" * 100_000, "must be JSON", "[[["),
        (b'["text"]', "must be a JSON object", '["text"]'),
        (b'{"txt": "a", "x": 1}', "keys of a format: `text`, `messages`, `prompt` and", "the keys 'txt', 'x'"),
        (b'{"prompt": "a"}', "keys of a format", "the keys 'prompt'"),
        (b"{}", "must have the keys", "the keys none"),
        (b'{"text": "a", "messages": []}', "of one format, not of text and messages", "'text', 'messages'"),
        (b'{"text": 5}', "must be a string", "5"),
        (b'{"text": null}', "must be a string", "null"),
        (b'{"text": " \\t"}', "must not be blank", '" \\t"'),
        (b'{"text": "a\\ud800"}', "must be valid Unicode", "surrogate at character 1"),
        (b'{"messages": {}}', "`messages` must be a list", "{}"),
        (b'{"messages": ["hi"]}', "`messages` must be a list of objects", '["hi"]'),
        (b'{"messages": []}', "must have a message with the role", "the roles none"),
        (
            b'{"messages": [{"role": "user", "content": "a"}]}',
            "must have a message with the role",
            "roles user",
        ),
        (
            b'{"messages": [{"role": "assistant", "content": "a"}]}',
            "must not begin with the role",
            "assistant",
        ),
        (
            b'{"messages": [{"role": "human", "content": "a"}]}',
            "`messages[0].role` must be one of system, user",
            '"human"',
        ),
        (b'{"messages": [{"role": "user", "content": null}]}', "`messages[0].content` must be a string", "null"),
        (
            b'{"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": " "}]}',
            "`messages[1].content` must not be blank",
            '" "',
        ),
        (
            b'{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}]}',
            "`messages[0].tool_calls` must be empty",
            "id",
        ),
        (b'{"prompt": "a", "completion": ""}', "`completion` must not be blank", '""'),
        (b'{"prompt": [], "completion": "b"}', "`prompt` must be a string", "[]"),
        (b'{"instruction": "a", "output": "b", "input": 5}', "`input` must be a string", "5"),
    ],
)
def test_an_error_names_line_rule_value_and_way_out(raw: bytes, rule: str, value: str) -> None:
    with pytest.raises(RecordError) as caught:
        Parser()(3, raw)
    error = caught.value
    assert error.line == 3
    assert rule in error.rule
    assert value in error.value
    assert error.way_out
    assert str(error).startswith("line 3: ")
    assert len(str(error)) < 300


@pytest.mark.parametrize(
    ("record", "form", "expected"),
    [
        ({"text": "a"}, Format.TEXT, "a"),
        ({"messages": CHAT}, Format.MESSAGES, Chat((Message(Role.USER, "2 + 2?"), Message(Role.ASSISTANT, "4")))),
        ({"prompt": "a ", "completion": "b"}, Format.COMPLETION, Completion("a ", "b")),
    ],
    ids=str,
)
def test_each_format_is_recognised_by_its_keys(record: object, form: Format, expected: Record) -> None:
    parser = Parser()
    assert parser(1, json.dumps(record).encode()) == expected
    assert parser.format is form


def test_instructions_have_the_layout_of_alpaca() -> None:
    plain = parse({"instruction": "Add {x}.", "output": "4"})
    assert isinstance(plain, Completion)
    assert plain.prompt.startswith("Below is an instruction that describes a task. Write a response")
    assert plain.prompt.endswith("completes the request.\n\n### Instruction:\nAdd {x}.\n\n### Response:\n")
    assert plain == parse({"instruction": "Add {x}.", "input": " ", "output": "4"})
    paired = parse({"instruction": "Add.", "input": "{2} + 2", "output": "4"})
    assert isinstance(paired, Completion)
    assert "paired with an input that provides further context. Write a" in paired.prompt
    assert paired.prompt.endswith("### Instruction:\nAdd.\n\n### Input:\n{2} + 2\n\n### Response:\n")
    assert paired.completion == "4"


def test_the_first_record_decides_the_format_of_a_file() -> None:
    parser = Parser()
    with pytest.raises(RecordError):
        parser(1, b"{}")
    parser(2, b'{"prompt": "a", "completion": "b"}')
    with pytest.raises(RecordError) as caught:
        parser(3, b'{"text": "a"}')
    error = caught.value
    assert error.line == 3
    assert "must have the key `prompt`, because the file's format is prompt_completion" in error.rule
    assert "'text'" in error.value
    assert '"completion"' in error.way_out
    assert parser(4, b'{"prompt": "a", "completion": "b", "text": "ab"}') == Completion("a", "b")


def test_a_jsonl_file_is_read_line_by_line_and_an_error_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert read(path) == ["a", "b"]
    path.write_text('{"text": "a"}\n{"text": "b"}\n{"text": \n')
    with pytest.raises(RecordError, match=r"line 3 of data\.jsonl: "):
        read(path)
    with pytest.raises(RecordError, match="line 3 of the dataset: "):
        read(path, "the dataset")


@pytest.mark.parametrize(
    ("content", "value", "command"),
    [
        ('[{"text": "a"}, {"text": "b"}]', "one JSON array", "jq -c '.[]' FILE"),
        ('[\n  {"text": "a"},\n  {"text": "b"}\n]\n', "one JSON array", "jq -c '.[]' FILE"),
        ('\ufeff[{"text": "a"},\n{"text": "b"}]\n', "one JSON array", "jq -c '.[]' FILE"),
        ('{\n  "text": "a"\n}\n{\n  "text": "b"\n}\n', "several lines", "jq -c . FILE"),
    ],
    ids=["one line", "a record a line", "byte order mark", "records of several lines"],
)
def test_a_file_of_another_layout_is_recognised_with_the_command_that_converts_it(
    tmp_path: Path, content: str, value: str, command: str
) -> None:
    (path := tmp_path / "data.jsonl").write_text(content)
    with pytest.raises(FileError, match="must have one record per line") as caught:
        read(path)
    assert value in caught.value.value
    assert command in caught.value.way_out


def test_lines_that_are_arrays_are_not_taken_for_one_array(tmp_path: Path) -> None:
    (path := tmp_path / "data.jsonl").write_text('["a"]\n["b"]\n')
    with pytest.raises(RecordError, match=r"line 1 of data\.jsonl: a line must be a JSON object"):
        read(path)


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a"}', encoding="utf-8-sig")
    assert read(tmp_path / "data.jsonl") == ["a"]


def test_a_text_file_is_one_unchanged_record(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(b" one \r\n\n two\n")
    assert read(tmp_path / "data.txt") == [" one \r\n\n two\n"]


@pytest.mark.parametrize("name", ["data.csv", "data.parquet", "data"])
def test_other_file_types_are_rejected(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"must end in \.jsonl or \.txt"):
        read(tmp_path / name)


def test_a_missing_or_empty_file_is_rejected(tmp_path: Path) -> None:
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
def test_a_split_loses_nothing_leaks_nothing_and_leaves_no_part_empty(
    texts: list[str], held_out: float, seed: int
) -> None:
    if len(set(texts)) < 2:
        with pytest.raises(DataError, match="two distinct records"):
            split(texts, held_out, seed)
        return
    training, evaluation = split(texts, held_out, seed)
    assert training
    assert evaluation
    assert not set(training) & set(evaluation)
    assert training == [text for text in texts if text in training]
    assert evaluation == [text for text in texts if text in evaluation]
    assert sorted(training + evaluation) == sorted(texts)


@given(st.lists(st.text("abc", min_size=1, max_size=2)), st.lists(st.text("abc", min_size=1, max_size=2), min_size=1))
def test_no_record_of_another_dataset_is_trained_on(texts: list[str], evaluation: list[str]) -> None:
    if set(texts) <= set(evaluation):
        with pytest.raises(DataError, match="must have a record that is not evaluated on"):
            exclude(texts, evaluation)
        return
    assert exclude(texts, evaluation) == [text for text in texts if text not in evaluation]


def test_equal_records_stay_together_in_every_format() -> None:
    chats = [parse({"messages": [*CHAT[:1], {"role": "assistant", "content": str(n % 7)}]}) for n in range(21)]
    pairs = [parse({"prompt": str(n % 7), "completion": "b", "id": n}) for n in range(21)]
    for records in (chats, pairs):
        training, evaluation = split(records, 0.3, seed=0)
        assert len(set(evaluation)) == 2
        assert not set(training) & set(evaluation)
        assert len(training) + len(evaluation) == 21


def test_where_a_chat_is_does_not_change_on_which_side_of_a_split_it_is(tmp_path: Path) -> None:
    chats = [{"messages": [*CHAT[:1], {"role": "assistant", "content": str(number)}]} for number in range(20)]
    (path := tmp_path / "data.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    held_out = split(read(path), 0.3, seed=0)[1]
    path.write_text("".join(json.dumps(chat) + "\n" for chat in reversed(chats)))
    moved = split(read(path), 0.3, seed=0)[1]
    assert (held_out, set(moved)) == (moved[::-1], set(held_out))


def test_a_split_holds_out_the_requested_fraction_and_depends_only_on_the_seed() -> None:
    texts = [f"record {number}" for number in range(100)]
    training, evaluation = split(texts, 0.1, seed=0)
    assert len(evaluation) == 10
    assert split(texts, 0.1, seed=0) == (training, evaluation)
    assert set(split(texts[::-1], 0.1, seed=0)[1]) == set(evaluation)
    assert split(texts, 0.1, seed=1)[1] != evaluation
