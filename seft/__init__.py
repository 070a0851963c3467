"""Make language models sparse and repair them: prune, sparse fine-tuning, evaluate, export.

Import from the modules. Importing this package loads no module, so that a server can use the modules that need no
torch: `seft.models.source`, `seft.data.records` and `seft.data.validation`. The package itself exports only
`accelerate`, which is loaded when it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seft.runtime.accelerate import accelerate

__all__ = ["accelerate"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `accelerate` on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from seft.runtime.accelerate import accelerate

    return accelerate
