"""Text becomes tokens, and tokens windows."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from seft.config import CalibrationOrder, PruneConfig
from seft.data.marking import beginning
from seft.data.packing import packed, side_by_side
from seft.data.records import Completion
from seft.data.text import encode, judging, tokenize, windows
from seft.errors import ConfigError, DataError, SourceError
from seft.evaluate import perplexity
from seft.prune.loop import prune_model
from seft.repair import Repair
from tests.seft.repair.repairing import pruned_tiny, short
from tests.tiny import VOCABULARY, beginning_tokenizer, tiny_tokenizer

SEQUENTIAL, RANDOM = CalibrationOrder.SEQUENTIAL, CalibrationOrder.RANDOM
END = 1


def test_records_follow_one_another_with_the_end_token_between_them_only() -> None:
    tokenizer = tiny_tokenizer()
    first, second = (tokenizer(text)["input_ids"] for text in ("one", "two"))
    assert tokenize(["one", "two"], tokenizer).tolist() == [*first, END, *second]
    assert tokenize(["one"], tokenizer).tolist() == first
    assert tokenize([], tokenizer).tolist() == []
    assert tokenize(["one"], tokenizer).dtype == torch.int64


def test_a_completion_is_trained_on_with_the_end_behind_it_and_its_prompt_is_not() -> None:
    tokenizer = tiny_tokenizer()
    prompt, completion = "The value of x is", " not known at all."
    (encoded,) = encode([Completion(prompt, completion)], tokenizer)
    assert tokenizer.decode(encoded.tokens) == f"{prompt}{completion}<eos>"
    assert tokenizer.decode(encoded.tokens[encoded.trained]) == f"{completion}<eos>"


def test_a_token_across_prompt_and_completion_is_trained_on() -> None:
    tokenizer = tiny_tokenizer()
    words = (word for word in sorted(tokenizer.get_vocab()) if len(word) == 4 and word.isascii() and word.isalpha())
    across = next(word for word in words if len(tokenizer(word)["input_ids"]) == 1)
    (encoded,) = encode([Completion(across[:2], across[2:])], tokenizer)
    assert tokenizer.decode(encoded.tokens[encoded.trained]) == f"{across}<eos>"


def test_calibration_reads_prompts_too() -> None:
    tokenizer = tiny_tokenizer()
    rows = tokenize([Completion("a b ", "c"), Completion("d ", "e")], tokenizer)
    assert tokenizer.decode(rows) == "a b c<eos>d e<eos>"


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


@pytest.mark.parametrize(
    "use",
    [
        lambda model, tokens: perplexity(model, tokens[None]),
        lambda model, tokens: prune_model(model, tokens[None], PruneConfig(0.5)),
        lambda model, tokens: Repair(model, tokens, short()),
    ],
    ids=["evaluate", "prune", "repair"],
)
def test_a_token_that_the_model_does_not_know_is_refused(use: Callable[[Any, Tensor], object]) -> None:
    tokens = torch.arange(32)
    use(pruned_tiny(), tokens)
    tokens[7] = VOCABULARY
    with pytest.raises(SourceError, match=f"has {VOCABULARY}; the text has token {VOCABULARY}"):
        use(pruned_tiny(), tokens)


def test_windows_side_by_side_are_all_there_are_and_no_copy() -> None:
    tokens = torch.arange(10)
    rows = side_by_side(tokens, 3)
    assert rows.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert rows.data_ptr() == tokens.data_ptr()


def test_a_token_that_the_tokenizer_puts_before_every_text_is_there_and_never_trained_on() -> None:
    tokenizer, begins = beginning_tokenizer(), tiny_tokenizer().pad_token_id
    plain = tiny_tokenizer()
    (completion,) = encode([Completion("The value of x", " is known.")], tokenizer)
    assert completion.tokens.tolist() == [begins, *plain("The value of x is known.")["input_ids"], END]
    assert tokenizer.decode(completion.tokens[completion.trained]) == " is known.<eos>"
    texts = encode(["one text " * 5, "another one"], tokenizer)
    whole = tokenize(["one text " * 5, "another one"], plain)
    assert torch.equal(tokenize(["one text " * 5, "another one"], tokenizer), whole)
    judged = judging(texts, 6, 3)
    assert judged.tokens.tolist() == [[begins, *whole[start : start + 5].tolist()] for start in (0, 5, 10)]
    for order in CalibrationOrder:
        drawn = windows(whole, 6, 3, order, 0, head=beginning(tokenizer))
        assert torch.equal(drawn[:, 1:], windows(whole, 5, 3, order, 0))
        assert (drawn[:, 0] == begins).all()


def test_every_part_of_a_text_in_a_window_begins_with_that_token() -> None:
    tokenizer, begins = beginning_tokenizer(), tiny_tokenizer().pad_token_id
    texts = ["one text " * 5, "another one", "a third of them"]
    made = packed(encode(texts, tokenizer), 8)
    starts = made.positions == 0
    assert (made.tokens[starts] == begins).all()
    assert torch.equal(made.trained, ~starts)
    read = made.tokens[made.trained]
    assert torch.equal(read, tokenize(texts, tiny_tokenizer())[: len(read)])
    assert int(starts.sum()) > len(made) > 3


def test_a_tokenizer_that_knows_such_a_token_and_does_not_use_it_puts_none_there() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<pad>"
    assert beginning(tokenizer) == []
    assert beginning(beginning_tokenizer()) == [tokenizer.bos_token_id]
