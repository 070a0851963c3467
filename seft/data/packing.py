"""Windows of tokens that hold one record or several: where each of them begins, and what is trained on.

Texts may be cut anywhere, so they lie side by side. A completion may not be parted from its prompt, so such records
stay whole where a window can hold them, and what is left of a window is filled up. Positions restart at every record;
`seft.models.predictor` sees to it that no record sees another one.
"""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from seft.errors import DataError

FILLER = 0
"""The token behind the last record of a window; it is never trained on, and no earlier token sees it."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One record as tokens, and which of them are trained on. Before each part that a text is cut into comes `head`."""

    tokens: Int[Tensor, "tokens"]
    trained: Bool[Tensor, "tokens"]
    head: Sequence[int] = ()

    @classmethod
    def text(cls, tokens: Sequence[int], head: Sequence[int] = ()) -> "Encoded":
        """Trained on whole."""
        row = torch.tensor(tokens, dtype=torch.int64)
        return cls(row, torch.ones_like(row, dtype=torch.bool), head)

    @property
    def cuttable(self) -> bool:
        """Whether all of it is trained on, so that it has no prompt to be parted from."""
        return bool(self.trained.all())

    def pieces(self, length: int) -> list["Encoded"]:
        """Side by side, those that there is anything to learn from."""
        pairs = zip(torch.split(self.tokens, length), torch.split(self.trained, length), strict=True)
        return [Encoded(*pair) for pair in pairs if pair[1][1:].any()]


@dataclass(frozen=True, slots=True)
class Packed:
    """Windows of equal length. `positions` count from 0 in each record; `trained` tokens are those to be predicted.

    The first token of a record is never trained on: nothing comes before it.
    """

    tokens: Int[Tensor, "windows length"]
    trained: Bool[Tensor, "windows length"]
    positions: Int[Tensor, "windows length"]

    @classmethod
    def of(cls, windows: "Packed | Int[Tensor, 'windows length']") -> "Packed":
        """The windows themselves; of tokens alone, windows of one record each that is trained on whole."""
        return cls.plain(windows) if isinstance(windows, Tensor) else windows

    @classmethod
    def plain(cls, tokens: Int[Tensor, "windows length"]) -> "Packed":
        """Windows of one record each, trained on whole."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return cls(tokens, positions > 0, positions)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Int[Tensor, "rows"] | slice) -> "Packed":
        """Some of the windows."""
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> "Packed":
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def split(self, size: int) -> list["Packed"]:
        """Some windows after the others, `size` at a time."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    @property
    def predictions(self) -> int:
        """How many tokens are trained on."""
        return int(self.trained.sum())

    @property
    def mixed(self) -> bool:
        """Whether a window holds several records."""
        return bool((self.positions[:, 1:] == 0).any())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Packed":
        return Packed(change(self.tokens), change(self.trained), change(self.positions))


def row(records: Sequence[Encoded]) -> Int[Tensor, "tokens"]:
    """The tokens of all records, one after the other."""
    return torch.cat([record.tokens for record in records] or [torch.zeros(0, dtype=torch.int64)])


def side_by_side(tokens: Int[Tensor, "tokens"], length: int) -> Int[Tensor, "windows {length}"]:
    """All windows one after the other, the rest at the end left out; no copy. DataError where not one is full."""
    count = len(tokens) // length
    if not count:
        raise DataError(
            f"the text must fill one window of {length} tokens; it has {len(tokens)}. Give more text or fewer tokens."
        )
    return tokens[: count * length].view(count, length)


def headed(windows: Int[Tensor, "windows tokens"], head: Sequence[int]) -> Int[Tensor, "windows length"]:
    """The windows with `head` before each."""
    return torch.cat([torch.tensor(head, dtype=torch.int64).expand(len(windows), -1), windows], 1) if head else windows


def packed(records: Sequence[Encoded], length: int) -> Packed:
    """Windows to train on. DataError where there is not one."""
    if all(record.cuttable for record in records):
        return _cut(records, length)
    return fitted(records, length)


def fitted(records: Sequence[Encoded], length: int) -> Packed:
    """Windows that hold whole records; only those longer than a window are cut.

    In the order of the file, each goes where the least room is left that is enough for it, else into a new window.
    """
    windows: list[list[Encoded]] = []
    room: list[tuple[int, int]] = []  # what is left of the window of that number, sorted
    for piece in (piece for record in records for piece in record.pieces(length)):
        place = bisect.bisect_left(room, (len(piece.tokens), 0))
        left, number = room.pop(place) if place < len(room) else (length, len(windows))
        if number == len(windows):
            windows.append([])
        windows[number].append(piece)
        bisect.insort(room, (left - len(piece.tokens), number))
    if not windows:
        raise DataError(f"no record has a token to train on within {length} tokens. Give others, or more tokens.")
    filled = [_filled(window, length) for window in windows]
    return Packed(*(torch.stack(parts) for parts in zip(*filled, strict=True)))


def _cut(records: Sequence[Encoded], length: int) -> Packed:
    """The records side by side, cut where a window ends."""
    parts, filled = [torch.zeros(0, dtype=torch.int64)], 0
    for record in records:
        head, start = torch.tensor(record.head, dtype=torch.int64), 0
        while start < len(record.tokens):
            room = length - filled % length
            end = start + max(0, room - len(head))
            parts.append(torch.cat([head, record.tokens[start:end]])[:room])
            start, filled = end, filled + len(parts[-1])
    tokens = side_by_side(torch.cat(parts), length)
    positions = torch.cat([torch.arange(len(part)) for part in parts])[: tokens.numel()].view_as(tokens)
    return Packed(tokens, positions > 0, positions)


def _filled(pieces: Sequence[Encoded], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """One window: tokens, trained, positions. The filler carries on the last record's positions."""
    tokens, trained = torch.full((length,), FILLER), torch.zeros(length, dtype=torch.bool)
    positions, start = torch.arange(length), 0
    for piece in pieces:
        end = start + len(piece.tokens)
        tokens[start:end], trained[start:end] = piece.tokens, piece.trained
        trained[start] = False
        positions[start:] = torch.arange(length - start)
        start = end
    return tokens, trained, positions
