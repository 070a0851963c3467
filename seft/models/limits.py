"""Limits on the files of a model. A server reads files of strangers, so each limit holds before memory is used.

A file above a limit is rejected as malformed. A model of about 45,000 tensors or more, or of 37,000 in one file, is
refused. An example is a mixture with hundreds of experts in each block that stores each expert as a tensor.
"""

import json
import threading
from typing import Any

MAX_FILE_BYTES = 4 << 20
"""Largest configuration, index or header of a weight file, in bytes."""
MAX_HEADERS_BYTES = 32 << 20
"""Largest total size of the headers of all weight files of a model, in bytes."""
MAX_WEIGHT_FILES = 1000
MAX_JSON_ITEMS = 300_000
"""Largest number of the bytes `{`, `[` and `,` in a file of JSON. The header of a weight file has eight per tensor."""
MAX_TENSORS = 200_000
MAX_PARAMETERS = 10**13
MAX_DIMENSIONS = 8
MAX_NAME = 256
"""Largest number of characters in the name of a tensor."""


_PARSING = threading.Lock()


def parse_json(content: bytes) -> Any:
    """Return the value of a JSON text of a stranger. Raises ValueError if it is malformed or has too many items.

    A list of empty objects needs 30 times the memory of its text. So the items are counted before they are built, and
    one text at a time is parsed in this process.
    """
    items = sum(map(content.count, (b"{", b"[", b",")))
    if items > MAX_JSON_ITEMS:
        raise ValueError(f"it may have at most {MAX_JSON_ITEMS} of the characters '{{', '[' and ','; it has {items}")
    with _PARSING:
        return json.loads(content)


def checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    """Return the shape of one tensor as a tuple. Raises ValueError if the name or the shape is malformed."""
    if not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"the name of a tensor must have 1 to {MAX_NAME} characters; one has {len(name)}")
    if not isinstance(shape, list | tuple) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"a shape must be a list of at most {MAX_DIMENSIONS} integers; {name!r} has none")
    if not all(type(size) is int and 0 <= size <= MAX_PARAMETERS for size in shape):
        raise ValueError(f"each size of a shape must be an integer from 0 to {MAX_PARAMETERS}; {name!r} has another")
    return tuple(shape)


def require_plausible(tensors: int, parameters: int) -> None:
    """Raise ValueError if a model has too many tensors or too many parameters."""
    if tensors > MAX_TENSORS:
        raise ValueError(f"a model may have at most {MAX_TENSORS} tensors; this one has {tensors} or more")
    if parameters > MAX_PARAMETERS:
        raise ValueError(f"a model may have at most {MAX_PARAMETERS} parameters; this one has {parameters} or more")
