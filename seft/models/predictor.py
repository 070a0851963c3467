"""A causal language model up to its head, run on packed windows so that no record sees another one.

What comes before the logits is handed out row by row, one row for each prediction that is trained on; `logits` makes
the logits of as many rows as are wanted at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seft.data.packing import Packed
from seft.models.blocks import first
from seft.models.targets import decoder_blocks

LOUD = 1e4
"""How much larger than usual the probe makes a hidden state: a cap that small logits do not feel shows itself."""

LEAK = 0.1
"""A share of what records do to each other in one window: what is left of it in a model that parts them is rounding."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a model makes of a batch, at the trained predictions, in the order of windows and tokens."""

    last: Float[Tensor, "predictions width"]
    blocks: list[Float[Tensor, "predictions cols"]] = field(default_factory=list)


class Predictor:
    """Some architectures scale or cap their logits behind the head, and some let packed records see each other.

    Whether this one does is tried, not read from its name. Of the first, `last` is the whole logits; of the second,
    each record is run in a row of its own.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._head: nn.Module = model.get_output_embeddings()
        self._plain = _has_plain_head(model)
        self.vocabulary = len(model.get_output_embeddings().weight)

    def rows(self, batch: Packed, *, blocks: bool = False) -> Rows:
        """Of all trained predictions; with the outputs of every decoder block where `blocks` is true."""
        chosen = batch.trained[:, 1:]
        last, *inner = (state[:, :-1][chosen] for state in self._states(batch, blocks=blocks))
        return Rows(last, inner)

    def logits(self, last: Float[Tensor, "rows width"]) -> Float[Tensor, "rows vocabulary"]:
        """The logits of some rows, in float32 or wider."""
        logits: Tensor = self._head(last) if self._plain else last
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _states(self, batch: Packed, *, blocks: bool) -> list[Tensor]:
        def run(**inputs: Tensor) -> list[Tensor]:
            with _watched(self._blocks if blocks else ()) as seen:
                body = self._model.base_model if self._plain else self._model
                output = body(use_cache=False, **inputs)
                return [output.last_hidden_state if self._plain else output.logits, *seen]

        if not batch.mixed:
            return run(input_ids=batch.tokens)
        if self._parts_records:
            return run(input_ids=batch.tokens, position_ids=batch.positions)
        return _each_alone(batch, run)

    @cached_property
    def _blocks(self) -> nn.ModuleList:
        return decoder_blocks(self._model)

    @cached_property
    @torch.no_grad()
    def _parts_records(self) -> bool:
        """Whether positions that start again keep a record from seeing the one before it."""
        tokens = torch.arange(12, device=self._model.device)[None]
        positions, body = tokens % 6, self._model.base_model

        def second(tokens: Tensor, **more: Tensor) -> Tensor:
            state: Tensor = body(input_ids=tokens, use_cache=False, **more).last_hidden_state
            return state[:, -6:].float()

        try:
            apart = second(tokens, position_ids=positions)
        except TypeError:
            return False
        alone = second(tokens[:, 6:])
        return float((apart - alone).norm()) <= LEAK * float((second(tokens) - alone).norm())


def _each_alone(batch: Packed, run: Callable[..., list[Tensor]]) -> list[Tensor]:
    """The states of a batch whose records are run in rows of their own, filled up behind their ends."""
    starts = (batch.positions == 0).flatten().nonzero().squeeze(1)
    lengths = torch.cat([starts, starts.new_tensor([batch.tokens.numel()])]).diff()
    places = torch.arange(int(lengths.max()), device=starts.device) < lengths[:, None]
    tokens = torch.zeros_like(places, dtype=torch.int64)
    tokens[places] = batch.tokens.flatten()
    return [state[places].view(*batch.tokens.shape, -1) for state in run(input_ids=tokens)]


@contextmanager
def _watched(blocks: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that fills with the outputs of some blocks."""
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, output: seen.append(first(output))) for block in blocks]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _has_plain_head(model: Any) -> bool:
    """Whether the logits are the head of the last hidden state and nothing else."""
    tokens = torch.tensor([[0, 1]], device=model.device)
    head = model.get_output_embeddings()
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state * LOUD
    hook = head.register_forward_pre_hook(lambda _, args: (args[0] * LOUD,))
    try:
        logits = model(input_ids=tokens, use_cache=False).logits
    finally:
        hook.remove()
    return torch.allclose(head(hidden).to(logits.dtype), logits)
