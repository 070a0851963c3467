"""Loads a model and its tokenizer with transformers, from safetensors or GGUF. Never loads pickles or remote code.

Raises SourceError if the tensors of a checkpoint do not match the model exactly. Transformers alone would fill the gaps
with random weights and only warn.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import gguf
import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging as transformers_logging

from seft.errors import DISK_FULL, SourceError
from seft.models.gguf_header import read_shapes
from seft.models.gguf_settings import unread_settings
from seft.models.gguf_steps import set_steps
from seft.models.loadable import loadable
from seft.models.model_files import GENERATION_CONFIG
from seft.models.source import Kind, ModelSource, fetch
from seft.models.tensors import is_pruned, place_in_blocks

LOAD_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    ImportError,
    ArithmeticError,
    AssertionError,
    LookupError,
    AttributeError,
    SafetensorError,
    StrictDataclassError,
)
"""Exceptions that transformers raises if a configuration or a file cannot be loaded as a model."""
MOST_OF_WEIGHTS = 2
"""Largest ratio of the weights of a model to its stored weights. It is above 1: tied weights are stored once.

Also the largest ratio of the values in its buffers, beyond the first `SMALL_BUFFERS`, to its stored weights.
"""
SMALL_BUFFERS = 1 << 24
"""Number of values in buffers that every model may have, such as the masks of a small GPT-2."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in evaluation mode and without key-value cache, its tokenizer, and the source of both with its path."""

    model: nn.Module
    tokenizer: Any
    source: ModelSource


def load(
    source: ModelSource, *, device: str = "cpu", dtype: torch.dtype = torch.float32, keep_buffers: bool = True
) -> Loaded:
    """Load the model and the tokenizer of a source onto `device`, with the weights in `dtype`.

    Buffers keep their float32 values, so that a model has the same buffers now and when its checkpoint is verified.
    Without `keep_buffers`, the model has the buffers that transformers creates for weights in `dtype`. Some
    architectures cannot compute with other ones. The weights are copies, so a later change of a file does not change
    them. Raises SourceError if the files are not a complete model.
    """
    source = replace(source, path=fetch(source))
    with _header_read_once():
        tokenizer = load_tokenizer(source)
        with _source_errors(source.reference), _location(source) as (folder, options):
            model = _load_model(source, folder, options, dtype)
            if keep_buffers and not _restore_buffers(model):
                del model
                model = _load_model(source, folder, options)  # in float32; the weights are converted below
    model.config.use_cache = False
    for weight in model.parameters():
        weight.data = weight.data.to(dtype, copy=True)
    return Loaded(model.to(device).eval(), tokenizer, source)


def _restore_buffers(model: Any) -> bool:
    """Give a model the buffers that it would have if it were loaded in float32.

    Returns False if a buffer was rounded when it was read from a file. The model must then be loaded in float32.
    """
    floats = {name: buffer.dtype for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    lost = {name for name, dtype in floats.items() if dtype is not torch.float32}
    if not lost:
        return True
    if lost & model.state_dict().keys():
        return False
    with init_empty_weights(include_buffers=False):
        buffers = dict(type(model)(model.config).named_buffers())
    for name in lost:
        module, _, key = name.rpartition(".")
        setattr(model.get_submodule(module), key, buffers[name])
    return True


def load_tokenizer(source: ModelSource) -> Any:
    """Load only the tokenizer, so that a text can be checked before the weights are loaded."""
    with _source_errors(source.reference), _location(source) as (folder, options):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
        if options:
            set_steps(tokenizer, source.config)
    return tokenizer


@contextmanager
def _location(source: ModelSource) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the folder that a loader may see, and the options that make transformers read a GGUF file in it."""
    path = fetch(source)
    with loadable(path) as folder:
        yield folder, {"gguf_file": path.name} if source.kind is Kind.GGUF else {}


@contextmanager
def _source_errors(reference: str) -> Iterator[None]:
    try:
        with quiet():
            yield
    except LOAD_ERRORS as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        raise SourceError(
            "model_refused",
            f"a model must load in transformers; {reference!r} fails with {type(error).__name__}: {error}. Save it"
            " again with save_pretrained, or choose a different model.",
        ) from error


def require_floats(reference: str, name: str, dtype: str, shape: Sequence[int]) -> None:
    """Raise SourceError if a tensor is a matrix of integers, or a stack of such matrices in a block.

    Transformers would use them as weights without scales. Tables of integers in a block, such as `tid2eid` of
    DeepSeek-V4, are not weights.
    """
    stack = len(shape) == 3 and place_in_blocks(name) and is_pruned(name, tuple(shape), 0)
    if (stack or (name.endswith(".weight") and len(shape) > 1)) and not dtype.startswith(("F", "BF")):
        raise SourceError(
            "model_refused",
            f"a matrix of a model must have a floating-point dtype; {name!r} in {reference!r} has {dtype}. Save the"
            " model in bfloat16, or use a compact file that `seft export` wrote.",
        )


def _load_model(source: ModelSource, folder: Path, options: dict[str, str], dtype: torch.dtype = torch.float32) -> Any:
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                tensor = file.get_slice(name)
                require_floats(source.reference, name, tensor.get_dtype(), tensor.get_shape())
    settings = {}
    if source.kind is Kind.GGUF and source.path is not None:
        settings = unread_settings(source.config, read_shapes(source.path))
    if source.rope_parameters:
        settings["rope_parameters"] = source.rope_parameters
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are rejected below, by name
        **options,
        **settings,
    )
    _require_match(source.reference, info)
    if options:
        # The weights are dequantised. With these two attributes transformers would not save the model.
        del model.config.quantization_config, model.hf_quantizer
    return model


def load_model(source: ModelSource, *, device: str, dtype: torch.dtype) -> nn.Module:
    """Return a model in evaluation mode as transformers loads it in `dtype`, ready to generate text.

    Some architectures keep a few weights in float32, and some buffers have `dtype`. Raises SourceError like `load`.
    """
    with _source_errors(source.reference), _location(source) as (folder, options):
        model = _load_model(source, folder, options, dtype)
    return cast("nn.Module", model.to(device).eval())


def load_tensors(source: ModelSource, tensors: Mapping[str, Any], *, device: str, dtype: torch.dtype) -> nn.Module:
    """Return the model of `load_model` if the weights are not in its folder.

    Transformers reads each of the `tensors` by `tensor[...]`, in several threads. Its `size` is the number of its
    values. Raises SourceError if they do not match the model.
    """
    with _source_errors(source.reference), _location(source) as (folder, _):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            described = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        _require_weights(source.reference, described, tensors)
        architecture: Any = type(described)
        model, info = architecture.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are rejected below, by name
        )
        if (folder / GENERATION_CONFIG).exists():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    _require_match(source.reference, info)
    model.config.name_or_path = source.reference
    return cast("nn.Module", model.to(device).eval())


def _require_weights(reference: str, described: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Raise SourceError if a model of this configuration has far more weights or buffers than weights are stored.

    Transformers would create them all before it reports what does not match. Most buffers are not stored. Some grow
    with the square of the longest text.
    """
    weights = sum(parameter.numel() for parameter in described.parameters())
    buffers = sum(buffer.numel() for buffer in described.buffers())
    given = sum(tensor.size for tensor in tensors.values())
    for kind, needed, free in (("weights", weights, 0), ("values in buffers", buffers, SMALL_BUFFERS)):
        if needed > MOST_OF_WEIGHTS * given + free:
            raise SourceError(
                "model_refused",
                f"the tensors of {reference!r} must be enough for the {needed} {kind} of its configuration; they have"
                f" {given} values. Create the model again.",
            )


def _require_match(reference: str, info: Mapping[str, Any]) -> None:
    """Raise SourceError if transformers reports a tensor that is missing, is not needed or has another shape."""
    mismatches = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if mismatches:
        raise SourceError(
            "model_refused",
            f"the tensors of a model must match its config; in {reference!r} they do not: {mismatches}."
            " Save it again with save_pretrained, or choose a different model.",
        )


@contextmanager
def _header_read_once() -> Iterator[None]:
    """Read the header of a GGUF file, and the table of its names, once while the `with` block runs.

    Transformers reads the header three times, and the table for every module. Each takes seconds.
    """
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = map(cache, before)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = before


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off the progress bars and warnings of transformers while the `with` block runs. Errors are still logged."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    gguf_bar = modeling_gguf_pytorch_utils.tqdm  # the call below does not turn off this bar
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.ERROR)
    modeling_gguf_pytorch_utils.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = gguf_bar
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
