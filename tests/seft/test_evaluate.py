"""Perplexity: equals its definition, and is an error or infinite for broken weights."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from seft.config import CalibrationOrder
from seft.data.text import tokenize, windows
from seft.errors import Cancelled, EvaluateError
from seft.evaluate import perplexity
from seft.models.load import load
from seft.models.source import find
from seft.report import Phase, Progress, Report
from tests.tiny import VOCABULARY, tiny_texts, untrained_tiny


def test_it_equals_the_definition_in_double_precision() -> None:
    model = untrained_tiny()
    text = torch.randint(VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.double()(input_ids=text).logits
    means = [F.cross_entropy(logits[row, :-1], text[row, 1:]).item() for row in range(3)]
    assert perplexity(model.float(), text) == pytest.approx(math.exp(sum(means) / 3), rel=1e-5)


def test_the_perplexity_of_a_uniform_model_is_its_vocabulary_size() -> None:
    model = untrained_tiny()
    torch.nn.init.zeros_(model.get_input_embeddings().weight)
    assert perplexity(model, torch.zeros(1, 9, dtype=torch.int64)) == pytest.approx(VOCABULARY)


def test_the_trained_model_is_better_than_the_untrained_one(tiny_folder: Path) -> None:
    loaded = load(find(str(tiny_folder)))
    text = windows(tokenize(tiny_texts(), loaded.tokenizer), 128, 8, CalibrationOrder.SEQUENTIAL, seed=0)
    assert perplexity(loaded.model, text) < 0.2 * perplexity(untrained_tiny(), text)


def test_weights_that_are_not_finite_are_an_error_and_a_huge_loss_is_infinite() -> None:
    model, text = untrained_tiny(), torch.arange(8)[None]
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding.mul_(1e6)
    assert perplexity(model, text) == math.inf
    torch.nn.init.constant_(embedding, math.nan)
    with pytest.raises(EvaluateError, match="sequence 1 has nan"):
        perplexity(model, text)


def test_it_reports_every_window_and_can_be_cancelled() -> None:
    model, text = untrained_tiny(), torch.zeros(4, 5, dtype=torch.int64)
    reports: list[Report] = []
    perplexity(model, text, reports.append)
    assert reports == [Progress(Phase.EVALUATING, done, 4) for done in (1, 2, 3, 4)]

    def stop(_: Report) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        perplexity(model, text, stop)
