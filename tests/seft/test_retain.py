"""Retained text: recorded predictions equal a teacher in memory, shares are kept, and the repair resumes exactly."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seft import stages
from seft.config import RepairConfig, Retain
from seft.config.repair import READ_ONCE, READS
from seft.data.packing import Packed
from seft.data.tokens import bos_tokens
from seft.distill import Distillation, make_objective
from seft.errors import ConfigError, StateError
from seft.evaluate import mean_loss
from seft.loss import TokenLoss
from seft.repair import Repair, schedule
from seft.report import Evaluated, Progress, Report, Step
from seft.retain import load_retained, save_retained, split_retained, start_tokens, with_predictions, write_windows
from tests.seft.repair.repairing import PRUNED, TOKENS, pruned_tiny, repaired, same_bits, short, weights
from tests.tiny import beginning_tokenizer, tiny_tokenizer, untrained_tiny

LENGTH = short().sequence_tokens
OTHER = Packed.plain(TOKENS[-6 * LENGTH :].view(6, LENGTH))
KEEP = {"retain": Retain.DATASET, "retain_share": 0.5, "retain_tokens": 6 * LENGTH}
CHAT = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"


def retained(seed: int = 3) -> Packed:
    return with_predictions(untrained_tiny(seed), OTHER)


def with_no_predictions(windows: int) -> Packed:
    return Packed.plain(torch.zeros(windows, LENGTH, dtype=torch.int64))


def test_recorded_predictions_have_the_loss_and_gradient_of_a_teacher_in_memory() -> None:
    results = []
    for recorded in (True, False):
        model = untrained_tiny()
        if recorded:
            loss = make_objective(model, short(), None)(retained())
        else:
            loss = Distillation(model, untrained_tiny(3), short(distill_weight=1.0))(OTHER)
        loss.backward()  # type: ignore[no-untyped-call]
        results.append((loss.detach(), model.model.layers[0].mlp.up_proj.weight.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_loss_of_a_mixed_batch_is_the_sum_of_its_parts() -> None:
    model, text = untrained_tiny(), Packed.plain(TOKENS[: 3 * LENGTH].view(3, LENGTH))
    loss = make_objective(model, short(), None)
    with torch.no_grad():
        torch.testing.assert_close(loss(text + retained()), loss(text) + loss(retained()))
        torch.testing.assert_close(loss(text), TokenLoss(model)(text.tokens).sum())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_step_has_its_share_of_retained_windows_and_no_window_is_skipped(share: float) -> None:
    config = replace(short(**KEEP), retain_share=share, batch_tokens=3 * LENGTH)
    user, kept = list[int](), list[int]()
    for step in range(1, 41):
        rows, others = schedule.rows_of_step(config, 5, step), schedule.retained_rows_of_step(config, 7, step)
        assert len(rows) + len(others) == 3
        user += rows.tolist()
        kept += others.tolist()
    assert len(kept) == round(120 * share)
    for read, count in ((user, 5), (kept, 7)):
        for epoch in range(0, len(read) - count + 1, count):
            assert sorted(read[epoch : epoch + count]) == list(range(count))


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), beginning_tokenizer(), beginning_tokenizer("<pad> <eos>")])
@pytest.mark.parametrize("template", [None, CHAT, "{{ raise_exception('no') }}"])
def test_written_text_follows_from_the_seed_and_changes_nothing_else(tokenizer: Any, template: str | None) -> None:
    tokenizer.chat_template = template
    model, config = untrained_tiny(), replace(short(), retain=Retain.WRITTEN, retain_tokens=5 * LENGTH)
    before, settings, start = torch.get_rng_state(), model.generation_config, start_tokens(tokenizer)
    first, second = (write_windows(model, start, config) for _ in range(2))
    other = write_windows(model, start, replace(config, seed=1))
    assert first.tokens.shape == (5, LENGTH)
    assert torch.equal(first.tokens, second.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.generation_config is settings
    assert not first.trained[:, : len(start)].any()
    assert first.trained[:, len(start) :].all()
    text = tokenizer.decode(first.tokens[0])
    before = tokenizer.decode(bos_tokens(tokenizer)) or tokenizer.eos_token
    assert text.startswith("<|user|>" if template == CHAT else before)


def test_windows_that_are_written_in_different_batches_have_different_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seft.config.repair.WRITTEN_AT_ONCE", 2 * LENGTH)
    config = replace(short(), retain=Retain.WRITTEN, retain_tokens=5 * LENGTH)
    assert config.written_at_once == 2
    written = write_windows(untrained_tiny(), [1], config).tokens
    assert len({tuple(window) for window in written.tolist()}) == 5


@pytest.mark.parametrize("steps", range(1, 40))
def test_no_more_text_is_written_than_the_training_reads(steps: int) -> None:
    config = short(steps=steps, retain=Retain.WRITTEN, retain_tokens=1 << 20, batch_tokens=2 * LENGTH)

    def trained(windows: int) -> int:
        return len(split_retained(with_no_predictions(windows))[0])

    read = {int(row) for step in range(1, steps + 1) for row in schedule.retained_rows_of_step(config, 999, step)}
    assert len(read) == steps
    assert trained(config.retained_windows) == len(read)
    assert trained(config.retained_windows - 1) < len(read)


@pytest.mark.parametrize("steps", [100, 1000, 8192, 100_000])
def test_a_long_training_reads_a_token_at_most_four_times_unless_the_text_would_be_too_long(steps: int) -> None:
    config = RepairConfig(steps=steps, retain=Retain.WRITTEN, sequence_tokens=512, batch_tokens=1024)
    written, windows = config.retained_windows * 512, config.retained_windows
    reads = steps / (windows - windows // 8)
    assert written <= config.retain_tokens
    assert reads <= 1 if written < READ_ONCE else reads <= READS or written == config.retain_tokens
    assert steps != 1000 or READ_ONCE < written < config.retain_tokens
    assert replace(config, retain_tokens=READ_ONCE).retained_windows * 512 <= READ_ONCE
    dataset = replace(config, retain=Retain.DATASET).retained_windows
    assert steps <= dataset - dataset // 8 or dataset * 512 == config.retain_tokens


@pytest.mark.parametrize("dataset", [None, OTHER])
def test_the_progress_rises_from_the_first_tokens_to_the_last_prediction(dataset: Packed | None) -> None:
    loaded: Any = SimpleNamespace(model=untrained_tiny())
    done = list[float]()

    def report(each: Report) -> None:
        assert isinstance(each, Progress)
        done.append(each.done / each.total)

    config = replace(short(), retain=Retain.WRITTEN if dataset is None else Retain.DATASET)
    stages.retained_text(loaded, config, [1], dataset, report)
    assert done == sorted(done)
    assert (done[0] < 0.2, done[-1]) == (True, 1.0)


def test_start_tokens_that_fill_the_window_are_rejected() -> None:
    config = short(retain=Retain.WRITTEN)
    with pytest.raises(ConfigError, match="must be at least 200 to retain written text"):
        write_windows(untrained_tiny(), [1] * 100, replace(config, sequence_tokens=96, batch_tokens=960))


def test_both_texts_have_their_share_of_the_loss_although_few_tokens_are_trained_on() -> None:
    own = Packed.plain(TOKENS[: 8 * LENGTH].view(8, LENGTH))
    few = replace(own, trained=own.trained & (own.positions % 8 == 1))
    config = short(steps=1, batch_tokens=4 * LENGTH, micro_batch=1, **{**KEEP, "retain_share": 0.25})
    model = pruned_tiny()
    step = Repair(model, few, config, retained=retained()).advance()[0]
    rows = schedule.rows_of_step(config, 8, 1)
    kept = schedule.retained_rows_of_step(config, 6, 1)
    model, loss = pruned_tiny(), make_objective(pruned_tiny(), short(), None)
    with torch.no_grad():
        parts = [float(loss(each)) / each.predictions for each in (few[rows], retained()[kept])]
    assert isinstance(step, Step)
    assert step.loss == pytest.approx(0.75 * parts[0] + 0.25 * parts[1], rel=1e-5)


def test_a_repair_resumes_exactly_and_only_with_its_retained_text(tmp_path: Path) -> None:
    def run(stop: int, text: Packed) -> tuple[Any, Repair]:
        return repaired(short(**KEEP), stop, retained=text)

    save_retained(retained(), tmp_path / "retained.safetensors")
    text = load_retained(tmp_path / "retained.safetensors")
    whole, _ = run(8, retained())
    _, half = run(4, text)
    half.save(tmp_path / "state")
    model, again = run(0, text)
    again.load(tmp_path / "state")
    again.run()
    assert same_bits(weights(model), weights(whole))
    with pytest.raises(StateError, match="must have the fingerprint"):
        run(0, retained(4))[1].load(tmp_path / "state")


def test_a_state_is_rejected_if_any_part_of_the_retained_text_is_another(tmp_path: Path) -> None:
    def start(text: Packed) -> Repair:
        return Repair(pruned_tiny(), TOKENS, short(**KEEP), retained=text)

    same = retained()
    assert same.teacher
    start(same).save(tmp_path)
    start(same).load(tmp_path)
    for stranger in (
        replace(same, tokens=same.tokens.flip(0)),
        replace(same, trained=same.trained & (same.positions > 9)),
        replace(same, positions=same.positions % 16),
        replace(same, teacher=replace(same.teacher, tokens=same.teacher.tokens.flip(2))),
        replace(same, teacher=replace(same.teacher, logarithms=same.teacher.logarithms - 0.1)),
    ):
        with pytest.raises(StateError, match="must have the fingerprint"):
            start(stranger).load(tmp_path)


def test_the_model_keeps_what_it_knows_of_the_retained_text() -> None:
    """The same training without retained text moves the predictions on it further away."""
    losses = []
    for share in (0.0, 0.5):
        model, config = pruned_tiny(), short(steps=30, density="all", learning_rate=3e-3, **KEEP)
        config = replace(config, retain=Retain.DATASET if share else Retain.NONE)
        Repair(model, TOKENS[: -6 * LENGTH], config, retained=retained() if share else None).run()
        with torch.no_grad():
            losses.append(float(make_objective(model, short(), None)(retained())))
    assert losses[1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"retain": "dataset", "retain_share": 0.95}, "retain_share"),
        ({"retain": "written", "retain_tokens": LENGTH + 1}, "retain_tokens"),
        ({"retain": "written", "retain_share": 0.01}, "retain_share"),
    ],
)
def test_contradictions_are_rejected(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        short(**{**settings, **({"retain": Retain(settings["retain"])} if "retain" in settings else {})})
    assert caught.value.field == field


def test_the_text_must_be_there_exactly_if_it_is_used() -> None:
    configs: list[tuple[RepairConfig, Packed | None]] = [(short(**KEEP), None), (short(), retained())]
    configs += [(short(**KEEP), text) for text in (OTHER, retained()[:0])]
    for config, text in configs:
        with pytest.raises(ConfigError, match="retain"):
            Repair(pruned_tiny(), TOKENS, config, retained=text)


def test_the_best_state_is_chosen_by_the_loss_on_both_texts() -> None:
    config, text = short(**{**KEEP, "retain_share": 0.25}, evaluate_interval=1), retained()
    held_out = Packed.plain(TOKENS[: 3 * LENGTH].view(3, LENGTH))
    loaded: Any = SimpleNamespace(model=pruned_tiny())
    repair = stages.start_repair(
        loaded, OTHER, config, pruned=PRUNED, load_teacher=lambda: None, retained=text, held_out=held_out
    )
    (judged,) = (each for each in repair.advance() if isinstance(each, Evaluated))
    losses = [mean_loss(loaded.model, each) for each in (held_out, split_retained(text)[1])]
    assert judged.held_out_loss == pytest.approx(0.75 * losses[0] + 0.25 * losses[1])
    assert losses[0] != pytest.approx(losses[1])


def test_the_steps_read_all_retained_windows_except_those_that_are_measured() -> None:
    loaded: Any = SimpleNamespace(model=pruned_tiny())
    own, text = Packed.plain(TOKENS[: 8 * LENGTH].view(8, LENGTH)), retained()
    repair = stages.start_repair(
        loaded, own, short(**KEEP, steps=40), pruned=PRUNED, load_teacher=lambda: None, retained=text, held_out=None
    )
    read = {tuple(row) for step in range(1, 41) for row in repair._batch(step)[0].tokens.tolist()}
    assert read == {tuple(row) for each in (own, text[:-1]) for row in each.tokens.tolist()}
