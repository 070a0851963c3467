"""Make language models sparse and repair them: prune, sparse fine-tuning, evaluate, export.

Import from the modules. Importing this package loads no module, so that a server can use the modules that need no
torch: `seft.models.source`, `seft.data.records` and `seft.data.validation`. The package itself exports only
`accelerate`, which is loaded when it is used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `accelerate` on first use. By name, because no other module of this package may depend on the runtime."""
    if name != "accelerate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("seft.runtime.accelerate").accelerate
