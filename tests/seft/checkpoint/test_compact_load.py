"""A model is loaded from a container on disk, at a web address and in S3: the same model as from its folder."""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPTNeoConfig, GPTNeoForCausalLM

import seft
from local.servers import Servers
from seft.checkpoint.compact import byte_sources, load
from seft.checkpoint.compact.byte_sources import WebFile, open_source, public_name
from seft.checkpoint.compact.load import as_torch
from seft.checkpoint.compact.reader import open_container
from seft.checkpoint.compact.writer import pack
from seft.errors import ConfigError, ContainerError, SourceError
from seft.models.load import require_floats
from seft.models.source import find
from tests.seft.architectures import ARCHITECTURES
from tests.serving import Quiet
from tests.tiny import sparse_tiny, tiny_tokenizer

NAME = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse model in bfloat16, in several shards."""
    folder = tmp_path_factory.mktemp("model") / "sparse"
    model = sparse_tiny()
    model.generation_config.temperature = 0.5
    model.generation_config.do_sample = True
    model.save_pretrained(folder, max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def container(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("containers") / "sparse.seft"
    pack(folder, path)
    return path


@dataclass
class Web:
    """A server of one file. It counts the bytes that it sends. A test sets how many requests fail."""

    content: bytes
    ranges: bool = True
    failures: int = 0
    size: str = ""
    """What the server says as the size, instead of the true one."""
    pause: float = 0.0
    """Seconds before each byte."""
    sent: int = 0
    paths: list[str] = field(default_factory=list)


@contextmanager
def served(web: Web) -> Iterator[str]:
    class Handler(Quiet, BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            web.paths.append(self.path)
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            begin, end = (int(asked[1]), int(asked[2]) + 1) if asked and web.ranges else (0, len(web.content))
            part, status = web.content[begin:end], 206 if web.ranges else 200
            if not self.path.startswith("/model.seft"):
                part, status = b"", 404
            elif web.failures:
                web.failures -= 1
                part, status = b"", 503
            self.send_response(status)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{web.size or len(web.content)}")
            self.end_headers()
            for at in range(len(part)) if web.pause else ():
                time.sleep(web.pause)
                self.wfile.write(part[at : at + 1])
            self.wfile.write(b"" if web.pause else part)
            web.sent += len(part)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/model.seft"
    finally:
        server.shutdown()
        server.server_close()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_equal(model: Any, other: Any) -> None:
    """Require the same weights and buffers, bit for bit, and the same outputs and settings."""
    assert type(model) is type(other)
    assert not model.training
    for states in (nn.Module.state_dict, lambda each: dict(each.named_buffers())):
        first, second = states(model), states(other)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert tensor.dtype == second[name].dtype
            assert bits(tensor) == bits(second[name]), name
    tokens = torch.arange(2, 12)[None]
    assert torch.equal(model(tokens).logits, other(tokens).logits)
    assert model.generation_config.to_dict() == other.generation_config.to_dict()
    settings = [{**each.config.to_dict(), "_name_or_path": ""} for each in (model, other)]
    assert settings[0] == settings[1]


def test_a_container_gives_the_model_of_its_folder(folder: Path, container: Path) -> None:
    model = seft.load(container)
    assert model.dtype == torch.bfloat16
    assert model.config.use_cache
    assert_equal(model, seft.load(folder))
    assert_equal(seft.load(str(container), dtype=torch.float32), seft.load(str(folder), dtype=torch.float32))
    text = "def f(x): pass"
    assert seft.load_tokenizer(container)(text) == seft.load_tokenizer(folder)(text)


@pytest.mark.parametrize("device", ["cuda:99", *([] if torch.cuda.is_available() else ["cuda"])])
def test_a_device_that_is_not_there_is_refused(device: str, container: Path) -> None:
    with pytest.raises(ConfigError, match=f"device must be available; it is '{device}'. Torch finds"):
        seft.load(container, device=device)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_gives_the_same_model(architecture: str, tmp_path: Path) -> None:
    ARCHITECTURES[architecture].model().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    pack(tmp_path / "model", tmp_path / "model.seft")
    assert_equal(seft.load(tmp_path / "model.seft"), seft.load(tmp_path / "model"))


def test_a_web_address_is_read_in_parts_and_each_part_once(folder: Path, container: Path) -> None:
    web = Web(container.read_bytes(), failures=2)
    with served(web) as url:
        query = "?signature=secret"
        assert_equal(seft.load(url + query), seft.load(folder))
        assert web.sent < 1.2 * len(web.content)  # the index and the small files are read more than once
        assert {path.partition("?")[2] for path in web.paths} == {query[1:]}
        before = web.sent
        seft.load_tokenizer(url)
        assert web.sent - before < 0.2 * len(web.content)


def test_a_tensor_needs_only_its_own_bytes(container: Path) -> None:
    web = Web(container.read_bytes())
    with served(web) as url, open_container(url) as remote, open_container(container) as local:
        entry = next(tensor for file in remote.files for tensor in file.tensors if tensor.name == NAME)
        before = web.sent
        assert torch.equal(as_torch(remote, entry), as_torch(local, entry))
        assert web.sent - before == entry.span.end - entry.span.begin


def test_an_object_in_s3_is_loaded(
    folder: Path, container: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = servers.storage
    environment = {"ENDPOINT_URL": storage.endpoint, "DEFAULT_REGION": "us-east-1"}
    environment |= {"ACCESS_KEY_ID": storage.access_key, "SECRET_ACCESS_KEY": storage.secret}
    for name, value in environment.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = storage.client()
    client.create_bucket(Bucket="compact")
    client.put_object(Bucket="compact", Key="a/sparse.seft", Body=container.read_bytes())
    try:
        assert_equal(seft.load("s3://compact/a/sparse.seft"), seft.load(folder))
        with pytest.raises(SourceError, match="s3://compact/none must be an object that may be read"):
            seft.load("s3://compact/none")
    finally:
        client.delete_object(Bucket="compact", Key="a/sparse.seft")
        client.delete_bucket(Bucket="compact")
        client.close()


def test_a_server_that_fails_or_sends_no_ranges_is_named_without_the_query() -> None:
    web = Web(b"content", failures=9)
    with served(web) as url:
        with pytest.raises(SourceError, match=r"model\.seft answers 503. Try again later") as caught:
            WebFile(url + "?secret", (0.0, 0.0))
        assert "secret" not in str(caught.value)
        assert public_name(url.replace("//", "//user:secret@") + "?secret") == url
        web.failures = 0
        with pytest.raises(SourceError, match="must be a file that may be read; the server answers 404"):
            WebFile(url.replace("model", "other"), ())
        with open_source(url) as source, pytest.raises(SourceError, match="it sent another number"):
            source.read(5, 9)
        for wrong in ("http://host:port/", "http:///model.seft", "https://", "http://a..b/x"):
            with pytest.raises(SourceError, match=r"must be a web address: .*[^.]\. Check it\.$"):
                WebFile(wrong, (60.0,))
        for web.size in ("*", "9" * 5000):
            with pytest.raises(SourceError, match="must send the size of the file"):
                WebFile(url, ())
        web.ranges = False
        with pytest.raises(SourceError, match="must be able to send ranges"):
            WebFile(url, ())


def test_a_server_that_sends_too_slowly_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_sources, "_PATIENCE", 0.1)
    with served(web := Web(bytes(100))) as url, open_source(url, pauses=()) as source:
        web.pause = 0.02
        with pytest.raises(SourceError, match="sends too few bytes per second"):
            source.read(0, 100)
        web.pause = 0.001
        monkeypatch.setattr(byte_sources, "_PATIENCE", 60)
        assert source.read(0, 5) == bytes(5)


def test_a_container_is_found_in_the_home_directory(container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(container.parent))
    assert load.container_of(f"~/{container.name}") == container
    assert seft.load(f"~/{container.name}").state_dict().keys() == seft.load(container).state_dict().keys()
    assert load.container_of("~nobody-has-this-name/x") is None


def test_the_scheme_of_an_address_may_have_capitals(container: Path) -> None:
    with served(Web(container.read_bytes())) as url:
        address = url.replace("http", "HTTP").replace("//", "//user:secret@")
        assert load.container_of(address) == address
        assert public_name(address + "?secret") == url.replace("http", "HTTP")
        with open_container(address) as remote, open_container(container) as local:
            assert remote.files == local.files
    assert load.container_of("S3://bucket/key") == "S3://bucket/key"


def test_an_address_of_s3_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "foo")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with pytest.raises(SourceError, match=r"Invalid endpoint: foo. Check .* AWS_ENDPOINT_URL"), open_source("S3://b/k"):
        pass


def test_s3_without_its_package_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(SourceError, match=r"s3://b/k needs the package boto3, .* Run pip install boto3\."):
        seft.load("s3://b/k")


def test_a_reference_that_is_too_long_for_a_path_names_no_model() -> None:
    for load_ in (seft.load, seft.load_tokenizer):
        with pytest.raises(SourceError, match="File name too long"):
            load_("x" * 300)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match=r"must be a readable file; .*pipe' is not"), open_source(tmp_path / "pipe"):
        pass


def test_a_matrix_of_integers_without_scales_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, other := tmp_path / "other")
    path = next(path for path in other.glob("*.safetensors") if NAME in load_file(path))
    tensors = load_file(path)
    for dtype in (torch.int8, torch.uint8, torch.int64, torch.bool):
        save_file(tensors | {NAME: torch.ones_like(tensors[NAME], dtype=dtype)}, path, {"format": "pt"})
        pack(other, packed := tmp_path / f"{dtype}.seft")
        for model in (other, packed):
            with pytest.raises(SourceError, match=f"must have a floating-point dtype; '{NAME}' in "):
                seft.load(model)


def test_a_stack_of_matrices_of_integers_without_scales_is_refused(tmp_path: Path) -> None:
    ARCHITECTURES["gpt_oss"].model().save_pretrained(other := tmp_path / "other")
    tiny_tokenizer().save_pretrained(other)
    tensors = load_file(path := other / "model.safetensors")
    stack = "model.layers.1.mlp.experts.gate_up_proj"
    save_file(tensors | {stack: torch.ones_like(tensors[stack], dtype=torch.int8)}, path, {"format": "pt"})
    pack(other, packed := tmp_path / "packed.seft")
    for model in (other, packed):
        with pytest.raises(SourceError, match=f"must have a floating-point dtype; '{stack}' in "):
            seft.load(model)


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [("h.0.attn.bias", "U8", [1, 1, 8, 8]), ("model.layers.0.mlp.gate.tid2eid", "I64", [400, 2])],
)
def test_a_mask_or_a_table_of_integers_is_no_matrix(name: str, dtype: str, shape: list[int]) -> None:
    require_floats("model", name, dtype, shape)


def test_a_config_of_a_far_larger_model_is_refused_before_it_is_created(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, other := tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "intermediate_size": 1 << 40}))
    pack(other, packed := tmp_path / "packed.seft")
    with pytest.raises(SourceError, match=r"enough for the \d{15,} weights of its configuration; they have \d{5,7} "):
        seft.load(packed)


@pytest.mark.parametrize(("positions", "is_refused"), [(1000, False), (3000, True)])
def test_a_config_with_far_larger_buffers_is_refused_before_they_are_created(
    positions: int, is_refused: bool, tmp_path: Path
) -> None:
    attention = {"num_heads": 2, "num_layers": 2, "attention_types": [[["global"], 2]]}
    config = GPTNeoConfig(vocab_size=384, hidden_size=8, max_position_embeddings=positions, **attention)
    GPTNeoForCausalLM(config).save_pretrained(tmp_path / "model")  # each block has a mask of positions x positions
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    pack(tmp_path / "model", packed := tmp_path / "model.seft")
    if is_refused:
        with pytest.raises(SourceError, match=r"enough for the 18\d{6} values in buffers of its configuration"):
            seft.load(packed)
    else:
        assert_equal(seft.load(packed), seft.load(tmp_path / "model"))


def test_a_file_with_the_ending_seft_is_never_taken_for_another_kind(container: Path, tmp_path: Path) -> None:
    (path := tmp_path / "model.seft").write_bytes(b"x" + container.read_bytes()[1:-1])
    with pytest.raises(ContainerError, match="is not an intact compact container"):
        seft.load(path)
    with pytest.raises(SourceError, match="Restore its folder with `seft expand "):
        find(str(path))


def test_a_damaged_tensor_is_named_and_no_model_is_returned(container: Path, tmp_path: Path) -> None:
    content = bytearray(container.read_bytes())
    with open_container(container) as intact:
        entry = next(tensor for file in intact.files for tensor in file.tensors if tensor.name == NAME)
    content[entry.span.begin + 200] ^= 4
    (path := tmp_path / "damaged.seft").write_bytes(content)
    with pytest.raises(ContainerError, match=f"'{NAME}' in .*damaged.seft is damaged"):
        seft.load(path)


def test_a_container_that_is_not_the_model_of_its_config_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, other := tmp_path / "other")
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"num_hidden_layers": 4', '"num_hidden_layers": 5'))
    pack(other, tmp_path / "other.seft")
    with pytest.raises(SourceError, match=r"must match its config; .*model\.layers\.4"):
        seft.load(tmp_path / "other.seft")
    (other / "config.json").unlink()
    pack(other, tmp_path / "none.seft")
    with pytest.raises(SourceError, match=r"must have a config\.json"):
        seft.load(tmp_path / "none.seft")
