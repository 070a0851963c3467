"""Text is tokenized, and tokens are cut into windows."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from seft.config import CalibrationOrder, PruneConfig
from seft.data.packing import cut_windows, pack
from seft.data.records import Chat, Completion, Message, Role
from seft.data.text import encode, evaluation_windows, named, split_described, tokenize, windows
from seft.data.tokens import bos_tokens
from seft.errors import ConfigError, DataError, SourceError
from seft.evaluate import perplexity
from seft.prune.loop import prune_model
from seft.repair import Repair
from tests.seft.repair.repairing import pruned_tiny, short
from tests.tiny import VOCABULARY, beginning_tokenizer, tiny_tokenizer

SEQUENTIAL, RANDOM = CalibrationOrder.SEQUENTIAL, CalibrationOrder.RANDOM
END = 1


def test_records_are_concatenated_with_the_end_token_between_them_only() -> None:
    tokenizer = tiny_tokenizer()
    first, second = (tokenizer(text)["input_ids"] for text in ("one", "two"))
    assert tokenize(["one", "two"], tokenizer).tolist() == [*first, END, *second]
    assert tokenize(["one"], tokenizer).tolist() == first
    assert tokenize([], tokenizer).tolist() == []
    assert tokenize(["one"], tokenizer).dtype == torch.int64


def test_a_completion_and_its_end_token_are_trained_on_and_its_prompt_is_not() -> None:
    tokenizer = tiny_tokenizer()
    prompt, completion = "The value of x is", " not known at all."
    (encoded,) = encode([Completion(prompt, completion)], tokenizer)
    assert tokenizer.decode(encoded.tokens) == f"{prompt}{completion}<eos>"
    assert tokenizer.decode(encoded.tokens[encoded.trained]) == f"{completion}<eos>"


def test_a_token_that_spans_prompt_and_completion_is_trained_on() -> None:
    tokenizer = tiny_tokenizer()
    words = (word for word in sorted(tokenizer.get_vocab()) if len(word) == 4 and word.isascii() and word.isalpha())
    spanning = next(word for word in words if len(tokenizer(word)["input_ids"]) == 1)
    (encoded,) = encode([Completion(spanning[:2], spanning[2:])], tokenizer)
    assert tokenizer.decode(encoded.tokens[encoded.trained]) == f"{spanning}<eos>"


def test_calibration_reads_prompts_too() -> None:
    tokenizer = tiny_tokenizer()
    rows = tokenize([Completion("a b ", "c"), Completion("d ", "e")], tokenizer)
    assert tokenizer.decode(rows) == "a b c<eos>d e<eos>"


def test_text_survives_a_round_trip_through_tokens() -> None:
    tokenizer = tiny_tokenizer()
    text = "def ünïcode(): pass\n\n  # 你好"
    assert tokenizer.decode(tokenize([text], tokenizer)) == text


def test_a_text_longer_than_the_models_context_gives_no_warning(capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenize(["long " * 100], tokenizer)
    assert capfd.readouterr().err == ""


def test_a_tokenizer_without_end_token_cannot_separate_records() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    assert len(tokenize(["one"], tokenizer))
    with pytest.raises(ConfigError, match="end-of-text"):
        tokenize(["one", "two"], tokenizer)


def test_sequential_windows_are_the_first_ones_of_the_text() -> None:
    tokens = torch.arange(10)
    assert windows(tokens, 3, 2, SEQUENTIAL, seed=0).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert windows(tokens, 3, 9, SEQUENTIAL, seed=0).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_random_windows_have_the_requested_number_and_depend_only_on_the_seed() -> None:
    tokens = torch.arange(50)
    drawn = windows(tokens, 7, 200, RANDOM, seed=3)
    assert drawn.shape == (200, 7)
    assert torch.equal(drawn - drawn[:, :1], torch.arange(7).expand(200, 7))
    assert (drawn.min().item(), drawn.max().item()) == (0, 49)
    assert torch.equal(drawn, windows(tokens, 7, 200, RANDOM, seed=3))
    assert not torch.equal(drawn, windows(tokens, 7, 200, RANDOM, seed=4))


@pytest.mark.parametrize("order", CalibrationOrder)
def test_a_text_shorter_than_one_window_is_rejected(order: CalibrationOrder) -> None:
    assert len(windows(torch.arange(8), 8, 1, order, seed=0)) == 1
    with pytest.raises(DataError, match="at least 8 tokens, the length of one sequence; it has 7"):
        windows(torch.arange(7), 8, 1, order, seed=0)


def test_an_error_about_a_short_text_names_the_fields_of_a_request() -> None:
    names = " The fields of the request for it are evaluate.tokens, evaluate.held_out."
    with pytest.raises(DataError) as caught, named("held-out text", "evaluate.tokens", "evaluate.held_out"):
        evaluation_windows(encode(["no"], tiny_tokenizer()), 96, 1)
    assert str(caught.value).startswith("held-out text: the text must have at least 96 tokens")
    assert str(caught.value).endswith(names)


def test_an_error_about_a_short_text_tells_which_side_of_the_split_has_the_long_record() -> None:
    tokenizer = tiny_tokenizer()
    training, held_out = encode(["no"], tokenizer), encode(["word " * 500, "two"], tokenizer)
    with (
        pytest.raises(DataError) as caught,
        split_described(training, held_out),
        named("training text"),
    ):
        pack(training, 96)
    few, many = len(training[0].tokens), sum(len(record.tokens) for record in held_out)
    assert str(caught.value) == (
        f"training text: the text must have at least 96 tokens, the length of one sequence; it has {few}. Give more"
        f" text, or set fewer tokens per sequence. The dataset was split: {few} tokens (records: 1) are for training,"
        f" and {many} tokens (records: 2) are held out for evaluation."
    )


@pytest.mark.parametrize(
    "use",
    [
        lambda model, tokens: perplexity(model, tokens[None]),
        lambda model, tokens: prune_model(model, tokens[None], PruneConfig(0.5)),
        lambda model, tokens: Repair(model, tokens, short()),
    ],
    ids=["evaluate", "prune", "repair"],
)
def test_a_token_without_embedding_is_rejected(use: Callable[[Any, Tensor], object]) -> None:
    tokens = torch.arange(32)
    use(pruned_tiny(), tokens)
    tokens[7] = VOCABULARY
    with pytest.raises(SourceError, match=f"below {VOCABULARY}, .* has the token id {VOCABULARY}"):
        use(pruned_tiny(), tokens)


def test_cut_windows_are_all_full_windows_and_share_memory() -> None:
    tokens = torch.arange(10)
    rows = cut_windows(tokens, 3)
    assert rows.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert rows.data_ptr() == tokens.data_ptr()


heads = pytest.mark.parametrize("head", ["<pad>", "<pad> <eos>"])
"""The tokens before every text. GLM-4 has two."""


@heads
def test_the_tokens_before_every_text_are_added_and_never_trained_on(head: str) -> None:
    tokenizer, plain, before = beginning_tokenizer(head), tiny_tokenizer(), [0, END][: len(head.split())]
    (completion,) = encode([Completion("The value of x", " is known.")], tokenizer)
    assert completion.tokens.tolist() == [*before, *plain("The value of x is known.")["input_ids"], END]
    assert tokenizer.decode(completion.tokens[completion.trained]) == " is known.<eos>"
    texts = encode(["one text " * 5, "another one"], tokenizer)
    whole = tokenize(["one text " * 5, "another one"], plain)
    assert torch.equal(tokenize(["one text " * 5, "another one"], tokenizer), whole)
    evaluated, room = evaluation_windows(texts, 6, 3), 6 - len(before)
    starts = (0, room, 2 * room)
    assert evaluated.tokens.tolist() == [[*before, *whole[start : start + room].tolist()] for start in starts]
    assert torch.equal(evaluated.trained, evaluated.positions >= len(before))
    for order in CalibrationOrder:
        drawn = windows(whole, 6, 3, order, 0, head=bos_tokens(tokenizer))
        assert torch.equal(drawn[:, len(before) :], windows(whole, room, 3, order, 0))
        assert (drawn[:, : len(before)] == torch.tensor(before)).all()


@heads
def test_every_part_of_a_text_in_a_window_begins_with_the_tokens_before_every_text(head: str) -> None:
    tokenizer, before = beginning_tokenizer(head), [0, END][: len(head.split())]
    texts = ["one text " * 5, "another one", "a third of them"]
    packed = pack(encode(texts, tokenizer), 8)
    for place, token in enumerate(before):
        assert (packed.tokens[packed.positions == place] == token).all()
    assert torch.equal(packed.trained, packed.positions >= len(before))
    tokens = packed.tokens[packed.trained]
    assert torch.equal(tokens, tokenize(texts, tiny_tokenizer())[: len(tokens)])
    assert int((packed.positions == 0).sum()) > len(packed) > 3


def test_a_window_without_room_for_text_is_an_error() -> None:
    tokenizer = beginning_tokenizer("<pad> <eos>")
    texts, completions = (encode([record] * 5, tokenizer) for record in ("one text", Completion("one", " text")))
    for use in (
        lambda: pack(texts, 2),
        lambda: pack(completions, 2),
        lambda: evaluation_windows(texts, 2, 3),
        lambda: windows(tokenize(["one text"], tokenizer), 2, 3, RANDOM, 0, head=bos_tokens(tokenizer)),
    ):
        with pytest.raises(DataError, match=r"more than 2 tokens, .* it has 2\. Set more tokens per sequence"):
            use()


ANSWER = Message(Role.ASSISTANT, "This is a long answer. " * 5)
SPOKEN = "{% for each in messages %}{{ each['content'] }}{% endfor %}"
TRAINED = "{% generation %}{{ bos_token + messages[0]['content'] + messages[1]['content'] }}{% endgeneration %}"


@heads
@pytest.mark.parametrize(
    ("template", "begins"), [("{{ bos_token }}" + SPOKEN, True), (TRAINED, True), (SPOKEN, False), (None, True)]
)
def test_every_piece_of_a_long_record_begins_with_the_tokens_before_every_text_if_the_record_does(
    template: str | None, head: str, *, begins: bool
) -> None:
    tokenizer, before = beginning_tokenizer(head), [0, END][: len(head.split())]
    tokenizer.chat_template = template and template.replace("bos_token", repr(head.replace(" ", "")))
    record = Chat((Message(Role.USER, "Question? "), ANSWER)) if template else Completion("Text: ", "a long one " * 9)
    encoded = encode([record], tokenizer)
    packed = pack(encoded, 8)
    assert int((packed.positions == 0).sum()) >= len(packed) > 3
    for place, token in enumerate(before):
        assert ((packed.tokens[packed.positions == place] == token) == begins).all()
    assert not begins or not packed.trained[packed.positions < len(before)].any()
    assert not (packed.tokens[packed.trained] == before[0]).any()
    assert not begins or packed.predictions == int(encoded[0].trained.sum())


def test_a_bos_token_that_the_tokenizer_does_not_add_is_not_added() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<pad>"
    assert bos_tokens(tokenizer) == []
    assert bos_tokens(beginning_tokenizer()) == [tokenizer.bos_token_id]


def test_the_tokens_before_every_text_need_not_be_the_bos_token() -> None:
    tokenizer = beginning_tokenizer("<eos> <pad>")
    for tokenizer.bos_token in ("<eos>", "<pad>", None):
        assert bos_tokens(tokenizer) == [END, 0]
