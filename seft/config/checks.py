"""Checks of one number that several settings share."""

from seft.errors import ConfigError


def require_between(field: str, value: float, low: float, high: float, way_out: str) -> None:
    """Raise ConfigError if the value of a field is outside a range."""
    if not low <= value <= high:
        raise ConfigError(field, f"must be from {low} to {high}", value, way_out)


def require_at_least(field: str, value: int, low: int) -> None:
    """Raise ConfigError if the value of a field is below a limit."""
    if value < low:
        raise ConfigError(field, f"must be at least {low}", value, f"Use {low} or more.")
