"""A record as it is previewed is the record as it is trained on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seft.data.marking import beginning, mark
from seft.data.preview import SHOWN_TOKENS, look
from seft.data.records import Parser
from seft.data.text import encode
from tests.seft.data.test_chat import CHATML, LLAMA3, MARKED, tokenizer_with
from tests.tiny import beginning_tokenizer, tiny_tokenizer

CHAT = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4 🙂"}]}
COMPLETION = {"prompt": "Größe: ", "completion": "数据 🙂"}
INSTRUCTION = {"instruction": "Add.", "input": "2 and 2", "output": "4"}


def line(record: object) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def seen(record: object, tokenizer: Any) -> list[tuple[str, bool]]:
    """What is shown of a record."""
    (shown,) = look([line(record)], tokenizer, 1).shown
    return [(part.text, part.trained) for part in shown.parts]


@pytest.mark.parametrize("template", [CHATML, LLAMA3, MARKED])
def test_tokens_and_marks_are_those_of_training(template: str) -> None:
    tokenizers = [tokenizer_with(template), beginning_tokenizer()]
    tokenizers[1].chat_template = template
    for tokenizer in tokenizers:
        for record in (CHAT, COMPLETION, INSTRUCTION, {"text": "a text"}):
            parsed = Parser()(1, line(record))
            head = beginning(tokenizer)
            trained = encode([parsed, parsed], tokenizer)[0]
            marked = mark(parsed, tokenizer, head)
            before = len(head) if isinstance(parsed, str) else 0  # packing puts it before each part of a text
            assert marked.tokens[before:] == trained.tokens.tolist()
            assert marked.trained[before:] == trained.trained.tolist()
            (shown,) = look([line(record)], tokenizer, 1).shown
            assert (shown.tokens, shown.trained_tokens) == (len(marked.tokens), sum(marked.trained))
            assert "".join(part.text for part in shown.parts) == tokenizer.decode(marked.tokens)


def test_the_part_that_is_trained_on_is_marked() -> None:
    tokenizer = tokenizer_with(CHATML)
    assert seen(COMPLETION, tokenizer) == [("Größe: ", False), ("数据 🙂<eos>", True)]
    assert seen({"text": "a text"}, tokenizer) == [("a text<eos>", True)]
    assert seen(CHAT, tokenizer) == [
        ("<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n", False),
        ("4 🙂<|im_end|>\n", True),
    ]


def test_a_long_record_is_cut_and_counted_whole() -> None:
    tokenizer = tiny_tokenizer()
    found = look([line({"text": "# " * SHOWN_TOKENS}), line({"text": "b"})], tokenizer, 1)
    (shown,) = found.shown
    assert shown.cut
    assert shown.tokens > SHOWN_TOKENS
    assert len(tokenizer(shown.parts[0].text)["input_ids"]) == SHOWN_TOKENS
    assert (found.lines, found.tokens) == (2, shown.tokens + 2)


def test_the_process_needs_no_torch_and_ends_a_template_that_never_does(tmp_path: Path) -> None:
    forever = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    for template, wanted in ((CHATML, 0), (forever, -9)):
        tokenizer_with(template).save_pretrained(tmp_path)
        script = (
            "import sys, seft.data.preview as preview; preview.SECONDS = int(sys.argv[1]); preview.main();"
            "assert sys.modules['torch'] is None"
        )
        question = json.dumps({"path": str(tmp_path), "lines": [json.dumps(CHAT)], "show": 1})
        command = [sys.executable, "-c", script, "30" if wanted == 0 else "4"]
        ended = subprocess.run(command, input=question, capture_output=True, text=True, check=False)
        assert ended.returncode == wanted, ended.stderr
