"""A whole Airflow, started as `make up` starts it, with store and inbox on S3: from an empty store to its last night.

The stages of the journey are fixtures, each going on where the one before it ended; a test takes the stage that it
looks at, and stands behind the tests of earlier ones. ``CAPTION_PICTURES`` names a folder for the pictures of docs.
"""

import contextlib
import csv
import json
import os
import re
import shutil
import urllib.error
import uuid
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import psutil
import pyarrow as pa
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from pipeline.captioner import registry
from pipeline.captioner.spoken import spoken_name
from pipeline.data import corrections, dataset, synthetic
from pipeline.nightly import current
from pipeline.storage import layout, open_bucket, parquet
from pipeline.work import runs, tombstones
from tests.support import secrets, toy
from tests.support.airflow_server import MAINTENANCE_DAG, NIGHT_DAG, RETRAINING_DAG, start_airflow
from tests.support.faults import Proxy
from tests.support.gallery import PAGES
from tests.support.metrics_servers import open_statsd
from tests.support.nights import rows_in
from tests.support.paths import PROJECT
from tests.support.receivers import SECRET, open_receivers
from tests.support.waiting import wait_for

SECONDS = 300
"""Time limit for what a running Airflow does in one step."""

# On a loaded machine, a page of Airflow's takes longer than Playwright's five seconds.
expect.set_options(timeout=30_000)

IMAGES, NEW = 300, 32
"""Photographs to learn from, and those in the inbox, of which one is damaged and one has a difficult name."""

HOSTILE = "strange/<b onmouseover=alert(1)>bold</b> & 100%.jpg"

FORM = {"min_count": 5, "epochs": 30, "batch_size": 64, "patience": 6}
"""What the first retraining's form is filled with, beside the promotion."""

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

OTHER_DAGS = """
from airflow.sdk import DAG, task
from captioning import notifications
from captioning.operators import PipelineOperator, end_run

@task
def extract(shard):
    raise OSError("disk full")

@task(multiple_outputs=True)
def reconcile():
    return {"warnings": ["The captions differ from last week's.", "6 % are alike."]}

with DAG("failing", schedule="@once", **notifications.run_callbacks()):
    failing = PipelineOperator(task_id="a_command", arguments=["promote", "nothing"])
    [failing, extract.expand(shard=list(range(12)))] >> end_run("night")

with DAG("warning", schedule="@once", **notifications.night_callbacks()):
    reconcile() >> end_run("night")
"""


class Deployment:
    """A running Airflow with its store and inbox, behind which S3 can be told to misbehave, and its receivers."""

    def __init__(self, folder, server, receivers, s3, uri, *, statsd):
        self.home, self.server, self.url, self.receivers, self.s3 = folder, server, server.url, receivers, s3
        self.statsd = statsd
        self.temporary = folder.with_name("temporary")
        self.store, self.inbox, self.backup = (open_bucket(f"{uri}/{name}") for name in ("store", "inbox", "backup"))

    def notification(self, subject, containing):
        """Wait until both receivers have this notification, and return its text."""
        wait_for(f"the notification {subject}", lambda: self.receivers.have(subject, containing), SECONDS)
        return self.receivers.sent(subject, containing)

    def metric(self, name, dag_id):
        """The last value of a metric of a DAG's runs; None if it was never sent."""
        return self.statsd.gauges.get(f"airflow.captioning.{name},dag_id={dag_id}")

    def address(self, run):
        """The page of a run."""
        return f"{self.url}/dags/{run.shown['dag_id']}/runs/{quote(run.id)}"

    def command(self, *arguments):
        """Wait for a task that runs a command, and return the command's process."""
        beginning = ["-m", "pipeline", *arguments]

        def running():
            for process in psutil.process_iter():
                # One that has ended, or is not ours to look at, is none.
                with contextlib.suppress(psutil.Error):
                    ours = process.cmdline()[1 : 1 + len(beginning)] == beginning
                    if ours and process.environ().get("CAPTION_STORE") == self.store.uri:
                        return process
            return None

        return wait_for(f"the command {arguments}", running, SECONDS)


# --- the stages -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of drawn photographs to learn from."""
    folder = tmp_path_factory.mktemp("source")
    synthetic.generate(folder, images=IMAGES)
    return folder


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """A folder of drawn photographs that nobody has learned from."""
    folder = tmp_path_factory.mktemp("new")
    synthetic.generate(folder, images=NEW - 2, seed=1)
    return folder


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, s3_server, s3_bucket_name, source, new):
    """Airflow with an empty store, a deadline of a second for nights, and two more DAGs."""
    folder, s3, uri = tmp_path_factory.mktemp("airflow"), Proxy(s3_server), f"s3://{s3_bucket_name}/{uuid.uuid4().hex}"
    other = tmp_path_factory.mktemp("other")
    tmp_path_factory.mktemp("temporary", numbered=False)
    (other / "some.py").write_text(OTHER_DAGS)
    bundles = [
        {
            "name": name,
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(path)},
        }
        for name, path in (("ours", PROJECT / "dags"), ("other", other))
    ]
    inbox = open_bucket(f"{uri}/inbox")
    for path in sorted((new / "images").iterdir()):
        inbox.put(f"camera/{path.name}", path.read_bytes())
    inbox.put("camera/broken.jpg", path.read_bytes()[:2000])
    inbox.put(HOSTILE, path.read_bytes())
    inbox.put("notes.txt", b"not to be captioned")
    with open_receivers() as receivers, open_statsd() as statsd:
        environment = {
            **secrets.without_credentials(),
            **secrets.by_connection(s3.url),
            **receivers.environment,
            **statsd.environment,
            "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
            "CAPTION_STORE": f"{uri}/store",
            "CAPTION_INBOX": f"{uri}/inbox",
            "CAPTION_BACKUP": f"{uri}/backup",
            "CAPTION_DATASET": source.as_uri(),
            "CAPTION_ENCODER": "random",
            "CAPTION_TRACKING_URI": secrets.TRACKING,
            "CAPTION_NIGHT_DEADLINE": str(1 / 3600),
            "TMPDIR": str(folder.with_name("temporary")),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
        }
        with start_airflow(folder, environment) as server:
            yield Deployment(folder, server, receivers, s3, uri, statsd=statsd)
    s3.stop()


@pytest.fixture(scope="module")
def first_night(deployment):
    """The night that its schedule starts at once, while there is no champion."""
    run = deployment.server.first_run(NIGHT_DAG)
    run.end()
    return run


@pytest.fixture(scope="module")
def browser():
    """A browser that connects to this machine only."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: `apt-get install chromium`")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser, deployment):
    """A window with a logged-in user, which may use the clipboard."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, permissions=["clipboard-read"])
    page = context.new_page()
    page.goto(deployment.url)
    log_in(page, deployment)
    page.get_by_role("link", name="Captions", exact=True).wait_for()
    page.close()
    yield context
    context.close()


def press(page, key):
    """Press a key once the page's scripts listen to it: a page is shown, and has its address, before they run."""
    page.wait_for_load_state()
    page.keyboard.press(key)


def log_in(page, deployment):
    """Fill in Airflow's login."""
    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", json.loads((deployment.home / "passwords.json").read_text())["admin"])
    press(page, "Enter")


@contextlib.contextmanager
def opened(context):
    """A page that fails the test if its scripts fail, or if something may not be loaded."""
    page = context.new_page()
    page.set_default_timeout(30_000)
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    yield page
    page.close()
    assert not wrong


@pytest.fixture
def page(context):
    """A page of the logged-in user."""
    with opened(context) as page:
        yield page


def picture(page, name, **options):
    """Take a picture for the documentation, if pictures are wanted."""
    if folder := os.environ.get("CAPTION_PICTURES"):
        page.mouse.move(0, 0)
        page.screenshot(path=Path(folder, f"{name}.jpg"), type="jpeg", quality=80, **options)


def open_form(page, deployment):
    """The form that triggers a retraining."""
    page.goto(f"{deployment.url}/dags/{RETRAINING_DAG}")
    page.get_by_role("button", name="Trigger").first.click()
    return page.get_by_role("dialog")


def unfold(form, section):
    """Unfold a section of the form, which folds the others."""
    form.get_by_role("button", name=section, exact=True).click()


def fill(form, *names, **values):
    """Type numbers into the form: some of ``FORM``, and others."""
    for name, value in {**{name: FORM[name] for name in names}, **values}.items():
        field = form.locator(f"[name=element_{name}]")
        field.fill(str(value))
        field.blur()


@pytest.fixture(scope="module")
def asked(deployment, first_night, context):
    """A retraining that the form has triggered, which waits for a person; and what that person is asked."""
    with opened(context) as page:
        form = open_form(page, deployment)
        unfold(form, "Data")
        picture(page, "form-data")
        fill(form, "min_count")
        unfold(form, "Training")
        fill(form, "epochs", "batch_size", "patience")
        unfold(form, "Evaluation and promotion")
        form.get_by_role("combobox", name="Promotion").click()
        page.get_by_role("option", name="approve", exact=False).first.click()
        picture(page, "form")
        form.get_by_role("button", name="Trigger", exact=True).click()
        run = deployment.server.first_run(RETRAINING_DAG, "manual")
    return SimpleNamespace(run=run, question=run.question())


@pytest.fixture(scope="module")
def promoted(deployment, context, asked):
    """The retraining, approved in the browser; the night that its champion started; and the champion's version.

    During the night the process of one task's command is killed, and then the whole worker of another task.
    """
    with opened(context) as page:
        page.goto(f"{deployment.address(asked.run)}/tasks/approval/required_actions")
        expect(page.get_by_text("CIDEr").first).to_be_visible()
        expect(page.get_by_text("Captions of some test photographs").first).to_be_visible()
        picture(page, "approval")
        # The page must not be closed before its request is answered.
        with page.expect_response(lambda response: response.request.method == "PATCH") as answer:
            page.get_by_role("button", name="Promote", exact=True).click()
        assert answer.value.ok
    deployment.command("extract").kill()
    worker = deployment.command("night", "caption").parent().parent()
    assert "scheduler" not in worker.cmdline()
    worker.kill()
    assert asked.run.end() == "success"
    night = deployment.server.first_run(NIGHT_DAG, "asset_triggered")
    assert night.end() == "success"
    return SimpleNamespace(retraining=asked.run, night=night, version=registry.read_champion(deployment.store).version)


@pytest.fixture(scope="module")
def corrected(deployment, context, promoted):
    """A caption that a person has corrected in the browser: the picture's key, the wrong caption and the right one."""
    with opened(context) as page:
        page.goto(f"{deployment.url}/captions/?status=ok")
        page.locator(".card a").first.click()
        key = page.get_by_role("heading", level=1).inner_text()
        wrong = page.locator("#counting .caption").inner_text()
        better = page.get_by_label("Better caption")
        expect(better).to_have_value(wrong)
        better.fill("something else")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_text("Saved. The next retraining will use it.")).to_be_visible()
        # The page shows it without being loaded again.
        expect(page.locator("#counting .caption")).to_have_text("something else")
        expect(page.locator("#counting .said")).to_have_text("corrected by admin")
    return SimpleNamespace(key=key, wrong=wrong, caption="something else")


@pytest.fixture(scope="module")
def kept(deployment, promoted, corrected):
    """A second retraining, with another seed, whose candidate a person keeps; and what that person was asked.

    While the retraining waits for the person, a maintenance runs.
    """
    run = deployment.server.trigger(RETRAINING_DAG, {**promoted.retraining.shown["conf"], "epochs": 2, "seed": 1})
    question = run.question()
    maintenance = deployment.server.trigger(MAINTENANCE_DAG)
    assert maintenance.end() == "success"
    run.answer("Keep as a candidate")
    assert run.end() == "success"
    return SimpleNamespace(run=run, question=question, maintenance=maintenance)


@pytest.fixture(scope="module")
def repeated(deployment, kept):
    """That retraining once more, and another night; and the keys and etags that the store had before."""
    before = toy.etags(deployment.store, "")
    conf = {**kept.run.shown["conf"], "promotion": "auto"}
    retraining = deployment.server.trigger(RETRAINING_DAG, conf)
    assert retraining.end() == "success"
    night = deployment.server.trigger(NIGHT_DAG)
    assert night.end() == "success"
    return SimpleNamespace(retraining=retraining, night=night, before=before)


@pytest.fixture(scope="module")
def maintained(deployment, repeated):
    """A maintenance whose form names a photograph to forget, and the night that it starts."""
    run = deployment.server.trigger(MAINTENANCE_DAG, {"forget": HOSTILE, "remove_forgotten": True, "recaption": True})
    assert run.end() == "success"
    night = next(run for run in deployment.server.runs(NIGHT_DAG) if run.shown["conf"] == {"recaption": "*"})
    assert night.end() == "success"
    return SimpleNamespace(run=run, night=night)


@pytest.fixture(scope="module")
def refused(deployment, repeated):
    """A night that S3 refuses, while the webhook's receiver is down."""
    secrets.refuse_credentials(deployment.s3)
    deployment.receivers.close_webhook()
    night = deployment.server.trigger(NIGHT_DAG)
    night.end()
    wait_for("the mail", lambda: any(night.id in text for _, text in deployment.receivers.mails), SECONDS)
    deployment.s3.behave()
    return night


# --- a night without a champion, and what is told of runs ------------------------------------------------------------


@pytest.mark.airflow
def test_a_failed_night(deployment, first_night):
    """A night without a champion fails; mail and webhook name the failed task, its message and the URL of its log."""
    assert first_night.shown["state"] == "failed"
    assert first_night.of_tasks("list_inbox", "try_number") == [1]
    text = deployment.notification("caption_new_images failed: list_inbox", first_night.id)
    address = deployment.address(first_night)
    assert f"Run: {address}\n" in text
    assert "* list_inbox: error: No model has been promoted" in text
    assert "trigger a retraining" in text
    assert f"  {address}/tasks/list_inbox\n" in text
    assert "clear the failed task" in text


@pytest.mark.airflow
def test_a_failed_night_is_among_the_metrics(deployment, first_night):
    """The task that ends it sends them, in a process that Airflow has set up for that."""
    wait_for("the metrics of the night", lambda: deployment.metric("night.succeeded", NIGHT_DAG) == 0, SECONDS)
    assert deployment.metric("night.captioned", NIGHT_DAG) is None


@pytest.mark.airflow
def test_a_failed_night_has_a_note_and_a_record(deployment, first_night):
    """Both hold the error message; the task that writes the record succeeds and leaves the run failed."""
    assert first_night.of_tasks("end_run", "state") == ["success"]
    message = "list_inbox: error: No model has been promoted in "
    assert first_night.shown["note"].startswith(message)
    record = runs.read_record(runs.NIGHT, first_night.id, deployment.store)
    assert (record.kind, record.status) == ("night", "failed")
    assert record.message.startswith(message)


@pytest.mark.airflow
def test_a_late_night(deployment, first_night):
    """A night that misses its deadline is reported."""
    assert "had not ended" in deployment.notification("caption_new_images is late", first_night.id)


@pytest.mark.airflow
def test_many_failed_tasks_are_counted(deployment):
    """Of many failed tasks ten are listed, with their logs; for a task without a message the list says so."""
    run = deployment.server.first_run("failing")
    text = deployment.notification("failing failed: a_command, extract", run.id)
    assert run.end() == "failed"
    record = runs.read_record(runs.NIGHT, run.id, deployment.store)
    assert (record.kind, record.status) == ("night", "failed")
    assert record.message.startswith("a_command: error: ")
    assert record.message.endswith(
        "; extract[8]: no error message: the task was killed or exceeded its time limit, see its log; "
        "if it has no log, no worker serves its queue; and 3 more failed tasks"
    )
    assert "* extract[8]: no error message" in text
    assert f"  {deployment.address(run)}/tasks/extract/mapped/8\n" in text
    assert "extract[9]" not in text
    assert "* and 3 more" in text


@pytest.mark.airflow
def test_warnings_of_a_night_that_succeeded(deployment):
    """The warnings that `reconcile` returns are sent, one per line, and `end_run` leaves the run a success."""
    run = deployment.server.first_run("warning")
    text = deployment.notification("warning ended with warnings", run.id)
    assert run.end() == "success"
    assert "* The captions differ from last week's.\n* 6 % are alike.\n" in text


# --- a retraining from the form to the approval ----------------------------------------------------------------------


@pytest.mark.browser
def test_the_form_refuses_bad_values(page, deployment):
    """Its sections unfold, dataset and encoder may be empty, required fields may not, and numbers stay in bounds."""
    before = len(deployment.server.runs(RETRAINING_DAG))
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
    assert len(deployment.server.runs(RETRAINING_DAG)) == before


@pytest.mark.airflow
def test_bad_values_are_refused(deployment):
    """Values that the form refuses are refused by the API too, and no run is created."""
    before = len(deployment.server.runs(RETRAINING_DAG))
    with pytest.raises(urllib.error.HTTPError) as refused:
        deployment.server.trigger(RETRAINING_DAG, {"promotion": "maybe"})
    assert refused.value.code == 400
    assert len(deployment.server.runs(RETRAINING_DAG)) == before


@pytest.mark.browser
def test_the_form_is_the_conf_of_the_run(asked):
    """The values that were typed, and the chosen promotion."""
    conf = asked.run.shown["conf"]
    assert {name: conf[name] for name in (*FORM, "promotion")} == {**FORM, "promotion": "approve"}


@pytest.mark.airflow
def test_a_person_is_asked(deployment, promoted, asked):
    """The first candidate comes with its scores, and without a champion to be compared with."""
    assert asked.question["subject"] == f"Promote {promoted.version}?"
    assert "There is no champion yet." in asked.question["body"]
    assert "| CIDEr |" in asked.question["body"]
    assert f"{deployment.url}/captions/models/{promoted.version}/report" in asked.question["body"]


@pytest.mark.airflow
def test_a_person_approves(deployment, promoted):
    """The answer promotes the candidate; who gave it stands in the champion's history and in the run's note."""
    reason = registry.read_champion(deployment.store).history[0].reason
    assert reason.startswith("admin approved it; CIDEr ")
    assert promoted.retraining.shown["note"].startswith(f"{promoted.version} is the new champion: admin approved it")


def without_duration(note):
    """A note of a task or a run that succeeded, without the duration at its end."""
    text, _, duration = note.rpartition(" (")
    assert re.fullmatch(r"(\d+ (hour|minute|second)s? ?)+\)", duration), note
    return text


@pytest.mark.airflow
def test_notes_of_a_retraining(deployment, promoted):
    """Each task's note is its command's summary, and the gate's is also the run's; the run has a record."""
    notes = {task: without_duration(note) for task, note in promoted.retraining.notes().items()}
    assert notes["ingest"] == f"{IMAGES} images (240 train, 30 dev, 30 test), {5 * IMAGES:,} captions"
    assert notes["evaluate"].startswith(f"{promoted.version}: BLEU-1 ")
    assert notes["gate"] == without_duration(promoted.retraining.shown["note"])
    assert promoted.retraining.of_tasks("extract", "rendered_map_index") == [f"1: {IMAGES} images"]
    assert promoted.retraining.of_tasks("end_run", "state") == ["success"]
    assert runs.read_record(runs.RETRAINING, promoted.retraining.id, deployment.store).status == "succeeded"


@pytest.mark.airflow
def test_metrics_of_a_retraining_and_its_night(deployment, promoted):
    """They agree with the records of both."""
    night = runs.read_record(runs.NIGHT, promoted.night.id, deployment.store)
    wait_for("the metrics of the night", lambda: deployment.metric("night.succeeded", NIGHT_DAG) == 1, SECONDS)
    assert deployment.metric("night.captioned", NIGHT_DAG) == night.captioned > 0
    assert deployment.metric("captions.captioned", NIGHT_DAG) == night.captioned
    retraining = runs.read_record(runs.RETRAINING, promoted.retraining.id, deployment.store)
    assert deployment.metric("retraining.promoted", RETRAINING_DAG) == 1
    assert deployment.metric("champion.cider", RETRAINING_DAG) is None
    assert deployment.metric("champion.cider", NIGHT_DAG) == pytest.approx(retraining.scores["CIDEr"])


@pytest.mark.airflow
def test_tasks_link_to_the_report(promoted):
    """Evaluation and gate link to the candidate's report and to the models, the training to the models."""
    pages = {"Report": f"/captions/models/{promoted.version}/report", "Models": "/captions/models"}
    assert promoted.retraining.links("evaluate") == promoted.retraining.links("gate") == pages
    assert promoted.retraining.links("train") == {"Models": "/captions/models"}


@pytest.mark.airflow
def test_events_carry_results(deployment, promoted):
    """The event of each asset holds the result of its task: counts, scores, and the model's version."""
    events = deployment.server.call("GET", "/api/v2/assets/events?limit=100")["asset_events"]
    extras = {
        (event["name"], event["source_task_id"]): event["extra"]
        for event in events
        if event["source_run_id"] in (promoted.retraining.id, promoted.night.id)
        and (event["name"], event["source_dag_id"]) != ("image_features", NIGHT_DAG)
    }
    assert extras["captioning_dataset", "ingest"]["images"] == {"train": 240, "dev": 30, "test": 30}
    assert extras["captioning_dataset", "ingest"]["captions"] == 5 * IMAGES
    assert extras["image_features", "extract"]["images"] == IMAGES
    assert extras["image_features", "extract"]["encoder_id"]
    assert extras["candidate_captioner", "train"]["version"] == promoted.version
    evaluated, champion = extras["candidate_captioner", "evaluate"], extras["champion_captioner", "emit_champion_event"]
    assert champion["version"] == evaluated["version"] == promoted.version
    assert champion["scores"]["CIDEr"] == evaluated["CIDEr"]
    assert champion["reason"]
    night = extras["image_captions", "reconcile"]
    assert [night[name] for name in ("listed", "captioned", "failed", "version")] == [NEW, NEW - 1, 1, promoted.version]


@pytest.mark.browser
def test_a_task_leads_to_the_report(page, deployment, promoted):
    """The run's page shows its note; the button of the evaluation opens the report."""
    page.goto(deployment.address(promoted.retraining))
    expect(page.get_by_text(promoted.retraining.shown["note"][:40], exact=False).first).to_be_visible()
    picture(page, "run")
    page.goto(f"{deployment.address(promoted.retraining)}/tasks/evaluate/details")
    link = page.get_by_role("link", name="Report")
    expect(link).to_be_visible()
    picture(page, "links")
    page.goto(link.get_attribute("href"))
    report = page.frame_locator("iframe.report")
    expect(report.get_by_role("heading", name="Captioner", exact=False).first).to_be_visible()
    picture(page, "report")
    page.get_by_role("link", name="All models").click()
    expect(page).to_have_url(re.compile(r"/captions/models$"))


# --- the champion's night --------------------------------------------------------------------------------------------


@pytest.mark.airflow
def test_a_night_survives_killed_processes(deployment, promoted):
    """Where a task's command is killed, and where the whole worker of a task is, the task is tried again and the night
    ends whole: each photograph has one row."""
    assert promoted.night.of_tasks("extract", "try_number") == promoted.night.of_tasks("caption", "try_number") == [2]
    rows = rows_in(deployment.store)
    photographs = [item.key for item in deployment.inbox.list() if item.key.endswith(".jpg")]
    assert sorted(row["image_key"] for row in rows) == sorted(photographs)
    [failed] = [row for row in rows if row["status"] == "failed"]
    assert failed["image_key"] == "camera/broken.jpg"
    assert "cannot be decoded" in failed["error"]
    record = runs.read_record(runs.NIGHT, promoted.night.id, deployment.store)
    assert record.status == "succeeded"
    assert (record.listed, record.captioned, record.failed, record.already_done) == (NEW, NEW - 1, 1, 0)


@pytest.mark.airflow
def test_notes_of_a_night(deployment, promoted):
    """Its note holds the counts, and it links to its captions."""
    # Each training sets its own threshold, and a few of these pictures may be beyond it.
    novel = sum(row["novel"] for row in rows_in(deployment.store) if row["status"] == "ok")
    assert without_duration(promoted.night.shown["note"]) == (
        f"{NEW} images listed = {NEW - 1} captioned + 1 failed + 0 done before; features of {NEW} extracted; "
        f"model {promoted.version}{f'; unlike the training photographs: {novel}' if novel else ''}; "
        "passed over: 1 .txt"
    )
    assert promoted.night.of_tasks("extract", "rendered_map_index") == [f"1: {NEW} images, 1 failed"]
    assert promoted.night.links("reconcile") == {
        "Captions": f"/captions/by-model?night={promoted.night.shown['run_after'][:10]}"
    }


@pytest.mark.airflow
def test_captions_of_unseen_pictures_are_true(deployment, new, promoted):
    """Of the attribute words in the captions of pictures that training did not see, at least nine tenths are true."""
    truth = synthetic.read_truth(new)
    stated = [
        (row["image_key"].rpartition("/")[2], attribute)
        for row in rows_in(deployment.store)
        if row["status"] == "ok" and row["image_key"].startswith("camera/")
        for attribute in synthetic.attributes(row["caption"])
    ]
    true = [attribute in truth[name] for name, attribute in stated]
    assert len(stated) >= (NEW - 2) * 2
    assert sum(true) / len(true) >= 0.9


# --- the gallery -----------------------------------------------------------------------------------------------------


def assert_shown(image):
    """Wait until a picture has loaded; it must be one."""
    image.scroll_into_view_if_needed()
    expect(image).to_have_js_property("complete", True)
    assert image.evaluate("image => image.naturalWidth") > 0


def frame(page, deployment):
    """The gallery inside Airflow's own page."""
    page.goto(deployment.url)
    page.get_by_role("link", name="Captions", exact=True).click()
    return page.frame_locator("iframe[title=Captions]")


@pytest.mark.browser
def test_the_gallery_is_in_the_navigation(page, deployment, promoted):
    """It shows the current captions with their pictures, page by page, and those by models; a click leads to a picture
    with all its captions."""
    gallery = frame(page, deployment)
    cards = gallery.locator(".card")
    expect(cards).to_have_count(24)
    expect(gallery.get_by_role("link", name="Airflow")).to_be_hidden()
    for number in (*range(8), 0):
        assert_shown(gallery.locator(".card img").nth(number))
    picture(page, "gallery")
    expect(gallery.get_by_text("32 photographs, page 1 of 2.")).to_be_visible()
    gallery.get_by_role("link", name="Captions by models").click()
    for forward, back in (("Older", "Newest"), ("Next", "Previous")):
        expect(cards).to_have_count(24)
        gallery.get_by_role("link", name=forward).click()
        expect(cards).to_have_count(8)
        gallery.get_by_role("link", name=back).click()
        expect(cards).to_have_count(24)
        gallery.get_by_role("link", name="Current captions").click()
    expect(cards).to_have_count(24)
    cards.nth(3).get_by_role("link").click()
    expect(gallery.get_by_role("heading", name="Captions by models")).to_be_visible()
    shown = gallery.locator("figure img")
    assert_shown(shown)
    picture(page, "picture")
    gallery.get_by_role("link", name="Nights").click()
    gallery.get_by_role("link", name="succeeded").first.click()
    expect(page).to_have_url(re.compile(r"/dags/caption_new_images/runs/"))
    expect(page.locator("iframe")).to_have_count(0)


@pytest.mark.browser
def test_search_and_filters(page, deployment, promoted):
    """A search finds captions; a failed image shows its error; an empty result says so."""
    page.goto(f"{deployment.url}/captions/")
    page.get_by_label("Status").select_option("failed")
    expect(page.locator(".card")).to_have_count(1)
    expect(page.get_by_label("Status")).to_be_focused()
    expect(page.locator(".card")).to_contain_text("cannot be decoded")
    page.goto(f"{deployment.url}/captions/?words=zebra")
    expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()
    page.goto(f"{deployment.url}/captions/?under=camera/&status=ok")
    word = page.locator(".card p").first.inner_text().split()[-1]
    page.goto(f"{deployment.url}/captions/")
    search, folder = page.get_by_label("Search"), page.get_by_label("Folder")
    search.fill(word)
    # Who goes on to another field is not done yet.
    folder.fill("camera/")
    expect(folder).to_be_focused()
    expect(search).to_have_value(word)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page).to_have_url(re.compile(f"words={word}&under=camera"))
    expect(page.locator(".card").first).to_contain_text(word)
    assert all(word in text for text in page.locator(".card").all_inner_texts())
    rows = csv.DictReader(download.value.path().read_text().splitlines())
    assert len(list(rows)) == int(page.locator("main .hint").first.inner_text().split()[0])


@pytest.mark.browser
def test_from_picture_to_picture(page, deployment, promoted):
    """A picture leads to those beside it in the captions that it was opened from, and back; by keys, too."""
    page.goto(f"{deployment.url}/captions/?under=camera/&status=ok")
    names = page.locator(".card .key").evaluate_all("keys => keys.map(key => key.title)")
    assert all(name.startswith("camera/") for name in names)
    title = page.get_by_role("heading", level=1)
    page.locator(".card a").first.click()
    expect(title).to_have_text(names[0])
    expect(page.get_by_role("link", name="Previous")).to_be_hidden()
    page.get_by_role("link", name="Next").click()
    expect(title).to_have_text(names[1])
    press(page, "ArrowRight")
    expect(title).to_have_text(names[2])
    press(page, "ArrowLeft")
    expect(title).to_have_text(names[1])
    press(page, "e")
    expect(page.get_by_label("Better caption")).to_be_focused()
    press(page, "ArrowRight")
    press(page, "Escape")
    expect(title).to_have_text(names[1])
    press(page, "Escape")
    expect(page).to_have_url(re.compile("under=camera.*#card-1$"))
    press(page, "/")
    expect(page.get_by_label("Search")).to_be_focused()
    page.goto(f"{deployment.url}/captions/?page=2")
    first = page.locator(".card .key").first.get_attribute("title")
    page.goto(f"{deployment.url}/captions/")
    last = page.locator(".card .key").last.get_attribute("title")
    page.locator(".card > a").last.click()
    page.get_by_role("link", name="Next").click()
    expect(title).to_have_text(first)
    press(page, "ArrowLeft")
    expect(title).to_have_text(last)
    press(page, "Escape")
    expect(page).to_have_url(re.compile("captions/.*#card-23$"))


@pytest.mark.browser
def test_a_picture_is_enlarged(page, deployment, promoted):
    """By a click and by the keyboard; Esc and a click end it, and the page stays."""
    page.goto(f"{deployment.url}/captions/?status=ok")
    page.locator(".card a").first.click()
    title = page.get_by_role("heading", level=1)
    enlarged = page.get_by_role("dialog")
    assert_shown(page.locator("figure img"))
    page.locator("figure img").click()
    assert_shown(enlarged.get_by_role("img"))
    enlarged.get_by_role("img").click()
    expect(enlarged).to_have_count(0)
    press(page, "z")
    expect(enlarged.get_by_role("button", name="Close")).to_be_focused()
    press(page, "Escape")
    expect(enlarged).to_have_count(0)
    expect(title).to_be_visible()


@pytest.mark.browser
def test_pictures_like_one(page, deployment, promoted):
    """They appear on its page when they are asked for, and lead to their own."""
    page.goto(f"{deployment.url}/captions/?status=ok")
    page.locator(".card a").first.click()
    title = page.get_by_role("heading", level=1).inner_text()
    page.get_by_role("link", name="More like this").click()
    found = page.locator("#similar")
    expect(found.locator(".card").first).to_be_visible()
    assert_shown(found.locator("img").first)
    expect(found).to_contain_text("Compared with")
    found.locator(".card a").first.click()
    expect(page.get_by_role("heading", level=1)).not_to_have_text(title)


@pytest.mark.browser
def test_a_hostile_name_is_a_name(page, deployment, promoted):
    """It is shown as it is written, leads to its picture, and nothing of it runs."""
    page.goto(f"{deployment.url}/captions/?words=bold{quote('</b>')}")  # with a slash: all before it is a folder
    expect(page.locator(".card")).to_have_count(1)
    page.locator(".card a").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    assert page.locator("main b").count() == 0
    shown = page.locator("figure img")
    assert_shown(shown)


@pytest.mark.browser
def test_a_failed_picture_says_why(page, deployment, promoted):
    """Its page has the error of the night, and in place of the picture the reason why it can't be shown."""
    page.goto(f"{deployment.url}/captions/image?key=camera/broken.jpg")
    expect(page.locator(".counting.failed")).to_contain_text("cannot be decoded")
    expect(page.locator(".lost")).to_contain_text("The picture can't be shown: cannot be decoded")


@pytest.mark.browser
def test_models_and_nights(page, deployment, promoted):
    """The champion is highlighted, with its scores; a night has its counts and its drift."""
    version = registry.read_champion(deployment.store).version
    page.goto(f"{deployment.url}/captions/models")
    expect(page.locator("tr.champion")).to_contain_text(version)
    heading = page.get_by_role("columnheader", name="CIDEr")
    for order in ("descending", "ascending"):
        heading.get_by_role("button").click()
        expect(heading).to_have_attribute("aria-sort", order)
    assert page.locator(".models .scroll").evaluate("table => table.scrollWidth <= table.clientWidth")
    picture(page, "models", clip={"x": 0, "y": 0, "width": 1280, "height": 260})
    page.get_by_role("link", name="Report").first.click()
    report = page.frame_locator("iframe.report")
    expect(report.get_by_role("heading", name="Captioner", exact=False).first).to_be_visible()
    page.goto(f"{deployment.url}/captions/nights")
    record = runs.read_record(runs.NIGHT, promoted.night.id, deployment.store)
    measures = {measure for drift in record.drift.values() for measure in drift}
    expect(page.locator("svg.plot")).to_have_count(len(measures))
    expect(page.locator("tbody tr").first).to_contain_text("32")
    expect(page.get_by_text("clear the failed task in the run").first).to_be_visible()
    picture(page, "nights")
    page.get_by_role("link", name="1 failed images of").first.click()
    expect(page.locator(".card.failed")).to_have_count(1)


@pytest.mark.browser
def test_uploads_are_captioned(page, deployment, promoted, source):
    """Each has a caption with alternatives, which can be copied, and corrected for the next training."""
    page.goto(f"{deployment.url}/captions/try")
    expect(page.get_by_label("Better caption")).to_have_count(0)
    pictures = sorted((source / "images").iterdir())[7:10]
    page.set_input_files("input[type=file]", pictures[:2])
    items = page.locator(".results > li")
    expect(items).to_have_count(2)
    for place in range(2):
        expect(items.nth(place).locator(".result")).to_be_visible(timeout=120_000)
        expect(items.nth(place).get_by_role("img")).to_have_attribute("alt", pictures[place].name)
    first = items.first
    caption = first.locator("p.caption").inner_text()
    assert caption
    assert first.locator(".alternatives li").count() >= 1
    expect(first.locator(".version")).to_contain_text(f"{spoken_name(promoted.version)} ({promoted.version})")
    picture(page, "try")
    first.get_by_role("button", name="Copy").click()
    expect(first.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == caption
    page.set_input_files("input[type=file]", pictures[2])
    expect(items).to_have_count(3)
    expect(first.get_by_role("img")).to_have_attribute("alt", pictures[2].name)
    first.get_by_text("Correct or confirm").click()
    first.get_by_label("Better caption").fill("a drawn thing on the grass")
    first.get_by_role("button", name="Save my caption").click()
    expect(first.get_by_text("Saved. The next retraining will use it.")).to_be_visible()
    row = corrections.read(deployment.store).to_pylist()[-1]
    assert (row["caption"], row["corrected_by"]) == ("a drawn thing on the grass", "admin")


@pytest.mark.browser
def test_bad_uploads_have_a_plain_message(page, deployment, tmp_path, promoted, source):
    """A file that is not a picture gets a message and nothing to save, and the next picture a caption."""
    (tmp_path / "text.jpg").write_text("no picture")
    page.goto(f"{deployment.url}/captions/try")
    page.set_input_files("input[type=file]", [tmp_path / "text.jpg", sorted((source / "images").iterdir())[9]])
    bad, good = (page.locator(".results > li").nth(place) for place in range(2))
    expect(bad.locator(".state.bad")).to_contain_text("not a picture in a known format", timeout=120_000)
    expect(good.locator(".result")).to_be_visible()
    expect(bad.get_by_role("button")).to_have_count(0)


@pytest.mark.browser
def test_a_sample_is_captioned(page, deployment, promoted):
    """Without a picture of one's own; nothing is written."""
    before = toy.etags(deployment.inbox, "")
    page.goto(f"{deployment.url}/captions/try")
    page.get_by_role("button", name="Try a sample picture").click()
    expect(page.locator(".result p.caption")).not_to_be_empty(timeout=120_000)
    assert_shown(page.locator(".results img"))
    assert toy.etags(deployment.inbox, "") == before


@pytest.mark.browser
def test_a_wrong_caption_is_corrected(deployment, corrected):
    """The correction names the picture in the inbox and the wrong caption."""
    rows = corrections.read(deployment.store).to_pylist()
    [row] = [row for row in rows if row["caption"] == corrected.caption]
    assert (row["image_key"], row["model_caption"]) == (corrected.key, corrected.wrong)


@pytest.mark.browser
def test_a_correction_is_withdrawn(page, deployment, promoted):
    """A confirmed caption is a person's, until it is withdrawn in the list of corrections."""
    page.goto(f"{deployment.url}/captions/?status=ok")
    page.locator(".card a").nth(5).click()
    address = page.url
    page.get_by_role("button", name="Looks right").click()
    expect(page.locator("#counting .said")).to_have_text("looks right (admin)")
    page.goto(f"{deployment.url}/captions/corrections")
    assert_shown(page.locator("tbody img").first)
    picture(page, "corrections")
    page.get_by_role("button", name="Withdraw").first.click()
    expect(page.get_by_text("Withdrawn. The caption of the model counts again.")).to_be_visible()
    expect(page.locator("tbody tr").first).to_contain_text("withdrawn")
    page.goto(address)
    expect(page.get_by_role("button", name="Looks right")).to_be_visible()


@pytest.fixture
def unsure(deployment, corrected):
    """The keys of three captions that wait for review, in the order of the queue, and no others: the last one is novel.

    They are marked by hand, as nobody knows of which captions of drawn photographs a model is unsure.
    """
    store = deployment.store
    stored = parquet.read(layout.CURRENT_CAPTIONS, store, columns=current.SCHEMA)
    rows = current.read(store).to_pylist()
    keys = [row["image_key"] for row in rows if row["caption"] and row["source"] == "model"][-3:]
    marks = {
        key: {"confidence": 0.23 + 0.1 * place, "novel": place == 2, "review": True} for place, key in enumerate(keys)
    }
    marked = [{**row, "review": False, **marks.get(row["image_key"], {})} for row in stored.to_pylist()]
    table = pa.Table.from_pylist(marked, schema=current.SCHEMA)
    parquet.write(table, layout.CURRENT_CAPTIONS, store, metadata=parquet.metadata(stored))
    return [keys[2], keys[0], keys[1]]


@pytest.mark.browser
def test_a_review_by_keyboard(page, deployment, unsure):
    """The navigation counts what waits: one caption is right, one is corrected, one is skipped; then none is left."""
    page.goto(f"{deployment.url}/captions/")
    link = page.get_by_role("link", name="Review")
    expect(link).to_have_text("Review3")
    link.click()
    key, left, said = (page.locator(selector) for selector in (".review .key", ".left", "output.saved"))
    expect(key).to_have_text(unsure[0])
    expect(page.locator(".review .sure")).to_have_text("unlike the photographs it learned from")
    assert_shown(page.locator("figure img"))
    press(page, "n")
    expect(key).to_have_text(unsure[1])
    expect(page.locator(".review .sure")).to_have_text("23 % sure")
    expect(link).to_have_text("Review3")
    picture(page, "review", clip={"x": 0, "y": 0, "width": 1280, "height": 560})
    press(page, "y")
    expect(key).to_have_text(unsure[2])
    expect(said).to_have_text("Saved. The next retraining will use it.")
    expect(left).to_have_text("2 left")
    press(page, "c")
    page.keyboard.type("a sunny day")  # with an s, an n and a y
    press(page, "Enter")
    # After the last one comes the first, which was passed over.
    expect(key).to_have_text(unsure[0])
    page.get_by_label("Use the keys").uncheck()
    press(page, "s")
    page.get_by_label("Use the keys").check()
    press(page, "s")
    expect(page.get_by_role("heading", name="Nothing to review")).to_be_visible()
    expect(link).to_have_text("Review")
    found = {row["image_key"]: row for row in corrections.read(deployment.store).to_pylist()}
    assert (found[unsure[1]]["action"], found[unsure[2]]["caption"]) == ("confirmed", "a sunny day")
    assert unsure[0] not in found


@pytest.mark.browser
def test_a_picture_keeps_its_caption(page, deployment, promoted, source):
    """Where another picture is chosen, each has what was said about it: nothing, if there is no answer."""
    page.goto(f"{deployment.url}/captions/try")
    first, second = sorted((source / "images").iterdir())[11:13]
    page.set_input_files("input[type=file]", first)
    items = page.locator(".results > li")
    expect(items.first.locator(".result")).to_be_visible(timeout=120_000)
    caption = items.first.locator("p.caption").inner_text()
    page.route("**/captions/caption?*", lambda route: route.abort())
    page.set_input_files("input[type=file]", second)
    expect(items.first.locator(".state.bad")).to_be_visible()
    expect(items.first.locator(".result")).to_be_hidden()
    expect(items.nth(1).locator("p.caption")).to_have_text(caption)


@pytest.mark.browser
def test_pages_without_scripts(browser, context, deployment, corrected):
    """They are readable, and offer nothing that needs a script."""
    with browser.new_context(storage_state=context.storage_state(), java_script_enabled=False) as plain:
        page = plain.new_page()
        page.goto(f"{deployment.url}/captions/image?key={quote(corrected.key)}")
        expect(page.locator("#counting .caption")).to_have_text(corrected.caption)
        expect(page.get_by_role("button")).to_have_count(0)


@pytest.mark.browser
def test_by_keyboard_alone(page, deployment, promoted):
    """The first key skips the navigation; every control is in the tab order and shows its focus."""
    page.goto(f"{deployment.url}/captions/")
    press(page, "Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    names = []
    for _ in range(21):
        press(page, "Tab")
        names.append(page.evaluate("(document.activeElement.name || document.activeElement.innerText).trim()"))
    names[1] = names[1].rstrip("0123456789")  # the captions that wait
    assert names[:8] == ["Captions", "Review", "Corrections", "Nights", "Models", "Datasets", "Try it", "Airflow"]
    assert names[8:10] == ["Current captions", "Captions by models"]
    assert names[10:12] == ["words", "Search"]
    assert names[12:19] == ["under", "version", "status", "source", "unsure", "review", "order"]
    assert names[19] == "Download as CSV"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    press(page, "Enter")
    expect(page.get_by_role("heading", name="Captions by models")).to_be_visible()


def contrast(page, selector, part="color"):
    """The contrast of a text, or of another part of an element, with what is behind it, by WCAG 2."""
    return page.evaluate(
        """([selector, part]) => {
          const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
          const channels = colour => { context.clearRect(0, 0, 1, 1); context.fillStyle = colour;
            context.fillRect(0, 0, 1, 1); return [...context.getImageData(0, 0, 1, 1).data]; };
          const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const element = document.querySelector(selector);
          let behind = part === "color" ? element : element.parentElement;
          while (behind && channels(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
          const lights = [getComputedStyle(element)[part], getComputedStyle(behind || document.body).backgroundColor]
            .map(colour => light(channels(colour))).sort((a, b) => b - a);
          return (lights[0] + 0.05) / (lights[1] + 0.05);
        }""",
        [selector, part],
    )


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_on_a_phone(browser, context, deployment, scheme, unsure):
    """Nothing is wider than a phone, and all text is readable in both."""
    phone = browser.new_context(
        viewport={"width": 390, "height": 844},
        color_scheme=scheme,
        storage_state=context.storage_state(),
        device_scale_factor=2,
        has_touch=True,
    )
    page = phone.new_page()
    for path in (
        "",
        "review",
        "corrections",
        "nights",
        "models",
        "datasets",
        "try",
        "?words=zebra",
        "image?key=camera/broken.jpg",
        "image?key=none",
    ):
        page.goto(f"{deployment.url}/captions/{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        assert {"light": "rgb(251", "dark": "rgb(17,"}[scheme] in page.evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
    for path, selectors in {
        "": [".card p", ".card .meta", "header a", "button", "label"],
        "?status=failed": [".card p"],
        "?source=person": [".said"],
        "review": [".left", ".sure", ".review .key", ".steps button", ".button", ".hint", ".keys", ".count"],
        "corrections": ["td .model", "td button"],
        "nights": ["th", "td", "td a", ".legend"],
        "models": [".badge", "tr.champion td a", "tr.champion td"],
    }.items():
        page.goto(f"{deployment.url}/captions/{path}")
        for selector in selectors:
            assert contrast(page, selector) >= 4.5, (path, selector)
    for path, selectors in {
        "": ["input", "select", "button"],
        "review": ["button.quiet", "a.button", "input[name=caption]"],
        "try": [".drop", "select", "button.quiet"],
    }.items():
        page.goto(f"{deployment.url}/captions/{path}")
        for selector in selectors:
            assert contrast(page, selector, "borderTopColor") >= 3, (path, selector)
    page.goto(f"{deployment.url}/captions/")
    page.wait_for_load_state("networkidle")
    picture(page, f"phone-{scheme}")
    phone.close()


@pytest.mark.browser
def test_airflows_switch_turns_the_gallery_dark(page, deployment, promoted):
    """The gallery follows the page around it at once."""
    gallery = frame(page, deployment)
    page.evaluate(
        "document.documentElement.classList.replace('light', 'dark') || document.documentElement.classList.add('dark')"
    )
    expect(gallery.locator("html")).to_have_attribute("data-theme", "dark")
    picture(page, "dark")
    page.evaluate("document.documentElement.classList.replace('dark', 'light')")
    expect(gallery.locator("html")).to_have_attribute("data-theme", "light")


@pytest.mark.browser
def test_nobody_gets_in_without_a_login(browser, deployment, promoted):
    """A user who is not logged in, or whose login another server has signed, is led to the login and back."""
    with browser.new_context() as stranger:
        page = stranger.new_page()
        stranger.add_cookies([{"name": "_token", "value": "of.another.server", "url": deployment.url}])
        page.goto(f"{deployment.url}/captions/nights")
        log_in(page, deployment)
        page.wait_for_url(f"{deployment.url}/captions/nights")
        page.goto(f"{deployment.url}/captions?status=failed")
        expect(page.get_by_label("Status")).to_have_value("failed")


# --- a second retraining, and runs with nothing to do ----------------------------------------------------------------


@pytest.mark.airflow
def test_a_person_keeps_the_candidate(deployment, promoted, kept):
    """The second candidate is compared with the champion, which stays; the record says who decided."""
    assert f"champion {promoted.version}" in kept.question["body"]
    assert registry.read_champion(deployment.store).version == promoted.version
    record = runs.read_record(runs.RETRAINING, kept.run.id, deployment.store)
    assert (record.status, record.promoted) == ("succeeded", False)
    assert record.reason.startswith("admin rejected it; CIDEr ")


@pytest.mark.airflow
def test_a_correction_reaches_the_next_dataset(deployment, corrected, kept):
    """The corrected picture is in the second retraining's dataset, with the person's caption alone."""
    found = dataset.load(runs.read_record(runs.RETRAINING, kept.run.id, deployment.store).dataset, deployment.store)
    assert corrected.caption in str(found.table.to_pylist())


@pytest.mark.airflow
def test_a_repeated_retraining_and_night_do_nothing(deployment, promoted, repeated):
    """Nothing is extracted, trained or captioned a second time, and the champion stays."""
    work = (layout.FEATURES, layout.ENCODERS, layout.CAPTIONS)
    before, after = repeated.before, toy.etags(deployment.store, "")
    for folder in (*work, layout.DATASETS, layout.MODELS):
        assert {key for key in before if key.startswith(folder)} == {key for key in after if key.startswith(folder)}
    assert {key for key in before if key.startswith(work) and before[key] != after[key]} == set()
    assert after[layout.CHAMPION] == before[layout.CHAMPION]
    record = runs.read_record(runs.NIGHT, repeated.night.id, deployment.store)
    assert (record.extracted, record.captioned, record.failed, record.already_done) == (0, 0, 0, NEW)
    record = runs.read_record(runs.RETRAINING, repeated.retraining.id, deployment.store)
    assert (record.status, record.promoted) == ("succeeded", False)


@pytest.fixture(scope="module")
def candidate(deployment, kept):
    """The version of the second retraining's model, which is not the champion."""
    return runs.read_record(runs.RETRAINING, kept.run.id, deployment.store).version


@pytest.fixture(params=["light", "dark"])
def themed(browser, context, request):
    """A page of the logged-in user in each theme."""
    with browser.new_context(color_scheme=request.param, storage_state=context.storage_state()) as window:
        yield window.new_page()


@pytest.mark.browser
def test_axe_finds_nothing_wrong(themed, deployment, candidate, unsure):
    """On every page, on a large screen and on a phone: each control has a name, and all text enough contrast."""
    page, found = themed, []
    for path in PAGES:
        address = f"{deployment.url}/captions{path.format(version=candidate, key=unsure[0])}"
        page.goto(address)
        if path.endswith("/report/page"):  # in its sandbox, axe would wait for ever
            page.goto("about:blank")
            page.set_content(page.request.get(address).text())
        elif path == "/try":
            page.get_by_role("button", name="Try a sample picture").click()
            expect(page.locator(".result p.caption")).not_to_be_empty(timeout=120_000)
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 860})
            page.wait_for_load_state("networkidle")
            answer = Axe().run(page)
            assert answer.response["passes"], path
            found += [f"{path} ({width} wide): {answer.generate_report()}"] if answer.violations_count else []
    assert not found, "\n\n".join(found)


@pytest.mark.browser
def test_a_candidate_is_compared_promoted_and_rolled_back(page, deployment, promoted, repeated, candidate):
    """From the list of models to both captions of each photograph, and by two pages to another champion and back."""
    page.goto(f"{deployment.url}/captions/models")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(spoken_name(candidate))
    assert_shown(page.locator(".pair img").first)
    picture(page, "compare")
    page.get_by_role("link", name="Test photographs").click()
    expect(page.get_by_text("scores higher on")).to_be_visible()
    assert_shown(page.locator(".pair img").first)
    page.get_by_role("link", name=f"Promote {spoken_name(candidate)}").click()
    page.get_by_role("button", name="Promote").click()  # a reason is required
    assert registry.read_champion(deployment.store).version == promoted.version
    page.get_by_label("Reason").fill("it names colours")
    picture(page, "promote")
    page.get_by_role("button", name="Promote").click()
    expect(page.locator("output.saved")).to_contain_text("is the champion. The next night captions with it.")
    expect(page.locator("tr.champion")).to_contain_text(candidate)
    champion = registry.read_champion(deployment.store)
    assert (champion.version, champion.history[-1].reason) == (candidate, "admin promoted it: it names colours")
    page.get_by_role("link", name="Roll back").click()
    page.get_by_label("Reason").fill("it does not")
    page.get_by_role("button", name="Roll back").click()
    expect(page.locator("output.saved")).to_contain_text(f"{promoted.version}) is the champion")
    expect(page.locator("tr.champion")).to_contain_text(promoted.version)
    assert registry.read_champion(deployment.store).rollbacks[0].reason == "admin rolled it back: it does not"


# --- the maintenance --------------------------------------------------------------------------------------------------


@pytest.mark.airflow
def test_a_maintenance_while_a_person_is_asked(kept, promoted):
    """It does not wait for the person, removes nothing, and its note says what it did, for example with the backup."""
    note = kept.maintenance.shown["note"]
    assert re.match(r"forget: skipped: the form names no photograph; fold: [1-9]\d* corrections?; back_up: ", note)
    assert re.search(rf"objects read back; champion {promoted.version}; {NEW} current captions in the backup; ", note)
    assert re.search(
        r"prune: 0 objects \(0\.0 MB\) can be removed, nothing is without --remove \(\d+ seconds?\)$", note
    )
    assert kept.maintenance.of_tasks("recaption", "state") == ["skipped"]


@pytest.mark.airflow
def test_a_maintenance_forgets_a_photograph(deployment, maintained):
    """With its copy, it is in neither the store nor the backup, and the next night captions all others again."""
    assert re.search(r"forget: 2 images .*in \d+ objects forgotten", maintained.run.shown["note"])
    for bucket in (deployment.store, deployment.backup):
        assert HOSTILE not in current.read(bucket)["image_key"].to_pylist()
        assert tombstones.read(bucket).has("key", HOSTILE)
    record = runs.read_record(runs.NIGHT, maintained.night.id, deployment.store)
    assert (record.listed, record.requested, record.passed_over["forgotten"]) == (NEW - 2, NEW - 2, 2)


# --- a refused night, and what nobody may read -----------------------------------------------------------------------


@pytest.mark.airflow
def test_a_night_that_s3_refuses(deployment, refused):
    """It fails without a second try, and its task's log says why; the mail goes out although the webhook is down."""
    assert refused.shown["state"] == "failed"
    assert refused.of_tasks("list_inbox", "try_number") == [1]
    [log] = deployment.home.glob(f"logs/dag_id={NIGHT_DAG}/run_id={refused.id}/task_id=list_inbox/*.log")
    assert "(SignatureDoesNotMatch)" in log.read_text()
    written = b"".join(secrets.files(deployment.home))
    assert b"could not be delivered to chat: ConnectionError" in written


@pytest.mark.airflow
def test_nothing_keeps_a_secret(deployment, promoted, refused):
    """After all this, no file of Airflow's folder holds one, logs among them; no cell of its database, XComs among
    them; and no object of the store: records, metadata, pages, and unpacked Parquet and archives."""
    known = [*secrets.SECRETS, SECRET.encode()]
    written = secrets.files(deployment.home)
    assert any(b"is not recorded in MLflow at http://127.0.0.1:1/" in content for content in written)
    secrets.search(written, promoted.version, known)
    secrets.search(secrets.cells(deployment.home / "airflow.db"), promoted.version, known)
    objects = {item.key: deployment.store.get(item.key) for item in deployment.store.list()}
    assert {"parquet", "json", "html", "npz", "keras"} <= {key.rpartition(".")[2] for key in objects}
    secrets.search(objects.values(), promoted.version, known)
    # Tasks were killed, too. Only the API server's own credentials are left, as long as it runs.
    assert len(list(deployment.temporary.glob("captioning-*"))) <= 1
