"""A model and its tokenizer out of a source, by transformers: safetensors or GGUF, never a pickle, never foreign code.

A checkpoint whose tensors do not match the model exactly is an error: transformers would fill the gaps with random
weights and only warn.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
from transformers.utils import logging as chatter

from seft.errors import SourceError
from seft.models.source import Kind, ModelSource, fetch

UNLOADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers raises at a configuration or a file that is no model's."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to work on (evaluation mode, no key-value cache), its tokenizer, and where they came from."""

    model: nn.Module
    tokenizer: Any
    source: ModelSource


def load(source: ModelSource, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Loaded:
    """Load a source's weights in `dtype` onto `device`; SourceError where they do not make a whole model.

    Buffers are as in float32, whatever `dtype` is: what is worked on and what is checked later have the same ones.
    """
    tokenizer = load_tokenizer(source)
    folder, where = _place(source)
    with _loading(source.reference):
        model = _load_model(source.reference, folder, where)
    model.config.use_cache = False
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return Loaded(model.to(device).eval(), tokenizer, source)


def load_tokenizer(source: ModelSource) -> Any:
    """The tokenizer alone, for a look at the text before the weights are loaded."""
    folder, where = _place(source)
    with _loading(source.reference):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **where)


def _place(source: ModelSource) -> tuple[Path, dict[str, str]]:
    """The folder, and what transformers must be told to find a GGUF file in it."""
    path = fetch(source)
    return (path.parent, {"gguf_file": path.name}) if source.kind is Kind.GGUF else (path, {})


@contextmanager
def _loading(reference: str) -> Iterator[None]:
    try:
        with quiet():
            yield
    except UNLOADABLE as error:
        raise SourceError(
            "model_refused",
            f"a model must load in transformers; {reference!r} does not: {type(error).__name__}: {error}. Save it again"
            " with save_pretrained, or choose another one.",
        ) from error


def _load_model(reference: str, folder: Path, where: dict[str, str]) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, by their names
        **where,
    )
    flaws = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if flaws:
        raise SourceError("model_refused", f"the tensors of {reference!r} are not those of its config: {flaws}.")
    if where:
        # The weights are dequantised; with these two, transformers would not save the model.
        del model.config.quantization_config, model.hf_quantizer
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers shows no bars and gives no advice; errors still pass."""
    bars, level = chatter.is_progress_bar_enabled(), chatter.get_verbosity()
    gguf_bar = modeling_gguf_pytorch_utils.tqdm  # the one bar that the switch below does not reach
    chatter.disable_progress_bar()
    chatter.set_verbosity(logging.ERROR)
    modeling_gguf_pytorch_utils.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = gguf_bar
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()
