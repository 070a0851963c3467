"""Questions of ARC-Easy, from the instruction form of LLM-Adapters to the form of lm-evaluation-harness."""

import json
import re
from pathlib import Path

from seft.multiple_choice import Question


def read_questions(path: Path, count: int) -> list[Question]:
    """Return the first questions in a file of ARC-Easy."""
    return [question(record) for record in json.loads(path.read_text())[:count]]


def question(record: dict[str, str]) -> Question:
    """Return a question of ARC from LLM-Adapters in the form that lm-evaluation-harness uses."""
    text, _, rest = (
        record["instruction"]
        .removeprefix("Please choose the correct answer to the question: ")
        .partition("\n\nAnswer1: ")
    )
    choices = re.split(r" Answer\d: ", rest.partition("\n\nAnswer format:")[0])
    return Question(f"Question: {text}\nAnswer:", choices, int(record["answer"].removeprefix("answer")) - 1)
