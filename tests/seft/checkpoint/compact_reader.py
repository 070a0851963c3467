"""A reader of compact containers, written from docs/compact-format.md alone. It uses nothing of `seft`."""

import hashlib
import json
import struct
from typing import Any

from backports import zstd

CHUNK = 1_048_576
SIZES = {"I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "C64": 8, "F64": 8}
ROTATED = {"F16", "BF16", "F32", "F64"}
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


def read_container(file: bytes, values_of_chunk: int = CHUNK) -> dict[str, bytes]:
    """Return the content of every file by its name."""
    assert file[:12] == b"SEFTCOMP" + struct.pack("<I", 1)
    begin, size, digest, version, magic = struct.unpack("<QQ32sI4x8s", file[-64:])
    assert (version, magic, begin + size + 64) == (1, b"SEFTCOMP", len(file))
    index = file[begin : begin + size]
    assert hashlib.sha256(index).digest() == digest
    folder = {}
    for entry in json.loads(index)["files"]:
        content = record(file, entry, entry["own_bytes"], (1, False, values_of_chunk))
        for tensor in entry["tensors"]:
            count = 1
            for length in tensor["shape"]:
                count *= length
            width, bits = SIZES.get(tensor["dtype"], 1), BITS.get(tensor["dtype"])
            size = count * bits // 8 if bits else count * width
            content += record(file, tensor, size, (width, tensor["dtype"] in ROTATED, values_of_chunk))
        folder[entry["name"]] = content
    return folder


def record(file: bytes, entry: dict[str, Any], size: int, values: tuple[int, bool, int]) -> bytes:
    """Return the content of a record. `values` has their bytes, whether they are rotated, and how many a chunk has."""
    width, rotated, values_of_chunk = values
    at, content, hashes = entry["begin"], b"", b""
    for start in range(0, size, values_of_chunk * width):
        part, at = chunk(file, at, min(values_of_chunk, (size - start) // width), width, rotated)
        content += part
        hashes += hashlib.sha256(part).digest()
    assert at == entry["end"]
    assert hashlib.sha256(hashes).hexdigest() == entry["sha256"]
    return content


def chunk(file: bytes, at: int, values: int, width: int, rotated: bool) -> tuple[bytes, int]:
    """Return the content of the chunk at a byte of the file, and where the chunk ends."""
    header = file[at : at + 64]
    total, kept = struct.unpack_from("<II", header)
    assert total == values
    lengths, codes = struct.unpack_from("<9I", header, 8), header[44:53]
    sizes = [-(-total // 8) if kept < total else 0] + [kept] * width + [0] * (8 - width)
    at, planes = at + 64, []
    for length, code, size in zip(lengths, codes, sizes, strict=True):
        planes.append(plane(code, file[at : at + length], size) if size else b"")
        at += -(-length // 64) * 64
    integers = []
    for each in zip(*planes[1 : 1 + width], strict=True):
        value = int.from_bytes(bytes(each), "little")
        if rotated:
            value = value >> 1 | (value & 1) << (8 * width - 1)
        integers.append(value.to_bytes(width, "little"))
    if kept < total:
        rest = iter(integers)
        zero = bytes(width)
        integers = [next(rest) if planes[0][i // 8] >> i % 8 & 1 else zero for i in range(total)]
    return b"".join(integers), at


def plane(code: int, stored: bytes, size: int) -> bytes:
    """Return the bytes of a plane."""
    if code == 0:
        return stored
    content = zstd.decompress(stored)
    if code == 1:
        return content
    table, packed, escaped = content[:15], content[15 : 15 + -(-size // 2)], iter(content[15 + -(-size // 2) :])
    codes = [packed[i // 2] >> 4 * (i % 2) & 15 for i in range(size)]
    return bytes(next(escaped) if each == 15 else table[each] for each in codes)
