"""What happens to forms that have errors, and to forms that are sent after the session has ended."""

from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests import hollow
from tests.browser.conftest import User


def test_an_error_of_a_sent_form_stays_until_its_field_changes_and_a_closed_part_opens_for_an_error(
    user: User,
) -> None:
    page = user.go(f"/jobs/new?dataset={user.site.dataset}")
    page.get_by_label("Model", exact=True).fill("tiny")
    page.get_by_role("button", name="Start the job").click()
    expect(page.locator("#sparsity")).to_be_focused()
    expect(page.locator("#sparsity-error")).to_contain_text("Field required")
    expect(page.locator(".estimate")).to_have_text("Fill in sparsity to see what the job needs.")
    expect(page.locator("#sparsity-error")).to_contain_text("Field required")
    page.get_by_label("Sparsity", exact=True).fill("0.6")
    expect(page.locator("#sparsity-error")).to_have_count(0)
    windows = page.locator("#evaluate\\.windows")
    expect(windows).to_be_hidden()
    windows.evaluate("input => { input.value = 'many'; input.dispatchEvent(new Event('input', {bubbles: true})) }")
    expect(page.locator("#evaluate\\.windows-error")).to_be_visible()
    expect(windows).to_have_attribute("aria-invalid", "true")


def test_an_upload_that_is_refused_shows_why(user: User, tmp_path: Path) -> None:
    page = user.go("/datasets")
    (tmp_path / "texts.jsonl").write_bytes(hollow.TEXTS)
    page.set_input_files("#file", tmp_path / "texts.jsonl")
    page.locator('form[hx-post] [name="csrf"]').evaluate("input => { input.value = 'x' }")
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("#main")).to_contain_text("This form belongs to another sign-in.")
    expect(page.get_by_text("Connection lost")).to_be_hidden()
    user.console_errors.clear()  # the refused request


def test_form_that_is_sent_after_the_session_ended_leads_to_the_sign_in_page(user: User) -> None:
    page = user.go(f"/jobs/{user.site.add_job(suffix='mine')}")
    page.get_by_text("Actions").click()
    user.context.clear_cookies()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.fill("#key", user.site.secret)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("mine")
    user.console_errors.clear()  # the answer 401


def sign_in_again(user: User, page: Page) -> None:
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.fill("#key", user.site.secret)
    page.keyboard.press("Enter")
    user.console_errors.clear()  # the answer 401


def test_form_of_a_new_job_keeps_its_input_while_its_user_signs_in_again(user: User) -> None:
    page = user.go(f"/jobs/new?dataset={user.site.dataset}")
    page.get_by_label("Model", exact=True).fill("tiny")
    page.get_by_label("Sparsity", exact=True).fill("1.6")
    checkbox = page.locator("#auto_start")
    checkbox.evaluate("box => { box.checked = false }")
    page.get_by_role("button", name="Start the job").click()
    expect(page.locator("#sparsity-error")).to_be_visible()
    page.get_by_label("Sparsity", exact=True).fill("0.61")
    user.context.clear_cookies()
    page.get_by_role("button", name="Start the job").click()
    sign_in_again(user, page)
    expect(page.get_by_label("Sparsity", exact=True)).to_have_value("0.61")
    expect(page.locator("#dataset")).to_have_value(user.site.dataset)
    expect(checkbox).not_to_be_checked()
    expect(page.locator(".estimate")).to_contain_text("No worker is connected")
    user.context.clear_cookies()
    page.get_by_label("Suffix").fill("kept")  # the estimate notices that the session has ended
    sign_in_again(user, page)
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("kept")


def test_draft_of_a_form_is_not_shown_to_another_user_or_in_a_new_form(user: User) -> None:
    page, address = user.page, f"/jobs/new?dataset={user.site.dataset}"
    model = page.get_by_label("Model", exact=True)
    user.go(address)
    model.fill("tiny")
    page.get_by_role("button", name="Start the job").click()
    expect(page.locator("#sparsity-error")).to_be_visible()
    user.go("/jobs")
    user.go("/no-such-page")
    user.go(address)
    expect(model).to_have_value("")
    user.console_errors.clear()  # the answer 404
    model.fill("tiny")
    page.get_by_role("button", name="Start the job").click()
    expect(page.locator("#sparsity-error")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.fill("#key", user.site.issue_key("another"))
    page.keyboard.press("Enter")
    expect(page.locator(".account")).to_contain_text("another")
    user.go(address)
    expect(model).to_have_value("")


def test_form_of_a_new_job_keeps_its_input_after_a_new_sign_in_in_another_tab(user: User) -> None:
    page, tab = user.go(f"/jobs/new?dataset={user.site.dataset}"), user.context.new_page()
    page.get_by_label("Model", exact=True).fill("tiny")
    with page.expect_response(lambda response: "0.61" in (response.request.post_data or "")):
        page.get_by_label("Sparsity", exact=True).fill("0.61")
    tab.goto(f"{user.site.url}/dashboard/sign-in")
    tab.fill("#key", user.site.secret)
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("heading", name="Overview")).to_be_visible()
    page.get_by_role("button", name="Start the job").click()
    page.get_by_role("link", name="Back to the form").click()
    expect(page.get_by_label("Sparsity", exact=True)).to_have_value("0.61")
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("tiny")
    user.console_errors.clear()  # the answer 403


def test_form_of_a_new_job_keeps_its_input_when_an_estimate_was_sent_between_two_sessions(user: User) -> None:
    page = user.go(f"/jobs/new?dataset={user.site.dataset}")
    expect(page.locator(".estimate")).to_have_text("Enter a model to see what the job needs.")
    page.route("**/jobs/estimate", lambda route: route.fulfill(status=401, headers={"HX-Refresh": "true"}), times=1)
    with page.expect_navigation():
        page.get_by_label("Model", exact=True).fill("tiny")
    expect(page.get_by_label("Model", exact=True)).to_have_value("tiny")
    user.console_errors.clear()  # the answer 401


def test_secret_is_made_once_after_a_double_click_and_a_reload(user: User) -> None:
    page, secret = user.page, user.page.locator("[data-shown-once] pre")
    posts: list[str] = []
    page.on("request", lambda request: posts.append(request.url) if request.method == "POST" else None)

    def make(address: str, button: Locator) -> None:
        posts.clear()
        button.dblclick(delay=50)
        expect(secret).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(secret).to_have_count(0)
        assert posts == [f"{user.site.url}/dashboard{address}"]

    user.go("/keys")
    page.get_by_label("Name").fill("nightly")
    make("/keys", page.get_by_role("button", name="Create"))
    user.go("/webhooks")
    page.get_by_label("URL").fill("https://example.com/seft")
    make("/webhooks", page.get_by_role("button", name="Create"))
    user.go("/webhooks")
    page.get_by_role("link", name="https://example.com/seft").click()
    page.wait_for_url("**/webhooks/hook_*")
    address = page.url.removeprefix(f"{user.site.url}/dashboard")
    page.get_by_text("Actions").click()
    make(f"{address}/rotate", page.get_by_role("button", name="Rotate the secret"))
    expect(page).to_have_url(f"{user.site.url}/dashboard{address}")


def test_note_about_a_refused_action_is_gone_after_a_reload(user: User) -> None:
    page = user.go(f"/jobs/{user.site.add_job()}?refused=start")
    expect(page.get_by_text("Start is not possible")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Events")).to_be_visible()
    expect(page.get_by_text("Start is not possible")).to_have_count(0)


def test_settings_for_a_cpu_keep_the_model_and_the_dataset(user: User) -> None:
    page = user.go("/jobs/new")
    page.get_by_label("Model", exact=True).fill("tiny")
    page.locator("#dataset").select_option(user.site.dataset)
    page.get_by_role("link", name="Use settings for a CPU").click()
    expect(page.get_by_label("Steps", exact=True)).to_have_value("14")
    expect(page.get_by_label("Model", exact=True)).to_have_value("tiny")
    expect(page.locator("#dataset")).to_have_value(user.site.dataset)
