"""Write the sparse checkpoint: a Hugging Face folder in bfloat16 with exact zeros, which loads everywhere.

Its bytes depend on the weights and the facts alone, so a run that was killed and went on ends in the same sha256. Zeros
are not packed: the packed formats that loaders once knew are gone. `seft.checkpoint.verify` reads the folder again.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seft.checkpoint import sparsity
from seft.checkpoint.card import card
from seft.checkpoint.facts import MANIFEST, Facts, Record, canonical, manifest, versions
from seft.checkpoint.verify import fingerprint
from seft.errors import ConfigError
from seft.models.load import Loaded, quiet

EXPORT_DTYPE = torch.bfloat16
MAX_SHARD = "5GB"
_LEFT_OUT = (
    "_name_or_path",
    "name_or_path",
    "_model_name_or_path",
    "quantization_config",
    "is_local",
    "local_files_only",
)


def export(loaded: Loaded, out: Path, facts: Facts) -> None:
    """Write the folder; `manifest.json` comes last, so a folder without it is unfinished.

    The model is left with the rounded weights that were written, in the dtype it had. ConfigError when `out` is not
    empty. What this does not do: look whether the folder is good.
    """
    require_empty(out)
    out.mkdir(parents=True, exist_ok=True)
    model: Any = loaded.model
    round_weights(model)
    with quiet(), _parameters_in(model, EXPORT_DTYPE):
        model.save_pretrained(out, max_shard_size=MAX_SHARD)
    with _parameters_in(model, torch.float32):
        mark = fingerprint(model)
    loaded.tokenizer.save_pretrained(out)
    _settle_config(out / "config.json", use_cache=loaded.source.config.get("use_cache", True))
    _settle_tokenizer(out / "tokenizer_config.json")
    record = Record(facts, sparsity.of_folder(out), mark, versions())
    record.write(out)
    (out / "README.md").write_text(card(record), encoding="utf-8")
    (out / MANIFEST).write_bytes(manifest(out))


def require_empty(out: Path) -> None:
    """ConfigError unless `out` is a new or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("out", "must be a new or an empty folder", str(out), "Name another one, or empty it.")


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Give every parameter the value it will have in the checkpoint, in place; its dtype stays. -0.0 becomes 0.0.

    Scores that are to be true of the checkpoint are measured after this.
    """
    for weight in model.parameters():
        weight.copy_(weight.to(EXPORT_DTYPE))
        weight.masked_fill_(weight == 0, 0.0)


@contextmanager
def _parameters_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, the parameters have `dtype`. Buffers keep theirs: rotary frequencies do not survive rounding."""
    before = {weight: weight.dtype for weight in model.parameters()}
    for weight in before:
        weight.data = weight.data.to(dtype)
    try:
        yield
    finally:
        for weight, own in before.items():
            weight.data = weight.data.to(own)


def _settle_config(path: Path, *, use_cache: bool) -> None:
    """With `rope_theta` where older loaders look for it, and the cache that `seft.models.load` switched off for its work."""
    config: dict[str, Any] = {**json.loads(path.read_bytes()), "use_cache": use_cache}
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    _rewrite(path, config)


def _settle_tokenizer(path: Path) -> None:
    """The class that every version of transformers builds from `tokenizer.json` alone."""
    _rewrite(path, {**json.loads(path.read_bytes()), "tokenizer_class": "PreTrainedTokenizerFast"})


def _rewrite(path: Path, content: dict[str, Any]) -> None:
    """Without paths of this machine and without what the weights no longer are."""
    path.write_bytes(canonical({key: value for key, value in content.items() if key not in _LEFT_OUT}))
