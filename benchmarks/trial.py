"""Code that the repair benchmarks share: one pruned model, its training and evaluation, and saved results.

The model is pruned to 60 % zeros on the first 48 windows (sequences) of 512 tokens, in float32, by default by Wanda,
and saved in the working folder. It is trained in `dtype` and evaluated in float32: perplexity on the first 20 windows
of 1024 tokens.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from seft.checkpoint.pack import load_pruned, save_pruned
from seft.config import CalibrationOrder, PruneConfig, PruneMethod, RepairConfig
from seft.data.records import read
from seft.data.text import tokenize, windows
from seft.evaluate import perplexity
from seft.models.load import load
from seft.models.source import ModelSource, find
from seft.prune.loop import prune_model
from seft.repair import Repair
from seft.report import Evolved, Report, Step

PRUNE = PruneConfig(0.6, PruneMethod.WANDA, samples=48, tokens=512)
BATCH, LENGTH = 2, 512
Cell = dict[str, Any]


class Trial:
    """A model that can be pruned and trained many times. Each training starts from exactly the same weights."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.work.mkdir(parents=True, exist_ok=True)
        self._source: ModelSource = find(arguments.model)
        evaluated, trained = (load(self._source, dtype=dtype) for dtype in (torch.float32, arguments.dtype))
        self.evaluated, self.model, self.tokenizer = evaluated.model, trained.model, evaluated.tokenizer
        self.tokens = tokenize(read(arguments.data), self.tokenizer)
        self.test = windows(tokenize(read(arguments.test), self.tokenizer), 1024, 20, CalibrationOrder.SEQUENTIAL, 0)
        self.dense: Path = self.work / "dense.safetensors"
        if not self.dense.exists():
            save_pruned(self.model, self.dense)

    @property
    def pruned(self) -> Path:
        """File of the weights after the default pruning."""
        return self.base(PRUNE)

    def train(self, config: RepairConfig, result: Path, prune: PruneConfig = PRUNE) -> Cell:
        """Repair the model, save its weights in the file `result`, and return the evaluation of these weights."""
        load_pruned(self.model, self.base(prune))
        repair = Repair(self.model, self.tokens, config, pruned=prune)
        began = time.perf_counter()
        repair.run(_print)
        seconds, trained, grown = time.perf_counter() - began, repair.trained_values, repair.grown_zeros
        repair.finish()
        save_pruned(self.model, result)
        score = self.perplexity(result)
        return {"perplexity": score, "trained": trained, "grown_zeros": grown, "training_seconds": seconds}

    def perplexity(self, weights: Path) -> float:
        """Return the perplexity of the model with the weights in a file."""
        return perplexity(self.in_float32(weights), self.test)

    @torch.no_grad()
    def in_float32(self, weights: Path) -> Any:
        """Return the model in float32 with the weights in a file, which are in the dtype of training."""
        load_pruned(self.model, weights)
        for target, source in zip(self.evaluated.parameters(), self.model.parameters(), strict=True):
            target.copy_(source)
        return self.evaluated

    def base(self, prune: PruneConfig) -> Path:
        """Return the file of the weights before training. Prunes the dense model if the file is missing."""
        if prune.gradual:
            return self.dense
        path = self.work / f"pruned {prune.summary} {prune.sparsity:g}.safetensors"
        if not path.exists():
            calibration = windows(self.tokens, prune.tokens, prune.samples, CalibrationOrder.SEQUENTIAL, 0)
            self.evaluated.load_state_dict(load(self._source).model.state_dict())
            prune_model(self.evaluated, calibration, prune)
            with torch.no_grad():
                for target, source in zip(self.model.parameters(), self.evaluated.parameters(), strict=True):
                    target.copy_(source)
            save_pruned(self.model, path)
        return path


class Cells:
    """Results by name. They are saved to a file after each, so that an interrupted run can resume."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.results: dict[str, Cell] = json.loads(path.read_text())["cells"] if path.exists() else {}

    def fill(self, name: str, make: Callable[[], Cell]) -> Cell:
        """Return the result with this name. If it is missing, call `make`, and save what it returns."""
        if name not in self.results:
            self.results[name] = make()
            made_with = {
                "machine": platform.machine(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({"made_with": made_with, "cells": self.results}, indent=1) + "\n")
            print(name, self.results[name], flush=True)
        return self.results[name]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every repair benchmark."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True, help="folder, GGUF file or hub id")
    options.add_argument("--data", required=True, type=Path, help="text to prune and repair on")
    options.add_argument("--test", required=True, type=Path, help="text to measure perplexity on")
    options.add_argument(
        "--work", type=Path, default=Path("build/trial"), help="folder of weights, used again if present"
    )
    options.add_argument("--out", type=Path, required=True, help="JSON file of results; an existing file is resumed")
    options.add_argument(
        "--dtype",
        type=lambda name: getattr(torch, name),
        default=torch.float32,
        help="torch dtype of training, such as bfloat16",
    )
    return options


def _print(report: Report) -> None:
    if isinstance(report, Step) and report.step % 20 == 0:
        print(report, flush=True)
    elif isinstance(report, Evolved):
        print(f"event {report.step}", flush=True)
