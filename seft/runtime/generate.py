"""Generates text with an accelerated model, token by token, and streams it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.checkpoint.compact.load import load_whole
from seft.errors import AccelerateError
from seft.models.dimensions import context_length
from seft.runtime.accelerate import SparseLinear, accelerate
from seft.runtime.compressed import Values
from seft.runtime.text_stream import TextStream

LEAST_TEMPERATURE = 1e-30
"""A lower temperature counts as this one, because float32 has no number for its reciprocal."""


class Finish(StrEnum):
    """Why a text ended: at an end token or a stop text, or because the maximum number of tokens was reached."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the most probable token."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """New text, the number of tokens generated so far, and on the last piece why the text ended."""

    text: str
    tokens: int
    finish: Finish | None = None


class TextModel:
    """An accelerated model with its tokenizer. One thread at a time may generate."""

    def __init__(self, model: Any, tokenizer: Any, context: int | None = None) -> None:
        self.model, self.tokenizer, self.context = model, tokenizer, context
        ends = model.generation_config.eos_token_id
        self._ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self._short = _short_length(model.config)

    @classmethod
    def load(cls, reference: str, values: Values | None, dtype: torch.dtype, device: str = "cpu") -> "TextModel":
        """Load a folder, a compact file or its address, a GGUF file or a model of the hub, and accelerate it.

        If `values` is None, it is int8 for a compact file with int8 matrices, and bfloat16 for all others.
        """
        # In float32, int8 values times their scales are exact enough to become the same integers again.
        int8 = None if values is Values.BFLOAT16 else torch.float32
        loaded, stored = load_whole(reference, dtype=dtype, int8=int8)
        values = values or (Values.INT8 if stored == "int8" else Values.BFLOAT16)
        model: Any = accelerate(loaded.model.to(device), values)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        for module in model.modules():
            if isinstance(module, SparseLinear):
                module.weight = module.weight.to(dtype)
        return cls(model, loaded.tokenizer, context_length(loaded.source))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text to continue."""
        tokens: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        return tokens

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the tokens of a conversation, up to where the answer begins.

        Raises AccelerateError if there is no chat template, or if the template rejects the messages.
        """
        if not self.tokenizer.chat_template:
            raise AccelerateError(
                "a chat needs a model with a chat template; this tokenizer has none. Send the text as a completion."
            )
        try:
            text = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        except Exception as error:  # the template is a program of the model's author
            raise AccelerateError(f"the chat template refuses these messages: {error}. Change their roles.") from error
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tokens

    def room(self, prompt: Sequence[int]) -> int | None:
        """Return how many tokens fit after a prompt, or None if the model has no limit."""
        return None if self.context is None else self.context - len(prompt)

    def tokens(self, prompt: Sequence[int], most: int, sampling: Sampling) -> Iterator[int]:
        """Yield up to `most` new tokens. The last one is an end token if the model ended the text."""
        random = torch.Generator()
        if sampling.seed is None:
            random.seed()
        else:
            random.manual_seed(sampling.seed)
        whole, cache = list(prompt), None
        given = whole
        for _ in range(most):
            if len(whole) - 1 == self._short:
                given, cache = whole, None  # the cached keys have the positions of short texts
            with torch.inference_mode():
                logits, cache = advance(self.model, torch.tensor([given], device=self.model.device), cache)
                token = choose(logits[0].cpu(), sampling, random)
            given = [token]
            whole.append(token)
            yield token
            if token in self._ends:
                return

    def stream(
        self, prompt: Sequence[int], most: int, sampling: Sampling, stops: Sequence[str] = (), *, chat: bool = False
    ) -> Iterator[Piece]:
        """Yield the text as it is generated. It ends before the first of the `stops`.

        The text continues the prompt, so it may begin with a space. The answer of a `chat` is decoded as a separate
        text. Text that may be the beginning of a stop is held back until this is certain. Raises AccelerateError if
        there is no prompt, or if prompt and text together do not fit the model's context.
        """
        room = self.room(prompt)
        if not prompt:
            raise AccelerateError("the prompt must have a token; it has none. Use a longer text.")
        if room is not None and room < most:
            raise AccelerateError(
                f"the prompt must leave room for {most} more tokens in the context of {self.context}; it has"
                f" {len(prompt)}. Shorten the prompt or ask for fewer tokens."
            )
        text, held = TextStream(self.tokenizer, () if chat else prompt), ""
        for count, token in enumerate(self.tokens(prompt, most, sampling), 1):
            ends = token in self._ends
            last = ends or count == most
            held += ("" if ends else text.step(token)) + (text.rest() if last else "")
            before, found = cut(held, stops)
            if found or last:
                yield Piece(before, count, Finish.STOP if found or ends else Finish.LENGTH)
                return
            keep = held_back(held, stops)
            yield Piece(held[: len(held) - keep], count)
            held = held[len(held) - keep :]


def _short_length(config: Any) -> int | None:
    """Return the number of tokens up to which the model uses the positions for short texts.

    Returns None if all lengths have the same positions. The rope type `longrope` has frequencies for short sequences
    and others for long ones.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None


def advance(model: Any, tokens: Int[Tensor, "batch tokens"], cache: Any) -> tuple[Float[Tensor, "batch words"], Any]:
    """Return the logits of the next token, and the cache of keys and values with `tokens` added.

    If `cache` is None, it starts empty. Raises AccelerateError if the model has no such cache.
    """
    kind: type = type(model)
    name = _cache_argument(kind)
    result = model(input_ids=tokens, **{name: cache}, use_cache=True, logits_to_keep=1) if name else None
    if result is None or result.get(name) is None:
        raise AccelerateError(
            f"a model must have a cache of keys and values; {kind.__name__} has none. Choose another model, or use its"
            " method `generate` in Python."
        )
    return result.logits[:, -1], result[name]


@lru_cache
def _cache_argument(kind: Any) -> str | None:
    """Return the name of the argument for the cache, or None. Transformers renamed it, and warns about the old name."""
    arguments = signature(kind.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in arguments), None)


def choose(logits: Float[Tensor, "vocabulary"], sampling: Sampling, random: torch.Generator) -> int:
    """Return the next token: the most probable one, or one drawn from the smallest set with probability `top_p`.

    Raises AccelerateError if the model computed no numbers.
    """
    best = logits.max()
    if not best.isfinite():
        raise AccelerateError(
            f"the model's scores of tokens must be finite; the largest is {float(best)}. Choose --dtype float32, or"
            " another model."
        )
    if sampling.temperature == 0:
        return int(logits.argmax())
    # The best score becomes 0, so that a low temperature makes no score infinite.
    probabilities = ((logits.float() - best) / max(sampling.temperature, LEAST_TEMPERATURE)).softmax(dim=0)
    if sampling.top_p < 1:
        ordered, tokens = probabilities.sort(descending=True)
        ordered[1:][ordered.cumsum(0)[:-1] >= sampling.top_p] = 0
        return int(tokens[torch.multinomial(ordered, 1, generator=random)])
    return int(torch.multinomial(probabilities, 1, generator=random))


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first stop in it, and whether there is one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def held_back(text: str, stops: Sequence[str]) -> int:
    """Return the length of the longest suffix of the text that is a prefix of a stop."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
