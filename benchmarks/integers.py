"""What do int8 and NF4 values cost? Sizes and perplexities of one model in every format.

    python -m benchmarks.integers WEIGHTS --model GGUF --data DIR

`WEIGHTS` is a file that `benchmarks.quality` wrote into the folder of its option `--work`: the weights of one
experiment with the model `GGUF`. `DIR` has the texts, under the names in `benchmarks.cells`. Each format is written
and verified as a job does, loaded from its file, and judged in float32 on the windows of `benchmarks.quality`.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import seft
from benchmarks.cells import JUDGED, Bench
from seft.checkpoint.formats import verify_format, write_format
from seft.checkpoint.pruned_state import load_pruned
from seft.config import OutputFormat
from seft.evaluate import mean_loss
from seft.float32_products import use_float32_products
from seft.models.load import Loaded, load
from seft.models.source import find


def main() -> None:
    """Print a row for each format."""
    arguments = _arguments()
    torch.set_grad_enabled(False)
    use_float32_products()
    bench = Bench(arguments.model, arguments.data, arguments.data)
    loaded = load(bench.source, dtype=torch.bfloat16)
    load_pruned(loaded.model, arguments.weights)
    print(f"| format | MB | {' | '.join(JUDGED)} | seconds to write |\n| --{' | --' * (len(JUDGED) + 2)} |")
    with TemporaryDirectory() as name:
        for line in _rows(loaded, bench, Path(name), arguments.formats):
            print(line, flush=True)


def _rows(loaded: Loaded, bench: Bench, folder: Path, formats: list[OutputFormat]) -> Iterator[str]:
    dense = folder / "dense"
    model: Any = loaded.model
    model.save_pretrained(dense)
    loaded.tokenizer.save_pretrained(dense)
    for format_ in formats:
        path, seconds = dense, 0.0
        if format_.file:
            path, began = folder / format_.file, time.process_time()
            write_format(dense, format_, path)
            seconds = time.process_time() - began
            verify_format(dense, path, format_)
        size = sum(each.stat().st_size for each in path.iterdir()) if path.is_dir() else path.stat().st_size
        judged = load(find(str(path))).model if format_.is_gguf else seft.load(path, dtype=torch.float32)
        scores = [math.exp(mean_loss(judged, bench.test(name, loaded.tokenizer))) for name in JUDGED]
        yield f"| `{format_}` | {size / 1e6:.1f} | {' | '.join(f'{each:.2f}' for each in scores)} | {seconds:.1f} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="file of benchmarks.quality with the weights of one experiment")
    parser.add_argument("--model", required=True, help="folder, GGUF file or hub id of the model")
    parser.add_argument("--data", required=True, type=Path, help="folder of the texts")
    formats = list(OutputFormat)
    parser.add_argument("--formats", nargs="*", type=OutputFormat, choices=formats, default=formats, help="formats")
    return parser.parse_args()


if __name__ == "__main__":
    main()
