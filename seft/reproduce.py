"""Runs the recipe of a checkpoint again, from its `sparsity.json`, and compares the bytes with the recorded ones.

That file names no folder, so the caller gives the model and the texts, unless they are in the current folder. Each is
checked against the recorded SHA-256 before it is used. The stages are the same as in the commands and in the service
(`seft.stages`), in the same order, with the recorded device, dtype and number of threads.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from seft import stages
from seft.checkpoint.export import round_weights
from seft.checkpoint.facts import SPARSITY, Base, Conditions, Facts, Machine, Record, Role, TextInfo, versions
from seft.checkpoint.facts import sha256 as hash_file
from seft.checkpoint.outputs import new_folder, require_empty
from seft.checkpoint.provenance import describe_model, require_same_files, this_machine
from seft.config import PruneConfig, RepairConfig, Retain
from seft.data import records
from seft.data.packing import Encoded, Packed, pack
from seft.data.text import encode, evaluation_windows
from seft.devices import choose_device, configure_torch
from seft.errors import ReproduceError
from seft.evaluate import perplexity
from seft.models.load import Loaded, load
from seft.models.source import Kind, ModelSource, find
from seft.report import Phase, Progress, Reporter, silent
from seft.retain import split_retained
from seft.texts import TextFile, split_dataset

COPIED = ("evaluate", "texts", "held_out_share", "dataset_sha256", "retained_sha256", "held_out_sha256")
"""Facts that are copied from the record. All other facts are determined again."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The model, its teacher and the texts that the caller gives. If one is None, it is found by its recorded name."""

    model: str | None = None
    teacher: str | None = None
    calibration: Path | None = None
    data: Path | None = None
    held_out: Path | None = None
    retain_data: Path | None = None


def reproduce(recorded: Record, inputs: Inputs, out: Path, *, formats: Any, report: Reporter = silent) -> list[str]:
    """Run the recipe of a record again and write the checkpoint to the folder `out`, in these formats.

    Returns how the software and the machine differ from the recorded ones, as sentences. Raises ReproduceError if the
    record is incomplete, or if the model or a text is missing or is not the recorded one.
    """
    require_empty(out)
    facts = recorded.facts
    if not facts.pruned_on or not facts.base.files:
        message = f"{SPARSITY} must have the hashes of the model; an older version of seft wrote it without them."
        raise ReproduceError(f"{message} Create the checkpoint again.")
    texts = _find_texts(facts, inputs)
    choose_device(facts.pruned_on.device)
    choose_device((facts.repaired_on or facts.pruned_on).device)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        _Rerun(facts, inputs, texts, report).run(out, formats)
        return _changes(recorded)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=True)


def _changes(recorded: Record) -> list[str]:
    """Return what differs from the record and may change the last bits."""
    pairs = {name: (value, versions().get(name)) for name, value in recorded.versions.items()}
    for machine in (recorded.facts.pruned_on, recorded.facts.repaired_on):
        if machine:
            pairs[f"hardware of {machine.device}"] = (machine.hardware, _here(machine).hardware)
    changes = [f"{name} was {then} and is {now}" for name, (then, now) in pairs.items() if then != now]
    if (repaired := recorded.facts.repaired_on) and repaired.processes > 1:
        changes.append(f"the repair ran in {repaired.processes} processes, and now in one, which adds in another order")
    return changes + [change for pair in pairwise(recorded.facts.attempts) for change in _changes_between(*pair)]


def _here(machine: Machine) -> Machine:
    """Return the description of this machine, with the recorded settings."""
    return replace(machine, hardware=this_machine(machine.device).hardware)


def _changes_between(before: Conditions, after: Conditions) -> list[str]:
    """Return what changed between two attempts of the recorded job. One run cannot repeat such a change."""

    def values(conditions: Conditions) -> dict[str, Any]:
        return {**asdict(conditions.machine), "micro_batch": conditions.micro_batch, **conditions.versions}

    old, new = values(before), values(after)
    return [
        f"{name} changed from {old.get(name)} to {new.get(name)} when the job was resumed"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


_OPTIONS: dict[Role, str] = {
    "calibration": "--calibration",
    "dataset": "--data",
    "held_out": "--held-out",
    "retained": "--retain-data",
}


def _find_texts(facts: Facts, inputs: Inputs) -> dict[Role, TextFile]:
    """Return the texts of a recipe by their roles. Each is the recorded one.

    Raises ReproduceError if one is missing, or has another SHA-256, or if the record does not say which one it was.
    """
    given = {"calibration": inputs.calibration, "dataset": inputs.data, "held_out": inputs.held_out}
    given["retained"] = inputs.retain_data
    hashes = facts.text_hashes
    same = hashes["calibration"] == hashes["dataset"]
    found = {
        role: _find_text(role, given[role], facts.texts.get(role), sha256)
        for role, sha256 in hashes.items()
        if sha256 and not (role == "calibration" and same)
    }
    if same and "dataset" in found:
        found["calibration"] = found["dataset"]
    needed: dict[Role, bool] = {
        "dataset": bool(facts.repair or facts.evaluate),
        "held_out": bool(facts.evaluate) and facts.held_out_share is None,
        "retained": bool(facts.repair and facts.repair.retain is Retain.DATASET),
    }
    if missing := [role for role, used in needed.items() if used and role not in found]:
        rule = f"{SPARSITY} must have the SHA-256 of each text that was read; it has none for {', '.join(missing)}"
        raise ReproduceError(f"{rule}. Download it again.")
    for role in ("calibration", "dataset") if facts.evaluate is None else ():
        # `seft prune` does not know the held-out text. The other commands leave its records out.
        recorded, file = facts.texts.get(role), found.get(role)
        if recorded and file and recorded.records != len(file.records):
            found[role] = file.without(found.get("held_out"))
    return found


def _find_text(role: Role, given: Path | None, recorded: TextInfo | None, sha256: str) -> TextFile:
    """Return the text of a role. Raises ReproduceError if there is none, or if it has another SHA-256."""
    name = recorded.name if recorded else None
    path = given or _in_this_folder(name or "")
    if path is None or not path.is_file():
        missing = f"the text {name or role!r} must be given; it is not in this folder."
        if given:
            missing = f"{given} must be a file."
        raise ReproduceError(f"{missing} Give the file with the SHA-256 {sha256} as {_OPTIONS[role]}.")
    if (found := hash_file(path)) != sha256:
        rule = f"{path.name} must have the recorded SHA-256 {sha256}; it has {found}."
        raise ReproduceError(f"{rule} Give the {role} text of the checkpoint as {_OPTIONS[role]}.")
    return TextFile(records.read(path), path.name, sha256)


def _in_this_folder(name: str) -> Path | None:
    """Return the file or folder of the current folder with the recorded name, or None if there is none.

    A record is a file of a stranger, so a path in it is not followed.
    """
    path = Path(Path(name).name)
    return path if path.name not in {"", ".."} and path.exists() else None


def _find_model(base: Base, given: str | None, option: str) -> ModelSource:
    """Return the recorded model: the given one, or the one with the recorded name on the hub or in this folder."""
    if given is not None:
        return find(given, revision=base.revision)
    if base.kind is Kind.HUB:
        # With empty roots, no local folder is taken for the model.
        return find(base.reference, roots=(), revision=base.revision)
    path = _in_this_folder(base.reference)
    if path is None:
        rule = f"the model {base.reference!r} must be given; it is not in this folder."
        raise ReproduceError(f"{rule} Give its folder or file as {option}.")
    return find(str(path))


class _Rerun:
    """One run of the recipe in `facts`. The result of a job has scores, and a split of its dataset."""

    def __init__(self, facts: Facts, inputs: Inputs, texts: dict[Role, TextFile], report: Reporter) -> None:
        assert facts.pruned_on
        self.facts, self.texts, self.report, self.machine = facts, texts, report, facts.pruned_on
        self.scores: dict[str, float] = {}
        self.source = _find_model(facts.base, inputs.model, "--model")
        self.teacher = self.source
        if facts.teacher and facts.teacher.files != facts.base.files:
            self.teacher = _find_model(facts.teacher, inputs.teacher, "--teacher")
        self.held_out: Packed | None = None
        self.retained: Packed | None = None

    @property
    def is_job(self) -> bool:
        """Whether the service made the checkpoint. The commands of the library do not evaluate."""
        return self.facts.evaluate is not None

    def run(self, out: Path, formats: Any) -> None:
        """Run all stages, and write the checkpoint."""
        machine, job = self.machine, self.is_job
        configure_torch(machine.threads, deterministic=machine.deterministic)
        loaded = self._load(self.source, machine if job else replace(machine, device="cpu"))
        found = describe_model(loaded.source)().files
        require_same_files(self.facts.base, found, "--model")
        training, judged = (encode(part, loaded.tokenizer) for part in self._split())
        if self.facts.evaluate:
            self.held_out = evaluation_windows(judged, self.facts.evaluate.tokens, self.facts.evaluate.windows)
        repair = self.facts.repair
        if repair and repair.retains:
            self.retained = self._retain(loaded, repair)
        self._evaluate("dense", loaded)
        facts = self._prune(loaded, training)
        if repair:
            facts = self._repair(loaded, facts, repair, training, judged)
        facts = replace(facts, scores=self.scores, **{name: getattr(self.facts, name) for name in COPIED})
        self.report(Progress(Phase.EXPORTING, 0, 2))
        with new_folder(out) as unfinished:
            stages.publish(loaded, unfinished, facts, self.report, formats)

    def _load(self, source: ModelSource, machine: Machine) -> Loaded:
        self.report(Progress(Phase.LOADING, 0, 1))
        loaded = load(source, device=machine.device, dtype=getattr(torch, machine.dtype))
        self.report(Progress(Phase.LOADING, 1, 1))
        return loaded

    def _load_teacher(self, machine: Machine) -> Loaded:
        loaded = self._load(self.teacher, machine)
        if self.teacher is not self.source and self.facts.teacher:
            require_same_files(self.facts.teacher, describe_model(loaded.source)().files, "--teacher")
        return loaded

    def _split(self) -> tuple[list[records.Record], list[records.Record]]:
        """Return the records to train on, and those to evaluate on."""
        dataset, held_out = self.texts.get("dataset"), self.texts.get("held_out")
        training, judged = dataset.records if dataset else [], held_out.records if held_out else None
        if self.is_job:
            return split_dataset(training, judged, self.facts.held_out_share, self.facts.prune.seed)
        return training, judged or []

    def _retain(self, loaded: Loaded, config: RepairConfig) -> Packed | None:
        """Return the text to retain, with what the dense model on its device predicts for it."""
        machine = self.facts.repaired_on or self.machine
        configure_torch(machine.threads, deterministic=machine.deterministic)
        dense = loaded
        if self.teacher is not self.source or machine.dtype != self.machine.dtype:
            dense = self._load_teacher(machine)
        text = self.texts.get("retained")
        kept = text.records if text else None
        if kept is not None:
            kept = records.exclude(kept, self._split()[1])
        return stages.retained_on(machine.device, dense, config, kept, self.report)

    def _prune(self, loaded: Loaded, training: list[Encoded]) -> Facts:
        facts, machine = self.facts, self.machine
        configure_torch(machine.threads, deterministic=machine.deterministic)
        config = PruneConfig(0.0, seed=facts.prune.seed) if facts.zeros_found else facts.prune
        text = training
        if "calibration" in self.texts and not self.is_job:
            text = encode(self.texts["calibration"].records, loaded.tokenizer)
        windows = stages.calibration_windows(text, loaded.tokenizer, config)

        def load_dense() -> Any:
            return self._load(loaded.source, replace(machine, device="cpu")).model

        stages.prune(loaded, windows, config, load_dense, self.report, device=None if self.is_job else machine.device)
        round_weights(loaded.model)
        if not config.gradual:
            self._evaluate("pruned", loaded)
        sha256 = facts.calibration_sha256
        return stages.pruned_facts(loaded, config, sha256, self.report, base=facts.base, machine=_here(machine))

    def _repair(
        self, loaded: Loaded, facts: Facts, config: RepairConfig, training: list[Encoded], judged: list[Encoded]
    ) -> Facts:
        """Train to the step at which the training ended, and keep the weights that were kept."""
        machine = self.facts.repaired_on or self.machine
        configure_torch(machine.threads, deterministic=machine.deterministic)
        model: Any = loaded.model
        for weight in model.parameters():
            weight.data = weight.data.to(getattr(torch, machine.dtype))
        model.to(machine.device)
        held_out = self.held_out or (pack(judged, config.sequence_tokens) if judged else None)
        # A record without the rate comes from a version whose rate did not depend on the width.
        rate = self.facts.peak_rate or config.peak_rate()
        work = stages.start_repair(
            loaded,
            pack(training, config.sequence_tokens),
            replace(config, learning_rate=rate),
            pruned=facts.prune,
            load_teacher=lambda: self._load_teacher(machine).model,
            retained=self.retained,
            held_out=held_out,
        )
        last = config.steps if self.facts.stopped_at is None else self.facts.stopped_at
        while not work.done and work.step < last:
            for item in work.advance():
                self.report(item)
            self.report(Progress(Phase.TRAINING, work.step, config.steps))
        result = work.finish(self.report)
        del work
        if not self.is_job:
            model.to("cpu")
        else:
            round_weights(model)
        self._evaluate("repaired", loaded)
        sha256 = self.facts.dataset_sha256 or ""
        teacher = self.facts.teacher
        return stages.repaired_facts(
            facts, config, result, teacher=teacher, dataset_sha256=sha256, machine=_here(machine)
        )

    def _evaluate(self, name: str, loaded: Loaded) -> None:
        """Measure the perplexities that a job measures."""
        if not self.is_job:
            return
        texts: Mapping[str, Packed | None] = {name: self.held_out}
        if self.retained:
            texts = {**texts, f"{name}_retained": split_retained(self.retained)[1]}
        for key, windows in texts.items():
            if windows:
                self.scores[key] = perplexity(loaded.model, windows, self.report)
