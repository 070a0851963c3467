"""Loading gives exactly the weights of the source in the requested dtype, or an error, and prints nothing."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from seft.data.text import tokenize
from seft.errors import SourceError
from seft.models.load import load
from seft.models.source import find
from tests.seft.architectures import ARCHITECTURES
from tests.seft.gguf_files import write_gguf
from tests.tiny import tiny_tokenizer, untrained_tiny
from tests.worker.peaks import private_bytes

TEXT = "Pruned, and mended: 'ünïcode' too.\n"
WINDOW = torch.arange(2, 20)[None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    untrained_tiny().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def logits(model: Any) -> Float[Tensor, "batch tokens cols"]:
    with torch.no_grad():
        result: Tensor = model(input_ids=WINDOW).logits
    return result


def test_a_folder_gives_its_weights_and_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    loaded = load(find(str(folder)))
    assert capfd.readouterr() == ("", "")
    assert torch.equal(logits(loaded.model), logits(untrained_tiny()))
    assert not loaded.model.training
    assert loaded.tokenizer.eos_token == "<eos>"


@pytest.mark.parametrize("kind", [*ARCHITECTURES, "correction that transformers would round"])
def test_weights_have_the_requested_dtype_and_buffers_are_float32(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ARCHITECTURES.get(kind, ARCHITECTURES["deepseek_v3"]).model()
    if kind not in ARCHITECTURES:
        monkeypatch.setattr(type(model), "_keep_in_fp32_modules_strict", None)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.fill_(1 / 3)
    model.save_pretrained(folder)
    loaded: Any = load(find(str(folder)), dtype=torch.bfloat16).model
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, weight in expected.named_parameters():
        assert loaded.get_parameter(name).dtype is torch.bfloat16
        assert torch.equal(loaded.get_parameter(name), weight.bfloat16()), name
    for name, buffer in expected.named_buffers():
        assert loaded.get_buffer(name).dtype is buffer.dtype
        assert torch.equal(loaded.get_buffer(name), buffer), name


def test_loading_in_bfloat16_needs_no_memory_for_float32(folder: Path) -> None:
    config = LlamaConfig(
        vocab_size=384, hidden_size=1024, intermediate_size=4096, num_hidden_layers=4, num_attention_heads=8
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    source = find(str(folder))
    load(source, dtype=torch.bfloat16)  # everything is imported
    before, done, peak = private_bytes(os.getpid()), threading.Event(), 0

    def measure() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, private_bytes(os.getpid()) - before)

    thread = threading.Thread(target=measure, daemon=True)
    thread.start()
    try:
        model = load(source, dtype=torch.bfloat16).model
    finally:
        done.set()
        thread.join()
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert size > 100_000_000
    assert peak < 1.3 * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_that_is_changed_later_changes_no_weight(folder: Path, dtype: torch.dtype) -> None:
    untrained_tiny().to(dtype).save_pretrained(folder)
    model = load(find(str(folder)), dtype=dtype).model
    before = logits(model)
    file = folder / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as content:
        content.seek(size // 2)
        content.write(bytes(size - size // 2))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("change", [{"num_attention_heads": 0}, {"pad_token_id": 10**9}])
def test_a_config_that_transformers_cannot_use_is_an_error(folder: Path, change: dict[str, int]) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(SourceError, match="must"):
        load(find(str(folder)))


def test_a_gguf_file_gives_the_same_model_which_can_be_saved_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tmp_path / "tiny.gguf", untrained_tiny())
    capfd.readouterr()
    loaded = load(find("tiny.gguf", roots=[tmp_path]))
    assert "it/s" not in capfd.readouterr().err
    assert torch.equal(logits(loaded.model), logits(untrained_tiny()))
    assert torch.equal(tokenize([TEXT, TEXT], loaded.tokenizer), tokenize([TEXT, TEXT], tiny_tokenizer()))
    saved = tmp_path / "saved"
    model: Any = loaded.model
    model.save_pretrained(saved)
    loaded.tokenizer.save_pretrained(saved)
    assert torch.equal(logits(load(find(str(saved))).model), logits(untrained_tiny()))


@pytest.mark.parametrize("change", ["missing", "unexpected", "mismatched"])
def test_tensors_that_do_not_match_the_config_are_an_error(folder: Path, change: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    match change:
        case "missing":
            del tensors[name]
        case "unexpected":
            tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
        case "mismatched":
            tensors[name] = torch.zeros(2, 2)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError) as caught:
        load(find(str(folder)))
    assert caught.value.code == "model_refused"
    assert "mlp.up_proj.weight" in str(caught.value)


def test_a_file_that_is_not_safetensors_is_an_error(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(SourceError) as caught:
        load(find(str(folder)))
    assert caught.value.code == "model_refused"
