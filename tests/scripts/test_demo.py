"""The demo's commands and what it shows of them, with programs in the place of Airflow and the pipeline."""

import json
import subprocess

import pytest

from scripts import demo
from tests.support.paths import PROJECT

LONG = 150 * "a"
LOG = [
    {"event": "Running command: ['/venv/bin/python', '-m', 'pipeline', 'ingest', 'photos']", "level": "info"},
    {"event": f"Running command: ['/venv/bin/python', '-m', 'pipeline', 'train', '{LONG}']", "level": "info"},
    {"event": "12:00:01 INFO     24 images", "level": "info"},
    {"event": "Task instance in success state", "level": "info"},
    {"event": "a task failed", "level": "error", "exception": [{"exc_value": "too few captions"}]},
    {"event": "the database is locked", "level": "critical"},
]


@pytest.fixture
def airflow(tmp_path, monkeypatch):
    """Replaces Airflow by a program that prints a log and keeps its arguments; makes it with an exit status."""

    def make(status, log=LOG):
        lines = "\n".join(map(json.dumps, log))
        (tmp_path / "airflow").write_text(
            f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\ncat <<"END"\n{lines}\nplain text\nEND\nexit {status}\n'
        )
        (tmp_path / "airflow").chmod(0o755)
        return tmp_path / "arguments"

    monkeypatch.setattr(demo, "BIN", tmp_path)
    monkeypatch.setattr(demo, "LOG", tmp_path / "demo.log")
    monkeypatch.setattr(demo, "pipeline", lambda *arguments: {"under": "demo/", "test": 0})
    monkeypatch.setattr(demo, "pipeline_command", lambda *arguments: ["echo", *arguments])
    return make


@pytest.mark.parametrize("prefix", ["", "team_a_"])
def test_both_dags_run_and_their_progress_is_shown(airflow, tmp_path, monkeypatch, capfd, prefix):
    """Commands, their progress and errors; all else is in the log only. At the end stands the table of captions."""
    arguments = airflow(0)
    monkeypatch.setenv("CAPTION_DAG_PREFIX", prefix)
    monkeypatch.setattr("sys.argv", ["demo"])
    demo.main()
    retraining, night = arguments.read_text().splitlines()
    assert retraining.startswith(f"dags test {prefix}retrain_captioner --conf {{")
    assert json.loads(retraining.partition("--conf ")[2])["epochs"] == demo.DRAWN_TRAINING["epochs"]
    assert night == f"dags test {prefix}caption_new_images --conf {{}}"
    shown = capfd.readouterr().out
    assert "\nstatus --captions 15 --under demo/\n" in shown
    assert shown.endswith("\n  make up\n")
    for text in (
        "  ingest photos",
        f"  train {LONG}\n",
        "    12:00:01 INFO     24 images",
        "    too few captions",
        "the database is locked",
    ):
        assert text in shown
    assert "success state" not in shown
    assert "success state" in (tmp_path / "demo.log").read_text()


@pytest.mark.parametrize(
    ("data", "dataset"),
    [
        ("photos", "{}/photos"),
        ("photos/captions.txt", "{}/photos/captions.txt"),
        ("~/photos", "{}/home/photos"),
        ("s3://photos/flickr8k", "s3://photos/flickr8k"),
        ("file:///photos/dataset_coco.json", "file:///photos/dataset_coco.json"),
    ],
)
def test_photographs_of_ones_own_train_as_the_form_does(airflow, tmp_path, monkeypatch, data, dataset):
    """A folder or file is named by its whole path, also in the home folder, and the training has its defaults."""
    arguments = airflow(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.argv", ["demo", "--data", data, "--encoder", "resnet50"])
    demo.main()
    conf = json.loads(arguments.read_text().splitlines()[0].partition("--conf ")[2])
    assert conf == {"dataset": dataset.format(tmp_path), "language": "", "encoder": "resnet50"}


@pytest.mark.parametrize(("options", "drawn"), [([], "en"), (["--language", "de"], "de")])
def test_the_language_of_the_captions(airflow, monkeypatch, options, drawn):
    """It is that of the form, and of captions that are drawn; empty, both have their default."""
    arguments, commands = airflow(0), []
    monkeypatch.setattr(demo, "pipeline", lambda *command: commands.append(command) or {"under": "demo/", "test": 0})
    monkeypatch.setattr("sys.argv", ["demo", *options])
    demo.main()
    assert commands[0] == ("demo-data", str(demo.DRAWN), f"--language={drawn}")
    conf = json.loads(arguments.read_text().splitlines()[0].partition("--conf ")[2])
    assert conf["language"] == (options[1] if options else "")


@pytest.mark.parametrize(("given", "language"), [([], ""), (["LANGUAGE=de"], "de")])
def test_the_language_of_the_desktop_is_not_that_of_the_captions(monkeypatch, given, language):
    """Only after the target, LANGUAGE is that of the captions: in the environment it is a variable of gettext."""
    monkeypatch.setenv("LANGUAGE", "fr_FR:en")
    done = subprocess.run(["make", "-n", "demo", *given], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert f'--language "{language}"' in done.stdout


@pytest.mark.parametrize("test", [0, 58])
def test_photographs_of_the_test_split(airflow, monkeypatch, capfd, test):
    """The demo says so, and that nothing can be learned from corrections of these."""
    airflow(0)
    monkeypatch.setattr(demo, "pipeline", lambda *command: {"under": "demo/", "photographs": 60, "test": test})
    monkeypatch.setattr("sys.argv", ["demo", "--data", "/photos"])
    demo.main()
    shown = capfd.readouterr().out
    assert ("Of the 60 photographs in the inbox, 58 are of the test split, because /photos holds" in shown) == bool(
        test
    )
    assert ("no training learns from it" in shown) == bool(test)


FAILED = [
    {"event": "[DAG TEST] starting task_id=extract map_index=0", "level": "info"},
    {"event": "Task failed", "level": "error", "exception": [{"exc_value": "lost connection"}]},
    {"event": "[DAG TEST] starting task_id=extract map_index=0", "level": "info"},
    {"event": "[DAG TEST] starting task_id=extract map_index=1", "level": "info"},
    {"event": "Task failed", "level": "error", "exception": [{"exc_value": "no space left"}]},
    {"event": "[DAG TEST] starting task_id=train map_index=-1", "level": "info"},
    {"event": "Task failed", "level": "error", "exception": [{"exc_value": "too few captions"}]},
    {"event": "[DAG TEST] starting task_id=end_run map_index=-1", "level": "info"},
    {"event": "[DAG TEST] end task task_id=end_run map_index=-1", "level": "info"},
]
"""The log of a run in which two tasks fail, and a third at its first try only."""


@pytest.mark.parametrize(
    ("log", "errors"),
    [
        (FAILED, "the task extract[1] failed: no space left\nthe task train failed: too few captions"),
        (LOG[:3], "\n".join([*(each["event"] for each in LOG[:3]), "plain text"])),
    ],
    ids=["tasks", "no task"],
)
def test_a_failed_dag_ends_the_demo(airflow, tmp_path, monkeypatch, log, errors):
    """The last lines name the tasks and their errors, or are those of the log if no task has failed; and the log."""
    airflow(1, log)
    monkeypatch.setattr("sys.argv", ["demo"])
    with pytest.raises(SystemExit) as stop:
        demo.main()
    assert stop.value.code == f"\n{errors}\nretrain_captioner failed; the complete log is {tmp_path}/demo.log"


def test_a_failed_command_ends_the_demo(airflow, monkeypatch):
    """The message has the command and its exit status, without a traceback; the command has printed its error."""
    airflow(0)
    monkeypatch.setattr(demo, "pipeline_command", lambda *arguments: ["false", *arguments])
    monkeypatch.setattr("sys.argv", ["demo"])
    with pytest.raises(SystemExit) as stop:
        demo.main()
    command = "`false status --captions 15 --under demo/`"
    assert stop.value.code == f"the demo ends here: {command} failed with exit status 1"
