"""A person signs in, uploads, errs, starts, watches, downloads, compares and cancels."""

import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests import hollow
from tests.browser.conftest import NewPerson, Person
from tests.browser.lives import Scores

CHARTS = "[data-charts] .plot"


def told(page: Page) -> list[str]:
    """The last values of each chart, as those who do not see it are told them."""
    labels: list[str] = page.locator(CHARTS).evaluate_all("all => all.map(plot => plot.getAttribute('aria-label'))")
    return labels


def test_a_person_gets_in_with_a_key_and_no_other_way(new_person: NewPerson) -> None:
    person = new_person()
    page = person.go("/jobs")
    page.fill("#key", "seft_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("unknown or revoked")
    page.fill("#key", person.site.secret)
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{person.site.url}/dashboard/jobs")
    expect(page).to_have_title("Jobs · SEFT")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_from_a_dataset_to_a_checkpoint(person: Person, tmp_path: Path) -> None:
    page, site = person.page, person.site
    page.get_by_role("link", name="Datasets").click()
    broken, right = tmp_path / "broken.jsonl", tmp_path / "right.jsonl"
    broken.write_text('{"text": "a"}\nno json\n{"txet": "b"}\n')
    right.write_text('{"text": "a"}\n{"text": "b"}\n')
    page.set_input_files("#file", broken)
    watch = "bar => new MutationObserver(() => { window.told = bar.value }).observe(bar, {attributes: true})"
    page.locator(".upload-progress").evaluate(watch)
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_role("alert")).to_contain_text("2 of 3 lines are not valid records")
    assert page.evaluate("window.told") == 1, "how far the upload was"
    expect(page.get_by_role("row", name="line 2")).to_contain_text("no json")
    expect(page.get_by_role("row", name="line 3")).to_contain_text("txet")
    page.set_input_files("#file", right)
    page.get_by_role("button", name="Upload").click()
    page.get_by_role("link", name="Start a job with it").click()

    expect(page.get_by_label("Dataset", exact=True)).to_contain_text("right.jsonl")
    page.get_by_label("Model", exact=True).fill("tiny")
    page.get_by_label("Sparsity", exact=True).fill("1.6")
    page.get_by_label("Suffix").fill("first")
    page.get_by_label("Steps").fill("120")
    page.get_by_role("button", name="Start the job").click()
    expect(page.locator("#sparsity-wrong")).to_contain_text("less than or equal to 0.99")
    assert page.get_by_label("Sparsity", exact=True).get_attribute("aria-invalid") == "true"
    page.get_by_label("Sparsity", exact=True).fill("0.6")
    expect(page.locator(".estimate")).to_contain_text("No worker is here to tell by")
    page.get_by_role("button", name="Start the job").click()

    expect(page.locator("#job .note")).to_contain_text("Next to be taken")
    expect(page.locator(CHARTS)).to_have_text(["Nothing measured yet"] * 4)
    page.evaluate("window.kept = true")
    life = site.life()
    life.prune(Scores())
    expect(page.locator(".track .now")).to_contain_text("training")
    expect(page.locator(".badge").first).to_have_text("running")
    life.train(0, 40)
    expect(page.locator(f"{CHARTS} canvas")).to_have_count(4)
    before = told(page)
    life.train(40, 120)
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
    expect(page.locator("[data-pointed]")).to_have_text(re.compile(r"block 0, mlp.up_proj, step 60: \d+ pruned"))
    page.get_by_text("As tables").click()
    expect(page.get_by_role("table", name="At each event").get_by_role("row")).to_have_count(2)
    life.finish(Scores())
    expect(page.locator(".badge").first).to_have_text("succeeded")
    expect(page.locator(".story")).to_contain_text(
        "tiny · 60 % · perplexity 20.6 → 90.2 → 31.4 · 71 % of the loss won back"
    )
    expect(page.locator(".grid .bar")).to_have_count(210)
    assert page.evaluate("window.kept"), "all of it without loading the page anew"
    with page.expect_download() as download:
        page.get_by_role("link", name="model.safetensors").click()
    assert Path(download.value.path()).read_bytes() == hollow.weights()
    assert download.value.suggested_filename == "model.safetensors"


def test_a_curve_that_grew_before_ones_eyes_is_the_one_that_is_fetched_anew(person: Person) -> None:
    page, site = person.page, person.site
    job = site.add_job(repair={"steps": 2000, "update_interval": 500})
    life = site.life()
    life.prune(Scores())
    life.train(0, 590)
    person.go(f"/jobs/{job}")
    loss = page.locator('[data-chart="loss"]')
    for first, last in ((590, 650), (650, 651), (651, 700)):  # spans become longer, then one is half full
        expect(loss.locator(".u-value").first).to_have_text(str(first))
        life.train(first, last)
    expect(loss.locator(".u-value").first).to_have_text("700")
    drawn = "canvas => canvas.toDataURL()"
    grown = loss.locator("canvas").evaluate(drawn)
    page.reload()
    expect(loss.locator(".u-value").first).to_have_text("700")
    assert loss.locator("canvas").evaluate(drawn) == grown


def test_two_jobs_are_compared_and_a_third_is_cancelled(person: Person) -> None:
    page, site = person.page, person.site
    for name, sparsity, scores in (("mild", 0.5, Scores(pruned=39, repaired=24.6)), ("bold", 0.7, Scores())):
        site.add_job(suffix=name, sparsity=sparsity)
        life = site.life()
        life.prune(scores)
        life.train(0, 100)
        life.finish(scores)
    person.go("/jobs")
    page.get_by_label("Compare mild").check()
    page.get_by_label("Compare bold").check()
    page.get_by_role("button", name="Compare the picked").click()
    expect(page.get_by_role("row", name="Perplexity, repaired")).to_contain_text("24.6")
    expect(page.locator(".best")).to_have_text("24.6")
    expect(page.get_by_role("row", name="sparsity")).to_contain_text("0.7")
    both = re.compile(r"bold: last [\d.]+, mild: last [\d.]+")
    expect(page.locator('[data-chart="loss"] .plot')).to_have_attribute("aria-label", both)

    page.get_by_role("link", name="bold").click()
    page.get_by_role("link", name="Clone").click()
    page.get_by_label("Suffix").fill("third")
    page.get_by_role("button", name="Make the clone").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("third")
    site.life().prune(Scores())
    expect(page.locator(".badge").first).to_have_text("running")
    page.get_by_text("Actions").click()
    expect(page.locator("button.harsh")).to_contain_text("No checkpoint is kept")
    page.wait_for_timeout(2500)
    page.locator("button.harsh").click()
    expect(page.locator(".badge").first).to_have_text("cancelled")
    expect(page.get_by_text("Actions")).to_have_count(0)


def test_a_lost_connection_is_said_and_mended(person: Person) -> None:
    page, site = person.page, person.site
    person.go(f"/jobs/{site.add_job()}")
    lost = page.get_by_text("The connection is lost")
    expect(lost).to_be_hidden()
    person.context.set_offline(True)
    expect(lost).to_be_visible()
    site.life().prune(Scores())
    person.context.set_offline(False)
    expect(page.locator(".track .now")).to_contain_text("training")
    expect(lost).to_be_hidden()
    person.complaints.clear()  # the failed requests


def test_a_hidden_tab_polls_slowly(person: Person) -> None:
    page, site = person.page, person.site
    person.go(f"/jobs/{site.add_job()}")
    polls: list[str] = []
    page.on("request", lambda request: polls.append(request.url))
    page.wait_for_timeout(4500)
    seen = len(polls)
    assert seen >= 2
    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true})")
    page.wait_for_timeout(4500)
    assert len(polls) <= seen + 1


def test_without_scripts_a_job_is_made_and_cancelled_all_the_same(new_person: NewPerson) -> None:
    person = new_person(java_script_enabled=False)
    page = person.sign_in()
    person.go(f"/jobs/new?dataset={person.site.dataset}")
    page.fill("#model", "tiny")
    page.fill("#sparsity", "0.5")
    page.click("text=Start the job")
    page.click("summary#wishes")
    page.click("text=Ends at once")
    expect(page.locator(".badge").first).to_have_text("cancelled")
