"""A dataset file is validated in every file format, and its valid lines are read."""

import gzip
import hashlib
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable

import pyarrow
import pyarrow.parquet
import pytest
from backports import zstd

from seft.data import lines as reader
from seft.data import parquet_rows
from seft.data.records import KEYS, Format
from seft.data.validation import Validation, open_valid_lines, validate
from seft.errors import FileError

Compress = Callable[[bytes], bytes]


def lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)


def parquet(content: bytes) -> bytes:
    """Return the same records as a Parquet table, with an extra column that no record has."""
    return table([json.loads(line) | {"id": number} for number, line in enumerate(content.splitlines())], group=100)


def table(rows: list[dict[str, object]], group: int | None = None) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, row_group_size=group)
    return buffer.getvalue()


def one_value(content: bytes) -> bytes:
    """Return the records as a Parquet table, which stores their equal text once."""
    return table([json.loads(line) for line in content.splitlines()])


def check(content: bytes, max_bytes: float = math.inf, skip: float = 0.0) -> Validation:
    return validate(io.BytesIO(content), max_bytes, skip)


def broken_lines(result: Validation) -> list[str]:
    return [f"{result.unit} {flaw.line}" for flaw in result.flaws]


def after_skippable_frame(content: bytes) -> bytes:
    """Return a zstd file that begins with a frame without content, as pzstd writes it."""
    return b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + zstd.compress(content)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd.compress, after_skippable_frame, parquet])
def test_a_file_is_the_same_dataset_in_every_file_format(compress: Compress) -> None:
    content = lines(*(f"{number} 🙂" for number in range(700)))
    data = compress(content)
    result = check(data)
    assert (result.sha256, result.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert (result.records, result.skipped, result.format, result.rejected) == (700, 0, Format.TEXT, False)
    assert open_valid_lines(io.BytesIO(data), math.inf, result.sha256, whole=True).read() == content


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_broken_lines_that_may_be_skipped_are_left_out(compress: Compress) -> None:
    data = compress(lines("a") + b"nonsense\n" + lines("b", "c"))
    assert (check(data).rejected, check(data, skip=24.9).rejected) == (True, True)
    result = check(data, skip=25)
    assert (result.rejected, result.records, result.skipped, broken_lines(result)) == (False, 3, 1, ["line 2"])
    content = open_valid_lines(io.BytesIO(data), math.inf, result.sha256, whole=False).read()
    assert (content, hashlib.sha256(content).hexdigest(), len(content)) == (
        lines("a", "b", "c"),
        result.sha256,
        result.bytes,
    )


@pytest.mark.parametrize(("count", "skip"), [(100, "{}"), (1000, "{}e-1")])
def test_exactly_the_allowed_percentage_may_be_broken(count: int, skip: str) -> None:
    for broken in range(1, 99):
        content = b"broken\n" * broken + b"".join(b'{"text": "%d"}\n' % number for number in range(count - broken))
        assert not check(content, skip=float(skip.format(broken))).rejected, broken
        assert check(b"broken\n" + content, skip=float(skip.format(broken))).rejected, broken


def test_parquet_rows_are_reported_by_number_and_null_values_are_left_out() -> None:
    rows: list[dict[str, object]] = [
        {"instruction": "a", "input": None, "output": text} for text in ("b", " ", "c", None)
    ]
    result = check(table(rows))
    assert (broken_lines(result), result.format, result.rejected) == (["row 2", "row 4"], Format.INSTRUCTION, True)
    result = check(table([{"text": b"a\xff"}, {"text": b"b"}]))
    assert "must be a string" in result.flaws[0].rule


@pytest.mark.parametrize("names", [("id",), ("prompt", "answer"), ("input", "output")], ids=",".join)
def test_a_parquet_table_without_the_columns_of_a_format_is_told_which_to_have(names: tuple[str, ...]) -> None:
    with pytest.raises(FileError, match="must have the columns of a format: text, or messages, or prompt and") as error:
        check(table([dict.fromkeys(names, "a"), dict.fromkeys(names, "b")]))
    assert error.value.value == f"a table with the columns {', '.join(names)}"
    assert error.value.way_out == "Rename the columns of the text."


def test_the_reader_of_parquet_knows_the_formats_of_records() -> None:
    assert set(parquet_rows.FORMATS) == set(KEYS.values())


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_recognised_whatever_may_be_skipped(compress: Compress, indent: int | None) -> None:
    array = json.dumps([{"text": "a"}, {"text": "b"}], indent=indent).encode()
    with pytest.raises(FileError, match=r"one JSON array. Run jq -c '\.\[\]' FILE"):
        check(compress(array), skip=100)


def test_a_long_json_array_in_one_line_is_recognised() -> None:
    with pytest.raises(FileError, match="one JSON array"):
        check(json.dumps([{"text": "x" * 1000}] * (reader.MAX_LINE_BYTES // 1000)).encode())


def test_a_blank_line_is_named() -> None:
    (flaw,) = check(lines("a", "b") + b"\n" + lines("c")).flaws
    assert (flaw.line, flaw.rule, flaw.value) == (3, "a line must not be blank", "a blank line")
    assert "grep" in flaw.way_out


def test_reading_ends_at_the_twentieth_broken_line_unless_some_may_be_broken() -> None:
    content = b"x\n" * 100
    assert (check(content).lines, len(check(content).flaws)) == (20, 20)
    assert (check(content, skip=50).lines, len(check(content, skip=50).flaws)) == (100, 20)


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(lines("a", "b"))[:-9],
        zstd.compress(lines("a", "b"))[:-3],
        b"\x1f\x8bno gzip",
        b"\x28\xb5\x2f\xfdno zstd",
        b"PAR1 no Parquet",
        table([{"text": "a"}, {"text": "b"}])[:-20],
    ],
    ids=["gzip cut", "zstd cut", "not gzip", "not zstd", "not Parquet", "Parquet cut"],
)
def test_an_unreadable_file_is_rejected(content: bytes) -> None:
    with pytest.raises(FileError, match="must be complete and readable"):
        check(content)


def test_a_zstd_file_that_needs_gigabytes_of_memory_is_rejected() -> None:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 31})
    wide = compressor.compress(lines("a", "b")) + compressor.flush()
    with pytest.raises(FileError, match="must be complete and readable"):
        check(wide)


@pytest.mark.parametrize(("compress", "name"), [(zstd.compress, "backports.zstd"), (parquet, "pyarrow")])
def test_an_error_names_the_missing_package(compress: Compress, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("backports", "compression", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FileError, match=f"must have a format that can be read here; .* pip install {name}, or"):
        check(compress(lines("a", "b")))


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress, one_value])
def test_a_decompression_bomb_is_rejected(compress: Compress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "UNCHECKED_BYTES", 1 << 20)
    bomb = compress(lines("a" * 2000) * 4000)
    assert len(bomb) * reader.MAX_RATIO < 8_000_000
    with pytest.raises(FileError, match="must decompress to at most 200 times its size"):
        check(bomb)
    with pytest.raises(FileError, match="must have at most 100,000 bytes"):
        check(bomb, max_bytes=100_000)


def test_parquet_whose_values_need_too_much_memory_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, values = io.BytesIO(), pyarrow.array(["x" * 5_000_000])
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 512, pyarrow.int32()), values)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), buffer, store_schema=False)
    assert len(buffer.getvalue()) < 500_000
    monkeypatch.setattr(reader, "PARQUET_MEMORY_BYTES", 600_000_000)
    with pytest.raises(FileError, match="needs more than 600000000 bytes of memory"):
        check(buffer.getvalue())


def test_a_line_that_is_too_long_is_rejected_without_being_read_into_memory() -> None:
    long = lines("a", "x" * (reader.MAX_LINE_BYTES + 500), "b", "y" * (reader.MAX_LINE_BYTES - 13))
    result = check(long, skip=50)
    assert (broken_lines(result), result.flaws[0].value) == (
        ["line 2"],
        f"a line of {reader.MAX_LINE_BYTES + 513} bytes",
    )
    assert result.records == 3


def test_a_file_that_changes_after_validation_is_rejected() -> None:
    result = check(lines("a", "b"))
    with pytest.raises(FileError, match="must not change"):
        open_valid_lines(io.BytesIO(lines("a", "c")), math.inf, result.sha256, whole=True).read()


def test_memory_does_not_grow_with_the_file() -> None:
    script = """
import gzip, io, json, resource, sys
from seft.data.validation import open_valid_lines, validate

class Endless(io.RawIOBase):
    def __init__(self, size): self.size, self.at = size, 0
    def seek(self, at, whence=0): self.at = at; return at
    def tell(self): return self.at
    def read(self, count=-1):
        line = b'{"text": "%s"}\\n'
        count = min(count, self.size - self.at)
        first, self.at = self.at, self.at + count
        whole = b"".join(line % (b"%09d" % number * 200) for number in range(first // 1813, self.at // 1813 + 1))
        return whole[first % 1813:][:count]

peaks = []
for size in (1813 * 3000, 1813 * 60000):
    result = validate(Endless(size))
    stream = open_valid_lines(Endless(size), float("inf"), result.sha256, whole=True)
    while stream.read(1 << 16): pass
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(result.bytes, result.records, peaks[1] - peaks[0])
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    size, records, growth = map(int, process.stdout.split())
    assert (size, records) == (1813 * 60000, 60000)
    assert growth < 8_000, f"{growth} kB more memory for a file that is 100 MB larger"
