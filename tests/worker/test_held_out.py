"""A job with a dataset of its own to evaluate on, in the training process."""

from pathlib import Path
from typing import Any

import pytest

from core.states import Phase
from seft.checkpoint.facts import Record
from seft.errors import DataError
from tests.worker.test_pipeline import SPEC, Run, _restore_torch_settings  # noqa: F401
from worker.protocol import RESULT, Finished, Progressed

ON_DATASET: dict[str, Any] = {"evaluate": {**SPEC["evaluate"], "dataset": "file_" + "2" * 26}}


def scores(run: Run) -> dict[str, float]:
    result = run.messages[-1]
    assert isinstance(result, Finished)
    return result.scores


def test_the_models_are_evaluated_on_the_dataset_and_all_other_records_are_trained_on(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    held_out, others = tiny_texts[40:60], tiny_texts[60:]
    training = [text for text in tiny_texts[:20] if text not in held_out]

    def run(name: str, texts: list[str], held_out: list[str]) -> Run:
        return Run(tmp_path / name, tiny_folder.parent, texts, held_out=held_out, **ON_DATASET).run()

    own = run("own", training, held_out)
    facts = Record.read(own.folder / RESULT).facts
    assert (facts.dataset_sha256, facts.held_out_sha256) == ("0" * 64, "2" * 64)
    assert f"| held-out dataset sha256 | {'2' * 64} |" in (own.folder / RESULT / "README.md").read_text()
    overlapping = run("overlapping", [*training, *held_out[:5]], held_out)
    assert overlapping.manifest() == own.manifest(), "a record that is evaluated on is not trained on"
    other = run("other", training, others)
    assert scores(other)["dense"] != scores(own)["dense"]
    weights = [(each.folder / RESULT / "model.safetensors").read_bytes() for each in (own, other)]
    assert weights[0] == weights[1], "what is evaluated on does not change what is trained"


def test_a_resumed_job_is_evaluated_on_the_same_dataset(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    def run(name: str) -> Run:
        return Run(tmp_path / name, tiny_folder.parent, tiny_texts[:20], held_out=tiny_texts[60:80], **ON_DATASET)

    whole, first = run("whole").run(), run("first").run_until(4)
    second = run("second").resume_from(first, 4).run()
    assert second.manifest() == whole.manifest()
    progress = [message.progress for message in (*first.of_type(Progressed), *second.of_type(Progressed))]
    assert progress == sorted(progress), "what was done before the interruption stays done"


def test_an_evaluation_begins_before_its_first_window(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:20], repair={"method": "none"})
    phases = list[Phase]()

    def perplexity(*_: object) -> float:
        phases.append(run.of_type(Progressed)[-1].phase)
        return 1.0

    monkeypatch.setattr("worker.pipeline.perplexity", perplexity)
    run.run()
    assert phases == [Phase.EVALUATING] * 2


def test_a_dataset_whose_records_are_all_evaluated_on_is_rejected(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    with pytest.raises(DataError, match="must have a record that is not evaluated on"):
        Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:9], held_out=tiny_texts[:20], **ON_DATASET).run()


def test_a_record_that_is_evaluated_on_is_not_retained(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    judged, kept = tiny_texts[40:60], tiny_texts[60:90]
    repair = SPEC["repair"] | {"retain": "dataset", "retain_dataset": "file_" + "1" * 26}

    def run(name: str, retained: list[str]) -> Run:
        more = {**ON_DATASET, "repair": repair}
        return Run(
            tmp_path / name, tiny_folder.parent, tiny_texts[:20], held_out=judged, retained=retained, **more
        ).run()

    own = run("own", [text for text in kept if text not in judged])
    assert run("overlapping", [*judged, *kept]).manifest() == own.manifest()
    with pytest.raises(DataError, match="text to retain: a dataset must have a record that is not evaluated on"):
        run("all", judged)
