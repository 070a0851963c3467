"""Schedules: events, learning rates and windows of text by step."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from seft.config import RATED_WIDTH, DropDecay, RateSchedule, RepairConfig, RepairMethod, Variant
from seft.models.targets import target_linears
from seft.repair import Repair, schedule
from seft.report import Step
from tests.tiny import untrained_tiny


def events(config: RepairConfig) -> list[int]:
    return [step for step in range(1, config.steps + 1) if schedule.next_event(config, step) == step]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"steps": 40, "update_interval": 10}, [1, 10, 20, 30]),
        ({"steps": 40, "update_interval": 60}, [1]),
        ({"steps": 8, "update_interval": 1}, [1, 2, 3, 4, 5, 6]),
        ({"steps": 8, "update_interval": 2, "settle": 0.0}, [1, 2, 4, 6]),
        ({"steps": 40, "settle": 1.0}, []),
        ({"steps": 1, "settle": 0.0}, []),
        ({"steps": 40, "update_interval": 10, "variant": Variant.PUBLISHED}, [5, 10, 20, 30]),
        ({"steps": 16, "update_interval": 3, "variant": Variant.PUBLISHED}, [5, 6, 9, 12]),
        ({"steps": 6, "variant": Variant.PUBLISHED}, []),
    ],
)
def test_events_start_with_the_opening_repeat_and_leave_time_to_settle(
    options: dict[str, Any], expected: list[int]
) -> None:
    assert events(RepairConfig(**options)) == expected


def test_the_opening_replaces_all_and_later_events_fewer_and_fewer() -> None:
    for decay, second, half in ((DropDecay.LINEAR, 180, 100), (DropDecay.COSINE, 195, 100)):
        config = RepairConfig(steps=100, update_interval=10, drop_rate=0.2, drop_decay=decay)
        counts = {event: schedule.drop_count(config, event, 1000) for event in events(config)}
        assert counts[1] == 1000
        published = replace(config, variant=Variant.PUBLISHED)
        assert [schedule.drop_count(published, event, 1000) for event in (5, 10)] == [1000, second]
        assert [*counts.values()] == sorted(counts.values(), reverse=True)
        assert (counts[10], counts[50]) == (second, half)
        assert schedule.drop_count(config, 100, 1000) == 0


def test_rates_warm_up_and_fall() -> None:
    config = RepairConfig(steps=10, learning_rate=0.1, warmup_steps=2)
    rates = [schedule.learning_rate(config, step) for step in range(1, 11)]
    assert rates[:3] == pytest.approx([0.05, 0.1, 0.1])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] > 0


@pytest.mark.parametrize("kind", RateSchedule)
def test_rates_start_at_the_peak_and_stay_below_it(kind: RateSchedule) -> None:
    config = RepairConfig(steps=10, learning_rate=0.1, schedule=kind)
    rates = [schedule.learning_rate(config, step) for step in range(1, 11)]
    assert rates[0] == pytest.approx(0.1)
    assert all(0 < rate <= 0.1 + 1e-12 for rate in rates)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (RateSchedule.LINEAR, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        (
            RateSchedule.COSINE,
            [1, 0.975528, 0.904508, 0.793893, 0.654508, 0.5, 0.345492, 0.206107, 0.095492, 0.024472],
        ),
        (RateSchedule.CONSTANT, [1] * 10),
    ],
)
def test_the_rates_of_ten_steps_are_those_of_the_schedule(kind: RateSchedule, expected: list[float]) -> None:
    for warmup, warm in ((0, []), (4, [0.25, 0.5, 0.75, 1])):
        config = RepairConfig(steps=10 + warmup, learning_rate=1.0, schedule=kind, warmup_steps=warmup)
        rates = [schedule.learning_rate(config, step) for step in range(1, 11 + warmup)]
        assert rates == pytest.approx([*warm, *expected], abs=1e-6)


@pytest.mark.parametrize("method", RepairMethod)
def test_auto_lowers_the_rate_of_large_active_sets_if_their_steps_go_further(method: RepairMethod) -> None:
    rates = [RepairConfig(1, method, density=density).peak_rate() for density in (0.0005, 0.005, 0.05)]
    further = method not in (RepairMethod.SPP, RepairMethod.MASKED_FULL)
    assert rates == pytest.approx([rates[1], rates[1], rates[1] / (10**0.5 if further else 1)])
    assert rates[1] == {"masked_full": 1e-3, "masked_lora": 1e-2, "lora_reprune": 1e-2}.get(method, 3e-2)


def test_auto_lowers_the_rate_of_all_nonzeros_in_a_longer_training() -> None:
    rates = [RepairConfig(steps).peak_rate() for steps in (1, 20, 40, 100, 200, 1000, 1_000_000)]
    assert (rates[0], rates[3], rates[-1]) == (1e-3, 5e-4, 1.25e-4)
    assert rates == sorted(rates, reverse=True)
    for shorter, longer in ((1, 2), (3, 4)):
        assert rates[longer] / rates[shorter] == pytest.approx(2**-0.32)
    assert RepairConfig(200, batch_tokens=4096).peak_rate() == RepairConfig(200).peak_rate()


def test_as_published_auto_is_the_rate_of_large_gradients() -> None:
    rates = [RepairConfig(1, density=each, variant=Variant.PUBLISHED).peak_rate() for each in (0.005, 0.5)]
    assert rates == pytest.approx([3e-3, 3e-4])


@pytest.mark.parametrize("method", RepairMethod)
def test_auto_lowers_the_rate_of_wide_models_if_single_weights_are_trained(method: RepairMethod) -> None:
    config, narrow = RepairConfig(1, method), RATED_WIDTH // 9
    rates = [config.peak_rate(width) for width in (narrow, RATED_WIDTH, 8 * RATED_WIDTH)]
    low_rank = method in {RepairMethod.MASKED_LORA, RepairMethod.LORA_REPRUNE, RepairMethod.SPP}
    assert rates == pytest.approx([rates[1], rates[1], rates[1] if low_rank else rates[1] / 8])
    assert RepairConfig(1, method, learning_rate=2e-3).peak_rate(8 * RATED_WIDTH) == 2e-3


@pytest.mark.parametrize("method", [RepairMethod.SEFT, RepairMethod.FIXED_MASK])
def test_a_repair_takes_its_steps_at_the_rate_of_the_width(
    method: RepairMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_step() -> tuple[float, Tensor]:
        model = untrained_tiny()
        config = RepairConfig(2, method, batch_tokens=8, sequence_tokens=8, micro_batch=1)
        repair = Repair(model, torch.arange(64), config)
        rate = next(item.learning_rate for item in repair.advance() if isinstance(item, Step))
        repair.finish()
        return rate, target_linears(model)["model.layers.0.mlp.up_proj"].weight.clone()

    rate, weight = first_step()
    monkeypatch.setattr("seft.config.rates.RATED_WIDTH", 16)
    lower, other = first_step()
    start = target_linears(untrained_tiny())["model.layers.0.mlp.up_proj"].weight
    assert lower == rate / 4
    assert torch.allclose(4 * (other - start), weight - start, atol=1e-6)
    assert not torch.equal(weight, start)


def test_each_epoch_reads_each_window_once_in_a_new_order() -> None:
    config = RepairConfig(steps=1, batch_tokens=6, sequence_tokens=2)
    read = [int(row) for step in range(1, 5) for row in schedule.rows_of_step(config, 4, step)]
    epochs = [read[:4], read[4:8], read[8:]]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_the_windows_of_a_step_depend_only_on_seed_and_step() -> None:
    rows = [schedule.rows_of_step(RepairConfig(steps=9, seed=seed), 1000, 5).tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_an_event_uses_the_steps_since_the_last_event_but_at_most_two() -> None:
    often, rare = (RepairConfig(steps=100, update_interval=every) for every in (1, 10))
    assert [schedule.window_steps(often, event) for event in (1, 2, 3)] == [1, 1, 1]
    assert [schedule.window_steps(rare, event) for event in (1, 10, 20)] == [1, 2, 2]
    assert schedule.window_steps(RepairConfig(steps=100, update_interval=2), 2) == 1


def test_as_published_an_event_uses_five_steps() -> None:
    often, rare = (RepairConfig(100, update_interval=every, variant=Variant.PUBLISHED) for every in (3, 10))
    assert [schedule.window_steps(often, event) for event in (5, 6, 9)] == [5, 1, 3]
    assert [schedule.window_steps(rare, event) for event in (5, 10, 20)] == [5, 5, 5]
