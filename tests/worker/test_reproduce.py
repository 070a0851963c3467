"""`seft reproduce` makes the result of a job again from its checkpoint, with the same bits."""

import json
from pathlib import Path

import pytest

from seft.checkpoint.facts import sha256
from seft.cli import main
from tests.worker.test_pipeline import SPEC, Run, _restore_torch_settings  # noqa: F401
from worker.protocol import DATA, END_TRAINING, RESULT


def test_a_job_that_retained_text_and_ended_early_is_made_again_with_all_its_files(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    repair = {**SPEC["repair"], "retain": "written"}
    output = {"formats": ["dense", "compact", "gguf_q8_0"]}
    job = Run(tmp_path / "job", tiny_folder.parent, tiny_texts[:20], repair=repair, output=output)
    job.task = job.task.model_copy(update={"dataset_sha256": sha256(job.folder / DATA)})
    (job.folder / END_TRAINING).write_text("3")
    job.run()
    command = ["reproduce", job.folder / RESULT / "sparsity.json", "--model", tiny_folder]
    files = ["--data", job.folder / DATA, "--out", tmp_path / "again"]
    assert main([str(argument) for argument in [*command, *files, "--json"]]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is True
    assert (tmp_path / "again" / "manifest.json").read_bytes() == job.manifest()
