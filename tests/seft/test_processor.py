"""Which processors have instructions for bfloat16, and what the data type `auto` is on them."""

from pathlib import Path

import pytest
import torch

from seft import processor
from seft.checkpoint.facts import Record
from seft.cli import main, make_parser
from seft.devices import choose_dtype
from seft.verbs import Place

X86 = "processor : 0\nmodel name : A 4 GHz: fast\nflags : fpu avx2 {}\n\n"
ARM = "processor : 0\nFeatures : fp asimd {}\n\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86.format("avx512f avx512_bf16"), True),
        (X86.format("amx_bf16 amx_tile"), True),
        (X86.format("avx512f avx512_vnni") * 2, False),
        (X86.format("no_amx_bf16"), False),
        (ARM.format("sve bf16"), True),
        (ARM.format("svebf16"), False),
        ("processor : 0\n", False),
        (None, False),
    ],
)
def test_auto_is_bfloat16_on_a_processor_with_instructions_for_it(
    text: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(processor, "CPU_INFO", file)
    dtype = torch.bfloat16 if expected else torch.float32
    assert processor.has_bfloat16() is expected
    assert choose_dtype("auto", "cpu") is Place.of("cpu", "auto").dtype is dtype
    for name in ("float32", "bfloat16"):
        assert choose_dtype(name, "cpu") is getattr(torch, name)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_is_bfloat16_on_gpus_since_ampere(
    capability: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: capability)
    assert choose_dtype("auto", "cuda") is getattr(torch, dtype)


def test_a_model_is_changed_in_the_data_type_of_its_device_and_judged_in_float32(
    tiny_folder: Path, tmp_path: Path
) -> None:
    command = ["prune", str(tiny_folder), "--sparsity", "0.5", "--method", "magnitude", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    machine = Record.read(tmp_path / "out").facts.pruned_on
    assert machine
    assert machine.dtype == Place.of("auto", "auto").machine.dtype
    assert make_parser("seft").parse_args(["evaluate", "model", "--data", "texts.jsonl"]).dtype == "float32"
