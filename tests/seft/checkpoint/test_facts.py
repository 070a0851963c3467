"""`sparsity.json` keeps the words of the settings, and files of older versions are read."""

import json
from pathlib import Path

from seft.checkpoint.counts import Count, Sparsity
from seft.checkpoint.facts import Base, Facts, Fingerprint, Record, canonical_json
from seft.config import Compare, PruneConfig, PruneSchedule, RepairConfig
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
