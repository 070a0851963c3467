"""Accuracy on multiple-choice questions. The model chooses the most likely answer; it generates no text.

Questions come from a JSONL file, one object per line: `{"prompt": "Question: …\\nAnswer:", "choices": ["…", …],
"answer": 0}`. A choice follows the prompt after a space. As in lm-evaluation-harness (Gao et al. 2024) there are two
accuracies: by the log-probability of a choice, and by its log-probability per byte, which does not penalize long
choices.
"""

from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked
from torch import Tensor

from seft.data.chat import common_length
from seft.data.records import require_lines
from seft.data.text import require_known_tokens
from seft.data.tokens import bos_tokens, text_tokens
from seft.errors import DataError, EvaluateError, RecordError
from seft.loss import TokenLoss
from seft.report import Phase, Progress, Reporter, silent

_WAY_OUT = 'Write one JSON object per line: {"prompt": "…", "choices": ["…", "…"], "answer": 0}.'
Text = Annotated[str, Field(min_length=1)]
Encoded = tuple[Int[Tensor, "tokens"], int]
"""Type: the tokens of a prompt with one of its choices, and the index of the first token of the choice."""


@checked(frozen=True, slots=True, config=ConfigDict(extra="ignore", strict=True))
class Question:
    """A prompt with its choices. `answer` is the index of the correct choice, from 0."""

    prompt: Text
    choices: Annotated[list[Text], Field(min_length=2)]
    answer: int

    @model_validator(mode="after")
    def _has_an_answer(self) -> Self:
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"answer must be from 0 to {len(self.choices) - 1}")
        return self


_QUESTION = TypeAdapter(Question)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Fractions of correctly answered questions: by log-probability, and by log-probability per byte."""

    accuracy: float
    accuracy_per_byte: float
    questions: int


def read_questions(path: Path) -> list[Question]:
    """Return the questions of a JSONL file. A byte order mark at its start is ignored.

    Raises RecordError if a line is not a valid question, FileError if the questions are not one per line, and DataError
    if the file has no question.
    """
    try:
        lines = path.read_bytes().removeprefix(BOM_UTF8).splitlines()
    except OSError as error:
        raise DataError(
            f"the file of questions must be readable; {path} is not: {error.strerror}. Check the path."
        ) from error
    require_lines(lines[0] if lines else b"", alone=len(lines) == 1)
    questions = [_parse(path.name, number, line) for number, line in enumerate(lines, start=1)]
    if not questions:
        raise DataError(f"{path.name} has no question. {_WAY_OUT}")
    return questions


@torch.no_grad()
def accuracy(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    report: Reporter = silent,
    *,
    context: int | None = None,
) -> Accuracy:
    """Return both accuracies over all questions. Of choices with equal log-probability the first is the answer.

    The choices of a question form one batch. Raises DataError if a question with one of its choices has more tokens
    than `context`, the context length of the model, and EvaluateError if a log-probability is not finite.
    """
    losses, correct, correct_per_byte = TokenLoss(model), 0, 0
    for done, question in enumerate(questions, start=1):
        encoded = [_tokens(tokenizer, question.prompt, choice) for choice in question.choices]
        longest = max(len(tokens) for tokens, _ in encoded)
        if context is not None and longest > context:
            raise DataError(
                f"a question with its choice must have at most {context} tokens, the context length of the model;"
                f" question {done} has {longest}. Shorten it, or leave it out."
            )
        likelihoods = _likelihoods(losses, model, encoded)
        if not likelihoods.isfinite().all():
            raise EvaluateError(
                f"likelihoods must be finite; question {done} has {likelihoods.tolist()}."
                " The weights of the model are broken. Prune it less, or choose a different model."
            )
        sizes = torch.tensor([len(choice.encode()) for choice in question.choices])
        correct += int(likelihoods.argmax()) == question.answer
        correct_per_byte += int((likelihoods / sizes).argmax()) == question.answer
        report(Progress(Phase.EVALUATING, done, len(questions)))
    return Accuracy(correct / len(questions), correct_per_byte / len(questions), len(questions))


def _likelihoods(losses: TokenLoss, model: Any, encoded: Sequence[Encoded]) -> Float[Tensor, "choices"]:
    """Return the log-probability of each choice after the prompt, in nats."""
    rows, starts = zip(*encoded, strict=True)
    length = max(map(len, rows))
    # Tokens of a choice do not see later tokens, so any token works as padding.
    padded = torch.stack([torch.nn.functional.pad(row, (0, length - len(row))) for row in rows])
    require_known_tokens(padded, model)
    of_tokens = losses(padded.to(model.device)).double().cpu().view(len(rows), length - 1)
    return torch.stack(
        [-of_tokens[index, start - 1 : len(rows[index]) - 1].sum() for index, start in enumerate(starts)]
    )


def _tokens(tokenizer: Any, prompt: str, choice: str) -> Encoded:
    """Return the tokens of prompt and choice as one text, and the index of the choice's first token, at least 1."""
    head = bos_tokens(tokenizer)
    whole, before = ([*head, *text_tokens(text, tokenizer)] for text in (f"{prompt} {choice}", prompt))
    return torch.tensor(whole), max(1, min(common_length(whole, before), len(whole) - 1))


def _parse(file: str, number: int, line: bytes) -> Question:
    if not line.strip():
        raise RecordError(number, "a line must not be blank", "a blank line", "Remove the line.", file)
    try:
        return _QUESTION.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        rule = first["msg"].removeprefix("Value error, ")
        rule = f"{field}: {rule}" if field else rule
        raise RecordError(number, rule, repr(first["input"])[:60], _WAY_OUT, file) from error
