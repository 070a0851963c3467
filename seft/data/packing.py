"""Packs records into windows: sequences of tokens of equal length.

Texts may be cut anywhere, so they are concatenated and cut into windows. A completion must stay with its prompt. Such a
record stays whole if it fits into a window. Padding fills the end of the window. Positions restart at every record,
and `seft.models.predictor` ensures that no record attends to another one.
"""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seft.errors import DataError

PADDING = 0
"""Token that fills a window after its last record. It is never trained on, and no earlier token attends to it."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One record as tokens, with a mask of the tokens that are trained on.

    `head` has the tokens at the start of each part of a record in a window. The `tokens` of a text do not contain it.
    The `tokens` of any other record begin with it.
    """

    tokens: Int[Tensor, "tokens"]
    trained: Bool[Tensor, "tokens"]
    head: Sequence[int] = ()

    @classmethod
    def text(cls, tokens: Sequence[int], head: Sequence[int] = ()) -> "Encoded":
        """Return a record that is trained on completely."""
        tensor = torch.tensor(tokens, dtype=torch.int64)
        return cls(tensor, torch.ones_like(tensor, dtype=torch.bool), head)

    @property
    def cuttable(self) -> bool:
        """True if all tokens are trained on, so that a cut separates no prompt from its completion."""
        return bool(self.trained.all())

    def pieces(self, length: int) -> list["Encoded"]:
        """Return the record cut into pieces of at most `length` tokens. Each piece begins with `head`.

        Pieces that have nothing to train on are left out.
        """
        count, room = len(self.head), room_after(self.head, length)
        parts = (torch.split(tensor[count:], room) for tensor in (self.tokens, self.trained))
        pieces = (
            Encoded(torch.cat([self.tokens[:count], tokens]), torch.cat([self.trained[:count], trained]))
            for tokens, trained in zip(*parts, strict=True)
        )
        return [piece for piece in pieces if piece.trained[1:].any()]


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model predicted for every token of some windows: its most probable tokens, and their log-probabilities.

    `known` marks the windows with predictions. `weight` is the weight of these windows in the loss. The values of the
    other windows have no meaning.
    """

    tokens: Int[Tensor, "windows length top"]
    logarithms: Float[Tensor, "windows length top"]
    known: Bool[Tensor, "windows"]
    weight: float = 1.0

    @property
    def weights(self) -> Float[Tensor, "windows"]:
        """The weight of each window in the loss."""
        return torch.where(self.known, self.weight, 1.0)

    def unknown(self, windows: int) -> "Predictions":
        """Return predictions of the same shape and dtype for windows without predictions."""
        shape = (windows, *self.tokens.shape[1:])
        tokens, logarithms = self.tokens.new_zeros(shape), self.logarithms.new_zeros(shape)
        return Predictions(tokens, logarithms, self.known.new_zeros(windows), self.weight)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Predictions":
        """Return the predictions with all tensors changed in the same way."""
        return Predictions(change(self.tokens), change(self.logarithms), change(self.known), self.weight)

    def __add__(self, other: "Predictions") -> "Predictions":
        return Predictions(
            torch.cat([self.tokens, other.tokens]),
            torch.cat([self.logarithms, other.logarithms]),
            torch.cat([self.known, other.known]),
            self.weight,
        )


@dataclass(frozen=True, slots=True)
class Packed:
    """Windows of equal length. `positions` count from 0 in each record. `trained` marks the tokens that are predicted.

    The first token of a record is never predicted, because nothing comes before it. The tokens that a tokenizer puts
    before every text are not predicted either. `teacher` has what another model predicted for the windows.
    """

    tokens: Int[Tensor, "windows length"]
    trained: Bool[Tensor, "windows length"]
    positions: Int[Tensor, "windows length"]
    teacher: Predictions | None = None

    @classmethod
    def of(cls, windows: "Packed | Int[Tensor, 'windows length']") -> "Packed":
        """Return packed windows unchanged, and a tensor of tokens as `plain` does."""
        return cls.plain(windows) if isinstance(windows, Tensor) else windows

    @classmethod
    def plain(cls, tokens: Int[Tensor, "windows length"], untrained: int = 1) -> "Packed":
        """Return windows that contain one record each. All tokens but the first `untrained` are trained on.

        The first token is never trained on.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return cls(tokens, positions >= max(1, untrained), positions)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Int[Tensor, "rows"] | slice) -> "Packed":
        """Return the windows with these numbers."""
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> "Packed":
        """Return the windows with their tensors on `device`."""
        return self._each(lambda tensor: tensor.to(device))

    def split(self, size: int) -> list["Packed"]:
        """Return the windows in batches of at most `size`."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    @property
    def predictions(self) -> int:
        """Number of tokens that are trained on."""
        return int(self.trained.sum())

    @property
    def text(self) -> Int[Tensor, "tokens"]:
        """All tokens, one window after the other, without the padding at the end of each window."""
        used = self.trained | (self.tokens != PADDING)
        return self.tokens[used.flip(1).cumsum(1).flip(1) > 0]

    @property
    def mixed(self) -> bool:
        """True if any window contains several records."""
        return bool((self.positions[:, 1:] == 0).any())

    def __add__(self, other: "Packed") -> "Packed":
        """Return the windows of both. If only one has predictions of a teacher, those of the other are unknown."""
        teacher = None
        if some := self.teacher or other.teacher:
            teacher = (self.teacher or some.unknown(len(self))) + (other.teacher or some.unknown(len(other)))
        return Packed(
            torch.cat([self.tokens, other.tokens]),
            torch.cat([self.trained, other.trained]),
            torch.cat([self.positions, other.positions]),
            teacher,
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Packed":
        teacher = self.teacher.each(change) if self.teacher else None
        return Packed(change(self.tokens), change(self.trained), change(self.positions), teacher)


def concatenate(records: Sequence[Encoded]) -> Int[Tensor, "tokens"]:
    """Return the tokens of all records in one tensor."""
    return torch.cat([record.tokens for record in records] or [torch.zeros(0, dtype=torch.int64)])


def cut_windows(tokens: Int[Tensor, "tokens"], length: int) -> Int[Tensor, "windows {length}"]:
    """Return all full windows of `length` tokens, as a view of `tokens`.

    Tokens after the last full window are not returned.

    Raises DataError if the tokens fill no window.
    """
    count = len(tokens) // length
    if not count:
        raise DataError(
            f"the text must have at least {length} tokens, the length of one sequence; it has {len(tokens)}."
            " Give more text, or set fewer tokens per sequence."
        )
    return tokens[: count * length].view(count, length)


def room_after(head: Sequence[int], length: int) -> int:
    """Return the number of tokens of a text in a window of `length` tokens. Raises DataError if there are none."""
    if length <= len(head):
        raise DataError(
            f"a sequence must have more than {len(head)} tokens, which is the number that the tokenizer puts before"
            f" every text; it has {length}. Set more tokens per sequence."
        )
    return length - len(head)


def with_head(windows: Int[Tensor, "windows tokens"], head: Sequence[int]) -> Int[Tensor, "windows length"]:
    """Return the windows with the tokens `head` before each."""
    return torch.cat([torch.tensor(head, dtype=torch.int64).expand(len(windows), -1), windows], 1) if head else windows


def pack(records: Sequence[Encoded], length: int) -> Packed:
    """Pack records into windows of `length` tokens for training. Raises DataError if the records fill no window."""
    if all(record.cuttable for record in records):
        return _pack_cut(records, length)
    return pack_whole(records, length)


def pack_whole(records: Sequence[Encoded], length: int) -> Packed:
    """Pack whole records into windows of `length` tokens. Only records longer than a window are cut.

    Best fit in the order of the file: a record goes into the window with the least remaining space that is enough, or
    into a new window. Raises DataError if there is no token to train on.
    """
    windows: list[list[Encoded]] = []
    spaces: list[tuple[int, int]] = []  # remaining space and number of each window, sorted
    for piece in (piece for record in records for piece in record.pieces(length)):
        place = bisect.bisect_left(spaces, (len(piece.tokens), 0))
        space, number = spaces.pop(place) if place < len(spaces) else (length, len(windows))
        if number == len(windows):
            windows.append([])
        windows[number].append(piece)
        bisect.insort(spaces, (space - len(piece.tokens), number))
    _require_trained(bool(windows), length)
    tokens, trained, positions = zip(*(_padded_window(window, length) for window in windows), strict=True)
    return Packed(torch.stack(tokens), torch.stack(trained), torch.stack(positions))


def _pack_cut(records: Sequence[Encoded], length: int) -> Packed:
    """Concatenate the records, and cut the result into windows of `length` tokens.

    Windows with nothing to train on are left out. Raises DataError if no window is left.
    """
    parts, masks, filled = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.bool)], 0
    for record in records:
        head, start = torch.tensor(record.head, dtype=torch.int64), 0
        room_after(record.head, length)
        while start < len(record.tokens):
            space = length - filled % length
            end = start + max(0, space - len(head))
            parts.append(torch.cat([head, record.tokens[start:end]])[:space])
            masks.append(torch.arange(len(parts[-1])) >= max(1, len(head)))
            start, filled = end, filled + len(parts[-1])
    tokens = cut_windows(torch.cat(parts), length)
    positions = torch.cat([torch.arange(len(part)) for part in parts])[: tokens.numel()].view_as(tokens)
    trained = torch.cat(masks)[: tokens.numel()].view_as(tokens)
    useful = trained.any(1)
    _require_trained(bool(useful.any()), length)
    packed = Packed(tokens, trained, positions)
    return packed if useful.all() else packed[useful.nonzero().flatten()]


def _require_trained(found: bool, length: int) -> None:
    if not found:
        raise DataError(
            f"at least one record must have a token to train on that follows another token in a sequence of {length}"
            " tokens; no record has one. Give other records, or set more tokens per sequence."
        )


def _padded_window(pieces: Sequence[Encoded], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens, the mask of trained tokens and the positions of one window, padded to `length`.

    The padding continues the positions of the last record.
    """
    tokens, trained = torch.full((length,), PADDING), torch.zeros(length, dtype=torch.bool)
    positions, start = torch.arange(length), 0
    for piece in pieces:
        end = start + len(piece.tokens)
        tokens[start:end], trained[start:end] = piece.tokens, piece.trained
        trained[start] = False
        positions[start:] = torch.arange(length - start)
        start = end
    return tokens, trained, positions
