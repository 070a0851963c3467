"""Ranks for low-rank methods, so that all targets together train a given number of values as closely as possible.

A target is a linear layer that is pruned.
"""

from collections.abc import Callable, Mapping

from seft.config import RepairConfig
from seft.errors import ConfigError
from seft.models.targets import Target

Shape = tuple[int, int]
Size = Callable[[Shape, int], int]
"""Function from the shape of a weight matrix and a rank to the number of trained values: 0 at rank 0, then increasing.
"""


def ranks(targets: Mapping[str, Target], config: RepairConfig, size: Size) -> dict[str, int]:
    """Return a rank per target, so that all together train `density` times the number of target weights.

    All targets get the largest common rank that fits. Some of them, spread evenly, get one rank more. The total differs
    from the exact number by at most half of the values of one rank in one target. If rank 1 does not fit everywhere,
    some targets get rank 0. Raises ConfigError if no target gets a rank, or if a rank is as large as the number of rows
    or columns.
    """
    shapes = {name: _shape(target) for name, target in targets.items()}
    count = round(config.trained_fraction * sum(rows * cols for rows, cols in shapes.values()))
    rank = 0
    while sum(size(shape, rank + 1) for shape in shapes.values()) <= count:
        rank += 1
    steps = {name: size(shape, rank + 1) - size(shape, rank) for name, shape in shapes.items()}
    left, whole = count - sum(size(shape, rank) for shape in shapes.values()), sum(steps.values())
    result, due = dict.fromkeys(shapes, rank), 0
    for name, step in steps.items():
        due += step * left
        if 2 * due >= step * whole:
            result[name] += 1
            due -= step * whole
    _require_fit(shapes, result, config)
    return result


def _shape(target: Target) -> Shape:
    rows, cols = target.weight.shape
    return rows, cols


def _require_fit(shapes: Mapping[str, Shape], rank_of: Mapping[str, int], config: RepairConfig) -> None:
    if not any(rank_of.values()):
        rule = f"must give at least one linear layer rank 1 with {config.method}"
        way_out = "Increase it, or choose a method that trains individual weights, such as seft."
        raise ConfigError("density", rule, config.density, way_out)
    for name, rank in rank_of.items():
        if rank >= min(shapes[name]):
            rule = (
                f"must give {name}, {shapes[name][0]} x {shapes[name][1]}, a rank below {min(shapes[name])}, not {rank}"
            )
            raise ConfigError("density", rule, config.density, "Lower it, or choose masked_full.")
