"""Pruning block by block: on the real inputs of each block, with one block on the device, and nothing left behind."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

from seft.config import Allocation, CalibrationOrder, Compare, PruneConfig, PruneMethod
from seft.data.text import tokenize, windows
from seft.errors import Cancelled, PruneError
from seft.evaluate import perplexity
from seft.models.load import load
from seft.models.source import find
from seft.models.targets import block_linears, decoder_blocks, hidden_state, target_linears
from seft.prune import loop
from seft.prune.capture import capture
from seft.prune.loop import prune_model
from seft.prune.methods import make_pruner
from seft.prune.statistics import Batch
from seft.report import Phase, Progress, Report, Unseen
from tests.tiny import VOCABULARY, tiny_texts, untrained_tiny

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
WINDOWS = torch.randint(VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(0))
WITH_TEXT = [method for method in PruneMethod if PruneConfig(0.5, method).text_users]


def gemma3() -> Any:
    """Return a model in which two blocks use a sliding window shorter than the text."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    sizes = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
    return Gemma3ForCausalLM(Gemma3TextConfig(**sizes, layer_types=kinds)).eval()


def mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=2)).eval()


def gpt_neox() -> Any:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)).eval()


def gpt1() -> Any:
    """Return a model whose blocks return a list."""
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4)).eval()


@torch.no_grad()
@pytest.mark.parametrize("make", [untrained_tiny, gemma3, mixtral, gpt_neox, gpt1])
def test_blocks_run_on_captured_calls_give_the_outputs_of_the_model(make: Callable[[], Any]) -> None:
    model = make()
    blocks = decoder_blocks(model)
    before = dict(vars(blocks[0]))
    hidden, calls = capture(model, blocks, WINDOWS)
    assert vars(blocks[0]) == before
    outputs: list[Tensor] = []
    blocks[-1].register_forward_hook(lambda *arguments: outputs.append(hidden_state(arguments[2])))
    for window, state, of_blocks in zip(WINDOWS, hidden, calls, strict=True):
        model(input_ids=window[None])
        expected = outputs.pop()
        output = state
        for block, call in zip(blocks, of_blocks, strict=True):
            output = call.run(block, output, torch.device("cpu"))
        assert torch.equal(output, expected)


def test_tensors_equal_in_all_windows_are_stored_once() -> None:
    _, calls = capture(untrained_tiny(), decoder_blocks(untrained_tiny()), WINDOWS[:0])
    assert calls == []
    model = untrained_tiny()
    _, calls = capture(model, decoder_blocks(model), WINDOWS)
    cosines = {id(call.kwargs["position_embeddings"][0]) for of_blocks in calls for call in of_blocks}
    assert len(cosines) == 1


@torch.no_grad()
@pytest.mark.parametrize("method", PruneMethod)
def test_each_block_is_pruned_on_the_outputs_of_the_pruned_ones_before_it(method: PruneMethod) -> None:
    model, config = untrained_tiny(), PruneConfig(0.5, method, allocation=Allocation.UNIFORM)
    expected = copy.deepcopy(model)
    for block in decoder_blocks(expected):
        targets = block_linears(block).values()
        pruners = {target.module: make_pruner(target.weight, target.weight.numel() // 2, config) for target in targets}
        hooks = [
            module.register_forward_hook(lambda _, args, __, pruner=pruner: pruner.observe(Batch(args[0])))
            for module, pruner in pruners.items()
        ]
        for window in WINDOWS:
            expected(input_ids=window[None])
        for hook in hooks:
            hook.remove()
        for target in targets:
            target.weight.copy_(pruners[target.module].prune())
    prune_model(model, WINDOWS, config)
    for (name, linear), other in zip(target_linears(model).items(), target_linears(expected).values(), strict=True):
        assert torch.equal(linear.weight, other.weight), name


@pytest.mark.parametrize("make", [untrained_tiny, mixtral])
@pytest.mark.parametrize("method", WITH_TEXT)
def test_linears_that_share_sums_over_their_inputs_get_the_same_bits(
    make: Callable[[], Any], method: PruneMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = make()
    separate = copy.deepcopy(shared)
    config, batches = PruneConfig(0.5, method), list[Batch]()

    def record(inputs: Tensor) -> Batch:
        batches.append(Batch(inputs))
        return batches[-1]

    monkeypatch.setattr(loop, "Batch", record)
    prune_model(shared, WINDOWS, config)
    fewer = len(batches)
    monkeypatch.setattr(Batch, "contains", lambda *_: False)
    prune_model(separate, WINDOWS, config)
    more = len(batches) - fewer
    assert all(torch.equal(weight, separate.state_dict()[name]) for name, weight in shared.state_dict().items())
    # Queries, keys and values have the same inputs. So have gate and up. The experts of Mixtral stack gate and up.
    assert fewer == more * 4 / 7 if make is untrained_tiny else fewer == more - 2 * 3 * len(WINDOWS)


@pytest.mark.parametrize("method", PruneMethod)
def test_only_target_linears_change_and_a_second_run_gives_the_same_bits(method: PruneMethod) -> None:
    one, two, dense = untrained_tiny(), untrained_tiny(), untrained_tiny().state_dict()
    for model in (one, two):
        prune_model(model, WINDOWS, PruneConfig(0.5, method))
    targets = {f"{name}.weight" for name in target_linears(one)}
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name])
        assert torch.equal(weight, dense[name]) == (name not in targets)


@pytest.mark.parametrize("method", WITH_TEXT)
def test_pruning_more_keeps_the_zeros_of_pruning_less(method: PruneMethod) -> None:
    model = untrained_tiny()
    prune_model(model, WINDOWS, PruneConfig(0.3, PruneMethod.MAGNITUDE))
    before = {name: linear.weight == 0 for name, linear in target_linears(model).items()}
    prune_model(model, WINDOWS, PruneConfig(0.6, method, allocation=Allocation.UNIFORM))
    for name, linear in target_linears(model).items():
        assert (linear.weight[before[name]] == 0).all()
        assert (linear.weight == 0).float().mean() == pytest.approx(0.6, abs=0.02)


def test_pruning_hurts_least_with_admm_and_alps(tiny_folder: Path) -> None:
    loaded = load(find(str(tiny_folder)))
    tokens = tokenize(tiny_texts(), loaded.tokenizer)
    calibration = windows(tokens, 128, 32, CalibrationOrder.RANDOM, seed=0)
    text = windows(tokens, 128, 16, CalibrationOrder.SEQUENTIAL, seed=0)
    scores = {"dense": perplexity(loaded.model, text)}
    for method in PruneMethod:
        model = load(find(str(tiny_folder))).model
        prune_model(model, calibration, PruneConfig(0.7, method))
        scores[method] = perplexity(model, text)
    assert scores["dense"] * 1.2 < scores[PruneMethod.SPARSEGPT]
    assert max(scores[PruneMethod.ADMM], scores[PruneMethod.ALPS]) < scores[PruneMethod.SPARSEGPT]
    assert scores[PruneMethod.SPARSEGPT] < min(scores[PruneMethod.WANDA], scores[PruneMethod.MAGNITUDE])


def test_a_bfloat16_model_is_pruned_in_its_own_dtype() -> None:
    model = untrained_tiny().bfloat16()
    prune_model(model, WINDOWS, PruneConfig(0.5, PruneMethod.SPARSEGPT))
    for linear in target_linears(model).values():
        assert linear.weight.dtype == torch.bfloat16
        assert (linear.weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("method", WITH_TEXT)
def test_the_error_for_an_input_that_is_not_finite_names_block_and_linear(method: PruneMethod) -> None:
    model = untrained_tiny()
    target_linears(model)["model.layers.1.mlp.gate_proj"].weight[0, 0] = torch.inf
    with pytest.raises(PruneError, match=r"block 1, mlp\.down_proj: inputs must be finite"):
        prune_model(model, WINDOWS, PruneConfig(0.5, method, allocation=Allocation.UNIFORM))


@pytest.mark.parametrize("method", WITH_TEXT)
def test_an_expert_that_no_token_reached_is_pruned_by_magnitude(method: PruneMethod) -> None:
    sizes = {**SMALL, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 1}
    model = MixtralForCausalLM(MixtralConfig(**sizes)).eval()
    for block in decoder_blocks(model):
        block.get_parameter("mlp.gate.weight").data.zero_()
    dense = {name: target.weight.clone() for name, target in target_linears(model).items() if target.expert}
    reports: list[Report] = []
    prune_model(model, WINDOWS, PruneConfig(0.5, method), reports.append)
    assert [report for report in reports if isinstance(report, Unseen)] == [Unseen(block, 4) for block in range(3)]
    unreached = [name for name, target in target_linears(model).items() if target.expert and target.number]
    assert len(unreached) == 3 * 2 * 2
    for name in unreached:
        weight, threshold = target_linears(model)[name].weight, dense[name].abs().flatten().median()
        assert torch.equal(weight, dense[name].masked_fill(dense[name].abs() <= threshold, 0.0))


def test_an_expert_that_no_token_reached_is_compared_within_rows_if_the_others_are() -> None:
    sizes = {**SMALL, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 1}
    model = MixtralForCausalLM(MixtralConfig(**sizes)).eval()
    for block in decoder_blocks(model):
        block.get_parameter("mlp.gate.weight").data.zero_()
    prune_model(model, WINDOWS, PruneConfig(0.5, PruneMethod.WANDA, compare=Compare.ROW))
    for target in target_linears(model).values():
        assert set((target.weight == 0).sum(1).tolist()) == {target.weight.shape[1] // 2}


def test_every_block_runs_twice_per_window_and_the_last_one_once() -> None:
    model: Any = untrained_tiny(blocks=3)
    runs = [0, 0, 0]

    def count(number: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            runs[number] += 1

        return hook

    for number, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(count(number))
    prune_model(model, WINDOWS, PruneConfig(0.5, PruneMethod.WANDA))
    assert runs == [2 * len(WINDOWS) + 1, 2 * len(WINDOWS), len(WINDOWS)], "the first block shows how blocks answer"


def test_blocks_go_to_the_device_one_at_a_time_and_come_back() -> None:
    model = untrained_tiny()
    moves: list[tuple[int, str]] = []

    def recording(number: int, move: Callable[[str], object]) -> Callable[[torch.device], None]:
        def to(device: torch.device) -> None:
            moves.append((number, str(device)))
            move("cpu")  # the same device as "cpu:0"; the test checks only which block moves when

        return to

    for number, block in enumerate(decoder_blocks(model)):
        vars(block)["to"] = recording(number, block.to)
    prune_model(model, WINDOWS, PruneConfig(0.5, PruneMethod.WANDA), device="cpu:0")
    assert moves == [(number, device) for number in range(4) for device in ("cpu:0", "cpu")]


def test_progress_is_reported_for_every_block_and_a_stop_leaves_a_model_that_runs() -> None:
    model, reports = untrained_tiny(), []

    def stop_after_two(report: Report) -> None:
        reports.append(report)
        if len(reports) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        prune_model(model, WINDOWS, PruneConfig(0.5, PruneMethod.WANDA), stop_after_two)
    assert reports == [Progress(Phase.PRUNING, done, 4) for done in range(3)]
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.isfinite(model(input_ids=WINDOWS).logits).all()
