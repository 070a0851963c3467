"""A preview shows a record exactly as training reads it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import decoders

from local.demo import gguf_path
from seft.data.preview import MAX_SHOWN_CHARACTERS, MAX_SHOWN_TOKENS, preview
from seft.data.records import Parser
from seft.data.text import encode
from seft.data.tokens import bos_tokens, tokenize_record
from seft.errors import ConfigError
from seft.models.load import load_tokenizer
from seft.models.source import find
from tests.seft.data.test_chat import CHATML, LLAMA3, MARKED, tokenizer_with
from tests.seft.gguf_files import write_gguf
from tests.tiny import beginning_tokenizer, tiny_tokenizer, untrained_tiny

CHAT = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4 🙂"}]}
COMPLETION = {"prompt": "Größe: ", "completion": "数据 🙂"}
INSTRUCTION = {"instruction": "Add.", "input": "2 and 2", "output": "4"}


def line(record: object) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def parts_of(record: object, tokenizer: Any) -> list[tuple[str, bool]]:
    """Return the parts that the preview shows of a record."""
    (shown,) = preview([line(record)], tokenizer, 1).shown
    return [(part.text, part.trained) for part in shown.parts]


@pytest.mark.parametrize("template", [CHATML, LLAMA3, MARKED])
def test_tokens_and_mask_are_those_of_training(template: str) -> None:
    tokenizers = [tokenizer_with(template), beginning_tokenizer(), beginning_tokenizer("<eos> <pad>")]
    for tokenizer in tokenizers[1:]:
        tokenizer.chat_template = template
    for tokenizer in tokenizers:
        for record in (CHAT, COMPLETION, INSTRUCTION, {"text": "a text"}):
            parsed = Parser()(1, line(record))
            head = bos_tokens(tokenizer)
            trained = encode([parsed, parsed], tokenizer)[0]
            tokenized = tokenize_record(parsed, tokenizer, head)
            before = len(head) if isinstance(parsed, str) else 0  # packing adds it before each part of a text
            assert tokenized.tokens[before:] == trained.tokens.tolist()
            assert tokenized.trained[before:] == trained.trained.tolist()
            (shown,) = preview([line(record)], tokenizer, 1).shown
            assert (shown.tokens, shown.trained_tokens) == (len(tokenized.tokens), sum(tokenized.trained))
            assert "".join(part.text for part in shown.parts) == tokenizer.decode(tokenized.tokens)


def test_the_trained_part_is_marked() -> None:
    tokenizer = tokenizer_with(CHATML)
    assert parts_of(COMPLETION, tokenizer) == [("Größe: ", False), ("数据 🙂<eos>", True)]
    assert parts_of({"text": "a text"}, tokenizer) == [("a text<eos>", True)]
    assert parts_of(CHAT, tokenizer) == [
        ("<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n", False),
        ("4 🙂<|im_end|>\n", True),
    ]


def test_a_long_record_is_cut_but_all_its_tokens_are_counted() -> None:
    tokenizer = tiny_tokenizer()
    result = preview([line({"text": "# " * MAX_SHOWN_TOKENS}), line({"text": "b"})], tokenizer, 1)
    (shown,) = result.shown
    assert shown.cut
    assert shown.tokens > MAX_SHOWN_TOKENS
    assert len(tokenizer(shown.parts[0].text)["input_ids"]) == MAX_SHOWN_TOKENS
    assert (result.lines, result.tokens) == (2, shown.tokens + 2)


def test_a_tokenizer_that_makes_long_texts_of_its_tokens_fills_no_memory_of_the_reader() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.Replace("b", "long" * MAX_SHOWN_CHARACTERS)
    parts = [line({"prompt": "a", "completion": "b b b"}), line({"prompt": "a", "completion": "a"})]
    long, short = preview(parts, tokenizer, 2).shown
    assert (long.cut, short.cut) == (True, False)
    assert sum(len(part.text) for part in long.parts) == MAX_SHOWN_CHARACTERS


@pytest.mark.parametrize("text", ["{{ raise_exception('x' * 1000000) }}", "{{ 'x' * 1000000 }}"])
def test_an_error_of_a_template_quotes_only_a_part_of_a_long_text(text: str) -> None:
    with pytest.raises(ConfigError, match="chat_template must") as error:
        preview([line(CHAT)], tokenizer_with(text), 1)
    assert len(str(error.value)) < 1000


def test_the_process_needs_no_torch_and_stops_an_endless_template(tmp_path: Path) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    for template, status in ((CHATML, 0), (endless, -9)):
        tokenizer_with(template).save_pretrained(tmp_path)
        script = (
            "import sys, seft.data.preview as preview; preview.SECONDS = int(sys.argv[1]); preview.main();"
            "assert sys.modules['torch'] is None"
        )
        request = json.dumps({"path": str(tmp_path), "lines": [json.dumps(CHAT)], "show": 1})
        command = [sys.executable, "-c", script, "30" if status == 0 else "4"]
        process = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
        assert process.returncode == status, process.stderr


@pytest.mark.parametrize("file", ["SmolLM2", "Llama 3 without the key for the first token"])
def test_a_gguf_file_gives_the_tokens_of_a_job(file: str, tmp_path: Path) -> None:
    path = gguf_path()
    if file != "SmolLM2":
        path = write_gguf(tmp_path / "m.gguf", untrained_tiny(), "llama-bpe", {"tokenizer.ggml.bos_token_id": 0})
    text = "x = 10\n    20"
    request = json.dumps({"path": str(path), "lines": [json.dumps({"text": text})], "show": 1})
    script = "import seft.data.preview as preview; preview.main()"
    process = subprocess.run([sys.executable, "-c", script], input=request, capture_output=True, text=True, check=False)
    assert not process.returncode, process.stderr
    tokenizer = load_tokenizer(find(str(path)))
    trained = tokenize_record(text, tokenizer, bos_tokens(tokenizer))
    assert json.loads(process.stdout)["tokens"] == len(trained.tokens)
