"""The text that is generated, and the server, which has the shapes of OpenAI's API."""

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import httpx2 as httpx
import pytest
import torch
from tokenizers.normalizers import Strip
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, OpenAIGPTConfig, PreTrainedConfig

from seft.checkpoint.compact.writer import pack
from seft.cli import UsageError, main, make_parser
from seft.errors import AccelerateError
from seft.runtime.compressed import Values
from seft.runtime.generate import Finish, Sampling, TextModel, advance, cut, held_back
from seft.runtime.serve import Server
from tests.seft.runtime.test_text_stream import falling_back_to_bytes
from tests.tiny import untrained_tiny

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"

IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}

needs_ipv6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6")


def test_stops_are_found_and_held_back() -> None:
    assert cut("one END two", ["END", "two"]) == ("one ", True)
    assert cut("one", ["END"]) == ("one", False)
    assert held_back("one E", ["END"]) == 1
    assert held_back("one EN", ["END", "ENTER"]) == 2
    assert held_back("one", ["END"]) == 0


@contextmanager
def serving(model: TextModel | None, name: str, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve a model, and yield the address."""
    with Server(cast("TextModel", model), name, host, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.url
        server.shutdown()


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> TextModel:
    """The trained tiny model."""
    model = TextModel.load(str(tiny_folder), Values.INT8, torch.float32)
    model.tokenizer.chat_template = TEMPLATE
    return model


@pytest.fixture(scope="module")
def address(model: TextModel) -> Iterator[str]:
    """Address of a server with the trained tiny model."""
    with serving(model, "tiny") as address:
        yield address


def test_a_prompt_must_have_a_token_and_leave_room(model: TextModel) -> None:
    with pytest.raises(AccelerateError, match="the prompt must have a token; it has none"):
        next(model.stream([], 1, Sampling()))
    with pytest.raises(AccelerateError, match=f"must leave room for {model.context} more .* it has 3"):
        next(model.stream([1, 2, 3], model.context or 0, Sampling()))


def test_a_completion_continues_its_prompt_and_a_chat_begins_anew() -> None:
    tokenizer = falling_back_to_bytes()
    model = TextModel(untrained_tiny(), tokenizer)
    model.tokens = lambda *_: iter(tokenizer.convert_tokens_to_ids(["\u2581the"]))  # type: ignore[method-assign]
    prompt = tokenizer.convert_tokens_to_ids(["a"])
    texts = [next(model.stream(prompt, 1, Sampling(), chat=chat)).text for chat in (False, True)]
    assert texts == [" the", "the"]


def test_an_end_token_is_no_text_if_the_tokenizer_has_it_as_a_word(tiny_folder: Path) -> None:
    model = TextModel(untrained_tiny(), AutoTokenizer.from_pretrained(tiny_folder))
    model._ends = set(range(2, 384))
    (piece,) = model.stream([5, 6], 8, Sampling())
    assert (piece.text, piece.tokens, piece.finish) == ("", 1, Finish.STOP)


@pytest.mark.parametrize(
    "config",
    [
        OpenAIGPTConfig(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1),
        BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8),
    ],
    ids=["it has no argument for it", "it returns none"],
)
def test_a_model_without_a_cache_of_keys_and_values_is_an_error(config: PreTrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config)
    found = f"must have a cache of keys and values; {type(model).__name__} has none"
    with pytest.raises(AccelerateError, match=found):
        advance(model, torch.tensor([[3, 4]]), None)


def post(address: str, path: str, **body: object) -> httpx.Response:
    return httpx.post(f"{address}/{path}", json={"model": "tiny", **body}, timeout=120)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_the_models_are_listed(address: str) -> None:
    listed = httpx.get(f"{address}/models", timeout=60).json()
    assert [each["id"] for each in listed["data"]] == ["tiny"]
    assert httpx.get(f"{address}/models/tiny", timeout=60).json() == listed["data"][0]


def test_a_streamed_completion_is_the_whole_one(address: str) -> None:
    options = {"prompt": "The class statement", "max_tokens": 12, "temperature": 0}
    whole = post(address, "completions", **options).json()
    assert whole["object"] == "text_completion"
    assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + whole["usage"]["completion_tokens"]
    streamed = post(address, "completions", **options, stream=True, stream_options={"include_usage": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *chunks, usage = events(streamed)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])


def test_a_chat_streams_deltas_and_the_seed_repeats_it(address: str) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is a class?"}]}]
    options = {"messages": messages, "max_completion_tokens": 10, "seed": 3, "temperature": 0.8, "top_p": 0.9}
    whole = post(address, "chat/completions", **options).json()
    assert (whole["object"], whole["choices"][0]["message"]["role"]) == ("chat.completion", "assistant")
    chunks = events(post(address, "chat/completions", **options, stream=True))
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]


def test_a_stop_ends_the_text_before_it(address: str) -> None:
    options = {"prompt": "The class statement", "max_tokens": 20, "temperature": 0}
    text = post(address, "completions", **options).json()["choices"][0]["text"]
    stop = text[3:5]
    choice = post(address, "completions", **options, stop=[stop]).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.find(stop)], Finish.STOP)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("completions", {}, (400, "prompt", "invalid_value")),
        ("completions", {"prompt": "a", "max_tokens": 0}, (400, "max_tokens", "invalid_value")),
        ("completions", {"prompt": "a", "max_tokens": True}, (400, "max_tokens", "invalid_value")),
        ("completions", {"prompt": "a", "suffix": "a" * 5000}, (400, "suffix", "unsupported_parameter")),
        ("completions", {"prompt": "a", "temperature": 3}, (400, "temperature", "invalid_value")),
        ("completions", {"prompt": "a", "n": 2}, (400, "n", "unsupported_parameter")),
        ("completions", {"prompt": "a", "logprobs": 0}, (400, "logprobs", "unsupported_parameter")),
        ("completions", {"prompt": "a", "stop": list("abcde")}, (400, "stop", "invalid_value")),
        ("completions", {"prompt": "a", "stop": ["a", ""]}, (400, "stop.1", "invalid_value")),
        ("completions", {"prompt": "a", "model": "other"}, (404, "model", "model_not_found")),
        ("completions", {"prompt": "a", "max_tokens": 9999}, (400, None, "context_length_exceeded")),
        ("chat/completions", {"messages": []}, (400, "messages", "invalid_value")),
        ("chat/completions", {"messages": [IMAGE]}, (400, "messages.0.content.0.type", "invalid_value")),
        ("embeddings", {}, (404, None, "unknown_url")),
    ],
)
def test_a_wrong_request_gets_openais_error(
    address: str, path: str, body: dict[str, Any], expected: tuple[int, str | None, str]
) -> None:
    answer = post(address, path, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == expected
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) < 300, "a refused value is not repeated in full"


def test_a_body_that_is_no_json_gets_openais_error(address: str) -> None:
    answer = httpx.post(f"{address}/completions", content=b"{", timeout=60)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert httpx.put(f"{address}/completions", timeout=60).json()["error"]["type"] == "server_error"


def test_a_prompt_without_a_token_gets_openais_error(tiny_folder: Path, model: TextModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.backend_tokenizer.normalizer = Strip()
    tokenizer.chat_template = "{{ messages[0].content }}"
    with serving(TextModel(model.model, tokenizer), "tiny") as address:
        for path, param, given in [
            ("completions", "prompt", " "),
            ("chat/completions", "messages", [{"role": "user", "content": " "}]),
        ]:
            answer = post(address, path, **{param: given}, stream=True)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_failure_is_a_status_before_the_first_token_and_an_event_after_it(
    address: str, model: TextModel, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def tokens(*_: object) -> Iterator[int]:
        yield from begin
        raise ZeroDivisionError

    monkeypatch.setattr(model, "tokens", tokens)
    options = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "stream": True}
    begin: list[int] = []
    answer = post(address, path, **options)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    begin = [70, 71]
    *chunks, error, end = post(address, path, **options).text.split("\n\n")
    assert (len(chunks), end) == (2, "")
    assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_ends_when_its_caller_has_gone(
    address: str, model: TextModel, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    begun, gone, ended = threading.Event(), threading.Event(), threading.Event()
    taken = []

    def tokens(*_: object) -> Iterator[int]:
        try:
            for number in range(100):
                taken.append(number)
                yield model.tokenizer.eos_token_id - 1  # a token without text, so that no event is sent
                begun.set()
                gone.wait(60)
        finally:
            ended.set()

    monkeypatch.setattr(model, "tokens", tokens)
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps({"prompt": "a", "max_tokens": 100, "stream": stream}).encode()
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert begun.wait(60)
    gone.set()
    assert ended.wait(60)
    assert len(taken) <= 3


def test_a_burst_of_callers_is_not_refused() -> None:
    with Server(cast("TextModel", None), "tiny", "127.0.0.1", 0) as server, ExitStack() as callers:
        begin = time.monotonic()
        for _ in range(100):  # none of them is accepted yet
            callers.enter_context(socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=20))
        assert time.monotonic() - begin < 20


def test_a_model_whose_name_is_a_path_is_found() -> None:
    with serving(None, "/models/50% pruned") as address:
        assert httpx.get(f"{address}/models/%2Fmodels%2F50%25%20pruned?x=1", timeout=60).status_code == 200
        assert httpx.get(f"{address}/models?x=1", timeout=60).json()["data"][0]["id"] == "/models/50% pruned"
        assert httpx.get(f"{address}/models/other", timeout=60).status_code == 404


def test_the_body_of_a_get_is_not_the_next_request_and_a_head_has_no_body(address: str) -> None:
    with httpx.Client(timeout=60) as client:
        assert client.request("GET", f"{address}/models", content=b"GET /none HTTP/1.1\r\n\r\n").status_code == 200
        head = client.head(f"{address}/models")
        assert (head.status_code, head.content) == (200, b"")
        assert client.get(f"{address}/models/tiny").json()["id"] == "tiny"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Transfer-Encoding: chunked", 411),
        (b"Content-Length:", 411),
        (b"Content-Length: -1", 400),
        (b"Content-Length: " + b"9" * 5000, 413),
    ],
    ids=["chunked", "none", "negative", "huge"],
)
@pytest.mark.parametrize("method", [b"POST", b"GET"])
def test_a_body_without_a_usable_length_is_refused(address: str, method: bytes, header: bytes, status: int) -> None:
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as caller:
        caller.sendall(method + b" /v1/models HTTP/1.1\r\n" + header + b"\r\n\r\n")
        answer = caller.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1") == 1
    assert len(answer) < 500, "a refused value is not repeated in full"


def test_the_name_of_the_only_model_may_be_left_out(address: str) -> None:
    options = {"prompt": "The class statement", "max_tokens": 4, "temperature": 0}
    without = httpx.post(f"{address}/completions", json=options, timeout=60).json()
    assert without["model"] == "tiny"
    assert without["choices"] == post(address, "completions", **options).json()["choices"]


def test_a_port_in_use_is_refused_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "absent", "--port", str(taken.getsockname()[1])]) == 2
    assert "Use another one, such as --port 8081" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["65536", "-1"])
def test_a_port_that_cannot_be_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "absent", f"--port={port}"]) == 2
    assert f"--port: must be from 0 to 65535; it is {port}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-"], ["--", "-hello"]])
def test_a_prompt_may_come_from_stdin_or_begin_with_a_dash(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"-hello")))
    assert make_parser("seft").parse_args(["generate", "absent", *words]).prompt == "-hello"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    with pytest.raises(UsageError, match="prompt: stdin must be text in UTF-8"):
        make_parser("seft").parse_args(["generate", "absent", "-"])


def test_a_caller_that_leaves_before_its_answer_leaves_no_traceback(
    address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
    for _ in range(50):  # a write fails only if the caller's end has arrived before it
        with socket.create_connection((host, int(port)), timeout=60) as caller:
            caller.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    assert httpx.get(f"{address}/models", timeout=60).status_code == 200
    assert "Traceback" not in capfd.readouterr().err


@needs_ipv6
def test_a_port_that_ipv4_holds_is_refused_for_all_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        assert main(["serve", "absent", "--host", "::", "--port", str(taken.getsockname()[1])]) == 2
    assert "Use another one, such as --port 8081" in capsys.readouterr().err


@needs_ipv6
def test_the_server_listens_on_an_ipv6_address() -> None:
    with serving(None, "tiny", "::1") as address:
        assert address.startswith("http://[::1]:")
        assert httpx.get(f"{address}/models", timeout=60).json()["data"][0]["id"] == "tiny"
        taken = address.removesuffix("/v1").rpartition(":")[2]
        assert main(["serve", "absent", "--host", "::1", "--port", taken]) == 2


@pytest.mark.parametrize("host", ["nohost.invalid", "2001:db8::1", "a" * 70, "192.0.2.1", ""])
def test_a_host_that_is_not_of_this_machine_is_named(capsys: pytest.CaptureFixture[str], host: str) -> None:
    assert main(["serve", "absent", "--host", host, "--port", "0"]) == 2
    assert "error: --host must be a name or an address of this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a", "--max-tokens", "ten"], "--max-tokens: must be an integer; it is 'ten'"),
        (["a", "--top-p", "half"], "--top-p: must be a number; it is 'half'"),
        (["a", "--seed", "9" * 23], "--seed: must be from -2**63 to 2**63 - 1"),
        (["a", "--threads", "100000"], "--threads: must be from 1 to "),
        (["\udcff\udcfe"], "prompt: must be text in UTF-8; it is '\\udcff\\udcfe'"),
    ],
)
def test_values_that_torch_or_the_tokenizer_cannot_use_are_refused_before_loading(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["generate", "absent", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_command_prints_the_text_and_its_speed_also_from_a_folder_with_a_compact_file(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(tiny_folder, tmp_path / "model.seft")
    options = ["The class statement", "--max-tokens", "8", "--values", "int8"]
    assert main(["generate", str(tiny_folder), *options]) == 0
    shown, messages = capsys.readouterr()
    assert messages.startswith(f"loading {tiny_folder} ...\n")
    assert main(["generate", str(tmp_path), *options, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["text"]
    assert shown.startswith(data["text"])
    assert f"{data['tokens']} tokens, " in shown
