"""The demo counts zeros itself and rejects wrong results. One test runs all of it on a tiny model."""

import json
import re
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest

from core.states import Status
from local import background, demo
from local.processes import LocalError
from local.zeros import CheckpointStats, Count, count_zeros
from seft.checkpoint.compact.writer import pack
from seft.client import Client
from seft.client.responses import Job

ZERO, MINUS_ZERO, SMALLEST = 0x0000, 0x8000, 0x0001


def write_safetensors(path: Path, dtype: str = "BF16", **tensors: list[list[int]]) -> None:
    """Write a file in the published layout from rows of bit patterns."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, rows in tensors.items():
        raw = np.array(rows, np.uint16).tobytes()
        shape = [len(rows), len(rows[0])]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def test_both_zeros_count_and_the_smallest_number_does_not(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a", a=[[7, ZERO, 8]], b=[[MINUS_ZERO, SMALLEST], [ZERO, ZERO]])
    assert count_zeros(tmp_path / "a") == {"a": Count(1, 3, 1), "b": Count(3, 4, 2)}


def test_another_dtype_is_rejected(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a", dtype="F16", a=[[1]])
    with pytest.raises(ValueError, match="a must be bfloat16; it is F16"):
        count_zeros(tmp_path / "a")


def test_less_than_one_zero_per_tensor_may_be_missing() -> None:
    def stats(*zeros: int) -> CheckpointStats:
        counts = {f"{number}.weight": Count(count, 5761, 10) for number, count in enumerate(zeros)}
        return CheckpointStats(counts, list(counts), 20)

    assert stats(3456).has(0.6), "it rounds down"
    assert stats(5000, 1912).has(0.6), "tensors may differ"
    assert not stats(3455).has(0.6)
    assert not stats(5000, 1911).has(0.6)
    assert not stats(3467).has(0.6)


def job_with_scores(**scores: float) -> Job:
    return cast("Job", {"scores": scores})


@pytest.mark.parametrize(
    ("repaired", "retained", "zeros", "message"),
    [
        (21.0, 15.0, 6, "did not help"),
        (15.0, 31.0, 6, r"did not help: the perplexity was 30\.0, it is 31\.0"),
        (15.0, 15.0, 8, r"The pruned layers must have 60% zeros; they have 80\.0000%"),
    ],
)
def test_a_wrong_result_fails_the_demo(repaired: float, retained: float, zeros: int, message: str) -> None:
    stats = CheckpointStats({"a.weight": Count(zeros, 10, 1)}, ["a.weight"], 20)
    scores = {"pruned": 20.0, "repaired": repaired, "pruned_retained": 30.0, "repaired_retained": retained}
    with pytest.raises(LocalError, match=message):
        demo.require_success(job_with_scores(**scores), stats)


def test_no_paragraph_of_the_documentation_is_in_two_records(tmp_path: Path) -> None:
    lines = demo.write_topics(tmp_path / "topics.jsonl").read_text().splitlines()
    records = [{each.strip() for each in json.loads(line)["text"].split("\n\n")} for line in lines]
    assert len(records) > 50
    assert len(set().union(*records)) == sum(map(len, records))


def test_every_unfinished_job_of_a_demo_is_cancelled_and_no_other() -> None:
    class Service:
        """A service with two jobs of each status. Their ids begin with the name of who created them."""

        cancelled: ClassVar[list[str]] = []

        def jobs(self, *, status: str) -> list[Any]:
            return [{"id": f"{suffix} {status}", "spec": {"suffix": suffix}} for suffix in ("demo", "other")]

        def cancel(self, job_id: str) -> None:
            self.cancelled.append(job_id)

    demo.cancel_unfinished(cast("Client", service := Service()))
    assert service.cancelled == [f"demo {status}" for status in Status if not status.final]


def test_the_demo_runs_from_the_upload_to_the_generated_text(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEFT_MODEL_ROOTS", json.dumps([str(tiny_folder.parent)]))
    pack(tiny_folder, tmp_path / "dense.seft")
    monkeypatch.setattr(demo, "gguf_path", lambda: tmp_path / "dense.seft")
    spec = {
        "model": tiny_folder.name,
        "prune": {"method": "wanda", "calibration": {"samples": 8, "tokens": 96}},
        "repair": {
            "steps": 60,
            "batch_tokens": 768,
            "sequence_tokens": 96,
            "micro_batch": 8,
        },
        "evaluate": {"held_out": 0.1, "windows": 32, "tokens": 96},
    }
    monkeypatch.setattr(demo, "SPEC", {**demo.SPEC, **spec})
    with background.attached(tmp_path / "stack", print) as running:
        demo.demonstrate(running.url, running.api_key)
    output = capsys.readouterr().out
    assert re.search(r"zeros in the pruned layers \(60% requested\) +(59\.99|60\.00)%", output)
    assert "every SHA-256 is correct" in output
    assert demo.PROMPT in output
    dense, compact = re.findall(r"(?:bfloat16|compact file) +(\d+) MB", output)
    assert int(compact) <= int(dense)
    assert len(re.findall(r"(?:dense|from the compact file): \d+\.\d tokens/s for \d+ tokens", output)) == 2
