"""The door for models: what is let in, and what is refused before a weight is read."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seft.errors import SourceError
from seft.models.source import Kind, fetch, find
from tests.hub import COMMIT, Repo, hub

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
FIND = """
import json, sys
from seft.errors import SourceError
from seft.models.source import fetch, find
try:
    source = find(sys.argv[1], roots=[], revision=sys.argv[2] or None)
    found = {"kind": source.kind, "revision": source.revision, "licence": source.licence, "config": source.config}
    if sys.argv[3:] == ["fetch"]:
        found["files"] = sorted(file.name for file in fetch(source).iterdir())
except SourceError as error:
    found = {"code": error.code, "message": str(error)}
print(json.dumps({**found, "torch": "torch" in sys.modules}))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that may be loaded as far as can be seen without its weights."""
    folder = tmp_path / "root" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return folder


def refusal(reference: str | Path, code: str = "model_refused", **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        find(str(reference), **options)
    assert caught.value.code == code
    return str(caught.value)


def gguf(path: Path, header: dict[str, str | int | bool | list[str]]) -> Path:
    """A GGUF file of no tensors."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text.encode())) + text.encode()

    def value(item: str | int | bool | list[str]) -> bytes:
        match item:
            case bool():
                return struct.pack("<I?", 7, item)
            case int():
                return struct.pack("<II", 4, item)
            case str():
                return struct.pack("<I", 8) + string(item)
            case list():
                return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(string, item))

    pairs = b"".join(string(key) + value(item) for key, item in header.items())
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(header)) + pairs)
    return path


HEADER: dict[str, str | int | bool | list[str]] = {
    "general.architecture": "llama",
    "general.license": "apache-2.0",
    "llama.block_count": 4,
    "llama.tied": True,
    "tokenizer.ggml.tokens": ["a", "b"],
}


def test_a_folder_is_found_with_its_config_and_licence(model: Path) -> None:
    source = find(str(model))
    assert (source.kind, source.path, source.revision) == (Kind.FOLDER, model, None)
    assert (source.config, source.licence) == (CONFIG, "mit")
    assert fetch(source) == model


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (b"---\ntags: [a]\nlicense: 'cc-by-4.0'\n---\n", "cc-by-4.0"),
        (b"---\nlicense: [\n---\n", None),
        (b"license: mit\n", None),
        (b"---\nlanguage: en\n---\nlicense: mit\n", None),
        (b"\xff\xfe", None),
    ],
)
def test_a_licence_is_what_the_front_matter_of_the_card_says(model: Path, card: bytes, licence: str | None) -> None:
    (model / "README.md").write_bytes(card)
    assert find(str(model)).licence == licence


def test_a_name_under_a_root_is_found_and_kept_as_it_was_asked(model: Path) -> None:
    source = find("model", roots=[model.parent.parent / "other", model.parent])
    assert (source.reference, source.path) == ("model", model)


@pytest.mark.parametrize("name", ["../secret", "model/../../secret", "/etc"])
def test_a_name_that_leaves_its_root_is_refused(model: Path, name: str) -> None:
    shutil.copytree(model, model.parent.parent / "secret")
    assert "relative to a model root" in refusal(name, roots=[model.parent])


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(SourceError):
        find(".", roots=[tmp_path])


def test_a_link_out_of_a_root_is_refused_but_one_inside_is_not(model: Path) -> None:
    root, outside = model.parent, model.parent.parent / "outside"
    shutil.copytree(model, outside)
    (root / "folder-out").symlink_to(outside)
    (root / "folder-in").symlink_to(model)
    file_out = shutil.copytree(model, root / "file-out")
    (file_out / "model.safetensors").unlink()
    (file_out / "model.safetensors").symlink_to(outside / "model.safetensors")
    assert "leads out of its model root" in refusal("folder-out", roots=[root])
    assert "leads out of its model root" in refusal("file-out", roots=[root])
    assert find("folder-in", roots=[root]).kind is Kind.FOLDER


@pytest.mark.parametrize("reference", ["nothing", "no/such/thing", "", "a" * 5000, "nul\0"])
def test_what_is_nowhere_is_told_so(reference: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        find(reference, roots=[tmp_path])
    assert "Give a folder, a GGUF file or `owner/name`" in refusal("nothing", "model_not_found", roots=[tmp_path])


def test_a_folder_without_config_is_no_model(model: Path) -> None:
    (model / "config.json").unlink()
    assert "has no config.json" in refusal(model, "model_not_found")


def test_a_model_of_pickles_only_is_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "only pickles (pytorch_model.bin), which can run code" in refusal(model)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("key", ["auto_map", "sparsity_config", "quantization_config"])
def test_keys_that_make_loaders_run_code_are_refused_at_any_depth(model: Path, file: str, key: str) -> None:
    (model / file).write_text(json.dumps({**CONFIG, "inner": [{key: {}}]}))
    assert f"`{key}`" in refusal(model)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["BertForMaskedLM"]},
        {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
        {"architectures": ["BartForCausalLM"], "is_encoder_decoder": True},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": 5},
        {},
    ],
)
def test_only_decoders_are_let_in(model: Path, config: dict[str, Any]) -> None:
    (model / "config.json").write_text(json.dumps(config))
    assert "decoder-only" in refusal(model)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00", "[" * 100_000])
def test_a_broken_config_is_refused(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    assert "config.json" in refusal(model)


def test_a_model_without_tokenizer_is_refused(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(model)


def test_every_shard_of_an_index_must_be_there(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "['model-00002-of-00002.safetensors']" in refusal(model)
    (model / shards["b"]).write_bytes(b"")
    assert find(str(model)).kind is Kind.FOLDER


@pytest.mark.parametrize("shards", [None, [], ["a"], {}, {"a": 5}, {"a": ["b"]}])
def test_an_index_that_names_no_shards_is_refused(model: Path, shards: object) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "lacks shards" in refusal(model)


def test_a_gguf_file_is_found_by_its_header(tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", HEADER)
    source = find("m.gguf", roots=[tmp_path])
    assert (source.kind, source.path, source.licence) == (Kind.GGUF, path, "apache-2.0")
    assert source.config == {**HEADER, "tokenizer.ggml.tokens": 2}


def test_a_gguf_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = gguf(tmp_path / "whole.gguf", HEADER).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        assert "no readable GGUF file" in refusal(tmp_path / "cut.gguf")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"general.architecture": "bert", "bert.block_count": 4}, "decoder-only"),
        ({"general.architecture": "t5", "t5.block_count": 4}, "decoder-only"),
        ({"general.type": "adapter"}, "part of a model"),
        ({"split.count": 2}, "part of a model"),
    ],
)
def test_a_gguf_file_that_is_no_whole_decoder_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    assert told in refusal(gguf(tmp_path / "m.gguf", {**HEADER, **change}))


def test_a_gguf_file_without_vocabulary_is_refused(tmp_path: Path) -> None:
    header = {key: value for key, value in HEADER.items() if not key.startswith("tokenizer")}
    assert "no tokenizer" in refusal(gguf(tmp_path / "m.gguf", header))


def ask_hub(home: Path, endpoint: str, reference: str, *more: str, **environment: str) -> dict[str, Any]:
    """`find` in a process of its own, because the hub's client reads its address while it is imported."""
    names = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", FIND, reference, *(more or ("",))]
    done = subprocess.run(command, env=names | environment, capture_output=True, text=True, check=True, timeout=60)
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer.pop("torch") is False
    return answer


def test_a_hub_model_is_found_fetched_and_found_again_without_network(model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"not wanted")
    with hub({"tiny/llama": Repo(model, licence="mit")}) as endpoint:
        found = ask_hub(tmp_path, endpoint, "tiny/llama", "main", "fetch")
    assert found.pop("files") == ["config.json", "model.safetensors", "tokenizer.json"]
    assert found == {"kind": "hub", "revision": COMMIT, "licence": "mit", "config": CONFIG}
    offline = ask_hub(tmp_path, endpoint, "tiny/llama", "main", HF_HUB_OFFLINE="1")
    assert (offline["revision"], offline["config"]) == (COMMIT, CONFIG)
    absent = ask_hub(tmp_path, endpoint, "tiny/other", HF_HUB_OFFLINE="1")
    assert absent["code"] == "hub_unreachable"


def test_a_hub_model_is_refused_by_the_same_rules(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    repos = {"tiny/pickle": Repo(model), "tiny/gated": Repo(model, gated=True)}
    with hub(repos) as endpoint:
        pickle = ask_hub(tmp_path, endpoint, "tiny/pickle")
        gated = ask_hub(tmp_path, endpoint, "tiny/gated")
        missing = ask_hub(tmp_path, endpoint, "tiny/missing")
        revision = ask_hub(tmp_path, endpoint, "tiny/pickle", "no-such-branch")
    assert (pickle["code"], "only pickles" in pickle["message"]) == ("model_refused", True)
    assert (gated["code"], "is gated" in gated["message"]) == ("model_refused", True)
    assert missing["code"] == "model_not_found"
    assert (revision["code"], "no-such-branch" in revision["message"]) == ("model_not_found", True)


def test_a_hub_that_does_not_answer_is_told_apart(tmp_path: Path) -> None:
    assert ask_hub(tmp_path, "http://127.0.0.1:9", "tiny/llama")["code"] == "hub_unreachable"
