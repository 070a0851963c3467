"""What the charts of a job are given: its curves thinned, what is new of them, the life of its topology."""

import itertools
import json
from collections.abc import Callable

import pytest
from sqlalchemy import func, insert, literal, select
from sqlalchemy.orm import Session, sessionmaker

from api.dashboard.pages.job import POINTS, RUNS
from core.jobs import attempts, reports
from core.jobs.attempts import Attempt
from core.jobs.reports import CHANGES
from core.tables import JobMetric
from tests.api.conftest import Json
from tests.api.dashboard.conftest import Browser, visible


def test_the_life_of_a_topology_is_every_event_summed_into_runs(
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
            layers = {name: {each: n * counts[event, name] for n, each in enumerate(CHANGES)} for name in names}
            sums = {each: sum(layer[each] for layer in layers.values()) for each in CHANGES}
            attempts.record_evolution(session, attempt, {"step": event, **sums, "layers": layers})
    path = f"/jobs/{attempt.job_id}"
    for n, of in enumerate(CHANGES):
        life = json.loads(browser.show(f"{path}/topology?of={of}"))
        assert life["step"] == list(range(1, events, 2))
        assert life["blocks"] == [0, 2, 10]
        assert [part["name"] for part in life["parts"]] == ["self_attn.q_proj", "mlp.experts.up_proj"]
        whole = {part["name"]: part["cells"] for part in life["parts"]}
        expected = {part: [[0] * RUNS for _ in range(3)] for part in whole}
        for (event, name), count in counts.items():
            part, block = names[name]
            expected[part][life["blocks"].index(block)][event // 2] += n * count
        assert whole == expected
        rows = [row for cells in whole.values() for row in cells]
        assert life["sums"][of] == [sum(column) for column in zip(*rows, strict=True)]
    assert f"Topology evolved after step {events - 1}" in visible(browser.show(path))
    with sessions.begin() as session:
        assert all("layers" not in event.data for event in reports.latest_events(session, attempt.job_id, limit=9))


@pytest.fixture
def measure(sessions: sessionmaker[Session], attempt: Attempt) -> Callable[..., None]:
    """Writes what was measured at the steps from the one to the other."""

    def write(first: int, last: int, *, number: int = 1) -> None:
        step = func.generate_series(first, last).column_valued("step")
        values = func.jsonb_build_object("loss", step, "speed", -step, "rate", 0.5, "memory", 2**33)
        columns = ["job_id", "step", "attempt", "values"]
        with sessions.begin() as session:
            session.execute(
                insert(JobMetric).from_select(columns, select(literal(attempt.job_id), step, literal(number), values))
            )

    return write


def test_a_curve_of_100000_steps_comes_as_the_means_of_a_few_hundred_spans(
    browser: Browser, attempt: Attempt, measure: Callable[..., None]
) -> None:
    steps = 100_000
    measure(1, steps)
    answer = browser.show(f"/jobs/{attempt.job_id}/series")
    curve = json.loads(answer)
    assert len(answer) < 40_000
    assert POINTS / 2 < len(curve["step"]) <= POINTS
    assert curve["step"][-1] == steps
    middles = [(last + before + 1) / 2 for before, last in itertools.pairwise([0, *curve["step"]])]
    assert curve["values"]["loss"] == middles
    assert curve["values"]["speed"] == [-middle for middle in middles]


def test_who_has_a_curve_is_given_what_is_new_and_all_of_it_where_its_spans_have_grown(
    browser: Browser, sessions: sessionmaker[Session], attempt: Attempt, measure: Callable[..., None]
) -> None:
    def series(query: str = "") -> Json:
        found: Json = json.loads(browser.show(f"/jobs/{attempt.job_id}/series{query}"))
        return found

    assert series() == {"after": -1, "length": 1, "began": 0, "step": [], "values": {}}
    measure(1, 4 * POINTS - 5)
    first = series()
    assert (first["length"], first["step"][:2], first["step"][-1]) == (4, [4, 8], 4 * POINTS - 5)
    measure(4 * POINTS - 4, 4 * POINTS)
    full = 4 * POINTS - 8
    added, whole = series(f"?after={full}&length=4&began=1"), series()
    assert (added["after"], added["step"]) == (full, [4 * POINTS - 4, 4 * POINTS])
    kept = first["step"].index(full) + 1
    assert first["step"][:kept] + added["step"] == whole["step"]
    for name, values in whole["values"].items():
        assert first["values"][name][:kept] + added["values"][name] == values
    measure(4 * POINTS + 1, 4 * POINTS + 1)
    grown = series(f"?after={4 * POINTS}&length=4&began=1")
    assert grown == series()
    assert (grown["after"], grown["length"], grown["step"][0]) == (-1, 8, 8)
    with sessions.begin() as session:
        attempts.restart_training(session, attempt, "state.refused", "other software")
    assert series(f"?after={4 * POINTS}&length=8&began=1")["began"] == 0
    measure(1, 4 * POINTS + 2, number=2)
    anew = series(f"?after={4 * POINTS}&length=8&began=1")
    assert (anew["after"], anew["began"], anew["step"][0]) == (-1, 2, 8), (
        "a page that shows the lost training shows it no more"
    )
