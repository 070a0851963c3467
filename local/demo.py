"""The demo (being written)."""


def demonstrate(url: str, key: str) -> None:
    """."""
