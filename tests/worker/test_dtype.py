"""Jobs whose weights are bfloat16 while they run."""

from pathlib import Path
from typing import Any

import pytest

from seft.checkpoint.facts import Record
from tests.worker.test_pipeline import SPEC, Run, _restore_torch_settings  # noqa: F401
from worker.protocol import RESULT


@pytest.mark.parametrize("repair", [{}, {"density": "all", "retain": "written", "micro_batch": 2}], ids=["seft", "all"])
def test_a_job_in_bfloat16_resumes_to_the_same_bytes_and_scores_like_one_in_float32(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str], repair: dict[str, Any]
) -> None:
    spec = {"repair": {**SPEC["repair"], **repair}}
    half: dict[str, Any] = {**spec, "dtype": "bfloat16"}
    single, whole, first, second = (
        Run(tmp_path / name, tiny_folder.parent, tiny_texts[:40], **values)
        for name, values in (("single", spec), ("whole", half), ("first", half), ("second", half))
    )
    single.run()
    whole.run()
    first.run_until(4)
    assert second.resume_from(first, 4).run().manifest() == whole.manifest()
    facts = Record.read(whole.folder / RESULT).facts
    assert facts.pruned_on
    assert facts.repaired_on
    assert (facts.pruned_on.dtype, facts.repaired_on.dtype) == ("bfloat16", "bfloat16")
    # The model that writes the retained text draws other tokens in another data type.
    expected = Record.read(single.folder / RESULT).facts.scores
    for name in ("dense", "pruned", "repaired"):
        assert facts.scores[name] == pytest.approx(expected[name], rel=0.02)
