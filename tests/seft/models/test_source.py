"""Which model references are accepted, and which are rejected before a weight is read."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from seft.errors import SourceError
from seft.models.source import Kind, fetch, find, names_under
from tests.hub import COMMIT, Repo, hub

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
FIND = """
import json, sys
from seft.errors import SourceError
from seft.models.source import fetch, find
try:
    source = find(sys.argv[1], roots=[], revision=sys.argv[2] or None)
    result = {name: getattr(source, name) for name in ("kind", "revision", "licence", "config", "has_chat_template")}
    if sys.argv[3:] == ["fetch"]:
        result["files"] = sorted(file.name for file in fetch(source).iterdir())
except SourceError as error:
    result = {"code": error.code, "message": str(error)}
print(json.dumps({**result, "torch": "torch" in sys.modules}))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that passes every check that needs no weights."""
    folder = tmp_path / "root" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return folder


def rejection(reference: str | Path, code: str = "model_refused", **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        find(str(reference), **options)
    assert caught.value.code == code
    return str(caught.value)


def gguf(path: Path, header: dict[str, str | int | bool | list[str]]) -> Path:
    """Write a GGUF file without tensors."""

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
        (b"---\r\ntags: [a]\r\nlicense: mit\r\n---\r\n", "mit"),
        (b"\xef\xbb\xbf---\nlicense: mit\n---\n", "mit"),
        (b"---\nlicense: [\n---\n", None),
        (b"license: mit\n", None),
        (b"---\nlanguage: en\n---\nlicense: mit\n", None),
        (b"\xff\xfe", None),
    ],
)
def test_the_licence_is_read_from_the_front_matter_of_the_card(model: Path, card: bytes, licence: str | None) -> None:
    (model / "README.md").write_bytes(card)
    assert find(str(model)).licence == licence


def test_a_name_under_a_root_is_found_and_kept_as_the_reference(model: Path) -> None:
    source = find("model", roots=[model.parent.parent / "other", model.parent])
    assert (source.reference, source.path) == ("model", model)


@pytest.mark.parametrize(
    "name", ["../secret", "model/../../secret", "/etc", "./model", "model/", "x//model", "x\\..\\model", "x/../model"]
)
def test_a_name_that_leads_out_of_its_root_or_is_not_plain_is_rejected(model: Path, name: str) -> None:
    shutil.copytree(model, model.parent.parent / "secret")
    assert "relative to a folder in SEFT_MODEL_ROOTS" in rejection(name, roots=[model.parent])


def test_cyclic_links_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(SourceError):
        find(".", roots=[tmp_path])


def test_a_link_out_of_a_root_is_rejected_but_a_link_inside_is_not(model: Path) -> None:
    root, outside = model.parent, model.parent.parent / "outside"
    shutil.copytree(model, outside)
    (root / "folder-out").symlink_to(outside)
    (root / "folder-in").symlink_to(model)
    file_out = shutil.copytree(model, root / "file-out")
    (file_out / "model.safetensors").unlink()
    (file_out / "model.safetensors").symlink_to(outside / "model.safetensors")
    assert "to a file outside of it" in rejection("folder-out", roots=[root])
    assert "to a file outside of it" in rejection("file-out", roots=[root])
    assert find("folder-in", roots=[root]).kind is Kind.FOLDER


@pytest.mark.parametrize("reference", ["nothing", "no/such/thing", "", "a" * 5000, "nul\0"])
def test_an_unknown_reference_is_rejected(reference: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        find(reference, roots=[tmp_path])
    assert "Give a folder, a GGUF file or `owner/name`" in rejection("nothing", "model_not_found", roots=[tmp_path])


def test_a_folder_without_config_is_rejected(model: Path) -> None:
    (model / "config.json").unlink()
    assert "has no config.json" in rejection(model, "model_not_found")


def test_a_model_with_only_pickles_is_rejected(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "only pickles (['pytorch_model.bin']), which can run code" in rejection(model)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("key", ["auto_map", "sparsity_config", "quantization_config"])
def test_keys_that_make_loaders_run_code_are_rejected_at_any_depth(model: Path, file: str, key: str) -> None:
    (model / file).write_text(json.dumps({**CONFIG, "inner": [{key: {}}]}))
    assert f"`{key}`" in rejection(model)
    (model / file).write_text(json.dumps({**CONFIG, "inner": [{key: None}]}))
    assert find(str(model)).kind is Kind.FOLDER


def test_the_way_out_for_a_model_with_code_that_transformers_supports_itself_works(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({**CONFIG, "auto_map": {"AutoConfig": "configuration.Config"}}))
    assert "If transformers supports the model without this code, remove the key from a copy" in rejection(model)
    (model / "config.json").write_text(json.dumps(CONFIG))
    assert find(str(model)).kind is Kind.FOLDER


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
def test_only_decoders_are_accepted(model: Path, config: dict[str, Any]) -> None:
    (model / "config.json").write_text(json.dumps(config))
    assert "decoder-only" in rejection(model)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00", "[" * 100_000])
def test_a_broken_config_is_rejected(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    assert "config.json" in rejection(model)


def test_a_model_without_tokenizer_is_rejected(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in rejection(model)


def test_every_shard_of_an_index_must_exist(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "['model-00002-of-00002.safetensors']" in rejection(model)
    (model / shards["b"]).write_bytes(b"")
    assert find(str(model)).kind is Kind.FOLDER


@pytest.mark.parametrize("shards", [None, [], ["a"], {}, {"a": 5}, {"a": ["b"]}])
def test_an_index_that_names_no_shards_is_rejected(model: Path, shards: object) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "lacks shards" in rejection(model)


def test_the_models_of_a_root_are_folders_and_gguf_files_whose_names_have_at_most_three_parts(tmp_path: Path) -> None:
    files = ["config.json", "a/config.json", "a/b/config.json", "x/y/z/config.json", "x/y/q.gguf", "x/y/w/q.gguf"]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert sorted(names_under(tmp_path)) == ["a", "x/y/q.gguf", "x/y/z"]


def test_a_gguf_file_is_found_by_its_header(tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", HEADER)
    source = find("m.gguf", roots=[tmp_path])
    assert (source.kind, source.path, source.licence) == (Kind.GGUF, path, "apache-2.0")
    assert source.config == {**HEADER, "tokenizer.ggml.tokens": 2}


def test_a_chat_template_is_found_wherever_transformers_reads_one(tmp_path: Path, tiny_folder: Path) -> None:
    named = [{"name": "default", "template": "one"}, {"name": "tools", "template": "two"}]
    config = json.loads((tiny_folder / "tokenizer_config.json").read_text()) | {"chat_template": named}
    texts = {"chat_template.jinja": "one", "tokenizer_config.json": json.dumps(config), "README.md": "none"}
    for number, (name, text) in enumerate(texts.items()):
        folder = shutil.copytree(tiny_folder, tmp_path / str(number))
        (folder / name).write_text(text)
        expected = bool(AutoTokenizer.from_pretrained(folder).chat_template)
        assert find(str(folder)).has_chat_template == expected == (number < 2)
    path = tmp_path / "model.gguf"
    for key in ("tokenizer.chat_template", "tokenizer.other"):
        gguf(path, HEADER | {key: "one"})
        assert find(str(path)).has_chat_template == (key == "tokenizer.chat_template")


def test_a_truncated_gguf_file_is_rejected(tmp_path: Path) -> None:
    whole = gguf(tmp_path / "whole.gguf", HEADER).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        assert "not a readable GGUF file" in rejection(tmp_path / "cut.gguf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "bert", "bert.block_count": 4}, "decoder-only"),
        ({"general.architecture": "t5", "t5.block_count": 4}, "decoder-only"),
        ({"general.type": "adapter"}, "part of a model"),
        ({"split.count": 2}, "part of a model"),
    ],
)
def test_a_gguf_file_that_is_not_a_whole_decoder_is_rejected(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    assert message in rejection(gguf(tmp_path / "m.gguf", {**HEADER, **change}))


@pytest.mark.parametrize(
    "change",
    [
        {"llama.rope.scaling.type": "yarn"},
        {"llama.rope.scaling.factor": 4, "llama.rope.scaling.attn_factor": 2},
        {"llama.rope.scaling.alpha": 1000},
        {"llama.rope.scaling.factor": "four"},
        {"general.architecture": "gemma3", "gemma3.block_count": 4, "gemma3.rope.scaling.factor": 8},
    ],
    ids=str,
)
def test_a_gguf_file_whose_positions_transformers_cannot_have_is_rejected(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    message = rejection(gguf(tmp_path / "m.gguf", {**HEADER, **change}))
    assert f"{[*change][-1]} is {[*change.values()][-1]}" in message
    assert message.endswith("Give the model's folder instead.")


def test_a_gguf_file_without_vocabulary_is_rejected(tmp_path: Path) -> None:
    header = {key: value for key, value in HEADER.items() if not key.startswith("tokenizer")}
    assert "no tokenizer" in rejection(gguf(tmp_path / "m.gguf", header))


def ask_hub(home: Path, endpoint: str, reference: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run `find` in a separate process, because the hub's client reads its address when it is imported."""
    defaults = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", FIND, reference, *(arguments or ("",))]
    process = subprocess.run(
        command, env=defaults | environment, capture_output=True, text=True, check=True, timeout=60
    )
    answer: dict[str, Any] = json.loads(process.stdout)
    assert answer.pop("torch") is False
    return answer


def test_a_hub_model_is_found_downloaded_and_found_again_offline(model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"not wanted")
    (model / "LICENSE").write_text("terms")
    # transformers ignores shards and other weights beside a single file.
    for name in ("model-00001-of-00002.safetensors", "model.fp16.safetensors"):
        (model / name).write_bytes(b"not wanted")
    (model / "chat_template.jinja").write_text("one")
    with hub({"tiny/llama": Repo(model, licence="mit")}) as endpoint:
        online = ask_hub(tmp_path, endpoint, "tiny/llama", "main", "fetch")
        assert ask_hub(tmp_path, endpoint, "tiny/llama", "..")["code"] == "model_not_found"
    files = ["LICENSE", "README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert online.pop("files") == files
    assert online.pop("has_chat_template")
    assert online == {"kind": "hub", "revision": COMMIT, "licence": "mit", "config": CONFIG}
    offline = ask_hub(tmp_path, endpoint, "tiny/llama", "main", HF_HUB_OFFLINE="1")
    assert (offline["revision"], offline["config"]) == (COMMIT, CONFIG)
    assert ask_hub(tmp_path, endpoint, "tiny/llama", HF_HUB_OFFLINE="1")["revision"] == COMMIT
    absent = ask_hub(tmp_path, endpoint, "tiny/other", HF_HUB_OFFLINE="1")
    assert absent["code"] == "hub_unreachable"
    (tmp_path / "hub" / "models--tiny--llama" / "refs" / "pr").mkdir()
    for outside in ("/dev/zero", "..", "../../other", "pr"):
        assert ask_hub(tmp_path, endpoint, "tiny/llama", outside, HF_HUB_OFFLINE="1")["code"] == "model_not_found"


def test_a_hub_model_is_rejected_by_the_same_rules(model: Path, tmp_path: Path) -> None:
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


def test_an_unreachable_hub_has_its_own_error_code(tmp_path: Path) -> None:
    assert ask_hub(tmp_path, "http://127.0.0.1:9", "tiny/llama")["code"] == "hub_unreachable"
