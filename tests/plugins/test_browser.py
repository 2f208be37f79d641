"""Airflow in a browser: a retraining from the form to the approval, the gallery, and the captioning of uploads.

The tests follow each other through one Airflow. ``CAPTION_PICTURES`` names a folder for the pictures of ``docs/``.
"""

import json
import os
import shutil
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import expect, sync_playwright

from pipeline.captioner import registry
from pipeline.data import corrections, synthetic
from pipeline.storage import layout, open_bucket
from pipeline.work import runs
from tests.support.airflow_server import start_airflow

HOSTILE = "strange/<b onmouseover=alert(1)>bold</b> & 100%.jpg"

RUN_SECONDS = 600

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: `apt-get install chromium`")


class Deployment:
    """A running Airflow with its store and inbox."""

    def __init__(self, server, folder):
        self.server, self.url = server, server.url
        self.store, self.inbox = (open_bucket(str(folder / name)) for name in ("store", "inbox"))
        self.source = folder / "source"
        self.run_id = ""

    def call(self, method, path, body=None):
        """The answer of Airflow's REST API."""
        return self.server.call(method, f"/api/v2/dags/{path}", body)

    def wait(self, dag_id, run_id, task_id="", states=("success", "failed")):
        """Wait until a run, or a task in it, has one of these states, and return it."""
        path = f"{dag_id}/dagRuns/{quote(run_id)}" + (f"/taskInstances/{task_id}" if task_id else "")
        deadline = time.monotonic() + RUN_SECONDS
        while (found := self.call("GET", path))["state"] not in states:
            assert time.monotonic() < deadline, f"{task_id or dag_id} is {found['state']}"
            time.sleep(1)
        return found


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    """Airflow as `make up` starts it, drawn photographs to learn from, and some to caption, two of them odd."""
    folder = tmp_path_factory.mktemp("browser")
    synthetic.generate(folder / "source", images=300)
    synthetic.generate(folder / "new", images=30, seed=1)
    inbox = open_bucket(str(folder / "inbox"))
    for path in sorted((folder / "new" / "images").iterdir()):
        inbox.put(f"camera/{path.name}", path.read_bytes())
    inbox.put("camera/broken.jpg", path.read_bytes()[:2000])
    inbox.put(HOSTILE, path.read_bytes())
    environment = {
        **os.environ,
        "CAPTION_STORE": (folder / "store").as_uri(),
        "CAPTION_INBOX": (folder / "inbox").as_uri(),
        "CAPTION_DATASET": (folder / "source").as_uri(),
        "CAPTION_ENCODER": "random",
    }
    with start_airflow(folder / "airflow", environment) as server:
        yield Deployment(server, folder)


@pytest.fixture(scope="module")
def browser():
    """A browser that connects to this machine only."""
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser, deployment):
    """A window with a logged-in user, which may use the clipboard."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, permissions=["clipboard-read"])
    passwords = Path(deployment.store.root).parent / "airflow" / "passwords.json"
    page = context.new_page()
    page.goto(deployment.url)
    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", json.loads(passwords.read_text())["admin"])
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Captions", exact=True).wait_for()
    page.close()
    yield context
    context.close()


@pytest.fixture
def page(context, deployment):
    """A page that fails the test if its scripts fail, or if something may not be loaded."""
    page = context.new_page()
    page.set_default_timeout(30_000)
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    yield page
    page.close()
    assert not wrong


def picture(page, name, **options):
    """Take a picture for the documentation, if pictures are wanted."""
    if folder := os.environ.get("CAPTION_PICTURES"):
        page.mouse.move(0, 0)
        page.screenshot(path=Path(folder, f"{name}.jpg"), type="jpeg", quality=80, **options)


def assert_shown(image):
    """Wait until a picture has loaded; it must be one."""
    image.scroll_into_view_if_needed()
    expect(image).to_have_js_property("complete", True)
    assert image.evaluate("image => image.naturalWidth") > 0


def open_form(page, deployment):
    """The form that triggers a retraining."""
    page.goto(f"{deployment.url}/dags/retrain_captioner")
    page.get_by_role("button", name="Trigger").first.click()
    return page.get_by_role("dialog")


def unfold(form, section):
    """Unfold a section of the form, which folds the others."""
    form.get_by_role("button", name=section, exact=True).click()


def fill(form, **values):
    """Type numbers into the form."""
    for name, value in values.items():
        field = form.locator(f"[name=element_{name}]")
        field.fill(str(value))
        field.blur()


def test_the_form_refuses_bad_values(page, deployment):
    """Its sections unfold, dataset and encoder may be empty, required fields may not, and numbers stay in bounds."""
    form = open_form(page, deployment)
    for section, name in {"Training": "epochs", "Evaluation and promotion": "tolerance", "Data": "dataset"}.items():
        unfold(form, section)
        expect(form.locator(f"[name=element_{name}]")).to_be_visible()
    trigger = form.get_by_role("button", name="Trigger", exact=True)
    expect(trigger).to_be_enabled()
    expect(form.locator("[name=element_dataset]")).to_have_value("")
    form.locator("[name=element_encoder]").fill("random")
    form.locator("[name=element_encoder]").fill("")
    expect(trigger).to_be_enabled()
    unfold(form, "Training")
    form.locator("[name=element_embedding]").fill("")
    expect(trigger).to_be_disabled()
    form.locator("[name=element_embedding]").fill("learned")
    expect(trigger).to_be_enabled()
    fill(form, epochs=0, batch_size=1_000_000_000)
    expect(form.locator("[name=element_epochs]")).to_have_value("1")
    expect(form.locator("[name=element_batch_size]")).not_to_have_value("1000000000")
    assert deployment.call("GET", "retrain_captioner/dagRuns")["total_entries"] == 0


def test_a_retraining_is_triggered_by_the_form(page, deployment):
    """The values of the form are the conf of the run, which then waits for a person."""
    form = open_form(page, deployment)
    unfold(form, "Data")
    picture(page, "form-data")
    fill(form, min_count=5)
    unfold(form, "Training")
    fill(form, epochs=14, batch_size=64)
    unfold(form, "Evaluation and promotion")
    form.get_by_role("combobox", name="Promotion").click()
    page.get_by_role("option", name="approve", exact=False).first.click()
    picture(page, "form")
    form.get_by_role("button", name="Trigger", exact=True).click()
    deadline = time.monotonic() + 60
    while not (found := deployment.call("GET", "retrain_captioner/dagRuns")["dag_runs"]):
        assert time.monotonic() < deadline, "nothing was triggered"
        time.sleep(0.5)
    deployment.run_id = found[0]["dag_run_id"]
    conf = found[0]["conf"]
    assert (conf["epochs"], conf["batch_size"], conf["min_count"], conf["promotion"]) == (14, 64, 5, "approve")
    deployment.wait("retrain_captioner", deployment.run_id, "approval", ["awaiting_input", "failed"])


def test_a_person_approves(page, deployment):
    """Required Actions show scores and captions; the answer promotes the candidate, and the note says so."""
    assert not deployment.store.exists(layout.CHAMPION)
    run = f"dags/retrain_captioner/runs/{quote(deployment.run_id)}"
    page.goto(f"{deployment.url}/{run}/tasks/approval/required_actions")
    expect(page.get_by_text("CIDEr").first).to_be_visible()
    expect(page.get_by_text("Captions of some test photographs").first).to_be_visible()
    picture(page, "approval")
    page.get_by_role("button", name="Promote", exact=True).click()
    assert deployment.wait("retrain_captioner", deployment.run_id)["state"] == "success"
    assert registry.read_champion(deployment.store).history[-1].reason.startswith("admin approved it")
    page.goto(f"{deployment.url}/{run}")
    note = deployment.call("GET", f"retrain_captioner/dagRuns/{quote(deployment.run_id)}")["note"]
    assert "admin approved it" in note
    expect(page.get_by_text(note[:40], exact=False).first).to_be_visible()
    picture(page, "run")


def test_a_task_leads_to_the_report(page, deployment):
    """The button of the evaluation opens the report."""
    run = f"dags/retrain_captioner/runs/{quote(deployment.run_id)}"
    page.goto(f"{deployment.url}/{run}/tasks/evaluate/details")
    link = page.get_by_role("link", name="Report")
    expect(link).to_be_visible()
    picture(page, "links")
    page.goto(link.get_attribute("href"))
    expect(page.get_by_role("heading", name="Captioner", exact=False).first).to_be_visible()
    picture(page, "report")


def test_a_new_champion_starts_a_night(deployment):
    """The DAG of nights, once it is unpaused, starts at once."""
    deployment.call("PATCH", "caption_new_images", {"is_paused": False})
    deadline = time.monotonic() + RUN_SECONDS
    while not (found := deployment.call("GET", "caption_new_images/dagRuns")["dag_runs"]):
        assert time.monotonic() < deadline, "no night began"
        time.sleep(1)
    for each in found:
        assert deployment.wait("caption_new_images", each["dag_run_id"])["state"] == "success"
    record = next(runs.list_records(runs.NIGHT, deployment.store))
    assert (record.status, record.listed) == ("succeeded", 32)


def frame(page, deployment):
    """The gallery inside Airflow's own page."""
    page.goto(deployment.url)
    page.get_by_role("link", name="Captions", exact=True).click()
    return page.frame_locator("iframe[title=Captions]")


def test_the_gallery_is_in_the_navigation(page, deployment):
    """It shows the newest captions with their pictures; a click leads to a picture with all its captions."""
    gallery = frame(page, deployment)
    cards = gallery.locator(".card")
    expect(cards).to_have_count(24)
    expect(gallery.get_by_role("link", name="Airflow")).to_be_hidden()
    first = gallery.locator(".card img").first
    assert_shown(first)
    picture(page, "gallery")
    gallery.get_by_role("link", name="Older").click()
    expect(cards).to_have_count(8)
    gallery.get_by_role("link", name="Newest").click()
    expect(cards).to_have_count(24)
    cards.nth(3).get_by_role("link").click()
    expect(gallery.get_by_role("heading", name="Captions", exact=True)).to_be_visible()
    shown = gallery.locator("figure img")
    assert_shown(shown)
    picture(page, "picture")


def test_search_and_filters(page, deployment):
    """A search finds captions; a failed image shows its error; an empty result says so."""
    page.goto(f"{deployment.url}/captions/")
    page.get_by_label("Status").select_option("failed")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator(".card")).to_contain_text("cannot be decoded")
    page.goto(f"{deployment.url}/captions/?words=zebra")
    expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()
    page.goto(f"{deployment.url}/captions/")
    word = page.locator(".card p").nth(3).inner_text().split()[-1]
    page.get_by_label("Search").fill(word)
    page.get_by_label("Search").press("Enter")
    for text in page.locator(".card").all_inner_texts():
        assert word in text


def test_a_hostile_name_is_a_name(page, deployment):
    """It is shown as it is written, leads to its picture, and nothing of it runs."""
    page.goto(f"{deployment.url}/captions/?words=bold")
    expect(page.locator(".card")).to_have_count(1)
    page.locator(".card a").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    assert page.locator("main b").count() == 0
    shown = page.locator("figure img")
    assert_shown(shown)


def test_models_and_nights(page, deployment):
    """The champion is highlighted, with its scores; a night has its counts and its drift."""
    version = registry.read_champion(deployment.store).version
    page.goto(f"{deployment.url}/captions/models")
    expect(page.locator("tr.champion")).to_contain_text(version)
    picture(page, "models", clip={"x": 0, "y": 0, "width": 1280, "height": 260})
    page.get_by_role("link", name="Report").click()
    expect(page.get_by_role("heading", name="Captioner", exact=False).first).to_be_visible()
    page.goto(f"{deployment.url}/captions/nights")
    expect(page.locator("svg.plot")).to_have_count(4)
    expect(page.locator("tbody tr").first).to_contain_text("32")
    picture(page, "nights")


def test_an_upload_is_captioned(page, deployment):
    """Its caption comes with alternatives, can be copied, and can be corrected for the next training."""
    page.goto(f"{deployment.url}/captions/try")
    path = sorted((deployment.source / "images").iterdir())[7]
    page.set_input_files("input[type=file]", path)
    found = page.locator(".result")
    expect(found).to_be_visible(timeout=120_000)
    caption = found.locator(".caption").inner_text()
    assert caption
    assert found.locator(".alternatives li").count() >= 1
    picture(page, "try")
    found.get_by_role("button", name="Copy").click()
    expect(found.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == caption
    page.set_input_files("input[type=file]", sorted((deployment.source / "images").iterdir())[8])
    expect(found).to_be_visible()
    page.get_by_label("Better caption").fill("a drawn thing on the grass")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved. Thank you.")).to_be_visible()
    [row] = corrections.read(deployment.store).to_pylist()
    assert (row["caption"], row["corrected_by"]) == ("a drawn thing on the grass", "admin")


def test_bad_uploads_have_a_plain_message(page, deployment, tmp_path):
    """A file that is not a picture gets a message, and the next picture a caption."""
    (tmp_path / "text.jpg").write_text("no picture")
    page.goto(f"{deployment.url}/captions/try")
    page.set_input_files("input[type=file]", tmp_path / "text.jpg")
    expect(page.locator(".state.bad")).to_contain_text("not a picture in a known format", timeout=120_000)
    page.set_input_files("input[type=file]", sorted((deployment.source / "images").iterdir())[9])
    expect(page.locator(".result")).to_be_visible()


def test_a_wrong_caption_is_corrected(page, deployment):
    """The correction names the picture in the inbox and the wrong caption."""
    page.goto(f"{deployment.url}/captions/?status=ok")
    page.locator(".card a").first.click()
    key = page.get_by_role("heading", level=1).inner_text()
    wrong = page.locator(".history .caption").first.inner_text()
    page.get_by_label("Better caption").fill("something else")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved. Thank you.")).to_be_visible()
    row = corrections.read(deployment.store).to_pylist()[-1]
    assert (row["image_key"], row["wrong_caption"], row["caption"]) == (key, wrong, "something else")


def test_by_keyboard_alone(page, deployment):
    """The first key skips the navigation; every control is in the tab order and shows its focus."""
    page.goto(f"{deployment.url}/captions/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    names = []
    for _ in range(16):
        page.keyboard.press("Tab")
        names.append(page.evaluate("(document.activeElement.name || document.activeElement.innerText).trim()"))
    assert names[:5] == ["Captions", "Nights", "Models", "Try it", "Airflow"]
    assert names[5:11] == ["words", "night", "version", "status", "unsure", "Show"]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Captions", exact=True)).to_be_visible()


def contrast(page, selector):
    """The contrast of a text with its background, by WCAG 2."""
    return page.evaluate(
        """selector => {
          const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
          const channels = colour => { context.clearRect(0, 0, 1, 1); context.fillStyle = colour;
            context.fillRect(0, 0, 1, 1); return [...context.getImageData(0, 0, 1, 1).data]; };
          const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const element = document.querySelector(selector);
          let behind = element;
          while (behind && channels(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
          const lights = [getComputedStyle(element).color, getComputedStyle(behind || document.body).backgroundColor]
            .map(colour => light(channels(colour))).sort((a, b) => b - a);
          return (lights[0] + 0.05) / (lights[1] + 0.05);
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_on_a_phone(browser, context, deployment, scheme):
    """Nothing is wider than a phone, and all text is readable in both."""
    phone = browser.new_context(
        viewport={"width": 390, "height": 844},
        color_scheme=scheme,
        storage_state=context.storage_state(),
        device_scale_factor=2,
        has_touch=True,
    )
    page = phone.new_page()
    for path in ("", "nights", "models", "try", "?words=zebra", "image?key=camera/broken.jpg", "image?key=none"):
        page.goto(f"{deployment.url}/captions/{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        assert {"light": "rgb(251", "dark": "rgb(17,"}[scheme] in page.evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
    for path, selectors in {
        "": [".card p", ".card .meta", "header a", "button", "label"],
        "?status=failed": [".card p"],
        "nights": ["th", "td", "td a", ".legend"],
        "models": [".badge", "tr.champion td a", "tr.champion td"],
        "try": [".drop span", ".state"],
    }.items():
        page.goto(f"{deployment.url}/captions/{path}")
        for selector in selectors:
            assert contrast(page, selector) >= 4.5, (path, selector)
    page.goto(f"{deployment.url}/captions/")
    page.wait_for_load_state("networkidle")
    picture(page, f"phone-{scheme}")
    phone.close()


def test_airflows_switch_turns_the_gallery_dark(page, deployment):
    """The gallery follows the page around it at once."""
    gallery = frame(page, deployment)
    page.evaluate(
        "document.documentElement.classList.replace('light', 'dark') || document.documentElement.classList.add('dark')"
    )
    expect(gallery.locator("html")).to_have_attribute("data-theme", "dark")
    picture(page, "dark")
    page.evaluate("document.documentElement.classList.replace('dark', 'light')")
    expect(gallery.locator("html")).to_have_attribute("data-theme", "light")


def test_nobody_gets_in_without_a_login(browser, deployment):
    """A user who is not logged in gets a link to the login."""
    with browser.new_context() as stranger:
        page = stranger.new_page()
        answer = page.goto(f"{deployment.url}/captions/nights")
        assert answer.status == 401
        page.get_by_role("link", name="Log in to Airflow").click()
        page.wait_for_selector("input[name=username]")
