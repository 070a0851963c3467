"""Packed windows: nothing is lost, nothing is trained on that should not be, and no record sees another one."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seft.config import RepairConfig
from seft.data.packing import Encoded, Packed, fitted, packed
from seft.data.text import encode, judging
from seft.errors import DataError
from seft.evaluate import perplexity
from seft.loss import TokenLoss
from seft.models.targets import target_linears
from seft.repair import Repair
from seft.report import Step
from tests.seft.architectures import ARCHITECTURES, VOCABULARY
from tests.tiny import tiny_tokenizer, untrained_tiny


def record(number: int, length: int, prompt: int) -> Encoded:
    """Tokens that tell the record and the place."""
    return Encoded(1000 * number + torch.arange(length), torch.arange(length) >= prompt)


records = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 12)), min_size=1, max_size=12)


@given(records, st.integers(2, 16))
def test_whole_records_fill_windows_and_every_trained_token_is_there_once(
    shapes: list[tuple[int, int]], length: int
) -> None:
    made = [record(number, *shape) for number, shape in enumerate(shapes, start=1)]
    # The first token of a piece has nothing before it.
    learnt = {
        int(token)
        for each in made
        for place, (token, trained) in enumerate(zip(each.tokens, each.trained, strict=True))
        if trained and place % length
    }
    if not learnt:
        with pytest.raises(DataError, match="no record has a token to train on"):
            fitted(made, length)
        return
    found = fitted(made, length)
    assert sorted(found.tokens[found.trained].tolist()) == sorted(learnt)
    assert found.predictions == len(learnt)
    for tokens, positions in zip(found.tokens.tolist(), found.positions.tolist(), strict=True):
        for place in range(1, length):
            # What follows with the next position is the same record's next token, or filler.
            if positions[place] and tokens[place]:
                assert tokens[place] == tokens[place - 1] + 1
                assert positions[place] == positions[place - 1] + 1
        assert positions[0] == 0


def test_a_record_goes_where_the_least_room_is_left_for_it() -> None:
    found = fitted([record(1, 5, 1), record(2, 6, 1), record(3, 3, 1), record(4, 2, 1)], 8)
    assert found.tokens[0].tolist() == [*range(1000, 1005), *range(3000, 3003)]
    assert found.tokens[1].tolist() == [*range(2000, 2006), 4000, 4001]
    assert found.positions[1].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert found.trained[1].tolist() == [False, True, True, True, True, True, False, True]


def test_one_text_gives_the_windows_that_lie_side_by_side() -> None:
    found = packed([Encoded.text(list(range(50)))], 8)
    assert found.tokens.tolist() == torch.arange(48).view(6, 8).tolist()
    assert not found.mixed
    assert found.predictions == 6 * 7


def test_texts_lie_side_by_side_and_each_begins_anew() -> None:
    found = packed([Encoded.text([1, 2, 3]), Encoded.text([4, 5, 6, 7, 8, 9])], 4)
    assert found.tokens.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert found.positions.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]
    assert found.trained.tolist() == [[False, True, True, False], [False, True, True, True]]
    assert found.mixed


@pytest.fixture(scope="module")
def mixture() -> tuple[list[Encoded], Packed]:
    """Six records of some prompt and some completion, and three windows of 24 tokens of them, the last not full."""
    generator = torch.Generator().manual_seed(0)
    made = [
        Encoded(torch.randint(VOCABULARY, (length,), generator=generator), torch.arange(length) >= prompt)
        for length, prompt in ((11, 4), (9, 1), (3, 2), (14, 9), (10, 3), (17, 2))
    ]
    windows = packed(made, 24)
    assert (len(windows), windows.mixed) == (3, True)
    return made, windows


def alone(model: Any, made: list[Encoded]) -> dict[tuple[int, ...], Tensor]:
    """The losses of each record by its tokens, from the whole logits of a run that holds nothing else."""
    found = {}
    for each in made:
        logits = model(input_ids=each.tokens[None], use_cache=False).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, each.tokens[1:], reduction="none")
        found[tuple(each.tokens.tolist())] = losses[each.trained[1:]]
    return found


def in_order(windows: Packed, losses: dict[tuple[int, ...], Tensor]) -> Tensor:
    """The same losses in the order in which the records lie in the windows."""
    found = []
    for window in windows.tokens.tolist():
        place = 0
        while place < len(window):
            known = [tokens for tokens in losses if tuple(window[place : place + len(tokens)]) == tokens]
            if not known:
                break
            found.append(losses[known[0]])
            place += len(known[0])
    return torch.cat(found)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_record_has_the_losses_and_gradients_that_it_has_alone(
    name: str, mixture: tuple[list[Encoded], Packed]
) -> None:
    made, windows = mixture
    model = ARCHITECTURES[name].model().double().requires_grad_(False)
    model.set_experts_implementation("eager")  # no other one knows float64
    twin = copy.deepcopy(model)
    weight, other = (next(iter(target_linears(each).values())).parameter for each in (model, twin))
    for parameter in (weight, other):
        parameter.requires_grad_(True)
    losses = TokenLoss(model)(windows)
    expected = in_order(windows, alone(twin, made))
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    expected.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(weight.grad, other.grad)


def test_the_records_of_models_that_do_not_part_them_are_run_alone(mixture: tuple[list[Encoded], Packed]) -> None:
    """Both ways are there, or the law above would not try both. What fills a window up counts to its last record."""
    ways = {}
    for name in ("llama", "opt"):
        shapes: list[tuple[int, ...]] = []
        model = ARCHITECTURES[name].model()
        losses = TokenLoss(model)
        model.get_input_embeddings().register_forward_pre_hook(
            lambda _, args, shapes=shapes: shapes.append(tuple(args[0].shape))
        )
        losses(mixture[1])
        ways[name] = shapes[-1]
    assert ways == {"llama": (3, 24), "opt": (6, 24)}


def test_the_loss_of_a_step_is_the_mean_over_its_trained_tokens(mixture: tuple[list[Encoded], Packed]) -> None:
    made, windows = mixture
    expected = torch.cat([*alone(untrained_tiny(), made).values()]).mean().item()
    for micro_batch in (1, 2, 3):
        config = RepairConfig(steps=1, batch_tokens=72, sequence_tokens=24, micro_batch=micro_batch, density=0.01)
        step = Repair(untrained_tiny(), windows, config).advance()[0]
        assert isinstance(step, Step)
        assert step.loss == pytest.approx(expected, rel=1e-6)


def test_perplexity_counts_trained_tokens_only(mixture: tuple[list[Encoded], Packed]) -> None:
    made, _ = mixture
    model = untrained_tiny()
    expected = math.exp(torch.cat([*alone(model, made).values()]).double().mean().item())
    assert perplexity(model, judging(made, 24, 99)) == pytest.approx(expected, rel=1e-6)


def test_texts_are_judged_across_records_in_full_windows() -> None:
    encoded = encode(["one text", "another text"], tiny_tokenizer())
    windows = judging(encoded, 4, 3)
    assert windows.tokens.flatten().tolist() == torch.cat([each.tokens for each in encoded])[:12].tolist()
    assert not windows.mixed


def test_a_record_longer_than_a_window_is_cut_and_pieces_of_prompt_alone_are_left_out() -> None:
    long = record(1, 40, 38)
    found = fitted([long, record(2, 4, 1)], 16)
    assert sorted(found.tokens[found.trained].tolist()) == [1038, 1039, 2001, 2002, 2003]
