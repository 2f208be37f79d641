"""MLflow: what is recorded, how another process continues it, and what happens where MLflow fails."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config import DecodingConfig
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.settings import Settings
from pipeline.storage import layout, open_bucket
from pipeline.training import mlflow as tracking
from pipeline.training.train import train_captioner
from tests.support import toy
from tests.support.effort import random_inputs
from tests.support.paths import PROJECT

CURVES = [{"epoch": epoch, "loss": 4 / epoch, "dev_cider": epoch / 10, "seconds": 2.5} for epoch in range(1, 5)]

TRAIN = """
import sys
from pipeline.training import mlflow as tracking
uri, version = sys.argv[1:]
curves = []
with tracking.Run(uri, version) as run:
    run.parameters({"seed": 1})
    for epoch in range(1, 11):
        curves.append({"epoch": epoch, "loss": 1 / epoch})
        run.curves(curves)
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """The URI of an SQLite file, in a folder that does not exist yet and whose name needs quoting in a URI."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/läufe von hier/mlflow.db"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URI of an MLflow server, which is installed in an environment of its own."""
    mlflow = PROJECT / ".venv-mlflow" / "bin" / "mlflow"
    if not mlflow.exists():
        pytest.skip(f"{mlflow} is not there: `make .venv-mlflow/installed`")
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *(mlflow, "server", "--workers=1"),
                *("--host=127.0.0.1", f"--port={port}"),
                *(f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"),
            ],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        while not is_up(uri):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # a machine that runs tests may be busy
            yield uri
    finally:
        process.terminate()
        process.wait(60)


def is_up(uri):
    """Whether a server answers at this address."""
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:  # noqa: S310 - always http
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def recorded(uri, version):
    """The one MLflow run of a version, and the points of each of its metrics as (step, value)."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    [run] = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == version]
    points = {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    return run, points


def artifact(uri, run, name):
    """The text of an artifact."""
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(run_id=run.info.run_id, artifact_path=name, tracking_uri=uri)).read_text()


def record_training(uri, version, points):
    """Record a training, epoch by epoch."""
    with tracking.Run(uri, version) as run:
        run.parameters({"seed": 7, "embedding": "glove", "learning_rate": 2e-3})
        for epoch in range(1, len(points) + 1):
            run.curves(points[:epoch])


def record_scores(uri, version, points, cider):
    """Record scores and a page, as a later process does."""
    with tracking.Run(uri, version) as run:
        run.curves(points)
        run.scores({"greedy": {"CIDEr": cider - 0.1}, "chosen": {"CIDEr": cider, "BLEU-4": 0.2}})
        run.page("report.html", f"<p>CIDEr {cider} – ©</p>")


@pytest.mark.parametrize("kind", ["database", pytest.param("server", marks=pytest.mark.by_hand)])
def test_training_and_evaluation_are_one_run(kind, request, capfd):
    """Parameters, curves, scores and page are in one finished run named by the version; nothing is printed."""
    uri = request.getfixturevalue(kind)
    record_training(uri, "v1", CURVES)
    record_scores(uri, "v1", CURVES, 0.5)
    assert capfd.readouterr() == ("", "")
    run, points = recorded(uri, "v1")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "7", "embedding": "glove", "learning_rate": "0.002"}
    for name in ("loss", "dev_cider", "seconds"):
        assert points.pop(name) == [(point["epoch"], point[name]) for point in CURVES]
    assert points == {"greedy/CIDEr": [(0, 0.4)], "chosen/CIDEr": [(0, 0.5)], "chosen/BLEU-4": [(0, 0.2)]}
    assert artifact(uri, run, "report.html") == "<p>CIDEr 0.5 – ©</p>"
    page = f"{uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert tracking.Run(uri, "v1").address() == (page if kind == "server" else "")


def test_the_address_of_a_run_is_that_of_its_page():
    """On a server, whose user and password it does not have; a run that is not recorded has none."""
    run = tracking.Run("https://user:secret@mlflow.example/tracking/", "v1")
    info = SimpleNamespace(info=SimpleNamespace(experiment_id="3"))
    run.__dict__ |= {"_client": SimpleNamespace(get_run=lambda _: info), "_id": "2a"}
    assert run.address() == "https://mlflow.example/tracking/#/experiments/3/runs/2a"
    assert tracking.Run("", "v1").address() == ""


def test_the_artifacts_of_a_file_are_beside_it(database):
    """The page is in the folder that has the name of the file without its suffix."""
    record_scores(database, "beside", [], 0.5)
    run, _ = recorded(database, "beside")
    folder = Path(database.removeprefix("sqlite:///")).with_suffix("")
    assert (folder / run.info.run_id / "artifacts" / "report.html").is_file()


def test_the_newest_evaluation_is_shown(database):
    """The scores and the page of the newest evaluation replace the earlier ones."""
    record_scores(database, "again", CURVES, 0.5)
    record_scores(database, "again", CURVES, 0.4)
    run, _ = recorded(database, "again")
    assert run.data.metrics["chosen/CIDEr"] == 0.4
    assert artifact(database, run, "report.html") == "<p>CIDEr 0.4 – ©</p>"


def test_a_report_is_replaced_where_there_is_one(database):
    """No run and no report is made for it, and a failure is an error: what was to go is still there."""
    from mlflow.exceptions import MlflowException

    tracking.replace_report("never tracked", "<p>new</p>", database)
    with pytest.raises(ValueError, match="not enough values"):
        recorded(database, "never tracked")
    with tracking.Run(database, "without report") as run:
        run.parameters({"seed": 1})
    tracking.replace_report("without report", "<p>new</p>", database)
    run, _ = recorded(database, "without report")
    with pytest.raises((OSError, MlflowException)):
        artifact(database, run, tracking.REPORT)
    with tracking.Run(database, "with report") as run:
        run.page(tracking.REPORT, "<p>old</p>")
    tracking.replace_report("with report", "<p>new</p>", database)
    run, _ = recorded(database, "with report")
    assert artifact(database, run, tracking.REPORT) == "<p>new</p>"
    with pytest.raises(MlflowException):
        tracking.replace_report("with report", "", "http://127.0.0.1:1")


def test_a_card_that_is_too_long_for_a_description(database):
    """The description ends with the last line that fits, and the artifact is the whole card."""
    card = "".join(f"- line {number}\n" for number in range(1000))
    with tracking.Run(database, "long card") as run:
        run.card(card)
    run, _ = recorded(database, "long card")
    description = run.data.tags[tracking.DESCRIPTION]
    assert card.startswith(f"{description}\n")
    assert 4980 < len(description) <= tracking.DESCRIPTION_LENGTH
    assert artifact(database, run, tracking.CARD) == card


def test_the_status_of_a_resumed_training(database):
    """Its status is failed, then running again, then finished, which a failing evaluation does not change."""
    with pytest.raises(ZeroDivisionError), tracking.Run(database, "resumed") as run:
        run.curves(CURVES[:2])
        raise ZeroDivisionError
    assert recorded(database, "resumed")[0].info.status == "FAILED"
    with tracking.Run(database, "resumed") as run:
        assert recorded(database, "resumed")[0].info.status == "RUNNING"
        run.curves(CURVES)
    run, points = recorded(database, "resumed")
    assert run.info.status == "FINISHED"
    assert [step for step, _ in points["loss"]] == [1, 2, 3, 4]
    with pytest.raises(ZeroDivisionError), tracking.Run(database, "resumed"):
        raise ZeroDivisionError
    assert recorded(database, "resumed")[0].info.status == "FINISHED"


@settings(max_examples=random_inputs(8))
@given(lengths=st.lists(st.integers(0, 4), max_size=4))
def test_no_point_is_duplicated_or_lost(database, lengths):
    """However often and from which epoch the curves are recorded again, each epoch is there once."""
    version = f"lengths-{lengths}"
    for length in [*lengths, 4]:
        tracking.Run(database, version).curves(CURVES[:length])
    _, points = recorded(database, version)
    assert points["loss"] == [(point["epoch"], point["loss"]) for point in CURVES]


def test_two_concurrent_trainings(tmp_path):
    """Two processes that create the same file at once both record their whole run, and print nothing."""
    uri = f"sqlite:///{tmp_path}/data/mlflow.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, uri, version], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for version in ("one", "other")
    ]
    assert [process.communicate()[0].decode() for process in processes] == ["", ""]
    for version in ("one", "other"):
        run, points = recorded(uri, version)
        assert run.info.status == "FINISHED"
        assert points == {"loss": [(epoch, 1 / epoch) for epoch in range(1, 11)]}


@pytest.fixture(params=["closed", "silent"])
def dead_server(request, monkeypatch):
    """The URI of a port where nobody listens, and of one where somebody listens but never answers."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        if request.param == "silent":
            dead.listen()
        yield f"http://127.0.0.1:{dead.getsockname()[1]}"


def test_an_unreachable_server_is_one_warning(dead_server, caplog, capfd):
    """Nothing is raised; a single line in the log names the model, the server, the cause and what to do."""
    record_training(dead_server, "v1", CURVES)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    text = record.getMessage()
    assert f"model v1 is not recorded in MLflow at {dead_server}" in text
    assert "refused" in text or "timed out" in text
    assert "CAPTION_TRACKING_URI" in text
    assert "`captioning evaluate v1`" in text
    assert tracking.Run(dead_server, "v1").address() == ""
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("credentials", ["user:secret", "us%40er:secret", "secret", "user:p/secret", "user:p@secret"])
def test_a_password_in_the_address_is_not_logged(credentials, caplog, monkeypatch):
    """The warning names the server and the cause, but neither the password nor the user in its address."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    record_training(f"https://{credentials}@127.0.0.1:1/tracking", "v1", CURVES)
    [record] = caplog.records
    assert "secret" not in record.getMessage()
    if "/" not in credentials:  # with a slash, it is another address
        assert "MLflow at https://127.0.0.1:1/tracking, " in record.getMessage()
        assert "refused" in record.getMessage()


@pytest.fixture
def broken(database, monkeypatch):
    """Break MLflow until that is undone, and list the failures."""
    failures = []

    def fail(*_):
        failures.append(1)
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(tracking.Run, "_experiment", fail)
        yield failures, patch.undo


def test_a_failure_is_followed_by_a_pause(database, broken):
    """After a failure MLflow is not called again for the rest of a short training."""
    failures, _ = broken
    record_training(database, "pause", CURVES)
    assert len(failures) == 1


def test_the_rest_is_recorded_after_a_failure(database, broken, monkeypatch, caplog):
    """MLflow is tried again after each pause, with one warning for all; the first success records the whole curve."""
    failures, repair = broken
    monkeypatch.setattr(tracking, "PAUSE", 0)
    with tracking.Run(database, "late") as run:
        run.curves(CURVES[:1])
        run.curves(CURVES[:2])
        repair()
        run.curves(CURVES[:3])
    assert len(failures) == 3
    assert len(caplog.records) == 1
    found, points = recorded(database, "late")
    assert [step for step, _ in points["loss"]] == [1, 2, 3]
    assert found.info.status == "FINISHED"


def test_no_uri_records_nothing(tmp_path):
    """With an empty URI, MLflow is not even imported."""
    code = TRAIN + "\nprint('mlflow' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", code, "", "v1"]
    assert subprocess.check_output(command, cwd=tmp_path, env=environment, text=True) == "False\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["mlruns", "postgresql://db/mlflow", "sqlite:///mlflow", "ftp://mlflow.db"])
def test_other_uris_are_refused(uri, monkeypatch):
    """A URI that MLflow would take, but whose artifacts would be in an unknown place, is an invalid setting.

    The error does not repeat the URI, which may hold a password.
    """
    monkeypatch.setenv("CAPTION_TRACKING_URI", uri)
    with pytest.raises(ValidationError, match="tracking_uri") as caught:
        Settings()
    assert uri not in str(caught.value)


@pytest.mark.parametrize("uri", ["", "sqlite:///data/mlflow.db", "http://mlflow:5000"])
def test_an_sqlite_file_or_a_server_or_nothing(uri, monkeypatch):
    """The setting takes these."""
    monkeypatch.setenv("CAPTION_TRACKING_URI", uri)
    assert Settings().tracking_uri == uri


def test_a_model_is_recorded_from_training_to_report(database, trained, tmp_path):
    """Training records configuration and curves; the evaluation records scores and report, and what is missing."""
    store = open_bucket(str(tmp_path / "store"))
    toy.copy(trained.store, store, "datasets/", "features/", "encoders/")
    model = train_captioner(
        trained.inputs.dataset,
        trained.inputs.vocabulary,
        encoder_id=trained.inputs.encoder_id,
        config=toy.CONFIG.model_copy(update={"epochs": 2, "ensemble_size": 2}),
        store=store,
        max_failed_fraction=0,
        tracking_uri=database,
    )
    run, points = recorded(database, model.version)
    assert run.data.params["units"] == "16"
    assert run.data.params["encoder"] == trained.inputs.encoder_id
    assert run.data.params["dataset"] == trained.inputs.dataset
    for member in model.ensemble:
        expected = [(epoch.epoch, epoch.dev_cider) for epoch in member.epochs]
        assert points[f"seed-{member.seed}/dev_cider"] == expected
    card = store.get(layout.model_card(model.version)).decode()
    assert artifact(database, run, "card.md") == card
    assert f"{run.data.tags['mlflow.note.content']}\n" == card
    assert "It has not been evaluated." in card

    unrecorded = trained.model
    toy.copy(trained.store, store, layout.model_folder(unrecorded.version))
    metrics = evaluate_model(
        unrecorded.version, store=store, decoding=DecodingConfig(beam_width=2), max_failed_fraction=0
    )
    report = store.get(layout.evaluation(unrecorded.version, metrics.dataset, metrics.decoding).report).decode()
    card = store.get(layout.model_card(unrecorded.version)).decode()
    tracking.record_evaluation(unrecorded, metrics, report=report, card=card, uri=database)
    run, points = recorded(database, unrecorded.version)
    assert points["chosen/CIDEr"] == [(0, pytest.approx(metrics.cider))]
    assert [step for step, _ in points["loss"]] == list(range(1, toy.CONFIG.epochs + 1))
    assert artifact(database, run, "report.html") == report
    assert artifact(database, run, "card.md") == card
    assert f"{run.data.tags['mlflow.note.content']}\n" == card


def test_the_evaluation_knows_nothing_of_mlflow():
    """The caller records an evaluation: the module that evaluates imports neither MLflow nor the training."""
    code = "import sys, pipeline.evaluation.evaluate; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT, text=True).split()
    assert "pipeline.evaluation.evaluate" in loaded
    assert [name for name in loaded if name.startswith(("mlflow", "pipeline.training"))] == []
