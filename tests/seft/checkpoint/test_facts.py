"""`sparsity.json` keeps the words of the settings, and files of older versions are read."""

import json
from pathlib import Path
from typing import Any

import pytest

import seft
from seft.checkpoint.counts import Count, Sparsity
from seft.checkpoint.facts import Base, Facts, Fingerprint, Record, canonical_json
from seft.config import Compare, PruneConfig, PruneSchedule, RepairConfig
from seft.errors import RecordFileError
from seft.models.source import Kind


def record(prune: PruneConfig, repair: RepairConfig) -> Record:
    base = Base("tiny", Kind.FOLDER, None, None)
    facts = Facts(
        base=base,
        prune=prune,
        repair=repair,
        scores={"dense": 2.0, "repaired": 3.0},
        evaluate=None,
        grown_zeros=0,
        calibration_sha256=None,
        dataset_sha256="0" * 64,
    )
    return Record(facts, Sparsity({}, Count(1, 2), Count(1, 4)), Fingerprint((1, 2), (-0.5,)), {"seft": "1"})


def test_the_settings_of_a_rise_are_written_and_read(tmp_path: Path) -> None:
    prune = PruneConfig(0.6, compare=Compare.MODEL, schedule=PruneSchedule.GRADUAL, rise=0.5, rise_interval=3)
    written = record(prune, RepairConfig(7, density="all", swap_tokens=4096))
    written.write(tmp_path)
    assert Record.read(tmp_path) == written
    data = json.loads((tmp_path / "sparsity.json").read_bytes())["facts"]
    assert (data["prune"]["schedule"], data["repair"]["density"]) == ("gradual", "all")


def test_a_file_of_an_older_version_has_the_defaults_of_newer_settings(tmp_path: Path) -> None:
    written = record(PruneConfig(0.6), RepairConfig(7))
    data = written.data()
    for part, names in (("prune", ("schedule", "rise", "rise_interval")), ("repair", ("swap_tokens",))):
        for name in names:
            del data["facts"][part][name]
    (tmp_path / "sparsity.json").write_bytes(canonical_json(data))
    assert Record.read(tmp_path) == written


@pytest.mark.parametrize(
    "change",
    [{"facts": {}}, {"facts": {"prune": {"sparsity": 0.6, "method": "newer"}}}, {"facts": {"prune": {"sparsity": 7}}}],
)
def test_a_file_that_another_version_wrote_is_not_called_damaged(change: dict[str, Any], tmp_path: Path) -> None:
    data = record(PruneConfig(0.6), RepairConfig(7)).data()
    data["facts"] |= change["facts"]
    if not change["facts"]:
        del data["facts"]
    for version, way_out in (
        ("9.0", f"seft 9.0 wrote it, and this is seft {seft.__version__}: use that version, or a newer one."),
        (seft.__version__, "Create the checkpoint again."),
        (None, "Create the checkpoint again."),
    ):
        data["versions"] = {"seft": version}
        (tmp_path / "sparsity.json").write_bytes(canonical_json(data))
        with pytest.raises(RecordFileError, match="must be as seft wrote it") as caught:
            Record.read(tmp_path)
        assert str(caught.value).endswith(way_out)
