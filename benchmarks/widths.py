"""How does the best learning rate depend on the width of a model? Repairs small models of several widths.

    python -m benchmarks.widths --data DIR --out widths.json

A model reads bytes and has four blocks. It is trained on WikiText-2's validation file with AdamW, then pruned to 60 %
by ADMM, and all nonzeros are repaired at each rate on the same file. The figures are losses in nats per byte on
WikiText-2's test file. `DIR` has these files, under the names in `benchmarks.cells`.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.cells import JUDGED, TRAINED
from benchmarks.recipes import ADMM
from seft.config import CalibrationOrder, RepairConfig
from seft.data.text import windows
from seft.evaluate import mean_loss
from seft.loss import TokenLoss
from seft.prune.loop import prune_model
from seft.repair import Repair
from seft.seeds import generator

LENGTH, WINDOWS = 256, 8
TEST_WINDOWS = 128


def main() -> None:
    """Train, prune and repair a model of each width, and write the losses as JSON."""
    arguments = _arguments()
    train, test = (_bytes(arguments.data / files["wikitext2"]) for files in (TRAINED, JUDGED))
    test = test[: TEST_WINDOWS * LENGTH].view(-1, LENGTH)
    found = []
    for width in arguments.widths:
        dense = _model(width)
        _train(dense, train, arguments.training_steps, rate=0.2 / width)
        row: dict[str, Any] = {"width": width, "dense": mean_loss(dense, test)}
        prune_model(dense, windows(train, LENGTH, 64, CalibrationOrder.SEQUENTIAL, 0), ADMM)
        row["pruned"] = mean_loss(dense, test)
        row["repaired"] = {rate: _repaired(dense, train, test, arguments.steps, rate) for rate in arguments.rates}
        print(json.dumps(row), flush=True)
        found.append(row)
        arguments.out.write_text(json.dumps({"torch": torch.__version__, "widths": found}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of the texts")
    parser.add_argument("--out", required=True, type=Path, help="JSON file of the results")
    parser.add_argument("--widths", nargs="*", type=int, default=[64, 128, 256, 512], help="hidden sizes")
    parser.add_argument("--rates", nargs="*", type=float, default=[2.0**-k for k in range(13, 5, -1)], help="rates")
    parser.add_argument("--training-steps", type=int, default=600, help="steps of training before pruning")
    parser.add_argument("--steps", type=int, default=100, help="steps of repair")
    return parser.parse_args()


def _bytes(path: Path) -> Int[Tensor, "tokens"]:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).long()


def _model(width: int) -> LlamaForCausalLM:
    """Return a random model. An attention head has 32 values at any width."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 8 * 8,
        num_hidden_layers=4,
        num_attention_heads=width // 32,
        initializer_range=width**-0.5,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def _train(model: LlamaForCausalLM, text: Int[Tensor, "tokens"], steps: int, rate: float) -> None:
    """Train a dense model, with a linear warm-up of a tenth of the steps and a linear decay."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1), TokenLoss(model)
    chosen = generator(0, "widths")
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(10 * (step + 1) / steps, (steps - step) / steps)
        starts = torch.randint(len(text) - LENGTH, (WINDOWS,), generator=chosen)
        losses(torch.stack([text[start : start + LENGTH] for start in starts.tolist()])).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _repaired(pruned: LlamaForCausalLM, train: Tensor, test: Tensor, steps: int, rate: float) -> float:
    model = copy.deepcopy(pruned)
    config = RepairConfig(
        steps, learning_rate=rate, batch_tokens=WINDOWS * LENGTH, sequence_tokens=LENGTH, micro_batch=WINDOWS
    )
    repair = Repair(model, train, config, pruned=ADMM)
    while not repair.done:
        repair.advance()
    repair.finish()
    return mean_loss(model, test)


if __name__ == "__main__":
    main()
