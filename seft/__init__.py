"""Make language models sparse and repair them: prune, sparse fine-tuning, evaluate, export.

Import from the modules; this package itself has only `load`, `load_tokenizer` and `accelerate`. Importing it loads no
module, so that a server can use the modules that need no torch: `seft.models.source`, `seft.data.records` and
`seft.data.validation`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_LOAD = "seft.checkpoint.compact.load"
"""Module of the functions below. It is imported by its name when one is called, because it loads torch."""


def load(reference: Any, **options: Any) -> Any:
    """Return a transformers model. `reference` is a compact container or a dense model.

    A container is a path, a web address or `s3://bucket/key`, and is read tensor by tensor. A dense model is a folder,
    a GGUF file or a hub id. Options: `device` (default "cpu"), and `dtype` of the weights (default: the one in
    config.json). Raises SourceError if there is no such model, and ContainerError if a tensor is damaged.
    """
    return import_module(_LOAD).load(reference, **options)


def load_tokenizer(reference: Any) -> Any:
    """Return the tokenizer of a model that `load` would load. Downloads no weights of a remote container."""
    return import_module(_LOAD).load_tokenizer(reference)


def accelerate(model: Any, values: str = "bfloat16", **options: Any) -> Any:
    """Replace the linear layers of a transformers model by compressed ones, in place. Returns the model.

    `seft.runtime.accelerate` has the options and the errors.
    """
    return import_module("seft.runtime.accelerate").accelerate(model, values, **options)
