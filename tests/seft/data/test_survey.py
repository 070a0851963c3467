"""What a dataset's file is found to hold, however it is packed, and the bytes that are kept of it."""

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

from seft.data import unpacking
from seft.data.records import Format
from seft.data.survey import Survey, kept, survey
from seft.errors import FileError

Pack = Callable[[bytes], bytes]


def lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)


def parquet(content: bytes) -> bytes:
    """The same records as a table, with a column that no record has."""
    return table([json.loads(line) | {"id": number} for number, line in enumerate(content.splitlines())], group=100)


def table(rows: list[dict[str, object]], group: int | None = None) -> bytes:
    made = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), made, row_group_size=group)
    return made.getvalue()


def one_value(content: bytes) -> bytes:
    """The records as a table that holds its only text once."""
    return table([json.loads(line) for line in content.splitlines()])


def found(content: bytes, most: float = math.inf, skip: float = 0.0) -> Survey:
    return survey(io.BytesIO(content), most, skip)


def told(found: Survey) -> list[str]:
    return [f"{found.unit} {flaw.line}" for flaw in found.flaws]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress, parquet])
def test_a_file_is_the_same_dataset_however_it_is_packed(pack: Pack) -> None:
    content = lines(*(f"{number} 🙂" for number in range(700)))
    packed = pack(content)
    seen = found(packed)
    assert (seen.sha256, seen.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert (seen.records, seen.skipped, seen.format, seen.refused) == (700, 0, Format.TEXT, False)
    assert kept(io.BytesIO(packed), math.inf, seen.sha256, whole=True).read() == content


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_what_may_be_skipped_is_left_out_of_what_is_kept(pack: Pack) -> None:
    packed = pack(lines("a") + b"nonsense\n" + lines("b", "c"))
    assert (found(packed).refused, found(packed, skip=24.9).refused) == (True, True)
    seen = found(packed, skip=25)
    assert (seen.refused, seen.records, seen.skipped, told(seen)) == (False, 3, 1, ["line 2"])
    left = kept(io.BytesIO(packed), math.inf, seen.sha256, whole=False).read()
    assert (left, hashlib.sha256(left).hexdigest(), len(left)) == (lines("a", "b", "c"), seen.sha256, seen.bytes)


def test_a_row_of_parquet_is_told_by_its_number_and_what_is_null_is_not_there() -> None:
    rows: list[dict[str, object]] = [
        {"instruction": "a", "input": None, "output": text} for text in ("b", " ", "c", None)
    ]
    seen = found(table(rows))
    assert (told(seen), seen.format, seen.refused) == (["row 2", "row 4"], Format.INSTRUCTION, True)
    seen = found(table([{"text": b"a\xff"}, {"text": b"b"}]))
    assert "must be a string" in seen.flaws[0].rule
    with pytest.raises(FileError, match="columns id, none of which a record has"):
        found(table([{"id": 1}]))


def test_reading_ends_at_the_twentieth_broken_line_unless_some_may_be_broken() -> None:
    content = b"x\n" * 100
    assert (found(content).lines, len(found(content).flaws)) == (20, 20)
    assert (found(content, skip=50).lines, len(found(content, skip=50).flaws)) == (100, 20)


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
    ids=["gzip cut", "zstd cut", "no gzip", "no zstd", "no Parquet", "Parquet cut"],
)
def test_what_cannot_be_unpacked_is_refused(content: bytes) -> None:
    with pytest.raises(FileError, match="must be whole and unpack"):
        found(content)


def test_a_zstd_file_that_asks_for_gigabytes_to_be_unpacked_is_refused() -> None:
    streamed = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 31})
    wide = streamed.compress(lines("a", "b")) + streamed.flush()
    with pytest.raises(FileError, match="must be whole and unpack"):
        found(wide)


@pytest.mark.parametrize(("pack", "name"), [(zstd.compress, "backports.zstd"), (parquet, "pyarrow")])
def test_what_cannot_be_read_for_want_of_a_package_says_which(
    pack: Pack, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("backports", "compression", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FileError, match=f"must be one that can be read here; .* pip install {name}, or"):
        found(pack(lines("a", "b")))


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress, one_value])
def test_a_file_that_unpacks_to_too_much_is_given_up(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "SMALL_BYTES", 1 << 20)
    bomb = pack(lines("a" * 2000) * 4000)
    assert len(bomb) * unpacking.RATIO < 8_000_000
    with pytest.raises(FileError, match="unpacks to at most 200 times its size"):
        found(bomb)
    with pytest.raises(FileError, match="holds at most 100000 bytes"):
        found(bomb, most=100_000)


def test_parquet_whose_values_need_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made, values = io.BytesIO(), pyarrow.array(["x" * 5_000_000])
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 512, pyarrow.int32()), values)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), made, store_schema=False)
    assert len(made.getvalue()) < 500_000
    monkeypatch.setattr(unpacking, "PARQUET_BYTES", 600_000_000)
    with pytest.raises(FileError, match="cannot be read within 600000000 bytes of memory"):
        found(made.getvalue())


def test_a_line_of_boundless_length_is_refused_without_being_held() -> None:
    long = lines("a", "x" * (unpacking.LINE_BYTES + 500), "b", "y" * (unpacking.LINE_BYTES - 13))
    seen = found(long, skip=50)
    assert (told(seen), seen.flaws[0].value) == (["line 2"], f"a line of {unpacking.LINE_BYTES + 513} bytes")
    assert seen.records == 3


def test_a_file_that_changes_between_two_readings_is_not_kept() -> None:
    seen = found(lines("a", "b"))
    with pytest.raises(FileError, match="must not change"):
        kept(io.BytesIO(lines("a", "c")), math.inf, seen.sha256, whole=True).read()


def test_memory_does_not_grow_with_the_file() -> None:
    script = """
import gzip, io, json, resource, sys
from seft.data.survey import kept, survey

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
    found = survey(Endless(size))
    stream = kept(Endless(size), float("inf"), found.sha256, whole=True)
    while stream.read(1 << 16): pass
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(found.bytes, found.records, peaks[1] - peaks[0])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    size, records, growth = map(int, ended.stdout.split())
    assert (size, records) == (1813 * 60000, 60000)
    assert growth < 8_000, f"{growth} kB more for a file that is 100 MB larger"
