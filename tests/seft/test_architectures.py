"""Every architecture passes the whole pipeline: find targets, prune, repair, export, verify, load."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from seft.checkpoint import sparsity
from seft.checkpoint.export import export
from seft.checkpoint.facts import Base, Facts
from seft.checkpoint.pruned_state import load_pruned, save_pruned
from seft.checkpoint.verify import check
from seft.config import (
    UNSTRUCTURED,
    Compare,
    Pattern,
    PruneConfig,
    PruneMethod,
    PruneSchedule,
    RepairConfig,
    RepairMethod,
)
from seft.loss import TokenLoss
from seft.models.load import Loaded, load
from seft.models.products import intercepted_products
from seft.models.source import Kind, ModelSource, find
from seft.models.targets import decoder_blocks, target_linears
from seft.prune.loop import prune_model
from seft.prune.mask import overfull_groups
from seft.repair import Repair
from seft.repair.linear import RepairedLinear
from seft.repair.rise import zeros_at
from tests.seft.architectures import ARCHITECTURES, VOCABULARY
from tests.seft.counting import counted
from tests.seft.repair.repairing import logits
from tests.tiny import tiny_tokenizer

TOKENS = torch.randint(VOCABULARY, (600,), generator=torch.Generator().manual_seed(0))
WINDOWS = TOKENS[:160].view(4, 40)
REPAIR = RepairConfig(
    steps=4, density=0.05, update_interval=3, settle=0.1, batch_tokens=64, sequence_tokens=32, micro_batch=2
)

every = pytest.mark.parametrize("name", ARCHITECTURES)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def budgets(model: Any) -> dict[str, int]:
    return {name: int(target.weight.count_nonzero()) for name, target in target_linears(model).items()}


@every
def test_targets_are_all_matrices_of_the_blocks_except_routers(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.model()
    targets = target_linears(model)
    target_ids = {id(target.parameter) for target in targets.values()}
    matrices = {key: each for key, each in decoder_blocks(model).named_parameters() if each.ndim >= 2}
    dense = {key for key, each in matrices.items() if id(each) not in target_ids}
    assert {key for key in dense if not key.endswith("_bias")} == set(architecture.dense)
    assert len(targets) == architecture.matrices
    weights = sum(each.numel() for key, each in matrices.items() if key not in dense)
    assert sum(target.weight.numel() for target in targets.values()) == weights


@every
def test_replaced_products_keep_the_logits_and_the_gradients_of_active_weights(name: str) -> None:
    model = ARCHITECTURES[name].model().double().requires_grad_(False)
    twin = copy.deepcopy(model)
    twin.set_experts_implementation("eager")  # the others do not support float64
    targets, twins = target_linears(model), target_linears(twin)
    generator = torch.Generator().manual_seed(0)
    linears = {key: RepairedLinear(target, 0.3, generator) for key, target in targets.items()}
    with intercepted_products({targets[key]: linear.product for key, linear in linears.items()}):
        torch.testing.assert_close(logits(model), logits(twin))
        TokenLoss(model)(WINDOWS).sum().backward()  # type: ignore[no-untyped-call]
    assert not any("forward" in vars(module) for module in model.modules())
    for target in twins.values():
        target.parameter.requires_grad_(True)
    TokenLoss(twin)(WINDOWS).sum().backward()  # type: ignore[no-untyped-call]
    for key, target in twins.items():
        gradient = target.parameter.grad
        assert gradient is not None
        if target.number is not None:
            gradient = gradient[target.number]
        dense = (gradient.T if target.transposed else gradient).flatten()[linears[key].active.indices]
        torch.testing.assert_close(linears[key].take_gradient(), dense, atol=1e-5, rtol=1e-5)


@every
def test_pruning_repair_export_and_loading_agree(name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = ARCHITECTURES[name].model()
    config = PruneConfig(sparsity=0.5, samples=len(WINDOWS), tokens=WINDOWS.shape[1])
    prune_model(model, WINDOWS, config)
    assert counted(model).linears.share == 0.5
    save_pruned(model, tmp_path / "pruned.safetensors")
    budget = budgets(model)

    plain = logits(model)
    repair = Repair(model, TOKENS, REPAIR)
    torch.testing.assert_close(logits(model), plain)
    repair.run()
    assert repair.grown_zeros > 0
    assert all(count <= budget[key] for key, count in budgets(model).items())
    repair.save(tmp_path / "state")
    repair.finish()

    other = ARCHITECTURES[name].model()
    load_pruned(other, tmp_path / "pruned.safetensors")
    again = Repair(other, TOKENS, REPAIR)
    again.load(tmp_path / "state")
    again.finish()
    assert torch.equal(logits(other), logits(model))

    facts = Facts(Base("tiny", Kind.FOLDER, None, None), config, REPAIR, {}, None, repair.grown_zeros, None, None)
    source = ModelSource("tiny", Kind.FOLDER, tmp_path, None, {}, None)
    out = tmp_path / "out"
    export(Loaded(model, tokenizer, source), out, facts)
    check(out)
    find(str(out))
    assert sparsity.of_folder(out) == counted(model)
    read = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert torch.equal(logits(read), logits(model))
    tied = model.config.tie_word_embeddings
    assert (read.get_output_embeddings().weight is read.get_input_embeddings().weight) == tied


@every
def test_a_model_pruned_in_bfloat16_passes_verification(
    name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    ARCHITECTURES[name].model().save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    loaded = load(find(str(tmp_path / "dense")), dtype=torch.bfloat16)
    config = PruneConfig(0.5, samples=len(WINDOWS), tokens=WINDOWS.shape[1])
    prune_model(loaded.model, WINDOWS, config)
    assert logits(loaded.model).dtype is torch.bfloat16
    export(
        loaded, tmp_path / "out", Facts(Base("tiny", Kind.FOLDER, None, None), config, None, {}, None, 0, None, None)
    )
    check(tmp_path / "out")


KEEP_ZEROS: dict[str, dict[str, Any]] = {
    **{method: {"method": method} for method in (RepairMethod.MASKED_FULL, RepairMethod.MASKED_LORA, RepairMethod.SPP)},
    "all": {"density": "all"},
}


@every
@pytest.mark.parametrize("changes", KEEP_ZEROS.values(), ids=KEEP_ZEROS)
def test_methods_that_keep_zeros_repair_it(name: str, changes: dict[str, Any]) -> None:
    model = ARCHITECTURES[name].model()
    prune_model(model, WINDOWS[:0], PruneConfig(0.5, PruneMethod.MAGNITUDE))
    before = {key: target.weight.clone() for key, target in target_linears(model).items()}
    repair = Repair(model, TOKENS, replace(REPAIR, **changes))
    repair.run()
    repair.finish()
    after = {key: target.weight for key, target in target_linears(model).items()}
    assert not any(after[key][before[key] == 0].any() for key in before)
    assert sum(not torch.equal(after[key], before[key]) for key in before) > len(before) // 2
    assert not any("forward" in vars(module) for module in model.modules())


@every
@pytest.mark.parametrize(
    ("pattern", "compare", "dtype"),
    [
        (UNSTRUCTURED, Compare.LAYER, torch.bfloat16),
        (UNSTRUCTURED, Compare.MODEL, torch.bfloat16),
        (Pattern(2, 4), Compare.AUTO, torch.float32),
    ],
    ids=str,
)
def test_the_sparsity_rises_while_it_trains_and_a_resumed_run_has_the_same_bits(
    name: str, pattern: Pattern, compare: Compare, dtype: torch.dtype, tmp_path: Path
) -> None:
    pruned = PruneConfig(0.5, pattern=pattern, compare=compare, schedule=PruneSchedule.GRADUAL, rise_interval=1)
    config = replace(REPAIR, steps=6, density="all")

    def start() -> tuple[Any, Repair]:
        model = ARCHITECTURES[name].model().to(dtype)
        model.set_experts_implementation("eager")
        return model, Repair(model, TOKENS, config, pruned=pruned)

    model, repair = start()
    sizes = {key: target.weight.numel() for key, target in target_linears(model).items()}
    for step in range(1, config.steps + 1):
        if step == 3:
            repair.save(tmp_path)
        repair.advance()
        progress = min(1.0, step / pruned.rise_end(config.steps))
        zeros = {key: sizes[key] - count for key, count in budgets(model).items()}
        if compare is Compare.MODEL:
            assert sum(zeros.values()) == zeros_at(0, sum(size // 2 for size in sizes.values()), progress)
        else:
            assert zeros == {key: zeros_at(0, size // 2, progress) for key, size in sizes.items()}
    repair.finish()
    assert not any(overfull_groups(target.weight, pattern) for target in target_linears(model).values())
    other, again = start()
    again.load(tmp_path)
    again.run()
    again.finish()
    assert torch.equal(logits(other), logits(model))
