"""The choice of the next token: its probabilities follow from the scores, the temperature and `top_p`."""

import pytest
import torch
from torch import Tensor

from seft.errors import AccelerateError
from seft.runtime.generate import Sampling, choose

LOGITS = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()


def drawn(sampling: Sampling, draws: int) -> Tensor:
    """Return how often each of the four tokens is drawn, as fractions."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.tensor([choose(LOGITS, sampling, random) for _ in range(draws)])
    return tokens.bincount(minlength=len(LOGITS)) / draws


def test_tokens_are_drawn_with_the_probabilities_of_the_scores_divided_by_the_temperature() -> None:
    expected = (LOGITS / 0.7).softmax(0)
    torch.testing.assert_close(drawn(Sampling(0.7), 20_000), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 0.49, [0.0, 1.0, 0.0, 0.0]),
        (1.0, 0.79, [0.0, 0.625, 0.0, 0.375]),
        (1.0, 0.9, [0.1579, 0.5263, 0.0, 0.3158]),
        (1.0, 0.96, [0.15, 0.5, 0.05, 0.3]),
        (0.5, 0.9, [0.0, 0.7353, 0.0, 0.2647]),
    ],
)
def test_tokens_are_drawn_from_the_smallest_set_that_has_at_least_the_probability_top_p(
    temperature: float, top_p: float, expected: list[float]
) -> None:
    found = drawn(Sampling(temperature, top_p), 4000)
    assert [each > 0 for each in found.tolist()] == [each > 0 for each in expected]
    torch.testing.assert_close(found, torch.tensor(expected), atol=0.03, rtol=0)


@pytest.mark.parametrize("sampling", [Sampling(1e-40), Sampling(5e-324), Sampling(1, 1e-300), Sampling(1e-40, 1e-300)])
def test_the_lowest_temperature_and_top_p_take_the_most_probable_token(sampling: Sampling) -> None:
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 20
    assert choose(scores, sampling, torch.Generator()) == int(scores.argmax())


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_an_error(number: float, temperature: float) -> None:
    with pytest.raises(AccelerateError, match="scores of tokens must be finite"):
        choose(torch.tensor([1, number, 0]), Sampling(temperature), torch.Generator())
