"""A user signs in, uploads, makes mistakes, starts a job, watches it, downloads, compares and cancels."""

import re
from pathlib import Path

from playwright.sync_api import Page, Route, expect

from tests import hollow
from tests.browser.conftest import NewUser, User
from tests.browser.simulated_jobs import Scores

CHARTS = "[data-charts] .plot"


def chart_labels(page: Page) -> list[str]:
    """Return the label of each chart for screen readers, with its last values."""
    labels: list[str] = page.locator(CHARTS).evaluate_all("all => all.map(plot => plot.getAttribute('aria-label'))")
    return labels


def test_only_a_valid_key_signs_in(new_user: NewUser) -> None:
    user = new_user()
    page = user.go("/jobs")
    page.fill("#key", "seft_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("unknown or revoked")
    page.fill("#key", user.site.secret)
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{user.site.url}/dashboard/jobs")
    expect(page).to_have_title("Jobs · SEFT")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def upload_a_dataset(page: Page, tmp_path: Path) -> None:
    page.get_by_role("link", name="Datasets").click()
    invalid, valid = tmp_path / "invalid.jsonl", tmp_path / "valid.jsonl"
    invalid.write_text('{"text": "a"}\nno json\n{"txet": "b"}\n')
    valid.write_bytes(hollow.TEXTS)
    page.set_input_files("#file", invalid)
    record_progress = (
        "bar => new MutationObserver(() => { window.uploaded = bar.value }).observe(bar, {attributes: true})"
    )
    page.locator(".upload-progress").evaluate(record_progress)
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_role("alert")).to_contain_text("2 of 3 lines are not valid records")
    assert page.evaluate("window.uploaded") == 1, "upload progress"
    expect(page.locator("#file")).to_be_focused()
    expect(page.get_by_role("row", name="line 2")).to_contain_text("no json")
    expect(page.get_by_role("row", name="line 3")).to_contain_text("txet")
    page.set_input_files("#file", valid)
    page.get_by_role("button", name="Upload").click()


def create_a_job(page: Page) -> None:
    page.get_by_role("link", name="Start a job with it").click()
    expect(page.locator("#dataset")).to_contain_text("valid.jsonl")
    page.get_by_label("Model", exact=True).fill("tiny")
    sparsity = page.get_by_label("Sparsity", exact=True)
    sparsity.fill("60")
    expect(page.locator("#sparsity-error")).to_contain_text("Write 0.6 for 60 %.")
    expect(page.locator(".estimate")).to_have_text("Correct sparsity to see what the job needs.")
    expect(sparsity).to_have_attribute("aria-invalid", "true")
    expect(sparsity).to_have_attribute("aria-describedby", "sparsity-help sparsity-error")
    expect(sparsity).to_be_focused()
    sparsity.fill("0.6")
    expect(page.locator("#sparsity-error")).to_have_count(0)
    expect(sparsity).not_to_have_attribute("aria-invalid", "true")
    expect(sparsity).to_have_attribute("aria-describedby", "sparsity-help")
    sparsity.fill("1.6")
    page.get_by_label("Suffix").fill("first")
    page.get_by_label("Steps").fill("120")
    page.get_by_label("Density").fill("0.005")  # so that events change what is trained
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("alert")).to_contain_text("The job was not created.")
    expect(page.locator("#sparsity-error")).to_contain_text("less than or equal to 0.99")
    expect(sparsity).to_have_attribute("aria-invalid", "true")
    expect(sparsity).to_be_focused()
    sparsity.fill("0.6")
    expect(page.locator(".estimate")).to_contain_text("No worker is connected")
    expect(page.locator("#sparsity-error")).to_have_count(0)
    page.get_by_role("button", name="Start the job").click()


def hold_first(page: Page, address: str) -> list[Route]:
    """Answer the first request to an address only when the test does. It is in the returned list when it is sent."""
    held: list[Route] = []
    page.route(address, lambda route: route.continue_() if held else held.append(route))
    return held


def test_a_newer_estimate_replaces_one_that_is_not_answered(user: User) -> None:
    hold_first(user.page, "**/jobs/estimate")
    page = user.go(f"/jobs/new?dataset={user.site.dataset}")
    page.get_by_label("Model", exact=True).fill("tiny")
    page.get_by_label("Sparsity", exact=True).fill("0.6")
    expect(page.locator(".estimate")).to_contain_text("No worker is connected")
    assert [error for error in user.console_errors if "htmx:sendAbort" in error]


def test_the_time_that_is_left_is_on_the_pages_of_a_running_job(user: User) -> None:
    page, site = user.page, user.site
    job_id = site.add_job(suffix="timed")
    job = site.claim_job()
    job.prune(Scores())
    user.go(f"/jobs/{job_id}")
    remaining = page.locator(".facts div", has_text="Remaining").locator("dd")
    expect(remaining).to_have_text("\N{EN DASH}")
    job.train(0, 10, remaining=42 * 60 - 20)
    expect(remaining).to_have_text("about 42 min left")
    for path in ("/jobs", "/"):
        user.go(path)
        expect(page.locator("time[data-left]")).to_have_text(re.compile("about 4[12] min left"))
    job.finish(Scores())
    user.go(f"/jobs/{job_id}")
    expect(page.get_by_text("Remaining")).to_have_count(0)


def test_from_a_dataset_to_a_checkpoint(user: User, tmp_path: Path) -> None:
    page, site = user.page, user.site
    upload_a_dataset(page, tmp_path)
    create_a_job(page)
    expect(page.locator("#job .note")).to_contain_text("Next in the queue")
    expect(page.locator(CHARTS)).to_have_text(["No data yet"] * 4)
    page.evaluate("window.notReloaded = true")
    job = site.claim_job()
    job.prune(Scores())
    expect(page.locator(".phases .current")).to_contain_text("training")
    expect(page.locator(".badge").first).to_have_text("running")
    job.train(0, 40)
    expect(page.locator(f"{CHARTS} canvas")).to_have_count(4)
    before = chart_labels(page)
    job.train(40, 120)
    for at in range(4):
        expect(page.locator(CHARTS).nth(at)).not_to_have_attribute("aria-label", before[at])
        expect(page.locator(CHARTS).nth(at).locator(".u-value").first).to_have_text("120")
    expect(page.locator('[data-chart="topology"] canvas')).to_be_visible()
    expect(page.locator(".map")).to_have_count(7)
    up = page.locator(".map", has_text="up_proj").locator("canvas")
    grown = up.get_attribute("aria-label")
    page.locator(".choice").get_by_text("pruned").click()
    expect(up).not_to_have_attribute("aria-label", grown or "")
    up.hover(position={"x": 2, "y": 2})
    expect(page.locator("[data-hover-info]")).to_have_text(re.compile(r"block 0, mlp.up_proj, step 60: \d+ pruned"))
    page.get_by_text("Show as tables").click()
    expect(page.get_by_role("table", name="Changes per event").get_by_role("row")).to_have_count(2)
    job.finish(Scores())
    expect(page.locator(".badge").first).to_have_text("succeeded")
    expect(page.locator(".subtitle")).to_contain_text(
        "tiny · 60 % · perplexity 20.6 → 90.2 → 31.4 · 71 % of the loss recovered"
    )
    expect(page.locator(".layer-grid .bar")).to_have_count(210)
    assert page.evaluate("window.notReloaded"), "the page was not reloaded"
    with page.expect_download() as download:
        page.get_by_role("link", name="model.safetensors").click()
    assert Path(download.value.path()).read_bytes() == hollow.weights()
    assert download.value.suggested_filename == "model.safetensors"


def test_curve_that_grew_on_the_page_equals_the_curve_after_a_reload(user: User) -> None:
    page, site = user.page, user.site
    job_id = site.add_job(repair={"steps": 2000, "update_interval": 500})
    job = site.claim_job()
    job.prune(Scores())
    job.train(0, 590)
    user.go(f"/jobs/{job_id}")
    loss = page.locator('[data-chart="loss"]')
    for first, last in ((590, 650), (650, 651), (651, 700)):  # the spans become longer, then the last span is half full
        expect(loss.locator(".u-value").first).to_have_text(str(first))
        job.train(first, last)
    expect(loss.locator(".u-value").first).to_have_text("700")
    image = "canvas => canvas.toDataURL()"
    grown = loss.locator("canvas").evaluate(image)
    page.reload()
    expect(loss.locator(".u-value").first).to_have_text("700")
    assert loss.locator("canvas").evaluate(image) == grown


def test_late_answer_does_not_replace_a_newer_kind_of_change(user: User) -> None:
    page, site = user.page, user.site
    job_id = site.add_job(repair={"steps": 100, "density": 0.005})
    job = site.claim_job()
    job.prune(Scores())
    job.train(0, 80)
    held = hold_first(page, "**/topology?of=grown")
    user.go(f"/jobs/{job_id}")
    page.locator(".choice").get_by_text("pruned").click()
    label = page.locator(".map canvas").first
    expect(label).to_have_attribute("aria-label", re.compile("pruned per layer and event"))
    pruned = label.get_attribute("aria-label")
    with page.expect_response("**/topology?of=grown"):
        held[0].continue_()
    page.wait_for_timeout(300)
    assert label.get_attribute("aria-label") == pruned


def test_curves_are_complete_if_the_job_ends_while_they_are_loaded(user: User) -> None:
    page, site = user.page, user.site
    job_id = site.add_job()
    job = site.claim_job()
    job.prune(Scores())
    job.train(0, 60)
    user.go(f"/jobs/{job_id}")
    last_step = page.locator('[data-chart="loss"] .u-value').first
    expect(last_step).to_have_text("60")
    held = hold_first(page, "**/series?*")
    job.train(60, 70)
    expect(page.locator(".facts dd").first).to_contain_text("70")
    answer = held[0].fetch()
    job.train(70, 100)
    job.fail("The device ran out of memory.")
    expect(page.locator(".badge").first).to_have_text("failed")
    held[0].fulfill(response=answer)
    expect(last_step).to_have_text("100")


def test_rise_of_the_sparsity_is_a_curve(user: User) -> None:
    page, site = user.page, user.site
    repair = {"steps": 100, "density": "all", "update_interval": 10}
    job_id = site.add_job(prune={"schedule": "gradual"}, repair=repair)
    site.claim_job().train(0, 80)
    user.go(f"/jobs/{job_id}")
    curve = page.locator('[data-chart="sparsity"]')
    expect(curve.locator("canvas")).to_be_visible()
    expect(curve.locator(".plot")).to_have_attribute("aria-label", "Sparsity: last 60 %")
    expect(page.locator(".map canvas").first).to_have_attribute("aria-label", re.compile("pruned per layer and event"))
    expect(page.locator(".score")).to_have_count(2)


def test_two_jobs_are_compared_and_a_third_is_cancelled(user: User) -> None:
    page, site = user.page, user.site
    for name, sparsity, scores in (("mild", 0.5, Scores(pruned=39, repaired=24.6)), ("bold", 0.7, Scores())):
        site.add_job(suffix=name, sparsity=sparsity)
        job = site.claim_job()
        job.prune(scores)
        job.train(0, 100)
        job.finish(scores)
    user.go("/jobs")
    page.get_by_label("Compare mild").check()
    page.get_by_label("Compare bold").check()
    page.get_by_role("button", name="Compare selected").click()
    expect(page.get_by_role("row", name="Perplexity, repaired")).to_contain_text("24.6")
    expect(page.locator(".best")).to_have_text("24.6")
    expect(page.get_by_role("row", name="sparsity")).to_contain_text("0.7")
    both = re.compile(r"bold: last [\d.]+, mild: last [\d.]+")
    expect(page.locator('[data-chart="loss"] .plot')).to_have_attribute("aria-label", both)
    page.route("**/series*", lambda route: route.abort(), times=1)
    page.reload()
    expect(page.locator('[data-chart="loss"] .plot')).to_have_attribute("aria-label", both, timeout=15_000)
    user.console_errors.clear()  # the failed request

    page.get_by_role("link", name="bold").click()
    page.get_by_role("link", name="Clone").click()
    page.get_by_label("Suffix").fill("third")
    page.get_by_role("button", name="Create the clone").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("third")
    site.claim_job().prune(Scores())
    expect(page.locator(".badge").first).to_have_text("running")
    page.get_by_text("Actions").click()
    expect(page.locator("button.destructive")).to_contain_text("No checkpoint is kept")
    page.wait_for_timeout(2500)
    page.locator("button.destructive").click()
    expect(page.locator(".badge").first).to_have_text("cancelled")
    expect(page.get_by_text("Actions")).to_have_count(0)


def test_lost_connection_is_reported_and_restored(user: User) -> None:
    page, site = user.page, user.site
    user.go(f"/jobs/{site.add_job()}")
    message = page.get_by_text("Connection lost")
    expect(message).to_be_hidden()
    user.context.set_offline(True)
    expect(message).to_be_visible()
    site.claim_job().prune(Scores())
    user.context.set_offline(False)
    expect(page.locator(".phases .current")).to_contain_text("training")
    expect(message).to_be_hidden()
    user.console_errors.clear()  # the failed requests


def test_curves_and_maps_of_an_ended_job_are_loaded_again_after_a_failure(user: User) -> None:
    page, site = user.page, user.site
    job_id = site.add_job(repair={"steps": 100, "density": 0.005})
    job = site.claim_job()
    job.prune(Scores())
    job.train(0, 100)
    job.finish(Scores())
    for path in ("series", "topology"):
        page.route(f"**/{path}?*", lambda route: route.abort(), times=1)
    user.go(f"/jobs/{job_id}")
    expect(page.locator(f"{CHARTS} canvas")).to_have_count(4, timeout=15_000)
    expect(page.locator(".map")).to_have_count(7, timeout=15_000)
    user.console_errors.clear()  # the failed requests


def test_failed_upload_asks_for_another_try(user: User, tmp_path: Path) -> None:
    page = user.go("/datasets")
    (tmp_path / "texts.jsonl").write_bytes(hollow.TEXTS)
    page.set_input_files("#file", tmp_path / "texts.jsonl")
    user.context.set_offline(True)
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_text("Connection lost. Try again.")).to_be_visible()
    user.context.set_offline(False)
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_role("status").get_by_text("Uploaded")).to_be_visible()
    expect(page.get_by_text("Connection lost")).to_be_hidden()
    user.console_errors.clear()  # the failed request


def test_page_of_a_job_that_another_tab_deletes_says_so(user: User) -> None:
    site = user.site
    job_id = site.add_job()
    page, tab = user.go(f"/jobs/{job_id}"), user.context.new_page()
    page.route("**/jobs/job_*", lambda route: None)  # the first tab does not see the end of the job
    tab.goto(page.url)
    for menu in ("Actions", "Delete"):
        tab.locator("summary", has_text=menu).click()
        tab.locator("button.destructive").click()
    expect(tab).to_have_title("Jobs · SEFT")
    page.unroute_all()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not found")
    user.console_errors.clear()  # the answers 404


def test_note_about_a_refused_action_stays_while_the_page_polls(user: User) -> None:
    page = user.go(f"/jobs/{user.site.add_job()}?refused=start")
    note = page.get_by_text("Start is not possible: the job is queued")
    expect(note).to_be_visible()
    user.site.claim_job().prune(Scores())
    expect(page.locator(".badge").first).to_have_text("running")
    expect(note).to_be_visible()


def test_polling_replaces_nothing_while_the_page_is_unchanged(user: User) -> None:
    page, site = user.page, user.site
    user.go(f"/jobs/{site.add_job()}")
    is_poll = lambda response: response.request.headers.get("hx-request") == "true"  # noqa: E731
    with page.expect_response(is_poll):
        pass
    page.wait_for_timeout(500)
    page.evaluate("document.querySelector('#job').dataset.kept = 'true'")
    for _ in range(2):
        with page.expect_response(is_poll):
            pass
    page.wait_for_timeout(500)
    expect(page.locator("#job[data-kept]")).to_have_count(1)
    site.claim_job().prune(Scores())
    expect(page.locator(".badge").first).to_have_text("running")
    expect(page.locator("#job[data-kept]")).to_have_count(0)


def test_hidden_tab_polls_slowly(user: User) -> None:
    page, site = user.page, user.site
    user.go(f"/jobs/{site.add_job()}")
    polls: list[str] = []
    page.on("request", lambda request: polls.append(request.url))
    page.wait_for_timeout(4500)
    visible_polls = len(polls)
    assert visible_polls >= 2
    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true})")
    page.wait_for_timeout(4500)
    assert len(polls) <= visible_polls + 1


def test_job_is_created_and_cancelled_without_scripts(new_user: NewUser) -> None:
    user = new_user(java_script_enabled=False)
    page = user.sign_in()
    expect(page.get_by_role("link", name="Datasets")).to_be_visible()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()
    user.go(f"/jobs/new?dataset={user.site.dataset}")
    page.fill("#model", "tiny")
    page.fill("#sparsity", "0.5")
    page.click("text=Start the job")
    page.click("summary#actions-menu")
    page.click("text=Ends the job immediately")
    expect(page.locator(".badge").first).to_have_text("cancelled")
