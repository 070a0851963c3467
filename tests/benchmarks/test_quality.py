"""Experiments on quality: equal settings give equal figures, and an interrupted study resumes."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import cells, quality
from benchmarks.cells import Bench, Cell
from benchmarks.changes import ALLOCATED, OPTIMIZERS
from benchmarks.optimizers import Factored, RoundedToNearest, WithMasters
from benchmarks.plots import plot, plot_recovery
from benchmarks.quality import Results, rounds
from benchmarks.recipes import ADMM, GRADUAL, RECIPES, WANDA
from seft.config import PruneConfig, PruneMethod
from seft.repair import Repair, all_nonzeros
from seft.report import Evaluated, Evolved, Step

Report = Step | Evolved | Evaluated
Advance = Callable[[Repair], list[Report]]

TRAINING = RECIPES["all"].config(1e-3, steps=3, length=16)
PRUNED = Cell(PruneConfig(0.5, PruneMethod.WANDA, samples=4, tokens=16))
REPAIRED = replace(PRUNED, repair=TRAINING)


@pytest.fixture
def bench(tiny_folder: Path, tiny_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in (*cells.TRAINED.values(), *cells.JUDGED.values()):
        question = json.dumps({"question": " ".join(tiny_texts[:20]), "answer": "4"})
        (tmp_path / name).write_text(question if name.endswith("jsonl") else " ".join(tiny_texts[:20]))
    monkeypatch.setattr(cells, "TEST_LENGTH", 16)
    return Bench(str(tiny_folder), tmp_path, tmp_path)


def test_the_same_experiment_gives_the_same_figures(bench: Bench) -> None:
    bench.run(PRUNED, "pruned")
    first, second = (bench.run(REPAIRED, "repaired") for _ in range(2))
    assert first["zeros"] == 0.5
    assert first["curve"][-1]["step"] == TRAINING.steps
    for name in cells.JUDGED:
        assert first[name] == second[name]


def test_each_part_of_the_allocation_by_curvature_can_be_left_out(bench: Bench) -> None:
    prune = PruneConfig(0.5, PruneMethod.ADMM, samples=4, tokens=16)
    figures = {change: bench.run(Cell(prune, change=change), change) for change in ("", *ALLOCATED)}
    assert all(each["zeros"] == pytest.approx(0.5, abs=1e-3) for each in figures.values())
    assert len({each["wikitext2"] for each in figures.values()}) == 3


@pytest.mark.parametrize("change", ["", *OPTIMIZERS])
def test_an_interrupted_experiment_resumes_and_gives_the_same_figures(
    change: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(PRUNED, "pruned")
    cell = replace(REPAIRED, change=change)
    whole = bench.run(cell, "whole")
    assert whole["zeros"] == 0.5
    with monkeypatch.context() as patch:
        patch.setattr(Repair, "advance", interrupted(Repair.advance, 3))
        with pytest.raises(KeyboardInterrupt):
            bench.run(cell, "interrupted")
    steps: list[int] = []
    monkeypatch.setattr(Repair, "advance", counted(Repair.advance, steps))
    resumed = bench.run(cell, "resumed")
    assert steps == [3]
    for name in cells.JUDGED:
        assert resumed[name] == whole[name]
        assert [point[name] for point in resumed["curve"]] == [point[name] for point in whole["curve"]]
    assert not list(bench.work.glob("*.state"))


@pytest.mark.parametrize("linear", [Factored, RoundedToNearest, WithMasters])
def test_the_plain_optimizer_is_that_of_the_library_where_nothing_is_rounded(
    linear: type[Factored], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned, repaired = (replace(cell, dtype="float32") for cell in (PRUNED, REPAIRED))
    before = bench.run(pruned, "pruned")
    expected = bench.run(repaired, "library")
    monkeypatch.setattr(all_nonzeros, "NonzeroLinear", linear)
    found = bench.run(repaired, "plain")
    for name in cells.JUDGED:
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
        assert found[name] != pytest.approx(before[name], rel=1e-4)


def interrupted(advance: Advance, at: int) -> Advance:
    def interrupting(repair: Repair) -> list[Report]:
        if repair.step + 1 == at:
            raise KeyboardInterrupt
        return advance(repair)

    return interrupting


def counted(advance: Advance, steps: list[int]) -> Advance:
    def counting(repair: Repair) -> list[Report]:
        reports = advance(repair)
        steps.append(repair.step)
        return reports

    return counting


def test_an_experiment_that_was_run_answers_the_questions_without_another_training(bench: Bench) -> None:
    text = "Please choose the correct answer to the question: a b\n\nAnswer1: c Answer2: d e\n\nAnswer format: any"
    questions = [{"instruction": text, "answer": f"answer{number % 2 + 1}"} for number in range(8)]
    (bench.data / cells.QUESTIONS).write_text(json.dumps(questions))
    bench.run(PRUNED, "pruned")
    whole = bench.run(REPAIRED, "repaired", questions=8)
    assert whole["asked"] == 8
    assert bench.answer(REPAIRED, 8).items() <= whole.items()


def test_training_starts_from_the_weights_of_the_base(bench: Bench) -> None:
    pruned = bench.run(PRUNED, "pruned")
    still = replace(REPAIRED, repair=replace(TRAINING, learning_rate=1e-8))
    assert bench.run(still, "still")["wikitext2"] == pytest.approx(pruned["wikitext2"], rel=1e-3)


def test_a_result_keeps_its_settings_when_one_is_added(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    Results(path, "model", any_code=False).add(REPAIRED, {"wikitext2": 9.0})
    row = json.loads(path.read_text())
    del row["settings"]["repair"]["retain"], row["settings"]["adapt"]
    path.write_text(json.dumps(row) + "\n")
    assert Results(path, "model", any_code=False)[REPAIRED] == {"wikitext2": 9.0}


def test_a_key_depends_on_the_model_and_on_every_setting() -> None:
    assert len({PRUNED.key("a"), PRUNED.key("b"), REPAIRED.key("a"), replace(PRUNED, change="x").key("a")}) == 4


def test_results_of_other_code_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    Results(path, "model", any_code=False).add(PRUNED, {"wikitext2": 9.0})
    assert Results(path, "model", any_code=False)[PRUNED] == {"wikitext2": 9.0}
    monkeypatch.setattr(quality, "code_hash", lambda: "other")
    assert Results(path, "model", any_code=False)[PRUNED] is None
    assert Results(path, "model", any_code=True)[PRUNED] == {"wikitext2": 9.0}


def test_the_same_figures_give_the_same_plots(tmp_path: Path) -> None:
    curve = [{"step": step, "seconds": 2.0 * step, "wikitext2": 30.0 - step, "gsm8k": 9.0} for step in (1, 2, 3)]
    figures = {"curve": curve, "tokens": 300, "peak_bytes": 5e8, "wikitext2": 27.0, "gsm8k": 9.0}
    first, second = (plot({"a & b": figures}, "study", tmp_path / folder) for folder in ("1", "2"))
    assert [path.name for path in first] == [f"study-{axis}.svg" for axis in ("step", "tokens", "seconds", "memory")]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert "a &amp; b" in one.read_text()


def test_recovery_is_zero_for_wanda_and_one_for_the_ceiling(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl", "model", any_code=False)
    ceiling = Cell(None, RECIPES["ceiling"].config(1e-3, steps=3, length=16))
    wanda = replace(PRUNED, prune=replace(WANDA, sparsity=0.5))
    curve = [{"step": step, "wikitext2": value, "gsm8k": 1.0} for step, value in ((1, 40.0), (2, 20.0), (3, 10.0))]
    assert quality.recovery(REPAIRED, results, {"all": [2.0, 9.0, 1.0]}) is None
    results.add(ceiling, {"wikitext2": 10.0, "curve": curve})
    worse = Cell(None, RECIPES["ceiling"].config(5e-4, steps=3, length=16))
    results.add(worse, {"wikitext2": 15.0, "curve": [point | {"wikitext2": 15.0} for point in curve]})
    results.add(wanda, {"wikitext2": 40.0, "point": {"wikitext2": 40.0}})
    results.add(REPAIRED, {"wikitext2": 20.0, "curve": curve})
    assert quality.recovered(REPAIRED, {"wikitext2": 20.0}, results) == pytest.approx(0.5)
    points = quality.recovery(REPAIRED, results, {"all": [2.0, 9.0, 1.0]}) or []
    assert [seconds for seconds, _ in points] == [2.0, 4.0, 6.0]
    assert [share for _, share in points] == pytest.approx([0.0, 0.5, 1.0])
    assert quality.recovery(REPAIRED, results, {"seft": [1.0]}) is None
    assert plot_recovery({"a": points}, "study", tmp_path).read_text().startswith("<?xml")


def test_labels_choose_experiments_and_a_wrong_one_is_an_error() -> None:
    studies = {"one": {"60%": PRUNED, "60%, seed 0": REPAIRED}, "two": {"70%": PRUNED}}
    assert quality.chosen(studies, ["60%"]) == {"one": {"60%": PRUNED}}
    assert quality.chosen(studies, ["seed", "70%"]) == {"one": {"60%, seed 0": REPAIRED}, "two": {"70%": PRUNED}}
    assert quality.chosen(studies, []) == studies
    with pytest.raises(SystemExit, match=r"no label contains '80%'.*one: 60% \| 60%, seed 0; two: 70%"):
        quality.chosen(studies, ["60%", "80%"])


def test_labels_may_be_named_in_several_options(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["bases", "--only", "dense", "ceiling", "--only", "2:4, wanda", "--model", "none", "--data", "none"]
    monkeypatch.setattr(sys, "argv", ["quality", *options])
    monkeypatch.setattr(quality, "chosen", lambda _, only: sys.exit(" | ".join(only)))
    with pytest.raises(SystemExit, match=r"^dense \| ceiling \| 2:4, wanda$"):
        quality.main()


def test_bases_run_before_the_experiments_that_need_them(bench: Bench) -> None:
    adapt = RECIPES["ceiling"].config(1e-3, steps=2)
    wanted = [
        Cell(ADMM, TRAINING),
        Cell(ADMM),
        Cell(GRADUAL, TRAINING),
        Cell(WANDA, TRAINING, adapt=adapt),
    ]
    order = [cell for group in rounds(wanted, bench) for cell in group]
    assert len(order) == len(set(order)) == 6
    assert set(wanted) < set(order)
    for cell in order:
        assert cell.base is None or order.index(cell.base) < order.index(cell)
