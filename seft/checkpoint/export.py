"""Writes a sparse checkpoint: a Hugging Face folder in bfloat16 in which pruned weights are exactly zero.

The same model in other formats can be files in this folder or in a store (`seft.checkpoint.formats`).

Its bytes depend only on the weights and the facts, so an interrupted and resumed run gives the same sha256. The zeros
are stored like other values, because loaders no longer support compressed sparse formats. `seft.checkpoint.verify`
verifies the folder.
"""

import json
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seft.checkpoint import sparsity
from seft.checkpoint.card import card
from seft.checkpoint.facts import MANIFEST, Facts, ListedFile, Record, canonical_json, manifest, versions
from seft.checkpoint.formats import Store, write_format, write_stream
from seft.checkpoint.outputs import disk_errors, require_empty
from seft.checkpoint.verify import fingerprint
from seft.config import OutputFormat, format_of
from seft.models.load import Loaded, quiet
from seft.models.model_files import CARD
from seft.models.targets import whole_parameters
from seft.models.terms import notices

EXPORT_DTYPE = torch.bfloat16
MAX_SHARD = "5GB"
_REMOVED_KEYS = (
    "_name_or_path",
    "name_or_path",
    "_model_name_or_path",
    "quantization_config",
    "is_local",
    "local_files_only",
)


def export(
    loaded: Loaded,
    out: Path,
    facts: Facts,
    formats: Sequence[OutputFormat] = (OutputFormat.DENSE,),
    store: Store | None = None,
) -> list[ListedFile]:
    """Write the model, its tokenizer and its facts to the folder `out`. Does not verify the folder.

    The dense model is always written, because the other formats are made from it and verified against it. Files of
    other formats are written to `store` if there is one, and else to the folder. Returns what is in the store.
    `manifest.json` is written last, so a folder without it is incomplete. The model keeps its dtype, but its weights
    are rounded to bfloat16 afterwards. Raises ConfigError if `out` is not empty, or if a format cannot express the
    model.
    """
    require_empty(out)
    out.mkdir(parents=True, exist_ok=True)
    model: Any = loaded.model
    round_weights(model)
    with quiet(), _parameters_in(model, EXPORT_DTYPE), disk_errors(out):
        model.save_pretrained(out, max_shard_size=MAX_SHARD)
        for path in out.glob("*.safetensors"):  # safetensors lets only their owner read them
            with suppress(PermissionError):  # the sandbox of a job forbids it
                path.chmod(stat.S_IMODE((out / "config.json").stat().st_mode))
    model_fingerprint = fingerprint(model)
    # Several templates would become files in a subfolder, and a checkpoint has none.
    single = not isinstance(loaded.tokenizer.chat_template, dict)
    with disk_errors(out):
        loaded.tokenizer.save_pretrained(out, save_jinja_files=single)
    _write_config(out / "config.json", use_cache=loaded.source.config.get("use_cache", True))
    _write_tokenizer_config(out / "tokenizer_config.json")
    record = Record(facts, sparsity.of_folder(out), model_fingerprint, versions())
    record.write(out)
    stored = []
    for format_ in formats:
        if format_.file is not None and store:
            stored.append(store.write(format_.file, partial(write_stream, out, format_)))
        elif format_.file is not None:
            write_format(out, format_, out / format_.file)
    terms = notices(loaded.source.path) if loaded.source.path else []
    for path in terms:
        (out / path.name).write_bytes(path.read_bytes())
    (out / CARD).write_text(card(record, formats, [path.name for path in terms]), encoding="utf-8")
    (out / MANIFEST).write_bytes(manifest(out, stored))
    return stored


def remove_dense(out: Path, stored: Sequence[ListedFile] = ()) -> None:
    """Remove the dense model from a verified folder with other formats, and write the manifest of what remains.

    `stored` is what `export` returned.
    """
    for path in out.iterdir():
        if format_of(path.name) is OutputFormat.DENSE:
            path.unlink()
    (out / MANIFEST).write_bytes(manifest(out, stored))


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Round every parameter in place to the value that a checkpoint stores. The dtype stays. -0.0 becomes 0.0.

    Call this before you measure the scores of a checkpoint.
    """
    for weight in whole_parameters(model):
        weight.copy_(weight.to(EXPORT_DTYPE))
        weight.masked_fill_(weight == 0, 0.0)


@contextmanager
def _parameters_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Convert the parameters to `dtype` while the `with` block runs.

    Buffers are not converted, because rounding breaks rotary frequencies.
    """
    before = {weight: weight.dtype for weight in model.parameters()}
    for weight in before:
        weight.data = weight.data.to(dtype)
    try:
        yield
    finally:
        for weight, own in before.items():
            weight.data = weight.data.to(own)


def _write_config(path: Path, *, use_cache: bool) -> None:
    """Add `rope_theta` to config.json for older loaders, and restore `use_cache`, which loading turned off."""
    config: dict[str, Any] = {**json.loads(path.read_bytes()), "use_cache": use_cache}
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    _rewrite(path, config)


def _write_tokenizer_config(path: Path) -> None:
    """Set the tokenizer class to one that every version of transformers can build from `tokenizer.json` alone."""
    _rewrite(path, {**json.loads(path.read_bytes()), "tokenizer_class": "PreTrainedTokenizerFast"})


def _rewrite(path: Path, content: dict[str, Any]) -> None:
    """Write a configuration file without local paths, and without quantization settings that no longer apply."""
    path.write_bytes(canonical_json({key: value for key, value in content.items() if key not in _REMOVED_KEYS}))
