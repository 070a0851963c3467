"""What does a step of repair cost? Seconds and peak memory of every way to train, compared with a minimum.

    python -m benchmarks.repair --model GGUF --data wikitext2_valid.txt --dtype bfloat16 --out repair.json

*floor* is the forward pass and the backward pass to the inputs, with nothing trained. *lora* is PEFT's LoRA without a
mask, of the rank that trains about 0.5 % of the weights, with AdamW of torch. The others are recipes of
`benchmarks.recipes`. Each side has a process of its own, so that its peak memory is its own; the sides take their steps
in turn, so that a noisy machine slows all of them. The model is pruned by magnitude to 60 % zeros, which costs no time.
A step has 2 windows of 512 tokens. The table has medians.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.multiprocessing import get_context

from benchmarks.recipes import RECIPES, Recipe
from seft.config import PruneConfig, PruneMethod
from seft.data.records import read
from seft.data.text import tokenize
from seft.loss import TokenLoss
from seft.models.load import Loaded, load
from seft.models.source import find
from seft.models.targets import target_linears
from seft.prune.loop import prune_model
from seft.repair import Repair

BATCH = 2
WARM_UP = 3
DENSITY = 0.005
Run = Callable[[], object]
SIDES = ("floor", "lora", *(name for name in RECIPES if name not in {"lora_reprune", "all-admm", "ceiling"}))


def main() -> None:
    """Measure the sides in turn, and write the results as JSON."""
    arguments = _arguments()
    context = get_context("spawn")
    sides = {}
    for name in arguments.sides:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(name, arguments, theirs), daemon=True)
        process.start()
        ours.recv()  # one model is loaded at a time
        sides[name] = ours
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(WARM_UP + arguments.rounds):
        for name, pipe in sides.items():
            pipe.send("step")
            taken = pipe.recv()
            if number >= WARM_UP:
                seconds[name].append(taken)
    peaks = {name: _ask(pipe, "peak") for name, pipe in sides.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print("| side | seconds | to floor | peak MB |\n|---|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {median / medians[arguments.sides[0]]:.2f} | {peaks[name] / 1e6:,.0f} |")
    found = {"torch": torch.__version__, "threads": torch.get_num_threads(), "dtype": str(arguments.dtype)}
    arguments.out.write_text(json.dumps({**found, "seconds": seconds, "peak_bytes": peaks}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, GGUF file or hub id")
    parser.add_argument("--data", required=True, type=Path, help="text to repair on")
    parser.add_argument("--dtype", type=partial(getattr, torch), default=torch.float32, help="torch dtype of training")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--length", type=int, default=512, help="tokens per window")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of timing")
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=list(SIDES), help="sides; the first is the base")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results")
    return parser.parse_args()


def _ask(pipe: Any, question: str) -> Any:
    pipe.send(question)
    return pipe.recv()


def _serve(name: str, arguments: argparse.Namespace, pipe: Any) -> None:
    """Run one side in its own process: load the model, take a step on each request, and at last report the peak."""
    loaded = load(find(arguments.model), dtype=arguments.dtype)
    tokens = tokenize(read(arguments.data), loaded.tokenizer)
    step = _make(name, loaded, tokens.to(arguments.device), arguments)
    pipe.send("ready")
    while pipe.recv() == "step":
        began = time.perf_counter()
        step()
        if arguments.device != "cpu":
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - began)
    pipe.send(_peak(arguments.device))


def _peak(device: str) -> int:
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated()


def _make(name: str, loaded: Loaded, tokens: Int[Tensor, "tokens"], arguments: argparse.Namespace) -> Run:
    """Return the function that takes one step of a side."""
    model: Any = loaded.model
    recipe = RECIPES.get(name)
    if recipe and recipe.prune and recipe.prune.gradual:
        model.to(arguments.device)
        return _recipe(recipe, model, tokens, arguments.length)
    prune_model(model, tokens[:0].view(0, 8).cpu(), PruneConfig(0.6, PruneMethod.MAGNITUDE))
    model.to(arguments.device)
    batch = tokens[: BATCH * arguments.length].view(BATCH, arguments.length)
    match name:
        case "floor":
            return _floor(model, batch)
        case "lora":
            return _lora(model, batch)
        case _:
            return _recipe(RECIPES[name], model, tokens, arguments.length)


def _recipe(recipe: Recipe, model: Any, tokens: Int[Tensor, "tokens"], length: int) -> Run:
    config = recipe.config(recipe.rates[0], steps=10_000, length=length)
    return Repair(model, tokens.cpu(), config, pruned=recipe.prune).advance


def _floor(model: Any, batch: Int[Tensor, "windows tokens"]) -> Run:
    model.requires_grad_(False)
    model.enable_input_require_grads()
    losses = TokenLoss(model)
    return lambda: losses(batch).mean().backward()  # type: ignore[no-untyped-call]


def _lora(model: Any, batch: Int[Tensor, "windows tokens"]) -> Run:
    from peft import LoraConfig, get_peft_model

    targets = target_linears(model)
    sides = sum(sum(target.weight.shape) for target in targets.values())
    rank = max(1, round(DENSITY * sum(target.weight.numel() for target in targets.values()) / sides))
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets)))
    adapted.enable_input_require_grads()
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(parameters, lr=1e-3), TokenLoss(model)

    def step() -> None:
        losses(batch).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
