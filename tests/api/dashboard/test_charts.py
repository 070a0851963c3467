"""Data of a job's charts: thinned curves, their new points, and the history of the topology."""

import itertools
import json
from collections.abc import Callable

import pytest
from fastapi import FastAPI
from sqlalchemy import delete, func, insert, literal, select
from sqlalchemy.orm import Session, sessionmaker

from api.dashboard.layers import SPARSITY_FILE, equally_sparse, sparsity_table
from api.dashboard.pages.job import POINTS, RUNS
from core import ids
from core.jobs import attempts, reports
from core.jobs.attempts import Attempt
from core.jobs.reports import CHANGES
from core.request_fields import EXAMPLE_DATASET
from core.tables import Checkpoint, Job, JobMetric
from tests.api.conftest import Json
from tests.api.dashboard.conftest import ROOT, Browser, visible


def test_topology_history_sums_all_events_into_runs(
    browser: Browser, sessions: sessionmaker[Session], attempt: Attempt
) -> None:
    names = {
        "model.layers.0.self_attn.q_proj": ("self_attn.q_proj", 0),
        "model.layers.0.mlp.experts.up_proj[0]": ("mlp.experts.up_proj", 0),
        "model.layers.0.mlp.experts.up_proj[11]": ("mlp.experts.up_proj", 0),
        "model.layers.10.self_attn.q_proj": ("self_attn.q_proj", 10),
        "model.layers.2.mlp.experts.7.up_proj": ("mlp.experts.up_proj", 2),
    }
    events = 2 * RUNS
    counts = {(event, name): event * 10**7 + at for event in range(events) for at, name in enumerate(names)}
    with sessions.begin() as session:
        for event in range(events):
            layers = {name: {change: n * counts[event, name] for n, change in enumerate(CHANGES)} for name in names}
            sums = {change: sum(layer[change] for layer in layers.values()) for change in CHANGES}
            data = {"step": event, **sums, "sparsity": event / 1000, "undone": False, "layers": layers}
            attempts.record_evolution(session, attempt, data)
    path = f"/jobs/{attempt.job_id}"
    for n, change in enumerate(CHANGES):
        history = json.loads(browser.show(f"{path}/topology?of={change}"))
        assert history["step"] == list(range(1, events, 2))
        assert history["sparsity"] == [step / 1000 for step in range(1, events, 2)]
        assert history["blocks"] == [0, 2, 10]
        assert [part["name"] for part in history["parts"]] == ["self_attn.q_proj", "mlp.experts.up_proj"]
        cells = {part["name"]: part["cells"] for part in history["parts"]}
        expected = {part: [[0] * RUNS for _ in range(3)] for part in cells}
        for (event, name), count in counts.items():
            part, block = names[name]
            expected[part][history["blocks"].index(block)][event // 2] += n * count
        assert cells == expected
        rows = [row for part_rows in cells.values() for row in part_rows]
        assert history["sums"][change] == [sum(column) for column in zip(*rows, strict=True)]
    assert f"Topology evolved after step {events - 1}" in visible(browser.show(path))
    with sessions.begin() as session:
        assert all("layers" not in event.data for event in reports.latest_events(session, attempt.job_id, limit=9))


def test_an_undone_event_counts_nothing_and_an_older_event_has_no_sparsity(
    browser: Browser, sessions: sessionmaker[Session], attempt: Attempt
) -> None:
    change = {"dropped": 1, "grown": 7, "reactivated": 3, "pruned": 3}
    more: list[Json] = [{}, {"sparsity": 0.25, "undone": False}, {"sparsity": 0.25, "undone": True}]
    with sessions.begin() as session:
        for step, each in enumerate(more, 1):
            layers = {"model.layers.0.self_attn.q_proj": change}
            attempts.record_evolution(session, attempt, {"step": step, **change, **each, "layers": layers})
    history = json.loads(browser.show(f"/jobs/{attempt.job_id}/topology?of=grown"))
    assert history["sparsity"] == [None, 0.25, 0.25]
    assert history["sums"] == {name: [count, count, 0] for name, count in change.items()}
    assert history["parts"] == [{"name": "self_attn.q_proj", "cells": [[7, 7, 0]]}]
    page = " ".join(visible(browser.show(f"/jobs/{attempt.job_id}")).split())
    assert "Topology evolved after step 1 1 dropped, 7 grown (3 from zero), 3 pruned 2" in page
    assert "Topology evolved after step 2 1 dropped, 7 grown (3 from zero), 3 pruned; 25 % zeros" in page
    assert "Topology evolved after step 3, and the change was undone" in page


@pytest.fixture
def measure(sessions: sessionmaker[Session], attempt: Attempt) -> Callable[..., None]:
    """Return a function that writes metrics for the steps `first` to `last`. The job is at step `last` then."""

    def write(first: int, last: int, *, number: int = 1) -> None:
        step = func.generate_series(first, last).column_valued("step")
        values = func.jsonb_build_object("loss", number * step, "speed", -step, "rate", 0.5, "memory", 2**33)
        columns = ["job_id", "step", "attempt", "values"]
        with sessions.begin() as session:
            session.execute(delete(JobMetric).where(JobMetric.step.between(first, last)))
            session.execute(
                insert(JobMetric).from_select(columns, select(literal(attempt.job_id), step, literal(number), values))
            )
            session.get_one(Job, attempt.job_id).step = last

    return write


def test_curve_of_100000_steps_is_thinned_to_the_means_of_a_few_hundred_spans(
    browser: Browser, attempt: Attempt, measure: Callable[..., None]
) -> None:
    steps = 100_000
    measure(1, steps)
    body = browser.show(f"/jobs/{attempt.job_id}/series")
    curve = json.loads(body)
    assert len(body) < 40_000
    assert POINTS / 2 < len(curve["step"]) <= POINTS
    assert curve["step"][-1] == steps
    middles = [(last + before + 1) / 2 for before, last in itertools.pairwise([0, *curve["step"]])]
    assert curve["values"]["loss"] == middles
    assert curve["values"]["speed"] == [-middle for middle in middles]


def test_page_with_a_curve_gets_new_points_and_the_whole_curve_after_its_spans_grew(
    browser: Browser, sessions: sessionmaker[Session], attempt: Attempt, measure: Callable[..., None]
) -> None:
    def series(query: str = "") -> Json:
        curve: Json = json.loads(browser.show(f"/jobs/{attempt.job_id}/series{query}"))
        return curve

    assert series() == {"after": -1, "length": 1, "attempt": 0, "step": [], "values": {}}
    measure(1, 4 * POINTS - 5)
    first = series()
    assert (first["length"], first["step"][:2], first["step"][-1]) == (4, [4, 8], 4 * POINTS - 5)
    measure(4 * POINTS - 4, 4 * POINTS)
    full = 4 * POINTS - 8
    added, whole = series(f"?after={full}&length=4&attempt=1"), series()
    assert (added["after"], added["step"]) == (full, [4 * POINTS - 4, 4 * POINTS])
    kept_length = first["step"].index(full) + 1
    assert first["step"][:kept_length] + added["step"] == whole["step"]
    for name, values in whole["values"].items():
        assert first["values"][name][:kept_length] + added["values"][name] == values
    measure(4 * POINTS + 1, 4 * POINTS + 1)
    grown = series(f"?after={4 * POINTS}&length=4&attempt=1")
    assert grown == series()
    assert (grown["after"], grown["length"], grown["step"][0]) == (-1, 8, 8)
    with sessions.begin() as session:
        attempts.restart_training(session, attempt, "state.refused", "other software")
    assert series(f"?after={4 * POINTS}&length=8&attempt=1")["attempt"] == 0
    measure(1, 4 * POINTS + 2, number=2)
    restarted = series(f"?after={4 * POINTS}&length=8&attempt=1")
    assert (restarted["after"], restarted["attempt"], restarted["step"][0]) == (-1, 2, 8), (
        "a page that shows the lost training must replace it"
    )


@pytest.mark.parametrize("looks", [{800, 805, 997, 1005}, {1005}])
def test_page_with_a_curve_shows_no_values_of_a_lost_attempt_after_a_resume(
    browser: Browser,
    sessions: sessionmaker[Session],
    attempt: Attempt,
    *,
    measure: Callable[..., None],
    looks: set[int],
) -> None:
    def series(query: str = "") -> Json:
        curve: Json = json.loads(browser.show(f"/jobs/{attempt.job_id}/series{query}"))
        return curve

    measure(1, 1000)
    page = series()
    with sessions.begin() as session:
        session.get_one(Job, attempt.job_id).step = 800
    for step, first in ((800, None), (805, 801), (997, 806), (1005, 998)):
        if first:
            measure(first, step, number=2)
        if step in looks:
            after = page["step"][-1] - page["step"][-1] % page["length"]
            added, whole = series(f"?after={after}&length={page['length']}&attempt={page['attempt']}"), series()
            kept = sum(known <= added["after"] for known in page["step"])
            page = added | {
                "step": page["step"][:kept] + added["step"],
                "values": {name: old[:kept] + added["values"].get(name, []) for name, old in page["values"].items()},
            }
            assert {**page, "after": -1} == whole
            assert whole["step"][-1] == step


def test_routes_for_programs_refuse_unknown_parameters_and_pages_ignore_them(browser: Browser, job_id: str) -> None:
    for path in ("series", "topology"):
        response = browser.get(f"{ROOT}/jobs/{job_id}/{path}?unknown=1")
        assert (response.status_code, "There is no query parameter unknown." in response.text) == (422, True)
    browser.show(f"/jobs/{job_id}?unknown=1")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, False), ({"allocation": "uniform"}, True), ({"sparsity": 0.5, "pattern": "2:4"}, True), ({"old": 1}, False)],
)
def test_only_equally_sparse_layers_have_a_target_of_their_own(changes: Json, expected: bool) -> None:
    spec = {"model": "a/b", "dataset": EXAMPLE_DATASET, "sparsity": 0.6, **changes}
    assert equally_sparse(spec) is expected


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (
            {"sparsity": {"layers": {"model.layers.1.mlp.up_proj": {"zeros": 3, "weights": 4}}}},
            {"mlp.up_proj": {1: 0.75}},
        ),
        ({"sparsity": {"layers": {"model.layers.1.mlp.up_proj": {"zeros": "many", "weights": 4}}}}, None),
        ({"sparsity": {"layers": {f"model.layers.{'9' * 5000}.up_proj": {"zeros": 3, "weights": 4}}}}, None),
        ({"sparsity": {"layers": ["up_proj"]}}, None),
        ([], None),
    ],
)
def test_the_table_of_layers_is_left_out_if_the_file_of_a_training_process_is_malformed(
    app: FastAPI, content: object, parts: Json | None
) -> None:
    storage = app.state.services.storage
    prefix = f"jobs/{ids.new('job')}/1/"
    checkpoint = Checkpoint(prefix=prefix, files=[{"name": SPARSITY_FILE}])
    storage.put(prefix + SPARSITY_FILE, json.dumps(content).encode())
    table = sparsity_table(storage, checkpoint)
    assert (table.parts if table else None) == parts


def test_the_table_of_layers_is_left_out_while_its_file_cannot_be_read(app: FastAPI) -> None:
    storage = app.state.services.storage
    checkpoint = Checkpoint(prefix=f"jobs/{ids.new('job')}/1/", files=[{"name": SPARSITY_FILE}])
    assert sparsity_table(storage, checkpoint) is None
    layers = {"model.layers.1.mlp.up_proj": {"zeros": 3, "weights": 4}}
    storage.put(checkpoint.prefix + SPARSITY_FILE, json.dumps({"sparsity": {"layers": layers}}).encode())
    table = sparsity_table(storage, checkpoint)
    assert table
    assert table.parts == {"mlp.up_proj": {1: 0.75}}
