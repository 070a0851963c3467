"""Accessibility and layout of every page: axe, long and malicious names, small screens, keyboard, themes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Page, expect

from core import webhooks, workers
from core.access import hub_tokens, keys
from core.access.keys import Scope
from core.jobs import attempts, pushes
from core.jobs.reports import CHANGES
from core.spec_parts import PushSpec
from core.tables import Job
from core.webhooks import DeliveryResult
from tests.browser.conftest import TENANT, NewUser, Site, User
from tests.browser.simulated_jobs import Scores
from tests.core.conftest import GPU

AXE = (Path(__file__).parent / "vendored" / "axe.min.js").read_text()
Scheme = Literal["light", "dark"]
PHONE = {"width": 390, "height": 844}
EVIL = "<script>document.title='caught'</script>"


@pytest.fixture
def pages(site: Site) -> list[str]:
    """Return the path of every page, each with content."""
    done = site.add_job(suffix="done", metadata={"team": "search"})
    job = site.claim_job()
    job.prune(Scores())
    job.train(0, 100)
    job.finish(Scores())
    push(site, done, "acme/" + "sparse-" * 12 + "x", "b" * 90, error="The hub refused the files. " * 9)
    push(site, done, "acme/sparse", "main")
    failed = site.add_job(suffix="failed", sparsity=0.7)
    job = site.claim_job()
    job.prune(Scores())
    job.fail("The device ran out of memory. Ask for a smaller repair.sequence_tokens.")
    running = site.add_job(suffix="running")
    site.claim_job().prune(Scores())
    site.add_job(suffix="waiting")
    site.add_job(suffix="tonight", auto_start=False)
    with site.sessions.begin() as session:
        workers.record_heartbeat(session, "gpu-1", GPU)
        revoked, _ = keys.issue(session, TENANT, "revoked", Scope.READ)
        keys.revoke(session, TENANT, revoked.id, by="")
        hub_tokens.put(session, TENANT, "encrypted", "acme-" * 20)
        hook = webhooks.create(session, TENANT, "https://example.com/" + "seft/" * 60, ["job.failed"]).id
        webhooks.send_test(session, TENANT, hook)
        webhooks.record_result(session, webhooks.claim(session, 1)[0], DeliveryResult(503, "busy"))
    jobs = [f"/jobs/{job}" for job in (done, failed, running)]
    return [
        "/",
        "/jobs",
        "/jobs?q=nothing",
        *jobs,
        "/jobs/new",
        f"/compare?job={done}&job={failed}",
        "/models",
        f"/models?model={done}",
        "/models?model=nothing",
        "/datasets",
        f"/datasets/{site.dataset}",
        "/workers",
        "/webhooks",
        f"/webhooks/{hook}",
        "/keys",
        "/nothing",
    ]


def push(site: Site, job: str, repository: str, revision: str, error: str = "") -> None:
    """Push the result of a job to a hub that accepts it, or refuses it with this error."""
    with site.sessions.begin() as session:
        target = PushSpec(repository=repository, revision=revision)
        pushes.request(session, session.get_one(Job, job), target)
    with site.sessions.begin() as session:
        claimed = pushes.claim(session)
        assert claimed is not None
        if error:
            pushes.record_failure(session, claimed, "hub_refused", error, retry=False)
        else:
            pushes.record_success(session, claimed, f"https://hub.example/{repository}/commit/0")


def serious(page: Page, schemes: Sequence[Scheme]) -> list[Any]:
    """Return the serious and critical problems that axe reports, in these colour schemes."""
    page.evaluate(AXE)
    violations = []
    for scheme in schemes:
        page.emulate_media(color_scheme=scheme)
        violations += page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        (each["id"], [node["html"][:160] + " | " + node["failureSummary"][:200] for node in each["nodes"]][:3])
        for each in violations
        if each["impact"] in {"serious", "critical"}
    ]


@pytest.mark.parametrize(("width", "schemes"), [(1280, ("light", "dark")), (390, ("dark",))])
def test_axe_finds_nothing_serious(new_user: NewUser, pages: list[str], width: int, schemes: Sequence[Scheme]) -> None:
    user = new_user(viewport={"width": width, "height": 860}, reduced_motion="reduce")
    problems = {"/sign-in": serious(user.go("/"), schemes)}
    user.sign_in()
    for path in pages:
        page = user.go(path)
        page.wait_for_load_state("networkidle") if "job" in path else None
        page.evaluate("for (const details of document.querySelectorAll('main details')) details.open = true")
        problems[path] = serious(page, schemes)
        excess = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert excess <= 0, f"{path} is {excess} px wider than the screen"
    user.console_errors = [error for error in user.console_errors if "404" not in error]
    assert [(path, *problem) for path, found in problems.items() for problem in found] == []


def test_form_to_push_marks_the_wrong_field(new_user: NewUser, site: Site) -> None:
    done = site.add_job()
    job = site.claim_job()
    job.prune(Scores())
    job.finish(Scores())
    user = new_user(viewport=PHONE)
    user.sign_in()
    page = user.go(f"/jobs/{done}")
    repository, branch = page.get_by_label("Repository"), page.get_by_label("Branch")
    repository.fill("acme/sparse")
    branch.fill("not a branch")
    page.get_by_role("button", name="Push").click()
    expect(branch).to_be_focused()
    expect(branch).to_have_attribute("aria-invalid", "true")
    expect(branch).to_have_accessible_description(re.compile("should match pattern"))
    expect(repository).not_to_have_attribute("aria-invalid", "true")
    assert serious(page, ("light", "dark")) == []


def test_malicious_and_long_names_are_shown_as_text(new_user: NewUser, site: Site) -> None:
    long = site.add_model("m" * 200)
    failed = {site.add_job(model=long, suffix="s_" * 32): "s_" * 32}
    site.claim_job().fail("The device ran out of memory.")
    jobs = failed | {site.add_job(suffix=EVIL, metadata={EVIL: EVIL}): EVIL, site.add_job(model=long): long}
    for viewport in ({"width": 1280, "height": 860}, PHONE):
        user = new_user(viewport=viewport)
        page = user.sign_in()
        for path in (
            "/",
            "/jobs",
            *(f"/jobs/{job}" for job in jobs),
            "/compare?" + "&".join(f"job={job}" for job in jobs),
        ):
            user.go(path)
            assert "caught" not in page.title() or page.title().startswith(EVIL)
            assert page.locator("main").evaluate("main => main.querySelectorAll('script').length") == 0
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), path
            names = [name for job, name in jobs.items() if not path.startswith("/jobs/") or job in path]
            for name in names:
                assert name in page.locator("main").inner_text(), (path, name)


def test_polling_does_not_shift_the_layout(user: User, site: Site) -> None:
    job_id = site.add_job()
    job = site.claim_job()
    job.prune(Scores())
    job.train(0, 50)
    page = user.go(f"/jobs/{job_id}")
    expect(page.locator('[data-chart="loss"] canvas')).to_be_visible()
    job.train(50, 100)
    page.wait_for_timeout(3000)
    shift = page.evaluate(
        """() => new Promise(done => new PerformanceObserver(list => done(
            list.getEntries().filter(entry => !entry.hadRecentInput).reduce((sum, entry) => sum + entry.value, 0)
        )).observe({type: 'layout-shift', buffered: true}) || setTimeout(() => done(0), 500))"""
    )
    assert shift < 0.05


def test_polling_keeps_the_focus_and_the_scroll_position(new_user: NewUser, site: Site) -> None:
    user = new_user(viewport=PHONE)
    page = user.sign_in()
    job_id = site.add_job(suffix="mine", repair={"steps": 100, "density": 0.005, "update_interval": 4})
    job = site.claim_job()
    user.go("/jobs")
    link, table = page.get_by_role("link", name="mine"), page.locator("#list .scroll")
    link.focus()
    table.evaluate("table => { table.scrollLeft = 40 }")
    job.prune(Scores())
    expect(page.locator(".perplexities")).to_contain_text("90.2", timeout=15_000)
    expect(link).to_be_focused()
    assert table.evaluate("table => table.scrollLeft") == 40
    job.train(0, 48)  # 12 updates of the topology, each with its event
    user.go(f"/jobs/{job_id}")
    events = page.locator(".events")
    events.evaluate("events => { events.scrollTop = 120 }")
    job.train(48, 50)
    expect(page.locator(".facts dd").first).to_contain_text("50")
    assert events.evaluate("events => events.scrollTop") == 120


def test_polling_keeps_the_scroll_position_of_a_page_whose_content_was_skipped_to(user: User, site: Site) -> None:
    site.add_job()
    job = site.claim_job()
    job.prune(Scores())
    user.page.set_viewport_size({"width": 1280, "height": 300})
    page = user.go("/")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#main$"))
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    position = page.evaluate("scrollY")
    job.train(0, 50)
    expect(page.locator("#overview")).to_contain_text("step 50 of 100")
    assert page.evaluate("scrollY") == position > 50


def test_large_counts_of_a_topology_have_all_their_digits(new_user: NewUser, site: Site) -> None:
    job_id, job = site.add_job(repair={"steps": 100, "density": 0.005}), site.claim_job()
    job.prune(Scores())
    count, shown = 3_412_345, "3\u202f412\u202f345"
    counts = dict.fromkeys(CHANGES, count)
    with site.sessions.begin() as session:
        layers = {"model.layers.0.mlp.up_proj": counts}
        event = {"step": 60, **counts, "sparsity": 0.6, "undone": False, "layers": layers}
        attempts.record_evolution(session, job.attempt, event)
    user = new_user(viewport=PHONE)
    user.sign_in()
    page = user.go(f"/jobs/{job_id}")
    page.get_by_text("Show as tables").click()
    for name, cells in (("Changes per event", 4), ("Positions grown per layer, all events", 1)):
        expect(page.get_by_role("table", name=name).locator("td")).to_have_text([shown] * cells)
    page.locator(".map canvas").hover()
    expect(page.locator("[data-hover-info]")).to_contain_text(f"step 60: {shown} grown")
    expect(page.locator(".map figcaption")).to_contain_text(f"≤ {shown}")
    expect(page.locator('[data-chart="topology"] .u-value').last).to_have_text(shown)
    expect(page.locator('[data-chart="topology"] .plot')).to_have_attribute("aria-label", re.compile(f"last {shown}"))
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_theme_is_switched_and_kept(new_user: NewUser) -> None:
    user = new_user(color_scheme="light")
    page = user.sign_in()
    background = "getComputedStyle(document.body).backgroundColor"
    bright = page.evaluate(background)
    page.get_by_role("button", name="Theme").click()
    dark = page.evaluate(background)
    assert dark != bright
    user.go("/jobs")
    assert page.evaluate(background) == dark
    page.emulate_media(color_scheme="dark")
    page.get_by_role("button", name="Theme").click()
    assert page.evaluate(background) == bright


def test_pages_work_with_the_keyboard(user: User, site: Site) -> None:
    page = user.go(f"/jobs/{site.add_job()}")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.locator("#actions-menu").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Pause")).to_be_hidden()
    expect(page.locator("#actions-menu")).to_be_focused()


def test_navigation_is_a_menu_on_a_phone(new_user: NewUser) -> None:
    user = new_user(viewport=PHONE)
    page = user.sign_in()
    link = page.get_by_role("link", name="Datasets")
    expect(link).to_be_hidden()
    page.get_by_label("Menu").click()
    link.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Datasets")
    expect(link).to_be_hidden()


def test_request_is_copied(new_user: NewUser, site: Site) -> None:
    user = new_user(permissions=["clipboard-read", "clipboard-write"])
    user.sign_in()
    page = user.go(f"/jobs/{site.add_job(suffix='mine')}")
    page.get_by_text("curl", exact=True).click()
    page.get_by_role("button", name="Copy").nth(1).click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert '"suffix": "mine"' in page.evaluate("navigator.clipboard.readText()")
