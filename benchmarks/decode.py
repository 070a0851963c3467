"""How long does a token take on the CPU? Decoding by torch, by a dense kernel and by the kernels that use the zeros.

    python -m benchmarks.decode --model GGUF --out decode.json     # a model, pruned by magnitude
    python -m benchmarks.decode --out decode.json                  # random Llama with 1.1 billion weights

All sides take turns, a few tokens each, so that a noisy machine slows all of them. Our sides and torch's sides are in
one process and share the parameters that they do not replace. llama.cpp has a process per model (`--llama`). *dense*
runs every linear by our dense kernel, which has the same loops, sums and threads as the sparse one. Two times are given
per side: the median on the clock, and the lowest CPU time of one token. Other programs disturb the CPU time less. It is
the sum over all threads. The bound is the bytes that a token reads, divided by the bandwidth of reading memory that the
same run measured.

`--memory` measures the resident memory of each side after it has decoded, in a process of its own. The memory of
llama.cpp includes the file that it maps. `--perplexity` measures int8 with x quantised (as in decoding) and not
quantised (as for a long prompt) on a text, beside bfloat16.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.llama import LlamaCpp, write_gguf
from benchmarks.shapes import config_of, random_model
from benchmarks.turns import answer, resident_bytes, take_turns
from seft.data.records import read
from seft.data.text import encode, evaluation_windows
from seft.devices import trim_memory
from seft.float32_products import use_float32_products
from seft.models.load import load, load_tokenizer
from seft.models.source import find
from seft.models.targets import target_linears
from seft.native import kernels
from seft.runtime import compressed
from seft.runtime.accelerate import SparseLinear, accelerate
from seft.runtime.generate import advance

SIDES = ("torch bfloat16", "dense", "sparse", "sparse int8")
WARM_UP, ROUND = 2, 8
PROMPT = 16


def main() -> None:
    """Measure every sparsity and number of threads, print tables, and write the results as JSON."""
    arguments = _arguments()
    use_float32_products()
    results = []
    for zeros in arguments.sparsity:
        base = _base(arguments.model, zeros)
        if arguments.perplexity:
            print(json.dumps({"zeros": zeros, "perplexity": _perplexities(base, arguments)}))
            continue
        if arguments.memory:
            _print_memory(base.config, zeros, arguments)
            continue
        sides = {name: _side(_shared(base), name) for name in _names(arguments)}
        same = _greedy(sides["dense"]) == _greedy(sides["sparse"])
        with _others(arguments.llama, base.config) as others:
            for threads in arguments.threads:
                torch.set_num_threads(threads)
                found = _measure(sides, others, arguments.tokens)
                results.append({"zeros": zeros, "threads": threads, "same_tokens": same, **found})
                _print(results[-1])
    if arguments.out:
        level = kernels.level()
        about = {"torch": torch.__version__, "level": level and level.name, "model": arguments.model}
        arguments.out.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or GGUF file; without it a random Llama")
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.6, 0.7], help="shares of zeros")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="numbers of threads")
    parser.add_argument("--tokens", type=int, default=24, help="tokens per side")
    parser.add_argument("--float32", action="store_true", help="also torch in float32, which needs the most memory")
    parser.add_argument("--llama", help="Python that has llama-cpp-python, to measure llama.cpp too")
    parser.add_argument("--perplexity", type=Path, help="measure perplexity on this text instead of speed")
    parser.add_argument("--memory", action="store_true", help="measure resident memory instead of speed")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    arguments = parser.parse_args()
    if arguments.out and (arguments.memory or arguments.perplexity):
        parser.error("--out has the speed, so it cannot be given with --memory or --perplexity")
    return arguments


def _base(reference: str | None, zeros: float) -> Any:
    """Return a model in bfloat16 whose linears are pruned by magnitude."""
    if reference:
        model: Any = load(find(reference), dtype=torch.bfloat16).model
    else:
        model = random_model(config_of("1.1B"), "cpu", torch.bfloat16)
    for target in target_linears(model).values():
        weight = target.weight
        part = weight.abs().float().flatten()[:1_000_000]
        weight[weight.abs() <= part.kthvalue(max(1, int(zeros * part.numel()))).values] = 0
    return model


def _names(arguments: argparse.Namespace) -> list[str]:
    return [*SIDES, *(["torch float32"] if arguments.float32 else [])]


def _shared(base: Any) -> Any:
    """Return a copy of a model that shares its parameters."""
    return copy.deepcopy(base, {id(parameter): parameter for parameter in base.parameters()})


def _side(model: Any, name: str) -> Any:
    """Return the model of a side. It keeps the parameters that it does not replace."""
    match name:
        case "dense":
            return accelerate(model, least_zeros=2)
        case "sparse":
            return accelerate(model)
        case "sparse int8":
            return accelerate(model, "int8")
        case "torch float32":
            model = copy.deepcopy(model)
            for parameter in model.parameters():
                parameter.data = parameter.data.float()
            return model
        case _:
            return model


def _print_memory(config: Any, zeros: float, arguments: argparse.Namespace) -> None:
    """Print the resident memory of each side after it has decoded, in a process of its own."""
    resident: dict[str, int] = {}
    for name in _names(arguments):  # one side at a time, because together they need much memory
        resident |= take_turns(_decode_alone, {name: (name, arguments.model, zeros)}, 1)[1]
    with _others(arguments.llama, config) as others:
        for name, other in others.items():
            other.tokens(1, ROUND)
            resident[name] = resident_bytes(other.pid)
    print(f"\n{zeros:.0%} zeros\n| side | resident MB |\n|---|---|")
    for name, size in resident.items():
        print(f"| {name} | {size / 1e6:,.0f} |", flush=True)


def _decode_alone(name: str, reference: str | None, zeros: float, pipe: Any) -> None:
    use_float32_products()
    torch.set_num_threads(1)
    model = _side(_base(reference, zeros), name)
    trim_memory()
    answer(pipe, lambda: _greedy(model, ROUND), lambda: resident_bytes("self"))


@torch.inference_mode()
def _greedy(model: Any, count: int = 32) -> list[int]:
    given, cache, tokens = torch.arange(10, 10 + PROMPT)[None], None, list[int]()
    for _ in range(count):
        logits, cache = advance(model, given, cache)
        given = logits.argmax(-1, keepdim=True)
        tokens.append(int(given))
    return tokens


@contextmanager
def _others(python: str | None, config: Any) -> Iterator[dict[str, LlamaCpp]]:
    """Yield the sides of llama.cpp, with random models of the same sizes."""
    others = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("Q8_0", "BF16") if python else ():
            path = Path(folder) / f"{kind}.gguf"
            size = write_gguf(config, path, kind)
            others[f"llama.cpp {kind}"] = LlamaCpp(str(python), path, size)
        yield others
        for other in others.values():
            other.close()


@torch.inference_mode()
def _measure(sides: dict[str, Any], others: dict[str, LlamaCpp], count: int) -> dict[str, Any]:
    """Time `count` tokens per side, in rounds of WARM_UP + ROUND tokens. The first tokens of a round are left out."""
    prompt, token = torch.arange(10, 10 + PROMPT)[None], torch.tensor([[5]])
    clock: dict[str, list[float]] = {name: [] for name in (*sides, *others)}
    cpu: dict[str, list[float]] = {name: [] for name in (*sides, *others)}
    bandwidths = []
    memory = torch.ones(1 << 26, dtype=torch.int64)
    for _ in range(max(1, count // ROUND)):
        for name, model in sides.items():
            _, cache = advance(model, prompt, None)
            for number in range(WARM_UP + ROUND):
                began, used = time.perf_counter(), time.process_time()
                _, cache = advance(model, token, cache)
                if number >= WARM_UP:
                    clock[name].append(1e3 * (time.perf_counter() - began))
                    cpu[name].append(1e3 * (time.process_time() - used))
        for name, other in others.items():
            times = other.tokens(torch.get_num_threads(), WARM_UP + ROUND)
            clock[name] += times[0][WARM_UP:]
            cpu[name] += times[1][WARM_UP:]
        began = time.process_time()
        memory.sum()
        bandwidths.append(memory.nbytes / (time.process_time() - began) * torch.get_num_threads())
    sizes = {name: _bytes(model) for name, model in sides.items()} | {name: o.bytes for name, o in others.items()}
    return {
        "bandwidth": max(bandwidths),
        "sides": {
            name: {
                "clock_ms": statistics.median(clock[name]),
                "cpu_ms": min(cpu[name]),
                "bytes": size,
                "bound_ms": 1e3 * size / max(bandwidths),
            }
            for name, size in sizes.items()
        },
    }


def _bytes(model: Any) -> int:
    """Bytes of the linears and the head, which every token reads."""
    total = 0
    for module in model.modules():
        if isinstance(module, SparseLinear):
            total += module.matrix.nbytes
        elif isinstance(getattr(module, "weight", None), nn.Parameter) and not isinstance(module, nn.Embedding):
            total += module.weight.nbytes
    return total


def _print(result: dict[str, Any]) -> None:
    print(f"\n{result['zeros']:.0%} zeros, {result['threads']} threads, {result['bandwidth'] / 1e9:.1f} GB/s read")
    print(f"dense and sparse give the same greedy tokens: {result['same_tokens']}")
    print("| side | clock ms | cpu ms | dense / side (cpu) | MB read | bound ms |\n|---|---|---|---|---|---|")
    base = result["sides"]["dense"]["cpu_ms"]
    for name, side in result["sides"].items():
        columns = (side["clock_ms"], side["cpu_ms"], base / side["cpu_ms"], side["bytes"] / 1e6, side["bound_ms"])
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in columns) + " |", flush=True)


def _perplexities(base: Any, arguments: argparse.Namespace) -> dict[str, float]:
    records = encode(read(arguments.perplexity), load_tokenizer(find(arguments.model)))
    windows = evaluation_windows(records, 256, 8)
    found = {"bfloat16": _perplexity(base, windows.tokens)}
    accelerate(base, "int8")
    found["int8, x not quantised"] = _perplexity(base, windows.tokens)
    before, compressed.EXPANDED_FROM = compressed.EXPANDED_FROM, 1 << 30
    found["int8, x quantised"] = _perplexity(base, windows.tokens)
    compressed.EXPANDED_FROM = before
    return found


@torch.inference_mode()
def _perplexity(model: Any, windows: Int[Tensor, "windows tokens"]) -> float:
    """Return the perplexity from all logits. `seft.evaluate` needs the weight of the head, which int8 replaces."""
    losses = [
        functional.cross_entropy(model(input_ids=window[None]).logits[0, :-1].float(), window[1:]) for window in windows
    ]
    return float(torch.stack(losses).mean().exp())


if __name__ == "__main__":
    main()
