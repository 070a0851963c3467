"""The parts of a streamed text are the text of all tokens, also where bytes do not form characters."""

import random
import string
from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from seft.runtime.text_stream import TextStream
from tests.tiny import tiny_tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def falling_back_to_bytes() -> PreTrainedTokenizerFast:
    """A tokenizer like the one of Llama 2. It writes a character that it does not know as tokens of one byte."""
    words = ["<unk>", "</s>", *BYTES, "\u2581", "\u2581the", *string.ascii_lowercase, "\ufffd"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def parts(tokenizer: PreTrainedTokenizerFast, tokens: list[int], before: Sequence[int] = ()) -> list[str]:
    text = TextStream(tokenizer, before)
    return [*(text.step(token) for token in tokens), text.rest()]


@pytest.mark.parametrize("make", [falling_back_to_bytes, tiny_tokenizer])
def test_the_parts_are_the_text_of_all_tokens(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer, choice = make(), random.Random(0)
    for most in (4, 40, len(tokenizer) + 9):  # with special tokens, many bytes, and tokens that do not exist
        for _ in range(300):
            tokens = [choice.randrange(most) for _ in range(choice.randrange(40))]
            assert "".join(parts(tokenizer, tokens)) == tokenizer.backend_tokenizer.decode(tokens)


def test_a_newline_before_broken_bytes_is_part_of_their_run() -> None:
    tokenizer = falling_back_to_bytes()
    tokens = tokenizer.convert_tokens_to_ids(["<0x0A>", "<0xC3>", "a", "<0xC3>"])
    assert parts(tokenizer, tokens) == ["", "", "\ufffd\ufffda", "", "\ufffd"]


def test_text_arrives_while_a_model_repeats_a_broken_byte() -> None:
    tokenizer = tiny_tokenizer()
    broken = tokenizer.convert_tokens_to_ids("\u0122")  # the byte 0x80 in the alphabet of byte-level tokenizers
    assert parts(tokenizer, [broken] * 6) == ["", *["\ufffd"] * 6]


@pytest.mark.parametrize("make", [falling_back_to_bytes, tiny_tokenizer])
def test_the_parts_are_the_text_that_the_tokens_add_to_a_prompt(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer, choice = make(), random.Random(0)
    words = [number for number in range(len(tokenizer)) if tokenizer.convert_ids_to_tokens(number) not in BYTES]
    for _ in range(300):
        prompt, tokens = ([choice.choice(words) for _ in range(choice.randrange(1, 12))] for _ in range(2))
        whole, before = (tokenizer.backend_tokenizer.decode(each) for each in (prompt + tokens, prompt))
        if not before.endswith("\ufffd"):
            assert "".join(parts(tokenizer, tokens, prompt)) == whole[len(before) :]


def test_the_space_before_the_first_word_after_a_prompt_is_kept() -> None:
    tokenizer = falling_back_to_bytes()
    word, letter, first, second = tokenizer.convert_tokens_to_ids(["\u2581the", "a", "<0xC3>", "<0xA9>"])
    assert parts(tokenizer, [word, letter], [word])[0] == " the"
    assert "".join(parts(tokenizer, [word], [letter, first, second])) == " the"
    assert "".join(parts(tokenizer, [first, second], [letter, *[first, second] * 5])) == "\u00e9"
    assert parts(tokenizer, [word])[0] == "the"
