"""Converts a Parquet file on standard input to JSON lines on standard output. Runs as a separate process.

The process is started by the path of this file. Its argument is its memory limit in bytes. It reads only the columns
that a record can have, and leaves out null values.
"""

import json
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

FORMATS = (("text",), ("messages",), ("prompt", "completion"), ("instruction", "output"))
"""Columns that a table must have, per format (`seft.data.records.KEYS`)."""
COLUMNS = (*(name for names in FORMATS for name in names), "input")
BATCH_ROWS = 256
"""Number of rows in memory at a time."""


def main(memory: int) -> None:
    """Limit the memory to `memory` bytes, then write all rows.

    An error ends the process with one line on standard error: the rule, the value and the way out, as a JSON list.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    import pyarrow
    import pyarrow.parquet

    try:
        with open(0, "rb") as file:
            for row in _rows(pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20)):
                sys.stdout.write(json.dumps(row, ensure_ascii=False, default=_placeholder) + "\n")
            sys.stdout.flush()
    except MemoryError:
        value = f"a file that needs more than {memory} bytes of memory"
        _refuse("must be readable in little memory", value, "Write smaller row groups.")
    except (pyarrow.ArrowException, OSError) as error:
        value = f"not a readable Parquet file: {str(error).splitlines()[0].rstrip('.')}"
        _refuse("must be complete and readable", value, "Create the file again.")


def _refuse(rule: str, value: str, way_out: str) -> NoReturn:
    sys.exit(json.dumps([rule, value, way_out]))


def _rows(file: Any) -> Iterator[dict[str, Any]]:
    names = file.schema_arrow.names
    columns = [name for name in names if name in COLUMNS]
    if not any(set(form) <= set(columns) for form in FORMATS):
        formats = ", or ".join(" and ".join(form) for form in FORMATS)
        value = f"a table with the columns {', '.join(names)[:200]}"
        _refuse(f"must have the columns of a format: {formats}", value, "Rename the columns of the text.")
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False):
        for number in range(batch.num_rows):
            yield {
                name: value
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
                if (value := _value(column[number])) is not None
            }


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return {"bytes": "not UTF-8"}  # not a string, so the parser rejects it with the number of its row


def _placeholder(value: object) -> dict[str, str]:
    return {"a value of type": type(value).__name__}


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    message = ""
    try:
        main(int(sys.argv[1]))
    except SystemExit as error:
        message = f"{error.code}\n"
    sys.stdout.flush()
    sys.stderr.write(message)
    sys.stderr.flush()
    # Skips the C++ destructors: pyarrow's threads may still run, and then the process would abort at its end.
    os._exit(bool(message))
