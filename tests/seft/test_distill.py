"""Distillation equals its definition in value and gradient, with chunked logits, and its repair resumes exactly."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seft import distill, loss
from seft.config import RepairConfig
from seft.data.packing import Packed, Predictions
from seft.distill import Distillation, require_same_shape
from seft.errors import ConfigError, StateError
from seft.loss import top_divergence
from seft.models.targets import decoder_blocks, target_linears
from seft.repair import Repair
from seft.report import Step
from tests.seft.architectures import ARCHITECTURES
from tests.seft.repair.repairing import TOKENS, Allocated, pruned_tiny, repaired, same_bits, short, weights
from tests.tiny import VOCABULARY, untrained_tiny

WINDOWS = Packed.plain(TOKENS[:120].view(3, 40))
MASKED = replace(WINDOWS, trained=WINDOWS.trained & (WINDOWS.positions > torch.tensor([[3], [0], [20]])))
MIX = {"distill_weight": 0.4, "hidden_weight": 0.7}


def states(model: Any, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the logits and the block outputs."""
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(
            lambda _, __, output: outputs.append(output[0] if type(output) is tuple else output)
        )
        for block in decoder_blocks(model)
    ]
    logits = model(input_ids=tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits, outputs


def reference(model: Any, teacher: Any, batch: Packed, distill_weight: float, hidden_weight: float) -> Tensor:
    """Compute the loss per window and token from all logits."""
    logits, blocks = states(model, batch.tokens)
    with torch.no_grad():
        target_logits, teacher_blocks = states(teacher, batch.tokens)
    total = logits.new_zeros(())
    for window in range(len(batch)):
        indices = [index for index in range(40) if batch.trained[window, index]]
        for index in indices:
            total = total + (1 - distill_weight) * F.cross_entropy(
                logits[window, index - 1], batch.tokens[window, index]
            )
            largest = target_logits[window, index - 1].argsort(descending=True)[: distill.TOP_LOGITS]
            student, teachers = (
                torch.cat([each[largest], 1 - each[largest].sum()[None]])
                for each in (torch.softmax(all_logits[window, index - 1], 0) for all_logits in (logits, target_logits))
            )
            total = total + distill_weight * F.kl_div(torch.log(student), teachers, reduction="sum")
        rows = torch.tensor(indices) - 1
        for own, other in zip(blocks, teacher_blocks, strict=True):
            far = F.mse_loss(own[window, rows], other[window, rows])
            size = F.mse_loss(other[window, rows], torch.zeros_like(other[window, rows]))
            total = total + hidden_weight * len(indices) * far / size / len(blocks)
    return total


@pytest.mark.parametrize("mix", [MIX, {"distill_weight": 1.0, "hidden_weight": 0.0}, {**MIX, "distill_weight": 0.0}])
@pytest.mark.parametrize("name", ["llama", "gemma2"])  # a plain head, and one that caps its logits
def test_value_and_gradient_equal_the_definition(
    monkeypatch: pytest.MonkeyPatch, name: str, mix: dict[str, float]
) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", VOCABULARY * 7)
    model = ARCHITECTURES[name].model().double().requires_grad_(False)
    teacher = copy.deepcopy(model)
    for target in target_linears(model).values():
        target.weight[target.weight.abs() < 0.1] = 0
    twin = copy.deepcopy(model)
    parameters = [next(iter(target_linears(each).values())).parameter for each in (model, twin)]
    for parameter in parameters:
        parameter.requires_grad_(True)
    result = Distillation(model, teacher, short(**mix))(MASKED)
    expected = reference(twin, teacher, MASKED, **mix)
    torch.testing.assert_close(result, expected)
    result.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(parameters[0].grad, parameters[1].grad)


def test_over_the_whole_vocabulary_the_divergence_is_the_standard_one() -> None:
    own, other = torch.randn(2, 9, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    everything = torch.arange(50).expand(9, -1)
    plain = F.kl_div(own.log_softmax(1), other.log_softmax(1), reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(top_divergence(own, everything, other.log_softmax(1)), plain)
    top = own.log_softmax(1).topk(5)
    torch.testing.assert_close(top_divergence(own, top.indices, top.values), own.new_zeros(9))


def test_all_logits_are_never_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", VOCABULARY * 7)
    objective = Distillation(untrained_tiny(), untrained_tiny(1), short(**MIX))
    with Allocated() as allocated:
        objective(WINDOWS)
    assert allocated.elements < WINDOWS.predictions * VOCABULARY


def test_a_window_with_recorded_predictions_has_its_weight_in_the_whole_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (3, 40, 5), generator=generator)
    logarithms = torch.rand((3, 40, 5), generator=generator).log() - 5
    objective = Distillation(untrained_tiny(), untrained_tiny(1), short(**MIX))

    def loss_of(rows: slice, known: list[bool], weight: float) -> Tensor:
        recorded = Predictions(tokens, logarithms, torch.tensor(known), weight)
        return objective(replace(MASKED, teacher=recorded)[rows])

    whole = loss_of(slice(None), [False, True, False], 0.25)
    parts = [loss_of(slice(n, n + 1), [False, True, False], 1.0) for n in range(3)]
    torch.testing.assert_close(whole, parts[0] + 0.25 * parts[1] + parts[2])


def distilling(config: RepairConfig, seed: int = 3) -> Repair:
    return Repair(pruned_tiny(), TOKENS, config, teacher=untrained_tiny(seed))


def test_micro_batches_do_not_change_the_loss() -> None:
    result = [distilling(short(**MIX, micro_batch=size)).advance()[0] for size in (1, 3)]
    assert all(isinstance(step, Step) for step in result)
    assert result[0].loss == pytest.approx(result[1].loss, rel=1e-6)  # type: ignore[union-attr]


def test_a_distilled_repair_resumes_exactly_and_only_with_its_teacher(tmp_path: Path) -> None:
    def run(stop: int, seed: int = 3) -> tuple[Any, Repair]:
        return repaired(short(**MIX), stop, teacher=untrained_tiny(seed))

    whole, _ = run(8)
    _, half = run(4)
    half.save(tmp_path)
    model, again = run(0)
    again.load(tmp_path)
    again.run()
    assert same_bits(weights(model), weights(whole))
    assert not same_bits(weights(model), weights(run(8, seed=4)[0]))
    with pytest.raises(StateError, match="must have the fingerprint"):
        run(0, seed=4)[1].load(tmp_path)
    with pytest.raises(StateError, match="must have the"):
        Repair(pruned_tiny(), TOKENS, short()).load(tmp_path)


def test_the_teacher_is_not_changed() -> None:
    teacher = untrained_tiny(3)
    before = weights(teacher)
    repair = Repair(pruned_tiny(), TOKENS, short(**MIX), teacher=teacher)
    repair.run()
    assert same_bits(weights(teacher), before)
    assert not any(parameter.grad is not None for parameter in teacher.parameters())


def test_distillation_moves_the_predictions_towards_the_teacher() -> None:
    """On random text, the teacher is the only thing to learn from."""
    teacher, model = untrained_tiny(3), pruned_tiny()
    config = short(steps=30, density=0.2, learning_rate=1e-2, distill_weight=1.0)

    def distance() -> float:
        with torch.no_grad():
            own, other = (each(input_ids=WINDOWS.tokens).logits.flatten(0, 1) for each in (model, teacher))
            return float(F.kl_div(own.log_softmax(1), other.log_softmax(1), log_target=True, reduction="batchmean"))

    before = distance()
    Repair(model, TOKENS, config, teacher=teacher).run()
    assert distance() < 0.9 * before


def test_the_sizes_of_a_teacher_are_those_of_its_text_model() -> None:
    def model(hidden: int) -> Any:
        text = SimpleNamespace(vocab_size=9, hidden_size=hidden, num_hidden_layers=2)
        return SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))

    require_same_shape(model(8), model(8))
    with pytest.raises(ConfigError, match="must have the hidden_size of the pruned model, 8; it has '16'"):
        require_same_shape(model(8), model(16))


@pytest.mark.parametrize(
    ("mix", "teacher", "rule"),
    [
        (MIX, None, "must be given"),
        ({}, untrained_tiny, "must not be set"),
        (MIX, ARCHITECTURES["llama"].model, "must have the hidden_size"),
    ],
)
def test_a_teacher_needs_a_weight_and_a_weight_needs_a_teacher(mix: dict[str, float], teacher: Any, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        Repair(pruned_tiny(), TOKENS, short(**mix), teacher=teacher and teacher())
