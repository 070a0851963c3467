"""A model that is split over two real processes gives the same bits as one that is whole in both."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from seft.checkpoint.export import round_weights
from seft.checkpoint.pruned_state import load_pruned, save_pruned
from seft.config import Allocation, Pattern, PruneConfig, PruneMethod, PruneSchedule, RepairMethod, Variant
from seft.errors import ConfigError
from seft.evaluate import perplexity
from seft.models.targets import SPLIT, target_linears
from seft.prune.detect_zeros import find_zeros
from seft.prune.loop import prune_model
from seft.repair import Repair
from seft.repair.nonzeros import NonzeroLinear
from seft.repair.processes import broadcast, broadcast_weights
from seft.repair.shards import Shards
from tests.seft.architectures import ARCHITECTURES
from tests.seft.repair.repairing import TOKENS, in_two_processes, short
from tests.tiny import untrained_tiny

STEPS, RESUMED = 6, 3
PRUNED = "pruned.safetensors"
TEXT = TOKENS[:128].view(4, 32)
AT_ONCE: dict[str, Any] = {"density": "all", "batch_tokens": 4 * 32, "micro_batch": 4}
GRADUAL: dict[str, Any] = {
    "schedule": PruneSchedule.GRADUAL,
    "method": PruneMethod.ADMM,
    "allocation": Allocation.ALPHAPRUNING,
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "seft-2-4": ({"sparsity": 0.5, "pattern": Pattern(2, 4), "method": PruneMethod.SPARSEGPT}, {}),
    "seft-published": ({"method": PruneMethod.ADMM, "allocation": Allocation.UNIFORM}, {"variant": Variant.PUBLISHED}),
    "seft-experts": ({"allocation": Allocation.OWL}, {}),
    "fixed-mask-transposed": (
        {"method": PruneMethod.MAGNITUDE},
        {"method": RepairMethod.FIXED_MASK, "norms_and_biases": True},
    ),
    "all": ({"method": PruneMethod.ALPS, "allocation": Allocation.UNIFORM}, {"density": "all"}),
    "all-by-kernels": ({"method": PruneMethod.MAGNITUDE}, {"density": "all"}),
    "all-evaluated": ({"method": PruneMethod.MAGNITUDE}, {"density": "all", "evaluate_interval": 2}),
    "all-recomputed": ({}, {**AT_ONCE, "activation_checkpointing": True}),
    "all-experts": ({}, AT_ONCE),
    "all-gradual": (GRADUAL, AT_ONCE),
    "all-gradual-model": ({"schedule": PruneSchedule.GRADUAL, "method": PruneMethod.ADMM}, AT_ONCE),
}
RESUMES = ("seft-2-4", "all")
COPIED: list[int] = []
"""Numbers of nonzeros that this process has copied at once, to keep or to save them."""


def start(name: str) -> Any:
    """Return the dense model of a case. In double precision, so rounding decides nothing. Kernels take float32."""
    kind = "mixtral" if name.endswith("experts") else "gpt2" if name.endswith("transposed") else None
    model: Any = ARCHITECTURES[kind].model() if kind else untrained_tiny(blocks=4 if name == "all-gradual" else 2)
    if kind == "mixtral":
        model.set_experts_implementation("eager")
    return model.to(torch.float32 if name.endswith("kernels") else torch.float64).eval()


def prune(model: Any, config: PruneConfig, folder: Path) -> dict[str, float]:
    """Prune a model, save it, evaluate it, and load it again, as the first process of a job does. Returns scores."""
    scores = {"dense": perplexity(model, TEXT)}
    if any(target.module in SPLIT for target in target_linears(model).values()):
        with pytest.raises(ConfigError, match="allocation must be uniform if the model is split"):
            prune_model(model, TEXT, PruneConfig(0.6, allocation=Allocation.CURVATURE))
    if not config.gradual:
        prune_model(model, TEXT, config)
    round_weights(model)
    save_pruned(model, folder / PRUNED)
    for target in target_linears(model).values():
        target.weight.zero_()
    load_pruned(model, folder / PRUNED)
    found = find_zeros(model)
    return {**scores, "pruned": perplexity(model, TEXT), "zeros": found.sparsity if found else 0.0}


def meet(shards: Shards | None) -> None:
    """Wait for the other process. It works for the first one until then."""
    if not shards:
        broadcast(None)
    elif dist.get_rank() == 0:
        shards.send(None)
    else:
        shards.receive()


def run(name: str, folder: Path, *, split: bool, resume: int = 0) -> None:
    """Run a case in two processes, whole or from a saved state. Both train, and the first does the rest."""
    prune_changes, changes = CASES[name]
    config = PruneConfig(**{"sparsity": 0.6, "samples": 4, "tokens": 32, "method": PruneMethod.WANDA, **prune_changes})
    repair_config = short(**{"steps": STEPS, "batch_tokens": 4 * 32, "micro_batch": 2, **changes})
    first, end = dist.get_rank() == 0, folder / f"from-{resume}"
    end.mkdir(parents=True, exist_ok=True)
    shards = Shards(start(name) if first else None, "cpu") if split else None
    model = shards.model if shards else start(name)
    in_parallel = shards.in_parallel if shards else nullcontext

    scores = {}
    if first and resume:
        load_pruned(model, folder / PRUNED)
        round_weights(model)
    elif first:
        scores = prune(model, config, folder)
    meet(shards)
    if shards:
        shards.share()
    else:
        broadcast_weights(model)
    with in_parallel():
        held_out_loss = (lambda: perplexity(model, TEXT)) if repair_config.evaluate_interval else None
        repair = Repair(model, TOKENS, repair_config, pruned=config, held_out_loss=held_out_loss)
        if resume:
            repair.load(folder / str(resume))
    while not repair.done:
        with in_parallel():
            repair.advance()
        if first and not resume:
            repair.save(folder / str(repair.step))
        meet(shards)
    if first:
        repair.finish()
        round_weights(model)
        torch.save({**scores, "repaired": perplexity(model, TEXT)}, end / "scores")
        whole = shards.collect() if shards else model
        save_file({name: weight.contiguous() for name, weight in whole.named_parameters()}, end / "model.safetensors")
    meet(shards)


def work(folder: Path) -> None:
    """Run one of two processes."""
    copy = NonzeroLinear.tensors

    def counted(self: NonzeroLinear) -> dict[str, Tensor]:
        copies = copy(self)
        COPIED.append(copies["values"].numel() if "values" in copies else 0)
        return copies

    NonzeroLinear.tensors = counted  # type: ignore[method-assign]
    for name in CASES:
        SPLIT.clear()  # the process of a job has one model
        run(name, folder / "whole" / name, split=False)
        run(name, folder / "split" / name, split=True)
        if name in RESUMES:
            run(name, folder / "split" / name, split=True, resume=RESUMED)
    torch.save(sum(COPIED), folder / f"copied.{dist.get_rank()}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    in_two_processes(work, folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_split_model_has_the_bits_of_a_whole_one(name: str, folder: Path) -> None:
    whole, split = (folder / kind / name for kind in ("whole", "split"))
    for file in (PRUNED, *(f"{step}/repair.safetensors" for step in range(1, STEPS + 1)), "from-0/model.safetensors"):
        one, other = load_file(whole / file), load_file(split / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items()), file
    assert torch.load(whole / "from-0/scores") == torch.load(split / "from-0/scores")


@pytest.mark.parametrize("name", RESUMES)
def test_a_split_training_that_resumes_ends_with_the_same_bits(name: str, folder: Path) -> None:
    ends = [(folder / "split" / name / f"from-{step}" / "model.safetensors").read_bytes() for step in (0, RESUMED)]
    assert ends[0] == ends[1]


def test_only_the_first_process_copies_the_nonzeros(folder: Path) -> None:
    first, other = (torch.load(folder / f"copied.{rank}") for rank in range(2))
    assert first > 0 == other
