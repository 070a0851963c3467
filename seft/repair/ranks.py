"""How many values methods of low rank train: as near as whole ranks allow to a given count over all linears."""

from collections.abc import Callable, Mapping

from seft.config import RepairConfig
from seft.errors import ConfigError
from seft.models.targets import Target

Shape = tuple[int, int]
Size = Callable[[Shape, int], int]
"""Values that a rank costs in a weight of some shape; none at rank 0, and more with every rank."""


def ranks(targets: Mapping[str, Target], config: RepairConfig, size: Size) -> dict[str, int]:
    """A rank for each target, so that they have `density` of all target weights as values together.

    All have the largest rank that fits into the count, and single ones, spread evenly, one more: what is then missing
    or too much is at most half of what such a rank costs. Where not even rank 1 fits everywhere, the others have none.
    ConfigError where no target gets a rank, or one gets a rank as large as the weight has rows or columns.
    """
    shapes = {name: _shape(target) for name, target in targets.items()}
    count = round(config.density * sum(rows * cols for rows, cols in shapes.values()))
    rank = 0
    while sum(size(shape, rank + 1) for shape in shapes.values()) <= count:
        rank += 1
    steps = {name: size(shape, rank + 1) - size(shape, rank) for name, shape in shapes.items()}
    left, whole = count - sum(size(shape, rank) for shape in shapes.values()), sum(steps.values())
    found, due = dict.fromkeys(shapes, rank), 0
    for name, step in steps.items():
        due += step * left
        if 2 * due >= step * whole:
            found[name] += 1
            due -= step * whole
    _must_fit(shapes, found, config)
    return found


def _shape(target: Target) -> Shape:
    rows, cols = target.weight.shape
    return rows, cols


def _must_fit(shapes: Mapping[str, Shape], found: Mapping[str, int], config: RepairConfig) -> None:
    if not any(found.values()):
        rule = f"must pay for rank 1 in one linear at least, for {config.method}"
        raise ConfigError("density", rule, config.density, "Ask for more, or for a method that trains single weights.")
    for name, rank in found.items():
        if rank >= min(shapes[name]):
            rule = f"must leave {name}, {shapes[name][0]} x {shapes[name][1]}, a smaller rank than {rank}"
            raise ConfigError("density", rule, config.density, "Ask for less, or for masked_full.")
