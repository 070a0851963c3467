"""The rows of a Parquet file on standard input, as JSON lines on standard output: a process of its own, run by path.

It takes no more memory than its argument says, whatever the file says of itself. Only what a record can have is read;
what is null is left out.
"""

import json
import resource
import sys
from collections.abc import Iterator
from typing import Any

COLUMNS = ("text", "messages", "prompt", "completion", "instruction", "input", "output")
ROWS = 256
"""Held at a time."""


def main(memory: int) -> None:
    """Write all rows; what goes wrong ends the process with a line on standard error."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    import pyarrow
    import pyarrow.parquet

    try:
        with open(0, "rb") as file:
            for row in _rows(pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20)):
                sys.stdout.write(json.dumps(row, ensure_ascii=False, default=_foreign) + "\n")
            sys.stdout.flush()
    except MemoryError:
        sys.exit(f"a file that cannot be read within {memory} bytes of memory; write smaller row groups")
    except (pyarrow.ArrowException, OSError) as error:
        sys.exit(f"no Parquet file that can be read: {str(error).splitlines()[0].rstrip('.')}")


def _rows(file: Any) -> Iterator[dict[str, Any]]:
    names = file.schema_arrow.names
    wanted = [name for name in names if name in COLUMNS]
    if not wanted:
        sys.exit(f"a table with the columns {', '.join(names)[:200]}, none of which a record has")
    for batch in file.iter_batches(batch_size=ROWS, columns=wanted, use_threads=False):
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
        return {"bytes": "that are no UTF-8"}  # no text: refused as what it is, in its row


def _foreign(value: object) -> dict[str, str]:
    return {"a value of type": type(value).__name__}


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    main(int(sys.argv[1]))
