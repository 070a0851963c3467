"""Packed windows lose nothing, train on nothing that they should not, and no record attends to another one."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seft.config import RepairConfig
from seft.data.packing import Encoded, Packed, pack, pack_whole
from seft.data.text import encode, evaluation_windows
from seft.errors import DataError
from seft.evaluate import perplexity
from seft.loss import TokenLoss
from seft.models.targets import target_linears
from seft.repair import Repair
from seft.report import Step
from tests.seft.architectures import ARCHITECTURES, VOCABULARY
from tests.tiny import tiny_tokenizer, untrained_tiny


def record(number: int, length: int, prompt: int) -> Encoded:
    """Return a record whose tokens encode its number and the position in it."""
    return Encoded(1000 * number + torch.arange(length), torch.arange(length) >= prompt)


records = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 12)), min_size=1, max_size=12)


@given(records, st.integers(2, 16))
def test_every_trained_token_of_whole_records_is_packed_exactly_once(
    shapes: list[tuple[int, int]], length: int
) -> None:
    encoded = [record(number, *shape) for number, shape in enumerate(shapes, start=1)]
    # The first token of a piece is not trained on, because nothing comes before it.
    expected = {
        int(token)
        for each in encoded
        for place, (token, trained) in enumerate(zip(each.tokens, each.trained, strict=True))
        if trained and place % length
    }
    if not expected:
        with pytest.raises(DataError, match="no record has one"):
            pack_whole(encoded, length)
        return
    windows = pack_whole(encoded, length)
    assert sorted(windows.tokens[windows.trained].tolist()) == sorted(expected)
    assert windows.predictions == len(expected)
    for tokens, positions in zip(windows.tokens.tolist(), windows.positions.tolist(), strict=True):
        for place in range(1, length):
            # A token at the next position is the same record's next token, or padding.
            if positions[place] and tokens[place]:
                assert tokens[place] == tokens[place - 1] + 1
                assert positions[place] == positions[place - 1] + 1
        assert positions[0] == 0


@given(records, st.integers(2, 16))
def test_every_piece_of_a_record_begins_with_its_head(shapes: list[tuple[int, int]], length: int) -> None:
    head, encoded = [9], list[Encoded]()
    for number, shape in enumerate([*shapes, (40, 0)], start=1):
        body = record(number, *shape)
        tokens, trained = torch.cat([torch.tensor(head), body.tokens]), torch.cat([torch.tensor([False]), body.trained])
        encoded.append(Encoded(tokens, trained, head))
    windows = pack_whole(encoded, length)
    assert (windows.tokens[windows.positions == 0] == 9).all()
    expected = torch.cat([each.tokens[each.trained] for each in encoded])
    assert sorted(windows.tokens[windows.trained].tolist()) == sorted(expected.tolist())


def test_a_record_goes_into_the_window_with_the_least_sufficient_space() -> None:
    windows = pack_whole([record(1, 5, 1), record(2, 6, 1), record(3, 3, 1), record(4, 2, 1)], 8)
    assert windows.tokens[0].tolist() == [*range(1000, 1005), *range(3000, 3003)]
    assert windows.tokens[1].tolist() == [*range(2000, 2006), 4000, 4001]
    assert windows.positions[1].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert windows.trained[1].tolist() == [False, True, True, True, True, True, False, True]


def test_one_text_is_cut_into_consecutive_windows() -> None:
    windows = pack([Encoded.text(list(range(50)))], 8)
    assert windows.tokens.tolist() == torch.arange(48).view(6, 8).tolist()
    assert not windows.mixed
    assert windows.predictions == 6 * 7


def test_texts_are_concatenated_and_positions_restart_at_each() -> None:
    windows = pack([Encoded.text([1, 2, 3]), Encoded.text([4, 5, 6, 7, 8, 9])], 4)
    assert windows.tokens.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert windows.positions.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]
    assert windows.trained.tolist() == [[False, True, True, False], [False, True, True, True]]
    assert windows.mixed


@pytest.mark.parametrize("lengths", [(3, 3, 4), (1, 4, 1, 2), (1, 1, 1)])
def test_no_window_of_texts_has_nothing_to_train_on(lengths: tuple[int, ...]) -> None:
    encoded = [Encoded.text([7] * length) for length in lengths]
    if max(lengths) == 1:
        with pytest.raises(DataError, match="no record has one"):
            pack(encoded, 2)
        return
    windows = pack(encoded, 2)
    assert windows.trained.any(1).all()
    assert len(windows) < sum(lengths) // 2


@pytest.fixture(scope="module")
def mixture() -> tuple[list[Encoded], Packed]:
    """Six records with prompt and completion, and the three windows of 24 tokens they fill. The last is not full."""
    generator = torch.Generator().manual_seed(0)
    encoded = [
        Encoded(torch.randint(VOCABULARY, (length,), generator=generator), torch.arange(length) >= prompt)
        for length, prompt in ((11, 4), (9, 1), (3, 2), (14, 9), (10, 3), (17, 2))
    ]
    windows = pack(encoded, 24)
    assert (len(windows), windows.mixed) == (3, True)
    return encoded, windows


def losses_alone(model: Any, encoded: list[Encoded]) -> dict[tuple[int, ...], Tensor]:
    """Return the losses of each record, by its tokens, from a run with only this record."""
    by_tokens = {}
    for each in encoded:
        logits = model(input_ids=each.tokens[None], use_cache=False).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, each.tokens[1:], reduction="none")
        by_tokens[tuple(each.tokens.tolist())] = losses[each.trained[1:]]
    return by_tokens


def in_order(windows: Packed, losses: dict[tuple[int, ...], Tensor]) -> Tensor:
    """Return the same losses in the order of the records in the windows."""
    ordered = []
    for window in windows.tokens.tolist():
        place = 0
        while place < len(window):
            matches = [tokens for tokens in losses if tuple(window[place : place + len(tokens)]) == tokens]
            if not matches:
                break
            ordered.append(losses[matches[0]])
            place += len(matches[0])
    return torch.cat(ordered)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_packed_record_has_the_same_losses_and_gradients_as_alone(
    name: str, mixture: tuple[list[Encoded], Packed]
) -> None:
    encoded, windows = mixture
    model = ARCHITECTURES[name].model().double().requires_grad_(False)
    model.set_experts_implementation("eager")  # the other implementations do not support float64
    twin = copy.deepcopy(model)
    weight, other = (next(iter(target_linears(each).values())).parameter for each in (model, twin))
    for parameter in (weight, other):
        parameter.requires_grad_(True)
    losses = TokenLoss(model)(windows)
    expected = in_order(windows, losses_alone(twin, encoded))
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    expected.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(weight.grad, other.grad)


def test_models_that_do_not_separate_records_run_each_one_in_its_own_row(mixture: tuple[list[Encoded], Packed]) -> None:
    """So the test above covers both cases. The padding of a window counts as a part of its last record."""
    last_shapes = {}
    for name in ("llama", "opt"):
        shapes: list[tuple[int, ...]] = []
        model = ARCHITECTURES[name].model()
        losses = TokenLoss(model)
        model.get_input_embeddings().register_forward_pre_hook(
            lambda _, args, shapes=shapes: shapes.append(tuple(args[0].shape))
        )
        losses(mixture[1])
        last_shapes[name] = shapes[-1]
    assert last_shapes == {"llama": (3, 24), "opt": (6, 24)}


def test_the_loss_of_a_step_is_the_mean_over_its_trained_tokens(mixture: tuple[list[Encoded], Packed]) -> None:
    encoded, windows = mixture
    expected = torch.cat([*losses_alone(untrained_tiny(), encoded).values()]).mean().item()
    for micro_batch in (1, 2, 3):
        config = RepairConfig(steps=1, batch_tokens=72, sequence_tokens=24, micro_batch=micro_batch, density=0.01)
        step = Repair(untrained_tiny(), windows, config).advance()[0]
        assert isinstance(step, Step)
        assert step.loss == pytest.approx(expected, rel=1e-6)


def test_perplexity_counts_trained_tokens_only(mixture: tuple[list[Encoded], Packed]) -> None:
    encoded, _ = mixture
    model = untrained_tiny()
    expected = math.exp(torch.cat([*losses_alone(model, encoded).values()]).double().mean().item())
    assert perplexity(model, evaluation_windows(encoded, 24, 99)) == pytest.approx(expected, rel=1e-6)


def test_texts_are_evaluated_across_records_in_full_windows() -> None:
    encoded = encode(["one text", "another text"], tiny_tokenizer())
    windows = evaluation_windows(encoded, 4, 3)
    assert windows.tokens.flatten().tolist() == torch.cat([each.tokens for each in encoded])[:12].tolist()
    assert not windows.mixed


def test_the_text_of_windows_has_every_token_and_no_padding() -> None:
    records = [record(1, 9, 4), record(2, 11, 5), record(3, 13, 2)]
    windows = pack_whole(records, 16)
    assert windows.tokens.numel() > len(windows.text)
    assert sorted(windows.text.tolist()) == sorted(torch.cat([each.tokens for each in records]).tolist())
    plain = Packed.plain(torch.randint(9, (3, 16), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(plain.text, plain.tokens.flatten())


def test_a_record_longer_than_a_window_is_cut_and_pieces_with_only_prompt_are_left_out() -> None:
    long = record(1, 40, 38)
    windows = pack_whole([long, record(2, 4, 1)], 16)
    assert sorted(windows.tokens[windows.trained].tolist()) == [1038, 1039, 2001, 2002, 2003]
