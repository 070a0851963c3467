"""Checks of one number that several settings share."""

from seft.errors import ConfigError

ROUNDING = 1e-6
"""Added to a number of steps or windows before it is rounded down, because 0.7 * 90 is below 63 in floating point."""


def require_between(field: str, value: float, low: float, high: float, way_out: str) -> None:
    """Raise ConfigError if the value of a field is outside a range."""
    if not low <= value <= high:
        raise ConfigError(field, f"must be from {low} to {high}", value, way_out)


def require_at_least(field: str, value: int, low: int) -> None:
    """Raise ConfigError if the value of a field is below a limit."""
    if value < low:
        raise ConfigError(field, f"must be at least {low}", value, f"Use {low} or more.")
