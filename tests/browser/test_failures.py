"""What pages do when requests fail, hang or are refused, and what an update of a page keeps."""

import re

from playwright.sync_api import Page, Route, expect

from core.jobs import pushes
from core.spec_parts import PushSpec
from core.tables import Job
from tests.browser.conftest import NewUser, Site, User
from tests.browser.simulated_jobs import Scores, SimulatedJob


def trained_job(site: Site, steps: int, **spec: object) -> tuple[str, SimulatedJob]:
    job_id = site.add_job(**spec)
    job = site.claim_job()
    job.prune(Scores())
    job.train(0, steps)
    return job_id, job


def test_curves_that_fail_are_requested_ever_less_often(user: User) -> None:
    page = user.page
    job_id, job = trained_job(user.site, 100)
    job.finish(Scores())
    requests: list[str] = []

    def fail(route: Route) -> None:
        requests.append(route.request.url)
        route.abort()

    page.route("**/series?*", fail)
    user.go(f"/jobs/{job_id}")
    swap = "new CustomEvent('htmx:afterSwap', {bubbles: true, detail: {elt: document.body}})"
    for number in range(2, 8):
        page.evaluate(f"document.querySelector('#job').dispatchEvent({swap})")
        while len(requests) < number:
            page.wait_for_timeout(100)
    before = len(requests)
    page.wait_for_timeout(6500)
    assert len(requests) - before <= 2, "six timers do not run at once"
    page.unroute_all()
    user.console_errors.clear()  # the failed requests


def test_curves_that_hang_are_requested_again(user: User) -> None:
    page = user.page
    page.add_init_script("const limit = AbortSignal.timeout; AbortSignal.timeout = () => limit.call(AbortSignal, 4000)")
    job_id, job = trained_job(user.site, 100)
    job.finish(Scores())
    page.route("**/series?*", lambda _: None, times=1)
    user.go(f"/jobs/{job_id}")
    expect(page.locator('[data-chart="loss"] canvas')).to_be_visible(timeout=30_000)


def test_page_says_that_its_requests_hang(user: User) -> None:
    page = user.go(f"/jobs/{user.site.add_job()}")
    assert page.evaluate("htmx.config.timeout") == 20_000
    page.evaluate("htmx.config.timeout = 500")
    page.route("**/jobs/job_*", lambda _: None)
    expect(page.get_by_text("Connection lost. Reconnecting")).to_be_visible()
    page.unroute_all()
    page.evaluate("htmx.config.timeout = 20000")
    expect(page.get_by_text("Connection lost")).to_be_hidden(timeout=20_000)
    user.console_errors.clear()  # the requests that hang


def test_page_says_that_its_requests_are_refused_and_sends_fewer(user: User) -> None:
    page = user.go(f"/jobs/{user.site.add_job()}")
    polls: list[str] = []

    def refuse(route: Route) -> None:
        polls.append(route.request.url)
        route.fulfill(status=429, body="too many requests")

    page.route("**/jobs/job_*", refuse)
    message = page.get_by_text("This page is not up to date, because the service refused a request. Reconnecting")
    expect(message).to_be_visible()
    page.wait_for_timeout(9000)
    assert len(polls) <= 3, "a page that is answered polls five times in this time"
    page.unroute_all()
    expect(message).to_be_hidden(timeout=20_000)
    user.console_errors.clear()  # the answers 429


def test_page_waits_before_it_polls_new_content_after_the_machine_has_slept(user: User) -> None:
    user.page.add_init_script(
        """{ const now = Date.now; Date.now = () => now() + 3600e3; }  // `performance.now` stands still during sleep
        document.addEventListener("htmx:beforeRequest", () => {
            document.documentElement.dataset.polledAt ??= performance.now();
        });"""
    )
    page = user.go("/")
    pause = 1000 * int(page.locator("#overview").get_attribute("data-poll") or 0)
    expect(page.locator("html[data-polled-at]")).to_be_attached()
    assert float(page.locator("html").get_attribute("data-polled-at") or 0) >= pause > 0


def test_estimate_that_is_refused_is_not_shown_any_more(user: User) -> None:
    page = user.go(f"/jobs/new?dataset={user.site.dataset}")
    page.get_by_label("Model", exact=True).fill("tiny")
    page.get_by_label("Sparsity", exact=True).fill("0.6")
    expect(page.locator(".estimate")).to_contain_text("No worker is connected")
    page.route("**/jobs/estimate", lambda route: route.fulfill(status=403, body="refused"))
    page.get_by_label("Sparsity", exact=True).fill("0.7")
    expect(page.get_by_text("the service refused a request. Try again.")).to_be_visible()
    expect(page.locator(".estimate")).to_have_text("")
    user.console_errors.clear()  # the answer 403


def test_download_after_the_session_has_ended_leads_to_the_sign_in_page(user: User) -> None:
    page = user.page
    job_id, job = trained_job(user.site, 100)
    job.finish(Scores())
    for path, link in ((f"/datasets/{user.site.dataset}", "Download"), (f"/jobs/{job_id}", "model.safetensors")):
        user.sign_in() if path.startswith("/jobs") else None
        user.go(path)
        user.context.clear_cookies()
        page.get_by_role("link", name=link).click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    user.console_errors.clear()  # an answer 401 to curves that were still loading


def step_at(page: Page, fraction: float) -> int:
    """Return the step that the loss curve shows at a fraction of its width."""
    box = page.locator('[data-chart="loss"] .u-over').bounding_box()
    assert box
    page.mouse.move(box["x"] + fraction * box["width"], box["y"] + 20)
    return int(page.locator('[data-chart="loss"] .u-value').first.inner_text())


def test_new_points_keep_the_zoom_and_the_hidden_curves(user: User) -> None:
    page = user.page
    job_id, job = trained_job(user.site, 50)
    user.go(f"/jobs/{job_id}")
    loss = page.locator('[data-chart="loss"]')
    expect(loss.locator(".u-value").first).to_have_text("50")
    loss.locator(".u-series", has_text="Raw").click()
    box = loss.locator(".u-over").bounding_box()
    assert box
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 20, steps=5)
    page.mouse.up()
    zoomed = [step_at(page, fraction) for fraction in (0.05, 0.95)]
    assert 15 <= zoomed[0] < zoomed[1] <= 45
    page.mouse.move(0, 0)
    job.train(50, 100)
    expect(loss.locator(".u-value").first).to_have_text("100")
    assert [step_at(page, fraction) for fraction in (0.05, 0.95)] == zoomed
    expect(loss.locator(".u-series.u-off")).to_have_text(re.compile("Raw"))


def test_event_of_a_push_appears_when_the_push_ends(user: User) -> None:
    page, site = user.page, user.site
    job_id, job = trained_job(site, 100)
    job.finish(Scores())
    with site.sessions.begin() as session:
        pushes.request(session, session.get_one(Job, job_id), PushSpec(repository="acme/sparse", revision="main"))
    user.go(f"/jobs/{job_id}")
    with site.sessions.begin() as session:
        claimed = pushes.claim(session)
        assert claimed
        pushes.record_success(session, claimed, "https://hub.example/acme/sparse/commit/0")
    expect(page.locator("#pushes .badge")).to_have_text("pushed")
    expect(page.locator(".events")).to_contain_text("Pushed to acme/sparse")


def test_times_are_complete_without_scripts(new_user: NewUser) -> None:
    user = new_user(java_script_enabled=False)
    page = user.sign_in()
    job_id, _ = trained_job(user.site, 10)
    user.go(f"/jobs/{job_id}")
    times = page.locator("time").all_inner_texts()
    assert len(times) > 5
    assert [text for text in times if not re.fullmatch(r"(since )?\d{4}-\d\d-\d\d \d\d:\d\d UTC", text)] == []
