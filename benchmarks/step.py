"""What does a step of repair cost? Seconds and peak memory of every way to train, compared with a minimum.

    python -m benchmarks.step --model GGUF --data wikitext2_valid.txt --dtype bfloat16 --out step.json
    python -m benchmarks.step --model random:7B --device cuda --dtype bfloat16 --sides floor seft all --out step.json

*floor* is the forward pass and the backward pass to the inputs, with nothing trained. *lora* is PEFT's LoRA without a
mask. *spiel* does what SpIEL's published code does (github.com/AlanAnsell/peft): in both passes it copies the weight
and adds the trained values to the copy. It computes the gradient of the whole weight and takes the trained positions
from it. *lora* and *spiel* use AdamW of torch. The other sides are the recipes of `benchmarks.recipes`. *lora* and
*spiel* train the same number of values as the recipes that train a fraction of the weights.

A run has one shape of a batch, such as 2x512 for 2 windows of 512 tokens, and one density. Each side has a process of
its own, so that its peak memory is its own. All processes have their models in memory at once. The sides take their
steps in turn, so that a noisy machine slows all of them. The model is pruned by magnitude to 60 % zeros, which costs no
time. The table has medians.
"""

import argparse
import itertools
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.arguments import float_dtype, fraction, output_file, positive
from benchmarks.recipes import RECIPES, Recipe
from benchmarks.shapes import model_and_text, model_name
from benchmarks.turns import answer, peak_bytes, ratio_to_first, take_turns
from seft.config import PruneConfig, PruneMethod
from seft.float32_products import use_float32_products
from seft.loss import TokenLoss
from seft.models.targets import target_linears
from seft.prune.loop import prune_model
from seft.repair import Repair

WARM_UP = 3
Run = Callable[[], object]
SIDES = ("floor", "lora", "spiel", *(each for each in RECIPES if each not in {"lora_reprune", "all-admm", "ceiling"}))


class Shape(NamedTuple):
    """Number of windows in a step, which are all on the device at the same time, and their length in tokens."""

    windows: int
    length: int

    def __str__(self) -> str:
        return f"{self.windows}x{self.length}"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a process measures."""

    side: str
    shape: Shape
    density: float
    model: str
    data: Path | None
    dtype: torch.dtype
    device: str
    checkpointing: bool


def main() -> None:
    """Measure the sides in turn for each shape and density, and write the results as JSON."""
    arguments = _arguments()
    runs: list[dict[str, Any]] = []
    for shape, density in itertools.product(arguments.shapes, arguments.densities):
        common = (arguments.model, arguments.data, arguments.dtype, arguments.device, arguments.checkpointing)
        sides = {side: (Setting(side, shape, density, *common),) for side in arguments.sides}
        results, peaks = take_turns(_serve, sides, WARM_UP + arguments.rounds)
        seconds = {side: times[WARM_UP:] for side, times in results.items()}
        kind = str(arguments.dtype).removeprefix("torch.")
        runs.append({"dtype": kind, "shape": str(shape), "density": density, "seconds": seconds, "peak_bytes": peaks})
        print(f"\n{shape}, density {density:g}\n\n{table(runs[-1:])}", flush=True)
        found = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "model": arguments.model,
            "device": arguments.device,
            "checkpointing": arguments.checkpointing,
        }
        arguments.out.write_text(json.dumps({**found, "runs": runs}, indent=1) + "\n")
    if arguments.plot:
        from benchmarks.plots import plot_steps  # it needs matplotlib

        plot_steps(runs, arguments.plot)


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the runs as a table in Markdown: median seconds, their ratio to the first side, and peak memory."""
    sides = dict.fromkeys(side for run in runs for side in run["seconds"])
    heads = [f"{run['dtype']}, {run['shape']}" for run in runs]
    lines = [f"| side | {' | '.join(heads)} |", "| -- " * (1 + len(runs)) + "|"]
    lines += [f"| {side} | {' | '.join(_cell(run, side) for run in runs)} |" for side in sides]
    return "\n".join(lines)


def _cell(run: Mapping[str, Any], side: str) -> str:
    if side not in run["seconds"]:
        return ""
    median, ratio = statistics.median(run["seconds"][side]), ratio_to_first(run["seconds"], side)
    return f"{median:.2f} s ({ratio:.2f}), {run['peak_bytes'][side] / 1e6:,.0f} MB"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=model_name, help="folder, GGUF file, hub id or random:SHAPE")
    parser.add_argument("--data", type=Path, help="text to repair on; a random model needs none")
    parser.add_argument("--dtype", type=float_dtype, default=torch.float32, help="torch dtype of training")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--shapes", nargs="+", type=_shape, default=[Shape(2, 512)], help="such as 2x512 8x128")
    parser.add_argument("--densities", nargs="+", type=fraction, default=[0.005], help="parts of the weights to train")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again, in our methods only")
    parser.add_argument("--rounds", type=positive, default=7, help="rounds of timing")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="sides; the first is the base")
    parser.add_argument("--out", type=output_file, required=True, help="JSON file of the results")
    parser.add_argument(
        "--plot", type=output_file, help="SVG file of seconds and memory by tokens and by density; default: none"
    )
    return parser.parse_args()


def _shape(text: str) -> Shape:
    numbers = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not numbers:
        raise argparse.ArgumentTypeError(f"must be windows x tokens, such as 2x512; it is {text!r}")
    return Shape(int(numbers[1]), int(numbers[2]))


def _serve(setting: Setting, pipe: Any) -> None:
    """Run one side in its own process: load the model, take a step on each request, and report the peak at the end."""
    use_float32_products()
    model, tokens = model_and_text(setting.model, setting.data, setting.device, setting.dtype)
    if len(tokens) < math.prod(setting.shape):
        raise ValueError(f"the text has {len(tokens)} tokens; {setting.shape} needs {math.prod(setting.shape)}")
    step = _make(setting, model, tokens.to(setting.device))

    def timed() -> float:
        began = time.perf_counter()
        step()
        if setting.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    answer(pipe, timed, partial(peak_bytes, setting.device))


def _make(setting: Setting, model: Any, tokens: Int[Tensor, "tokens"]) -> Run:
    """Return the function that takes one step of a side."""
    recipe = RECIPES.get(setting.side)
    if not recipe or not recipe.prune or not recipe.prune.gradual:
        prune_model(model, tokens[:0].view(0, 8).cpu(), PruneConfig(0.6, PruneMethod.MAGNITUDE))
    if recipe:
        return _recipe(recipe, model, tokens, setting)
    windows, length = setting.shape
    batch = tokens[: windows * length].view(windows, length)
    match setting.side:
        case "floor":
            return _floor(model, batch)
        case "lora":
            return _lora(model, batch, setting.density)
        case _:
            return _spiel(model, batch, setting.density)


def _recipe(recipe: Recipe, model: Any, tokens: Int[Tensor, "tokens"], setting: Setting) -> Run:
    windows, length = setting.shape
    config = recipe.config(recipe.rates[0], steps=10_000, length=length)
    config = replace(config, batch_tokens=windows * length, micro_batch=windows)
    config = replace(config, activation_checkpointing=setting.checkpointing)
    if recipe.density != "all":
        config = replace(config, density=setting.density)
    return Repair(model, tokens.cpu(), config, pruned=recipe.prune).advance


def _floor(model: Any, batch: Int[Tensor, "windows tokens"]) -> Run:
    model.requires_grad_(False)
    model.enable_input_require_grads()
    losses = TokenLoss(model)
    return lambda: losses(batch).mean().backward()  # type: ignore[no-untyped-call]


def _lora(model: Any, batch: Int[Tensor, "windows tokens"], density: float) -> Run:
    from peft import LoraConfig, get_peft_model

    targets = target_linears(model)
    sides = sum(sum(target.weight.shape) for target in targets.values())
    rank = max(1, round(density * sum(target.weight.numel() for target in targets.values()) / sides))
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets)))
    adapted.enable_input_require_grads()
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    return _adamw(parameters, TokenLoss(model), batch)


def _spiel(model: Any, batch: Int[Tensor, "windows tokens"], density: float) -> Run:
    model.requires_grad_(False)
    model.enable_input_require_grads()
    parameters = []
    for name, target in target_linears(model).items():
        places = target.weight.flatten().nonzero()[:, 0]
        chosen = places[torch.randperm(len(places))[: round(density * target.weight.numel())]].sort().values
        module = Changed(target.weight, target.bias, chosen)
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, module)
        parameters.append(module.values)
    return _adamw(parameters, TokenLoss(model), batch)


def _adamw(parameters: list[nn.Parameter], losses: TokenLoss, batch: Int[Tensor, "windows tokens"]) -> Run:
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    def step() -> None:
        losses(batch).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


class Changed(nn.Module):
    """A linear with trained values that are added to a few of its frozen weights."""

    def __init__(self, weight: Tensor, bias: Tensor | None, places: Int[Tensor, "active"]) -> None:
        super().__init__()
        self.weight, self.bias, self.places = weight, bias, places
        self.values = nn.Parameter(torch.zeros(len(places), dtype=torch.float32, device=weight.device))

    def forward(self, x: Float[Tensor, "... cols"]) -> Float[Tensor, "... rows"]:
        """Return the product with the changed weight."""
        product: Tensor = _ChangedProduct.apply(x, self.weight, self.places, self.values)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


class _ChangedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, places: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, places, values)
        return functional.linear(x, _changed(weight, places, values))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, Tensor]:
        x, weight, places, values = ctx.saved_tensors
        (gradient,) = gradients
        whole = gradient.flatten(0, -2).T @ x.flatten(0, -2)
        return gradient @ _changed(weight, places, values), None, None, whole.view(-1)[places].float()


def _changed(weight: Tensor, places: Tensor, values: Tensor) -> Tensor:
    copy = weight.clone()
    copy.view(-1).index_add_(0, places, values.to(weight.dtype))
    return copy


if __name__ == "__main__":
    main()
