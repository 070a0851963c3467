"""Two real processes with half of the batch each give the results of one process with the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from seft.config import UNSTRUCTURED, Pattern, PruneConfig, PruneSchedule, RepairMethod, Variant
from seft.errors import ConfigError
from seft.repair import Repair
from seft.report import Step
from tests.seft.prune.test_loop import SMALL
from tests.seft.repair.repairing import (
    TOKENS,
    by_magnitude,
    in_pattern,
    in_two_processes,
    pruned_tiny,
    short,
    zero_smallest,
)
from tests.tiny import VOCABULARY, untrained_tiny

STEPS = 8
ALL: dict[str, Any] = {"density": "all"}
PUBLISHED: dict[str, Any] = {"variant": Variant.PUBLISHED}
CASES: dict[str, tuple[RepairMethod, Pattern, dict[str, Any]]] = {
    "seft": (RepairMethod.SEFT, UNSTRUCTURED, {}),
    "seft-2-4": (RepairMethod.SEFT, Pattern(2, 4), {}),
    "seft-published": (RepairMethod.SEFT, UNSTRUCTURED, PUBLISHED),
    "seft-published-2-4": (RepairMethod.SEFT, Pattern(2, 4), PUBLISHED),
    "seft-experts": (RepairMethod.SEFT, UNSTRUCTURED, {}),
    "seft-published-experts": (RepairMethod.SEFT, UNSTRUCTURED, PUBLISHED),
    "fixed-mask": (RepairMethod.FIXED_MASK, UNSTRUCTURED, {}),
    "masked-lora": (RepairMethod.MASKED_LORA, UNSTRUCTURED, {}),
    "spp": (RepairMethod.SPP, UNSTRUCTURED, {}),
    "norms-and-biases": (RepairMethod.FIXED_MASK, UNSTRUCTURED, {"norms_and_biases": True}),
    "all": (RepairMethod.SEFT, UNSTRUCTURED, ALL),
    "all-at-once": (RepairMethod.SEFT, UNSTRUCTURED, {**ALL, "micro_batch": 6}),
    "all-experts-at-once": (RepairMethod.SEFT, UNSTRUCTURED, {**ALL, "micro_batch": 6}),
    "all-gradual": (RepairMethod.SEFT, UNSTRUCTURED, ALL),
    "all-gradual-experts": (RepairMethod.SEFT, Pattern(2, 4), ALL),
}
MOVES = {name for name in CASES if name.startswith("seft")}
"""Cases whose set of trained weights changes."""


def start(name: str) -> tuple[Any, PruneConfig]:
    """Return the model of a case before training, and how it is pruned."""
    pattern = CASES[name][1]
    pruned = by_magnitude(pattern)
    if "gradual" in name:
        pruned = PruneConfig(pruned.sparsity, pattern=pattern, schedule=PruneSchedule.GRADUAL)
    if "experts" in name:
        torch.manual_seed(0)
        sizes = {**SMALL, "vocab_size": VOCABULARY, "num_hidden_layers": 1}
        model: Any = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=16))
        model.set_experts_implementation("eager")
        with torch.no_grad():
            model.model.layers[0].mlp.gate.weight[:4] /= 2  # so few tokens choose these experts
        if not pruned.gradual:
            zero_smallest(model)
    elif pruned.gradual:
        model = untrained_tiny()
    else:
        model = in_pattern(pattern) if pattern.grouped else pruned_tiny()
    return model.double(), pruned


def train(name: str, folder: Path) -> None:
    """Run a whole repair and save state and loss after every step. In double precision, so rounding decides nothing."""
    method, _, changes = CASES[name]
    model, pruned = start(name)
    # The second micro-batch is smaller.
    config = short(**{"method": method, "batch_tokens": 6 * 32, "micro_batch": 4, **changes})
    repair = Repair(model, TOKENS, config, pruned=pruned)
    losses, experts = [], used_experts(model)
    for step in range(1, STEPS + 1):
        losses += [report.loss for report in repair.advance() if isinstance(report, Step)]
        repair.save(folder / str(step))
    torch.save(losses, folder / "losses")
    torch.save(experts, folder / "experts")


def used_experts(model: nn.Module) -> list[set[int]]:
    """Return a list to which each forward pass will append the experts that get tokens."""
    used = list[set[int]]()
    for module in model.modules():
        if isinstance(module, MixtralExperts):
            module.register_forward_pre_hook(lambda _, inputs: used.append(set(inputs[1].flatten().tolist())))
    return used


def keep_best(folder: Path) -> None:
    """Run a repair whose fourth step is the best one, and save its last state.

    In the second process alone, the last step would be the best one. It must decide like the first process.
    """
    losses = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.5}
    if dist.is_initialized() and dist.get_rank():
        losses[8] = 1.0
    model, pruned = start("seft")
    config = short(batch_tokens=6 * 32, micro_batch=4, evaluate_interval=2)
    repair = Repair(model, TOKENS, config, pruned=pruned, held_out_loss=lambda: losses[repair.step])
    repair.run()
    assert repair.kept_step == 4
    repair.save(folder)


def rejected_fields() -> list[str]:
    """Return the fields that two processes reject."""
    rejected = []
    for model, changes in (
        (pruned_tiny(), {"batch_tokens": 96}),
        (pruned_tiny(), {"micro_batch": 3}),
        (pruned_tiny(), {"density": "all", "swap_tokens": 96}),
    ):
        with pytest.raises(ConfigError) as error:
            Repair(model, TOKENS, short(**{"batch_tokens": 128, **changes}))
        rejected.append(error.value.field)
    return rejected


def work(folder: Path) -> None:
    """Run one of two processes."""
    rank = dist.get_rank()
    for name in CASES:
        train(name, folder / name / str(rank))
    keep_best(folder / "best" / str(rank))
    torch.save(rejected_fields(), folder / f"rejected.{rank}")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    in_two_processes(work, folder)
    return folder


def state(folder: Path, step: int | str) -> dict[str, Tensor]:
    return load_file(folder / str(step) / "repair.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_both_decide_like_one_process_with_the_whole_batch(name: str, together: Path, tmp_path: Path) -> None:
    train(name, tmp_path)
    moved = 0
    for step in range(1, STEPS + 1):
        alone, shared = state(tmp_path, step), state(together / name / "0", step)
        assert alone.keys() == shared.keys()
        for key, tensor in alone.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, shared[key], rtol=1e-4, atol=1e-6)
            else:
                assert torch.equal(tensor, shared[key]), (step, key)
        before = state(tmp_path, max(1, step - 1))
        moved += sum(not torch.equal(before[key], alone[key]) for key in alone if key.endswith("active.indices"))
    assert (moved > 0) is (name in MOVES)
    assert torch.load(tmp_path / "losses") == pytest.approx(torch.load(together / name / "0" / "losses"), rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_both_have_the_same_bits_after_every_step(name: str, together: Path) -> None:
    one, other = (together / name / rank for rank in "01")
    for step in range(1, STEPS + 1):
        for file in ("repair.safetensors", "repair.json"):
            assert (one / str(step) / file).read_bytes() == (other / str(step) / file).read_bytes()


@pytest.mark.parametrize("name", [name for name in CASES if "experts" in name])
def test_some_experts_get_tokens_in_one_process_only(name: str, together: Path) -> None:
    one, other = (torch.load(together / name / rank / "experts") for rank in "01")
    assert len(one) == len(other) > 0
    assert any(first != second for first, second in zip(one, other, strict=True))


def test_the_first_process_alone_keeps_the_best_state(together: Path, tmp_path: Path) -> None:
    keep_best(tmp_path / "alone")
    alone, first, other = state(tmp_path, "alone"), state(together / "best", 0), state(together / "best", 1)
    best = {key for key in alone if key.startswith("best:")}
    assert best
    assert first.keys() == alone.keys() == other.keys() | best
    assert not best & other.keys()
    for key in best:
        torch.testing.assert_close(first[key], alone[key], rtol=1e-4, atol=1e-6)


def test_work_that_processes_cannot_share_is_rejected(together: Path) -> None:
    for rank in "01":
        assert torch.load(together / f"rejected.{rank}") == ["batch_tokens", "micro_batch", "swap_tokens"]
