"""What `make gpu` can show without a card: its environment, its wheels, its limits, and a part that runs or fails."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.gpu import wheels
from tests.gpu.__main__ import run
from tests.gpu.environment import create
from tests.gpu.parts import ENVIRONMENT_SECONDS, PARTS, TESTS, Part


def write_wheel(path: Path, files: dict[str, str]) -> Path:
    name, version, *_ = path.name.split("-")
    folder = f"{name}-{version}.dist-info"
    about = {
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{folder}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files = {**files, **about}
    record = "".join(f"{each},,\n" for each in [*files, f"{folder}/RECORD"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for each, text in {**files, f"{folder}/RECORD": record}.items():
            wheel.writestr(each, text)
    return path


def test_an_environment_has_the_slimmed_wheels_and_the_packages_of_its_image(tmp_path: Path) -> None:
    kept, dropped = "botocore/data/s3/model.json", "botocore/data/ec2/model.json"
    files = {"botocore/__init__.py": "VALUE = 7\n", kept: "{}", dropped: "{}", "botocore/data/endpoints.json": "{}"}
    wheel = write_wheel(tmp_path / "botocore-99.0-py3-none-any.whl", files)
    (tmp_path / "slim").mkdir()
    wheels.slim(wheel, slimmed := tmp_path / "slim" / wheel.name)
    with zipfile.ZipFile(slimmed) as archive:
        assert {kept, "botocore/data/endpoints.json"} <= set(archive.namelist())
        assert dropped not in archive.namelist()
    create([slimmed], tmp_path / "environment")
    program = "import botocore, torch, seft; print(botocore.VALUE, torch.__file__, seft.__file__)"
    python = tmp_path / "environment" / "bin" / "python"
    found = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    import torch

    import seft

    assert found.split() == ["7", str(torch.__file__), str(seft.__file__)]


def test_wheels_that_are_too_large_together_are_refused() -> None:
    wheels.require_small(wheels.MOST_BYTES)
    with pytest.raises(SystemExit, match=r"at most 60 MB together; they have 60\.1 MB"):
        wheels.require_small(wheels.MOST_BYTES + 100_000)


def test_the_wheels_and_the_image_together_have_every_package_of_the_service() -> None:
    packages = wheels._locked()
    image = wheels.closure(packages, wheels.IN_IMAGE)
    assert {"torch", "numpy", "safetensors", "tokenizers", "huggingface-hub"} <= image
    listed = {line.partition("==")[0] for line in wheels._requirements("3.12")}
    assert not listed & image
    extras = {"seft": ("service", "local", "torch")}
    missing = wheels.closure(packages, ("seft",), extras) - image - listed - wheels.LEFT_OUT - {"seft"}
    on_linux = {name for name in missing if not name.startswith(("nvidia-", "cuda-", "win32", "colorama"))}
    assert on_linux <= {"pywin32", "tzdata", "exceptiongroup"}, on_linux


def test_all_limits_together_are_less_than_25_minutes() -> None:
    assert ENVIRONMENT_SECONDS + sum(part.seconds for part in PARTS.values()) < 25 * 60


def python_part(seconds: int, program: str, folder: Path) -> Part:
    (folder / "measured_part.py").write_text(program)
    return Part(seconds, ("measured_part", "{out}"), None)


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("import sys; open(sys.argv[1], 'w').write('[1]'); print('done')", "passed"),
        ("import sys; print('done'); sys.exit(3)", "failed"),
        ("import time; print('done', flush=True); time.sleep(600)", "timed out"),
    ],
)
def test_a_part_passes_fails_or_is_killed_and_its_output_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, status: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    limit = 2 if status == "timed out" else 60
    part = python_part(limit, program, tmp_path)
    result = run(part, small=False, card_bytes=0, model=None, out=tmp_path / "gpu.json")
    assert (result.status, result.output) == (status, "done\n" if status != "timed out" else result.output)
    assert result.figures == ([1] if status == "passed" else None)


def test_a_part_that_needs_a_larger_card_is_skipped(tmp_path: Path) -> None:
    result = run(PARTS["step 7B"], small=False, card_bytes=24 * 10**9, model=None, out=tmp_path / "gpu.json")
    assert (result.status, result.reason) == ("skipped", "it needs a card with 72 GB of memory; this one has 24")


# Runs in a process of its own, in which the packages that `make gpu` lacks cannot be imported.
IMPORTS = """
import importlib, sys
left_out, *modules = sys.argv[1:]
sys.modules |= dict.fromkeys(left_out.split(","))
for module in modules:
    importlib.import_module(module)
"""


def test_the_parts_import_no_package_that_is_left_out() -> None:
    modules = {part.full[0] for part in PARTS.values()} | {name[:-3].replace("/", ".") for name in TESTS}
    started = {
        "api.app",
        "worker.__main__",
        "worker.child",
        "worker.pipeline",
        "seft.checkpoint.verify",
        "tests.conftest",
    }
    left_out = ",".join(wheels.LEFT_OUT)
    subprocess.run([sys.executable, "-c", IMPORTS, left_out, *sorted(modules | started)], check=True)


def test_without_a_card_the_large_parts_are_skipped_and_a_small_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.gpu", "--out", str(out), "step 7B", "pruning 1.1B"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    report = json.loads(out.read_text())
    assert report["machine"]["card"] is None
    assert report["parts"]["step 7B"]["status"] == "skipped"
    assert report["parts"]["step 7B"]["reason"] == "this machine has no card"
    small = report["parts"]["pruning 1.1B"]
    assert small["status"] == "passed", small["output"]
    assert small["figures"]["times"]["admm 60%"]["peak_bytes"] > 0
