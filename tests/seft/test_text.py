"""Text becomes tokens, and tokens windows."""

import warnings

import pytest
import torch

from seft.config import CalibrationOrder
from seft.errors import ConfigError, DataError
from seft.text import tokenize, windows
from tests.tiny import tiny_tokenizer

SEQUENTIAL, RANDOM = CalibrationOrder.SEQUENTIAL, CalibrationOrder.RANDOM
END = 1


def test_records_follow_one_another_with_the_end_token_between_them_only() -> None:
    tokenizer = tiny_tokenizer()
    first, second = (tokenizer(text)["input_ids"] for text in ("one", "two"))
    assert tokenize(["one", "two"], tokenizer).tolist() == [*first, END, *second]
    assert tokenize(["one"], tokenizer).tolist() == first
    assert tokenize([], tokenizer).tolist() == []
    assert tokenize(["one"], tokenizer).dtype == torch.int64


def test_text_comes_back_from_its_tokens() -> None:
    tokenizer = tiny_tokenizer()
    text = "def ünïcode(): pass\n\n  # 你好"
    assert tokenizer.decode(tokenize([text], tokenizer)) == text


def test_a_text_longer_than_the_model_warns_of_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenize(["long " * 100], tokenizer)
    assert capfd.readouterr().err == ""


def test_a_tokenizer_without_end_token_cannot_part_records() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    assert len(tokenize(["one"], tokenizer))
    with pytest.raises(ConfigError, match="end-of-text"):
        tokenize(["one", "two"], tokenizer)


def test_windows_in_sequence_are_the_first_ones_side_by_side() -> None:
    tokens = torch.arange(10)
    assert windows(tokens, 3, 2, SEQUENTIAL, seed=0).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert windows(tokens, 3, 9, SEQUENTIAL, seed=0).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_random_windows_are_as_many_as_asked_and_depend_on_the_seed_alone() -> None:
    tokens = torch.arange(50)
    drawn = windows(tokens, 7, 200, RANDOM, seed=3)
    assert drawn.shape == (200, 7)
    assert torch.equal(drawn - drawn[:, :1], torch.arange(7).expand(200, 7))
    assert (drawn.min().item(), drawn.max().item()) == (0, 49)
    assert torch.equal(drawn, windows(tokens, 7, 200, RANDOM, seed=3))
    assert not torch.equal(drawn, windows(tokens, 7, 200, RANDOM, seed=4))


@pytest.mark.parametrize("order", CalibrationOrder)
def test_a_text_shorter_than_one_window_is_refused(order: CalibrationOrder) -> None:
    assert len(windows(torch.arange(8), 8, 1, order, seed=0)) == 1
    with pytest.raises(DataError, match="one window of 8 tokens; it has 7"):
        windows(torch.arange(7), 8, 1, order, seed=0)
