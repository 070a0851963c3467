"""Multiple choice: equals its definition in any batch, and rejects invalid questions."""

import json
from pathlib import Path

import pytest
import torch

from seft.errors import DataError, EvaluateError, FileError, RecordError
from seft.loss import TokenLoss
from seft.multiple_choice import Question, _likelihoods, _tokens, accuracy, read_questions
from tests.tiny import beginning_tokenizer, tiny_tokenizer, untrained_tiny


def alone(model: torch.nn.Module, prompt: str, choice: str) -> float:
    """Compute the log-probability of a choice in double precision, without batch, padding or chunks."""
    tokenizer = tiny_tokenizer()
    before, whole = tokenizer(prompt)["input_ids"], tokenizer(f"{prompt} {choice}")["input_ids"]
    assert whole[: len(before)] == before
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logits[index - 1, whole[index]]) for index in range(len(before), len(whole)))


def test_the_chosen_answer_has_the_largest_log_probability() -> None:
    model = untrained_tiny()
    model.get_input_embeddings().weight.data.mul_(8)  # so that the choices differ clearly
    prompt, choices = "Which statement?", ["return", "the statement that follows is never run", "yield from"]
    with torch.no_grad():
        sums = [alone(model.double(), prompt, choice) for choice in choices]
    per_byte = [likelihood / len(choice.encode()) for likelihood, choice in zip(sums, choices, strict=True)]
    best, best_per_byte = (values.index(max(values)) for values in (sums, per_byte))
    assert best != best_per_byte
    for answer in range(3):
        result = accuracy(model.float(), tiny_tokenizer(), [Question(prompt, choices, answer)])
        assert (result.accuracy, result.accuracy_per_byte) == (answer == best, answer == best_per_byte)


@pytest.mark.parametrize(("head", "start"), [("<pad>", [0]), ("<pad> <eos>", [0, 1])])
def test_a_choice_follows_the_start_tokens_and_has_no_end_token(head: str, start: list[int]) -> None:
    model = untrained_tiny().double()
    plain = tiny_tokenizer()
    question = Question("Which statement?", ["return", "the statement that follows"], 0)
    encoded = [_tokens(beginning_tokenizer(head), question.prompt, choice) for choice in question.choices]
    result = _likelihoods(TokenLoss(model), model, encoded)
    for choice, likelihood in zip(question.choices, result.tolist(), strict=True):
        before, whole = (plain(text)["input_ids"] for text in (question.prompt, f"{question.prompt} {choice}"))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*start, *whole]])).logits[0].log_softmax(-1)[len(start) - 1 :]
        expected = sum(float(logits[index, whole[index]]) for index in range(len(before), len(whole)))
        assert likelihood == pytest.approx(expected, rel=1e-6)


def test_a_model_without_a_finite_likelihood_is_an_error() -> None:
    model = untrained_tiny()
    torch.nn.init.constant_(model.get_input_embeddings().weight, torch.nan)
    with pytest.raises(EvaluateError, match="question 1"):
        accuracy(model, tiny_tokenizer(), [Question("a", ["b", "c"], 0)])


def test_a_question_that_is_longer_than_the_context_is_rejected() -> None:
    short, long = Question("a", ["b", "c"], 0), Question("a", ["b", "b c d"], 0)
    longest = len(tiny_tokenizer()("a b c d")["input_ids"])
    accuracy(untrained_tiny(), tiny_tokenizer(), [short, long], context=longest)
    with pytest.raises(DataError, match=f"question 2 has {longest}"):
        accuracy(untrained_tiny(), tiny_tokenizer(), [short, long], context=longest - 1)


GOOD = {"prompt": "Question: 1 + 1?\nAnswer:", "choices": ["2", "3"], "answer": 0}


def test_questions_are_read_and_an_invalid_one_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps({**GOOD, 'id': 7})}\n")
    assert read_questions(path) == [Question(**GOOD)] * 2  # type: ignore[arg-type]
    path.write_text(f"{json.dumps(GOOD)}\n", encoding="utf-8-sig")
    assert read_questions(path) == [Question(**GOOD)]  # type: ignore[arg-type]
    for broken, rule in (
        ({**GOOD, "answer": 2}, "answer must be from 0 to 1"),
        ({**GOOD, "answer": "0"}, "answer: Input should be a valid integer"),
        ({**GOOD, "choices": ["2"]}, "choices: List should have at least 2 items"),
        ({**GOOD, "prompt": ""}, "prompt: String should have at least 1 character"),
        ({"prompt": "a"}, "choices: Field required"),
        ([], r"line 2 of questions\.jsonl: Input should be"),
    ):
        path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(broken)}\n")
        with pytest.raises(RecordError, match=rule) as caught:
            read_questions(path)
        assert caught.value.line == 2
    path.write_text(f"{json.dumps(GOOD)}\nno json\n")
    with pytest.raises(RecordError, match=r"line 2 of questions\.jsonl: Invalid JSON"):
        read_questions(path)
    path.write_text(f"{json.dumps(GOOD)}\n\n")
    with pytest.raises(RecordError, match=r"line 2 of questions\.jsonl: a line must not be blank"):
        read_questions(path)
    path.write_text(json.dumps([GOOD, GOOD]))
    with pytest.raises(FileError, match="one JSON array"):
        read_questions(path)
    path.write_text("")
    with pytest.raises(DataError, match="has no question"):
        read_questions(path)
    with pytest.raises(DataError, match="must be readable"):
        read_questions(tmp_path / "nothing.jsonl")
