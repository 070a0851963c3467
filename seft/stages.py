"""The stages of pruning and repairing one model: calibration text, prune, repair, export, and the facts of the result.

The commands (`seft.verbs`) and the training process of the service (`worker.pipeline`) both run these stages, so equal
input gives equal bits. The callers read files, resume and decide when to stop.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seft.checkpoint.export import export, remove_dense
from seft.checkpoint.facts import Base, Facts, Machine, Record
from seft.checkpoint.formats import Store
from seft.checkpoint.verify import verify
from seft.config import OutputFormat, PruneConfig, RepairConfig, Retain
from seft.data import records
from seft.data.packing import Encoded, Packed, concatenate, pack
from seft.data.text import encode, windows
from seft.data.tokens import bos_tokens
from seft.errors import ConfigError, DataError
from seft.evaluate import mean_loss
from seft.models.gguf_tokenizer import tokenizer_rules
from seft.models.load import Loaded
from seft.prune.detect_zeros import MIN_SPARSITY, config_of_zeros, find_zeros
from seft.prune.loop import prune_model
from seft.prune.reconstruct import reconstruct
from seft.repair import Repair, RepairResult
from seft.repair.processes import process_count
from seft.report import Phase, Progress, Reporter, silent
from seft.retain import split_retained, start_tokens, with_predictions, write_windows

LoadModel = Callable[[], Any]
"""Function that loads a dense model. It is called only if the stage needs the model."""


def calibration_windows(
    records: Sequence[Encoded], tokenizer: Any, config: PruneConfig
) -> Int[Tensor, "windows tokens"]:
    """Return the windows of the text that pruning reads; none if it reads no text."""
    if not config.reads_calibration:
        return torch.zeros(0, config.tokens, dtype=torch.int64)
    head = bos_tokens(tokenizer)
    return windows(concatenate(records), config.tokens, config.samples, config.order, config.seed, head=head)


def windows_to_retain(dataset: Sequence[Encoded], config: RepairConfig) -> Packed:
    """Return the first windows of a dataset that is to be retained, without predictions.

    They are a copy, so that the rest of the dataset does not stay in memory. Raises DataError if there are fewer than
    two windows.
    """
    try:
        windows = pack(dataset, config.sequence_tokens)
    except DataError as error:
        raise DataError(f"the text to retain fills no sequence: {error}") from error
    if len(windows) < 2:
        raise DataError(
            f"the text to retain must fill at least two sequences of {config.sequence_tokens} tokens; it fills"
            f" {len(windows)}. Give more text, or set fewer tokens per sequence."
        )
    return windows[torch.arange(min(len(windows), config.retained_windows))]


def retained_text(
    loaded: Loaded, config: RepairConfig, start: Sequence[int], dataset: Packed | None, report: Reporter = silent
) -> Packed | None:
    """Return the text that the repair retains, with the predictions of the dense model, or None if it retains none.

    `loaded` is the dense model, on the device on which it runs. It writes after the tokens `start`, the result of
    `seft.retain.start_tokens`. If a dataset is to be retained, `dataset` is the result of `windows_to_retain`.
    """
    if not config.retains:
        return None
    if dataset is not None:
        return with_predictions(loaded.model, dataset, report)
    windows = write_windows(loaded.model, start, config, report)
    return with_predictions(loaded.model, windows, report, written=True)


def retained_on(
    device: str,
    loaded: Loaded,
    config: RepairConfig,
    dataset: Sequence[records.Record] | None,
    report: Reporter = silent,
) -> Packed | None:
    """Return the text that the repair retains, or None. The dense model is on `device` meanwhile.

    `dataset` has the records to retain, if `config` retains a dataset.
    """
    if not config.retains:
        return None
    model: Any = loaded.model
    before, windows = model.device, None
    model.to(device)
    if config.retain is Retain.DATASET:
        windows = windows_to_retain(encode(dataset or (), loaded.tokenizer), config)
    retained = retained_text(loaded, config, start_tokens(loaded.tokenizer), windows, report)
    model.to(before)
    return retained


def prune(
    loaded: Loaded,
    calibration: Int[Tensor, "windows tokens"],
    config: PruneConfig,
    load_dense: LoadModel,
    report: Reporter = silent,
    *,
    device: str | None = None,
) -> None:
    """Prune the model in place, then reconstruct its blocks if `config` has reconstruction epochs.

    One block at a time is on `device`; None means the device of the model. `load_dense` is called only for
    reconstruction. With the schedule `gradual` nothing is pruned, because the sparsity rises during the repair. With
    the sparsity 0 nothing is pruned either.
    """
    if config.gradual or config.keeps_zeros:
        return
    prune_model(loaded.model, calibration, config, report, device=device)
    if config.reconstruct_epochs:
        reconstruct(loaded.model, load_dense(), calibration, config, report, device=device)


def start_repair(
    loaded: Loaded,
    training: Packed,
    config: RepairConfig,
    *,
    pruned: PruneConfig,
    load_teacher: LoadModel,
    retained: Packed | None,
    held_out: Packed | None,
    heartbeat: Reporter = silent,
) -> Repair:
    """Return a repair before its first step, with the teacher and the held-out evaluation that `config` requires.

    `retained` is the result of `retained_text`. A part of it is not trained on (`seft.retain.split_retained`).

    `heartbeat` is called regularly during each held-out evaluation, and may raise an exception to stop.
    """
    teacher = load_teacher() if config.distills else None
    kept, measured = split_retained(retained) if retained else (None, None)
    loss = None
    if config.evaluate_interval and held_out is not None:
        loss = partial(_held_out_loss, loaded.model, held_out, measured, config.retain_share, heartbeat)
    return Repair(loaded.model, training, config, pruned=pruned, teacher=teacher, retained=kept, held_out_loss=loss)


def _held_out_loss(model: Any, held_out: Packed, retained: Packed | None, share: float, heartbeat: Reporter) -> float:
    """Return the mean loss on held-out text, mixed with the loss on retained text, if any, as in training."""
    loss = mean_loss(model, held_out, heartbeat)
    return loss if retained is None else (1 - share) * loss + share * mean_loss(model, retained, heartbeat)


def pruned_facts(
    loaded: Loaded,
    config: PruneConfig,
    calibration_sha256: str | None,
    report: Reporter = silent,
    *,
    base: Base,
    machine: Machine | None,
) -> Facts:
    """Return the facts of a model that was pruned on this machine and not repaired. They contain no scores yet.

    `base` is the model from before pruning. `machine` is None if it is unknown. If `config` keeps the zeros of the
    model, the facts and a report say which zeros it has.
    """
    found = find_zeros(loaded.model) if config.keeps_zeros else None
    if found:
        report(found)
    return Facts(
        base=base,
        prune=config_of_zeros(config, found) if found else config,
        zeros_found=found is not None,
        repair=None,
        scores={},
        evaluate=None,
        grown_zeros=0,
        calibration_sha256=calibration_sha256,
        dataset_sha256=None,
        pruned_on=machine,
    )


def require_zeros(config: PruneConfig, facts: Facts) -> None:
    """Raise ConfigError if `config` keeps the zeros of a model that has none. `facts` is from `pruned_facts`."""
    if config.keeps_zeros and not facts.zeros_found:
        way_out = "Ask for a sparsity above 0, or use a pruned model."
        raise ConfigError(
            "sparsity", f"must be above 0 for a model with less than {MIN_SPARSITY:.0%} zeros", 0.0, way_out
        )


def repaired_facts(
    facts: Facts,
    config: RepairConfig,
    result: RepairResult,
    *,
    teacher: Base | None,
    dataset_sha256: str,
    machine: Machine,
) -> Facts:
    """Return the facts of a model repaired on this machine. `facts` are the facts of the pruned model.

    The scores of the pruned model are left out.

    `teacher` is recorded only if `config` distills or retains.
    """
    last, kept = result.last_step, result.kept_step
    return replace(
        facts,
        repair=config,
        stopped_at=last if last < config.steps else None,
        kept_at=kept if kept < last else None,
        teacher=teacher if config.distills or config.retains else None,
        grown_zeros=result.grown_zeros,
        peak_rate=result.peak_rate,
        dataset_sha256=dataset_sha256,
        scores={},
        evaluate=None,
        repaired_on=replace(machine, processes=process_count()),
    )


def require_expressible(tokenizer: Any, formats: Sequence[OutputFormat]) -> None:
    """Raise ConfigError if a format has no such tokenizer, so that a job fails before it trains."""
    if any(each.is_gguf for each in formats):
        tokenizer_rules(json.loads(tokenizer.backend_tokenizer.to_str()))


def publish(
    loaded: Loaded,
    out: Path,
    facts: Facts,
    report: Reporter = silent,
    formats: Sequence[OutputFormat] = (OutputFormat.DENSE,),
    *,
    store: Store | None = None,
) -> Record:
    """Export the model to the folder `out` and verify the folder. Returns the content of its `sparsity.json`.

    With `store`, the files of other formats are in the store and not in the folder. The process that `standby(store)`
    started reads them from the store to verify them. Reports half of the phase EXPORTING after the export, and all of
    it after the verification. If `dense` is not among the formats, the dense files are removed after the verification.
    """
    stored = export(loaded, out, facts, formats, store)
    report(Progress(Phase.EXPORTING, 1, 2))
    verify(out)
    if OutputFormat.DENSE not in formats:
        remove_dense(out, stored)
    report(Progress(Phase.EXPORTING, 2, 2))
    return Record.read(out)
