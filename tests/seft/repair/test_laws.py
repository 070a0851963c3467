"""Invariants of SEFT at every step of any sequence of training and events, with and without a pattern.

Random linears run the real forward, backward, optimizer and events. A reference model gives the expected value and
moments of each position: a dictionary in double precision, without sorted lists.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern, Variant
from seft.repair.active import Active
from seft.repair.linear import RepairedLinear
from seft.repair.published import WINDOWS
from tests.seft.repair.repairing import as_target, update

PATTERNS = [Pattern(2, 4), Pattern(1, 3), Pattern(4, 8), Pattern(3, 4), Pattern(1, 4)]
RATE = 0.1

Gradients = Callable[[torch.Generator, int, int], Tensor]


def smooth(generator: torch.Generator, tokens: int, size: int) -> Tensor:
    return torch.randn(tokens, size, generator=generator)


def tied(generator: torch.Generator, tokens: int, size: int) -> Tensor:
    """Return small whole numbers, whose products have many equal sums and many zeros."""
    return torch.randint(-1, 2, (tokens, size), generator=generator).float()


def narrow(generator: torch.Generator, tokens: int, size: int) -> Tensor:
    """Return mostly zeros, so that few positions have a gradient."""
    return torch.randn(tokens, size, generator=generator) * (torch.rand(size, generator=generator) < 0.3)


@dataclass(frozen=True)
class Event:
    """Steps of training, steps with an open window, then an event that replaces a fraction of the active set."""

    steps: int
    watched: int
    fraction: float
    pieces: int


@dataclass(frozen=True)
class Case:
    """A linear and its events. In every step a fraction of the active values becomes zero, as by rounding.

    At most the fraction `most_zeros` of the nonzeros may become zero in an event, and at least one.
    """

    pattern: Pattern
    rows: int
    groups: int
    sparsity: float
    density: float
    vanishing: float
    gradients: Gradients
    events: list[Event]
    most_zeros: float
    variant: Variant
    seed: int

    def start(self, dtype: torch.dtype, *, transposed: bool = False) -> Tensor:
        """Return the pruned weight. Some groups have more zeros than the pattern requires."""
        generator = torch.Generator().manual_seed(self.seed)
        cols = self.groups * (self.pattern.of if self.pattern.grouped else 4)
        weight = torch.randn(self.rows, cols, generator=generator)
        weight[torch.rand(self.rows, cols, generator=generator) < self.sparsity] = 0
        if self.pattern.grouped:
            groups = weight.view(-1, self.pattern.of)
            groups.scatter_(1, groups.abs().argsort(1)[:, : self.pattern.of - self.pattern.kept], 0.0)
        weight = weight.to(dtype)
        return weight.mT.contiguous().mT if transposed else weight

    def owner(self, weight: Tensor) -> RepairedLinear:
        generator = torch.Generator().manual_seed(self.seed)
        owner = RepairedLinear(as_target(weight), self.density, generator, self.pattern, WINDOWS[self.variant])
        owner.most_zeros = max(1, round(self.most_zeros * owner.budget))
        return owner


cases = st.builds(
    Case,
    pattern=st.just(UNSTRUCTURED) | st.sampled_from(PATTERNS),
    rows=st.integers(1, 6),
    groups=st.integers(1, 4),
    sparsity=st.sampled_from([0.0, 0.3, 0.95]),
    density=st.sampled_from([0.02, 0.2, 0.5, 1.0]),
    vanishing=st.sampled_from([0.0, 0.5]),
    gradients=st.sampled_from([smooth, tied, narrow]),
    events=st.lists(
        st.builds(Event, st.integers(1, 2), st.integers(1, 3), st.sampled_from([0.2, 0.5, 1.0]), st.integers(1, 2)),
        min_size=1,
        max_size=6,
    ),
    most_zeros=st.sampled_from([0.01, 0.2, 1.0]),
    variant=st.sampled_from(Variant),
    seed=st.integers(0, 2**16),
)


@dataclass
class Life:
    """Runs a case on a linear, step by step.

    `window` has the full micro-batch gradients of the open window, and `sampled` the positions of its sample.
    `vanished` are the positions whose values became zero in the last step.
    """

    case: Case
    owner: RepairedLinear
    window: list[Tensor] = field(default_factory=list)
    gradient: Tensor = field(default_factory=lambda: torch.zeros(0))
    vanished: list[int] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[Event | None]:
        """Yield None after every step, and the event after every event."""
        generator = torch.Generator().manual_seed(self.case.seed + 1)
        for number, event in enumerate(self.case.events):
            for _ in range(event.steps):
                self._step(generator)
                yield None
            count = round(event.fraction * len(self.owner.active))
            self.sampled = self.owner.open_window(count, number).sample.indices.tolist()
            sampled = 0.9 if self.case.variant is Variant.IMPROVED else 0.0
            assert len(self.sampled) >= sampled * int(self.owner.weight.count_nonzero()), "nearly all are sampled"
            for _ in range(event.watched):
                self._step(generator)
                yield None
            self.owner.evolve(count, math.ceil(event.watched / event.pieces), event.pieces)
            yield event
            self.window.clear()

    def _step(self, generator: torch.Generator) -> None:
        """Run one micro-batch, its backward and one optimizer step."""
        rows, cols = self.owner.weight.shape
        left, right = (self.case.gradients(generator, 3, size).to(self.owner.weight.dtype) for size in (rows, cols))
        outputs = self.owner.product(right.requires_grad_(), lambda inputs: inputs @ self.owner.weight.T)
        outputs.backward(left)  # type: ignore[no-untyped-call]
        self.gradient = left.double().T @ right.detach().double()
        if self.owner.window:
            self.window.append(self.gradient.flatten())
        update(self.owner, self.owner.take_gradient(), RATE, weight_decay=0.1)
        vanished = torch.rand(len(self.owner.active), generator=generator) < self.case.vanishing
        self.owner.active.values[vanished] = 0.0
        self.vanished = self.owner.active.indices[vanished].tolist()
        self.owner.active.write(self.owner.weight)


@settings(max_examples=80, deadline=None)
@given(case=cases, dtype=st.sampled_from([torch.float32, torch.bfloat16]), transposed=st.booleans())
def test_budget_groups_and_order_hold_at_every_step(*, case: Case, dtype: torch.dtype, transposed: bool) -> None:
    start = case.start(dtype)
    owner = case.owner(case.start(dtype, transposed=transposed))
    size = len(owner.active)
    for _ in Life(case, owner):
        indices = owner.active.indices
        assert indices.dtype == torch.int32
        assert len(owner.active) == size
        assert indices.diff().gt(0).all()
        used = (owner.weight != 0).flatten().index_fill(0, indices.long(), value=True)
        assert int(used.sum()) <= owner.budget
        assert (used.view(-1, case.pattern.of).sum(1) <= case.pattern.kept).all()
        again = start.clone()
        again.view(-1)[owner.removed.indices] = 0
        owner.active.write(again)
        assert torch.equal(again, owner.weight)
        assert owner.reactivated_count() == int(((start == 0) & (owner.weight != 0)).sum())


@settings(max_examples=80, deadline=None)
@given(case=cases)
def test_an_event_grows_no_more_zeros_than_it_may_and_makes_no_more_nonzeros_zero(*, case: Case) -> None:
    owner = case.owner(case.start(torch.float32))
    active, removed = owner.active.indices, len(owner.removed)
    for event in Life(case, owner):
        if event is not None:
            grown = ~torch.isin(owner.active.indices, active) & (owner.active.bases == 0)
            assert int(grown.sum()) <= owner.most_zeros
            assert len(owner.removed) - removed <= owner.most_zeros
        active, removed = owner.active.indices, len(owner.removed)


@settings(max_examples=80, deadline=None)
@given(case=cases)
def test_each_position_keeps_its_state_and_gets_its_base_or_zero_when_it_leaves(*, case: Case) -> None:
    owner = case.owner(case.start(torch.float64))
    life = Life(case, owner)
    expected = {index: Traced(float(owner.weight.flatten()[index])) for index in owner.active.indices.tolist()}
    before, typical = owner.weight.flatten().clone(), 0.0
    for event in life:
        if event is None:
            for index, traced in expected.items():
                traced.step(float(life.gradient.flatten()[index]), typical)
                traced.value = 0.0 if index in life.vanished else traced.value
        else:
            typical = max(typical, root_mean_square(life.window, life.sampled, event.pieces))
            present = owner.weight.flatten()
            for index in set(expected) - set(owner.active.indices.tolist()):
                assert present[index] in (expected.pop(index).base, 0.0)
            for index in set(owner.active.indices.tolist()) - set(expected):
                steady = case.variant is Variant.PUBLISHED
                value = float(present[index])
                expected[index] = Traced.grown(owner.active, index, value, life.window, event.pieces, steady=steady)
                assert present[index] == before[index], "growing changes no weight"
        for place, index in enumerate(owner.active.indices.tolist()):
            expected[index].require_equal(owner.active, place)
        assert len(expected) == len(owner.active)
        before = owner.weight.flatten().clone()


def moments(gradients: list[float], steps: int, pieces: int) -> tuple[float, float]:
    """Return mean and mean square of a step's gradient. The variances of its micro-batches add up."""
    mean = sum(gradients) / (steps * pieces)
    variance = max(0.0, sum(gradient**2 for gradient in gradients) / (steps * pieces) - mean**2)
    return mean * pieces, (mean * pieces) ** 2 + variance * pieces


def root_mean_square(window: list[Tensor], sampled: list[int], pieces: int) -> float:
    """Return the root mean square of a step's gradient over some positions."""
    steps = math.ceil(len(window) / pieces)
    squares = [moments([float(gradient[index]) for gradient in window], steps, pieces)[1] for index in sampled]
    return math.sqrt(sum(squares) / max(1, len(squares)))


@dataclass
class Traced:
    """The expected state of one active position, by the formulas of AdamW (Loshchilov & Hutter 2019, algorithm 2)."""

    base: float
    value: float = math.nan
    mean: float = 0.0
    square: float = 0.0
    age: int = 0

    def __post_init__(self) -> None:
        self.value = self.base

    @classmethod
    def grown(
        cls, active: Active, index: int, value: float, window: list[Tensor], pieces: int, *, steady: bool
    ) -> "Traced":
        """Return the state seeded from the micro-batches since the position was listed; earlier ones count as 0.

        If `steady`, it is seeded from all micro-batches, as if their gradients were equal.
        """
        (place,) = (active.indices == index).nonzero().flatten().tolist()
        actual = float(active.means[place]), float(active.squares[place])
        matches = []
        for first in range(1 if steady else len(window)):
            steps = math.ceil(len(window) / pieces)
            mean, square = moments([float(gradient[index]) for gradient in window[first:]], steps, pieces)
            square = max(mean**2, mean**2 + (mean**2 * steps / len(window) - mean**2 / pieces)) if steady else square
            seeded = cls(value)
            seeded.mean, seeded.square, seeded.age = mean * (1 - 0.9**steps), square * (1 - 0.999**steps), steps
            if actual == pytest.approx((seeded.mean, seeded.square), rel=1e-6, abs=1e-12):
                matches.append(seeded)
        assert matches
        return matches[0]

    @property
    def mean_square(self) -> float:
        return self.square / (1 - 0.999**self.age)

    def step(self, gradient: float, typical: float) -> None:
        self.age += 1
        self.mean += 0.1 * (gradient - self.mean)
        self.square += 0.001 * (gradient**2 - self.square)
        root = math.sqrt(self.mean_square) + 1e-8
        rate = self.mean / (1 - 0.9**self.age) / root
        self.value -= RATE * (0.1 * (self.value - self.base) + rate * min(1.0, typical / root if typical else 1.0))

    def require_equal(self, active: Active, place: int) -> None:
        assert float(active.bases[place]) == self.base
        assert int(active.ages[place]) == self.age
        actual = [float(each[place]) for each in (active.values, active.means, active.squares)]
        assert actual == pytest.approx([self.value, self.mean, self.square], rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(case=cases, data=st.data())
def test_resuming_at_any_step_gives_the_same_bits(*, case: Case, data: st.DataObject) -> None:
    lives = sum(event.steps + event.watched + 1 for event in case.events)
    stop = data.draw(st.integers(0, lives - 1))
    owner = case.owner(case.start(torch.float32))
    uninterrupted, stopped = Life(case, owner), Life(case, case.owner(case.start(torch.float32)))
    for number, _ in enumerate(stopped):
        if number == stop:
            stopped.owner = resumed(case, stopped.owner)
    for _ in uninterrupted:
        pass
    assert torch.equal(owner.weight, stopped.owner.weight)
    for name, tensor in owner.active.tensors().items():
        assert torch.equal(tensor, stopped.owner.active.tensors()[name])
    assert all(map(torch.equal, owner.removed.tensors().values(), stopped.owner.removed.tensors().values()))


@settings(max_examples=100, deadline=None)
@given(case=cases, dtype=st.sampled_from([torch.float32, torch.bfloat16]), data=st.data())
def test_any_earlier_state_can_be_loaded_from_any_state(*, case: Case, dtype: torch.dtype, data: st.DataObject) -> None:
    owner = case.owner(case.start(dtype))

    def state() -> tuple[dict[str, Tensor], Tensor]:
        return {name: tensor.clone() for name, tensor in owner.tensors().items()}, owner.weight.clone()

    states = [state(), *(state() for _ in Life(case, owner))]
    tensors, weight = states[data.draw(st.integers(0, len(states) - 1))]
    owner.resume(tensors)
    assert torch.equal(owner.weight, weight)
    assert owner.tensors().keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in owner.tensors().items())
    owner.resume(states[0][0])
    assert torch.equal(owner.weight, case.start(dtype))


def resumed(case: Case, saved: RepairedLinear) -> RepairedLinear:
    """Return a new linear from the pruned weight and a saved state."""
    again = case.owner(case.start(torch.float32))
    again.resume({name: tensor.clone() for name, tensor in saved.tensors().items()})
    return again


@settings(max_examples=60, deadline=None)
@given(case=cases)
def test_restoring_gives_every_base_bit_for_bit(*, case: Case) -> None:
    start = case.start(torch.bfloat16)
    owner = case.owner(start.clone())
    life = iter(Life(case, owner))
    next(life)
    owner.active.restore(owner.weight)
    assert torch.equal(owner.weight, start)
