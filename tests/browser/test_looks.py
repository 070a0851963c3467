"""Every page, as everybody meets it: axe, long and evil names, small screens, keyboards, dark rooms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Page, expect

from core import webhooks, workers
from core.webhooks import DeliveryResult
from tests.browser.conftest import TENANT, NewPerson, Person, Site
from tests.browser.lives import Scores
from tests.core.conftest import GPU

AXE = (Path(__file__).parent / "vendored" / "axe.min.js").read_text()
Scheme = Literal["light", "dark"]
PHONE = {"width": 390, "height": 844}
EVIL = "<script>document.title='caught'</script>"


@pytest.fixture
def pages(site: Site) -> list[str]:
    """Every page with something on it."""
    done = site.add_job(suffix="done", metadata={"team": "search"})
    life = site.life()
    life.prune(Scores())
    life.train(0, 100)
    life.finish(Scores())
    failed = site.add_job(suffix="failed", sparsity=0.7)
    life = site.life()
    life.prune(Scores())
    life.fail("The device ran out of memory. Ask for a smaller repair.sequence_tokens.")
    running = site.add_job(suffix="running")
    site.life().prune(Scores())
    site.add_job(suffix="waiting")
    site.add_job(suffix="tonight", auto_start=False)
    with site.sessions.begin() as session:
        workers.record_heartbeat(session, "gpu-1", GPU)
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


def serious(page: Page, schemes: Sequence[Scheme]) -> list[Any]:
    """What axe finds that would keep somebody out, in the colours of these schemes."""
    page.evaluate(AXE)
    found = []
    for scheme in schemes:
        page.emulate_media(color_scheme=scheme)
        found += page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        (each["id"], [node["html"][:160] + " | " + node["failureSummary"][:200] for node in each["nodes"]][:3])
        for each in found
        if each["impact"] in {"serious", "critical"}
    ]


@pytest.mark.parametrize(("width", "schemes"), [(1280, ("light", "dark")), (390, ("dark",))])
def test_axe_finds_nothing_serious(
    new_person: NewPerson, pages: list[str], width: int, schemes: Sequence[Scheme]
) -> None:
    person = new_person(viewport={"width": width, "height": 860}, reduced_motion="reduce")
    found = {"/sign-in": serious(person.go("/"), schemes)}
    person.sign_in()
    for path in pages:
        page = person.go(path)
        page.wait_for_load_state("networkidle") if "job" in path else None
        page.evaluate("for (const fold of document.querySelectorAll('main details')) fold.open = true")
        found[path] = serious(page, schemes)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{path} is {wide} px wider than the screen"
    person.complaints = [said for said in person.complaints if "404" not in said]
    assert [(path, *flaw) for path, flaws in found.items() for flaw in flaws] == []


def test_evil_and_long_names_are_shown_as_they_are(new_person: NewPerson, site: Site) -> None:
    long = site.add_model("m" * 200)
    jobs = {site.add_job(suffix=EVIL, metadata={EVIL: EVIL}): EVIL, site.add_job(model=long): long}
    for viewport in ({"width": 1280, "height": 860}, PHONE):
        person = new_person(viewport=viewport)
        page = person.sign_in()
        for path in (
            "/",
            "/jobs",
            *(f"/jobs/{job}" for job in jobs),
            "/compare?" + "&".join(f"job={job}" for job in jobs),
        ):
            person.go(path)
            assert "caught" not in page.title() or page.title().startswith(EVIL)
            assert page.locator("main").evaluate("main => main.querySelectorAll('script').length") == 0
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), path
            names = [name for job, name in jobs.items() if not path.startswith("/jobs/") or job in path]
            for name in names:
                assert name in page.locator("main").inner_text(), (path, name)


def test_pages_do_not_jump(person: Person, site: Site) -> None:
    job = site.add_job()
    life = site.life()
    life.prune(Scores())
    life.train(0, 50)
    page = person.go(f"/jobs/{job}")
    expect(page.locator('[data-chart="loss"] canvas')).to_be_visible()
    life.train(50, 100)
    page.wait_for_timeout(3000)
    shift = page.evaluate(
        """() => new Promise(done => new PerformanceObserver(list => done(
            list.getEntries().filter(entry => !entry.hadRecentInput).reduce((sum, entry) => sum + entry.value, 0)
        )).observe({type: 'layout-shift', buffered: true}) || setTimeout(() => done(0), 500))"""
    )
    assert shift < 0.05


def test_the_theme_is_switched_and_kept(new_person: NewPerson) -> None:
    person = new_person(color_scheme="light")
    page = person.sign_in()
    ground = "getComputedStyle(document.body).backgroundColor"
    bright = page.evaluate(ground)
    page.get_by_role("button", name="Theme").click()
    dark = page.evaluate(ground)
    assert dark != bright
    person.go("/jobs")
    assert page.evaluate(ground) == dark
    page.emulate_media(color_scheme="dark")
    page.get_by_role("button", name="Theme").click()
    assert page.evaluate(ground) == bright


def test_a_keyboard_is_enough(person: Person, site: Site) -> None:
    page = person.go(f"/jobs/{site.add_job()}")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.locator("#wishes").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Pause")).to_be_hidden()
    expect(page.locator("#wishes")).to_be_focused()


def test_on_a_phone_the_pages_fold_into_a_menu(new_person: NewPerson) -> None:
    person = new_person(viewport=PHONE)
    page = person.sign_in()
    link = page.get_by_role("link", name="Datasets")
    expect(link).to_be_hidden()
    page.get_by_label("Menu").click()
    link.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Datasets")
    expect(link).to_be_hidden()


def test_a_request_is_copied(new_person: NewPerson, site: Site) -> None:
    person = new_person(permissions=["clipboard-read", "clipboard-write"])
    person.sign_in()
    page = person.go(f"/jobs/{site.add_job(suffix='mine')}")
    page.get_by_text("curl", exact=True).click()
    page.get_by_role("button", name="Copy").nth(1).click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert '"suffix": "mine"' in page.evaluate("navigator.clipboard.readText()")
