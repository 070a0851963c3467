"""Runs a causal language model on packed windows, so that no record attends to another one.

A packed window is a sequence of tokens that may contain several records. `Predictor.rows` returns the model's output
before the head, one row per predicted token. `Predictor.logits` then computes the logits of any number of rows at a
time, which limits the memory for logits.
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
from seft.errors import SourceError
from seft.models.targets import SPLIT, decoder_blocks, hidden_state

PROBE_SCALE = 1e4
"""Factor on the hidden state when the head is tested. Some models cap only large logits, so the test needs large ones.
"""

MAX_LEAK = 0.1
"""Largest influence of one record on the next that is explained by rounding. It is a fraction of the influence in a run
that does not separate the records."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Outputs of a model from which it predicts the tokens of a batch, in the order of windows and tokens.

    `last` is the last hidden state, or the logits if the model changes logits after the head. `blocks` has the output
    of each decoder block.
    """

    last: Float[Tensor, "predictions width"]
    blocks: list[Float[Tensor, "predictions cols"]] = field(default_factory=list)


class Predictor:
    """Runs a model so that its head is applied separately and packed records do not influence each other.

    If an architecture scales or caps its logits after the head, `Rows.last` has the logits. If an architecture lets
    packed records attend to each other, each record is run in a row of its own. Both cases are detected by running the
    model, not by its name.

    Raises SourceError if transformers does not say which part of the model is before the head.
    """

    def __init__(self, model: Any) -> None:
        if model.base_model is model:
            raise SourceError(
                "model_refused",
                "a model must have a part before its head that transformers names as its base model;"
                f" {type(model).__name__} has none. Choose a different model.",
            )
        self._model = model
        self._head: nn.Module = model.get_output_embeddings()
        self._plain = _has_plain_head(model)
        self.vocabulary = len(model.get_output_embeddings().weight)
        if any(module in SPLIT for module in model.modules()):
            _ = self._separates_records  # only one process may need it, but all must run a split model together

    def rows(self, batch: Packed, *, blocks: bool = False) -> Rows:
        """Return the rows of all predicted tokens, with the outputs of every decoder block if `blocks` is true."""
        mask = batch.trained[:, 1:]
        last, *inner = (state[:, :-1][mask] for state in self._states(batch, blocks=blocks))
        return Rows(last, inner)

    def logits(self, last: Float[Tensor, "rows width"]) -> Float[Tensor, "rows vocabulary"]:
        """Return the logits of some rows of `Rows.last`, in float32 or wider."""
        logits: Tensor = self._head(last) if self._plain else last
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _states(self, batch: Packed, *, blocks: bool) -> list[Tensor]:
        def run(**inputs: Tensor) -> list[Tensor]:
            with _recorded(self._blocks if blocks else ()) as outputs:
                body = self._model.base_model if self._plain else self._model
                output = body(use_cache=False, **inputs)
                return [output.last_hidden_state if self._plain else output.logits, *outputs]

        if not batch.mixed:
            return run(input_ids=batch.tokens)
        if self._separates_records:
            return run(input_ids=batch.tokens, position_ids=batch.positions)
        return _run_separately(batch, run)

    @cached_property
    def _blocks(self) -> nn.ModuleList:
        return decoder_blocks(self._model)

    @cached_property
    @torch.no_grad()
    def _separates_records(self) -> bool:
        """True if a record does not attend to the record before it when its positions restart at 0."""
        tokens = torch.arange(12, device=self._model.device)[None]
        positions, body = tokens % 6, self._model.base_model

        def second_half(tokens: Tensor, **options: Tensor) -> Tensor:
            state: Tensor = body(input_ids=tokens, use_cache=False, **options).last_hidden_state
            return state[:, -6:].float()

        try:
            separated = second_half(tokens, position_ids=positions)
        except TypeError:
            return False
        alone = second_half(tokens[:, 6:])
        return float((separated - alone).norm()) <= MAX_LEAK * float((second_half(tokens) - alone).norm())


def _run_separately(batch: Packed, run: Callable[..., list[Tensor]]) -> list[Tensor]:
    """Run each record of a batch in its own row, padded at the end. Returns the states in the layout of the batch."""
    starts = (batch.positions == 0).flatten().nonzero().squeeze(1)
    lengths = torch.cat([starts, starts.new_tensor([batch.tokens.numel()])]).diff()
    used = torch.arange(int(lengths.max()), device=starts.device) < lengths[:, None]
    tokens = torch.zeros_like(used, dtype=torch.int64)
    tokens[used] = batch.tokens.flatten()
    return [state[used].view(*batch.tokens.shape, -1) for state in run(input_ids=tokens)]


@contextmanager
def _recorded(blocks: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Yield a list. Each call of one of the blocks appends its hidden state to it."""
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, output: outputs.append(hidden_state(output))) for block in blocks
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _has_plain_head(model: Any) -> bool:
    """Return whether the logits are exactly the head applied to the last hidden state, without scaling or cap."""
    tokens = torch.tensor([[0, 1]], device=model.device)
    head = model.get_output_embeddings()
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state * PROBE_SCALE
    hook = head.register_forward_pre_hook(lambda _, args: (args[0] * PROBE_SCALE,))
    try:
        logits = model(input_ids=tokens, use_cache=False).logits
    finally:
        hook.remove()
    return torch.allclose(head(hidden).to(logits.dtype), logits)
