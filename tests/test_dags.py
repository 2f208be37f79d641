"""The DAGs as Airflow reads them, and the operator that both are made of."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def dagbag(airflow_home):
    """Both DAGs, loaded as the DAG processor does."""
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(str(PROJECT / "dags"))


@pytest.fixture
def dag(dagbag, request):
    """The DAG named by the parameter."""
    return dagbag.dags[request.param]


BOTH = pytest.mark.parametrize("dag", ["retrain_captioner", "caption_new_images"], indirect=True)


def test_every_dag_loads(dagbag):
    """There are two DAGs and no import errors."""
    assert dagbag.import_errors == {}
    assert set(dagbag.dags) == {"retrain_captioner", "caption_new_images"}


def test_parsing_loads_nothing_heavy(airflow_home):
    """Reading the DAG files imports neither Keras nor pandas nor Arrow, nor the modules of ours that need them."""
    code = """
import sys
from airflow.dag_processing.dagbag import DagBag
assert not DagBag("dags").import_errors
print([name for name in ("keras", "tensorflow", "jax", "pandas", "pyarrow", "numpy", "boto3") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@BOTH
def test_tasks_retry_with_backoff_and_end(dag):
    """Every task of the pipeline is retried with growing pauses and has a time limit; one run goes at a time."""
    tasks = [task for task in dag.tasks if task.task_id not in ("ask", "approval", "announce")]
    assert all(task.retries >= 2 and task.retry_exponential_backoff and task.execution_timeout for task in tasks)
    assert dag.max_active_runs == 1
    assert not dag.catchup
    assert dag.doc_md.strip().startswith("### ")


@BOTH
def test_what_touches_keras_waits_for_the_accelerator(dag):
    """Tasks that run Keras are in the pool and the queue of the accelerator, the others are not."""
    heavy = {task.task_id for task in dag.tasks if task.pool == "gpu"}
    assert heavy == {task.task_id for task in dag.tasks if task.queue == "gpu"}
    expected = {"encoder", "extract", "train", "evaluate", "compare", "consider"}
    assert heavy == (expected if dag.dag_id == "retrain_captioner" else {"extract", "caption"})


@pytest.mark.parametrize("dag", ["retrain_captioner"], indirect=True)
def test_the_retraining_goes_from_data_to_champion(dag):
    """Each stage follows those whose results it may take; extraction is mapped over shards and may be empty."""
    upstream = {task.task_id: task.upstream_task_ids for task in dag.tasks}
    assert upstream == {
        "ingest": set(),
        "encoder": {"ingest"},
        "vocabulary": {"ingest"},
        "plan_extraction": {"ingest", "encoder"},
        "extract": {"plan_extraction"},
        "train": {"ingest", "vocabulary", "encoder", "extract"},
        "evaluate": {"train"},
        "ask": {"evaluate"},
        "compare": {"train", "ask"},
        "approval": {"compare"},
        "consider": {"train", "ask", "approval"},
        "announce": {"consider"},
    }
    assert dag.task_dict["extract"].is_mapped
    assert dag.task_dict["train"].trigger_rule == "none_failed"
    assert [asset.name for asset in dag.task_dict["announce"].outlets] == ["champion_captioner"]


@pytest.mark.parametrize("dag", ["retrain_captioner"], indirect=True)
@pytest.mark.parametrize(("int8", "argument"), [(True, "--int8=file:///d/dataset.parquet"), (False, "--int8=")])
def test_eight_bits_are_calibrated_on_the_dataset(dag, int8, argument):
    """Where the form asks for 8-bit integers the encoder is told which dataset to calibrate on, otherwise none."""

    class Instance:
        def xcom_pull(self, task_ids, key):
            return {("ingest", "dataset"): "file:///d/dataset.parquet"}[task_ids, key]

    template = dag.get_template_env().from_string(dag.task_dict["encoder"].arguments[-1])
    assert template.render(params={"int8": int8}, ti=Instance()) == argument


@pytest.mark.parametrize("dag", ["caption_new_images"], indirect=True)
def test_the_night_is_a_chain(dag):
    """List, plan, extract, plan, caption, publish; at two o'clock, and when there is a new champion."""
    chain = ["list_inbox", "plan_extraction", "extract", "plan_captions", "caption", "publish"]
    for before, after in itertools.pairwise(chain):
        assert dag.task_dict[after].upstream_task_ids == {before}
    assert all(dag.task_dict[name].is_mapped for name in ("extract", "caption"))
    assert dag.timetable.timetable.expression == "0 2 * * *"
    assert "champion_captioner" in str(dag.timetable.asset_condition)


@pytest.mark.parametrize("dag", ["caption_new_images"], indirect=True)
@pytest.mark.parametrize(
    ("chosen", "options"),
    [
        ({}, ["--archive=all", "--no-retry-failed"]),
        ({"archive": "new", "retry_failed": True}, ["--archive=new", "--retry-failed"]),
    ],
)
def test_the_night_takes_up_what_the_form_says(dag, chosen, options):
    """The two choices of the form are options of the listing; what is chosen otherwise is refused."""
    from airflow.sdk.exceptions import ParamValidationError

    params = {**dag.params.dump(), **chosen}
    templates = map(dag.get_template_env().from_string, dag.task_dict["list_inbox"].arguments[-2:])
    assert [template.render(params=params) for template in templates] == options
    for name, wrong in {"archive": "old", "retry_failed": "maybe"}.items():
        assert dag.params.get_param(name).description
        with pytest.raises(ParamValidationError):
            dag.params.get_param(name).resolve(wrong)


@pytest.mark.parametrize("dag", ["retrain_captioner"], indirect=True)
def test_the_form_shows_the_recipe(dag):
    """Every field of the recipe is a parameter with its default and a description; bad values are refused."""
    from airflow.sdk.exceptions import ParamValidationError

    from pipeline.recipe import Recipe

    for name, value in Recipe().model_dump().items():
        assert dag.params[name] == value
    bounded = dag.params.get_param("learning_rate").description
    assert bounded == f"{Recipe.model_fields['learning_rate'].description} (above 0, at most 1)"
    for name in dag.params:
        param = dag.params.get_param(name)
        assert param.description
        assert param.schema["title"]
        assert param.schema["section"]
    refused = {"epochs": 0, "dropout": 1, "learning_rate": 0, "promotion": "maybe", "min_count": 1.5, "dataset": ""}
    for name, wrong in refused.items():
        with pytest.raises(ParamValidationError):
            dag.params.get_param(name).resolve(wrong)


@BOTH
def test_choices_are_shown_in_words(dag):
    """What is chosen from a list has words for each choice, which begin with the choice itself."""
    for name in dag.params:
        schema = dag.params.get_param(name).schema
        if "enum" in schema:
            words = schema["values_display"]
            assert list(words) == schema["enum"]
            assert all(text.startswith(f"{choice}: ") for choice, text in words.items())


def test_assets_tell_who_makes_what_of_what(dagbag):
    """Each asset is made by the tasks that make it, and is known to be read by those that read it."""
    tasks = {f"{dag.dag_id}.{task.task_id}": task for dag in dagbag.dags.values() for task in dag.tasks}
    made, read = (
        {name: [asset.name for asset in getattr(task, kind)] for name, task in tasks.items() if getattr(task, kind)}
        for kind in ("outlets", "inlets")
    )
    assert made == {
        "retrain_captioner.ingest": ["captioning_dataset"],
        "retrain_captioner.extract": ["image_features"],
        "retrain_captioner.train": ["candidate_captioner"],
        "retrain_captioner.evaluate": ["candidate_captioner"],
        "retrain_captioner.announce": ["champion_captioner"],
        "caption_new_images.extract": ["image_features"],
        "caption_new_images.publish": ["image_captions"],
    }
    assert read == {
        "retrain_captioner.train": ["captioning_dataset", "image_features"],
        "retrain_captioner.consider": ["candidate_captioner"],
        "caption_new_images.publish": ["champion_captioner", "image_features"],
    }


class TestOperator:
    """What a task does with the command's answer."""

    @pytest.fixture
    def run(self, airflow_home, monkeypatch):
        """Runs an operator whose command is replaced by Python code, and returns its result and what it pushed."""
        from dags import tasks

        monkeypatch.setattr(tasks, "aws_environment", lambda log: {"FROM_CONNECTION": "yes"})

        def run(code, **kwargs):
            operator = tasks.PipelineOperator(task_id="t", arguments=["x"], **kwargs)
            run.operators.append(operator)
            real = operator.hook.run_command
            monkeypatch.setattr(
                operator.hook, "run_command", lambda command, **options: real([sys.executable, "-c", code], **options)
            )
            run.pushed = pushed = {}
            events = {asset: SimpleNamespace(extra=None) for asset in operator.outlets}
            context = {"ti": SimpleNamespace(xcom_push=pushed.__setitem__), "outlet_events": events}
            return operator.execute(context), pushed, events

        run.operators = []
        return run

    def test_returns_the_last_line(self, run):
        """The JSON of the last line is the result; a dictionary is pushed key by key and becomes the assets' extra."""
        from dags.assets import DATASET

        result, pushed, events = run(
            'import sys; print(\'a log line\', file=sys.stderr); print(\'{"dataset": "uri", "images": 3}\')',
            outlets=[DATASET],
        )
        assert result == pushed == events[DATASET].extra == {"dataset": "uri", "images": 3}

    def test_a_mapped_task_is_named_by_what_it_did(self, run):
        """Until it has succeeded a mapped task is called by number and shard, then by number and summary."""
        from jinja2 import Template

        from dags.tasks import SHARD_NAME

        run('print(\'{"summary": "2,000 images, 3 failed"}\')', shard="0123456789abcdef")
        [operator] = run.operators
        instance = SimpleNamespace(map_index=11)
        assert Template(SHARD_NAME).render(ti=instance, task=operator) == "12: 2,000 images, 3 failed"
        operator.summary = None
        assert Template(SHARD_NAME).render(ti=instance, task=operator) == "12: 01234567"

    def test_links_lead_to_pages_of_the_server(self, run, monkeypatch):
        """A task has a button for each of its pages, whose address lies on Airflow's server, whatever its path."""
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/prefix/")
        run("print(0)", pages={"Report": "captions/models/v1/report", "Models": "captions/models"})
        [operator] = run.operators
        assert {link.name: link.get_link(operator, ti_key=None) for link in operator.operator_extra_links} == {
            "Report": "https://airflow.example.com/prefix/captions/models/v1/report",
            "Models": "https://airflow.example.com/prefix/captions/models",
        }
        assert len({link.xcom_key for link in operator.operator_extra_links}) == 2

    def test_runs_with_the_connection(self, run):
        """The command's environment holds what the connection says beside Airflow's own."""
        result, _, _ = run("import os, json; print(json.dumps([os.environ['FROM_CONNECTION'], 'PATH' in os.environ]))")
        assert result == ["yes", True]

    def test_bad_input_is_not_retried(self, run):
        """Status 2 fails the task at once, with the command's message; any other status is left to the retries."""
        from airflow.sdk.exceptions import AirflowException, AirflowFailException

        with pytest.raises(AirflowFailException, match="no such bucket"):
            run("import sys; sys.exit('no such bucket' and (print('error: no such bucket') or 2))")
        with pytest.raises(AirflowException, match="status 1") as caught:
            run("raise OSError('disk full')")
        assert not isinstance(caught.value, AirflowFailException)
        assert "disk full" in str(caught.value)

    def test_leaves_what_a_failed_command_said(self, run):
        """The error of a command that failed is pushed, for those who tell of the failure."""
        from airflow.sdk.exceptions import AirflowException

        with pytest.raises(AirflowException):
            run("raise OSError('disk full')")
        assert run.pushed == {"error": "The command exited with status 1: OSError: disk full"}

    def test_a_stopped_task_stops_its_command(self, run, tmp_path):
        """When Airflow stops the task, the command ends before its time and the task with it."""
        from airflow.sdk.exceptions import AirflowException

        started = tmp_path / "started"

        def stop():
            while not started.exists():
                time.sleep(0.05)
            run.operators[0].on_kill()

        stopper = threading.Thread(target=stop)
        stopper.start()
        with pytest.raises(AirflowException, match="status -15"):
            run(f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(600)")
        stopper.join()

    def test_connection_becomes_environment(self, airflow_home, monkeypatch):
        """Login, password, endpoint and region of aws_default are what boto3 finds in the command's environment."""
        import logging

        from dags.connections import aws_environment

        monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT", raising=False)
        assert aws_environment(logging.getLogger()) == {}
        connection = {
            "conn_type": "aws",
            "login": "key",
            "password": "secret",
            "extra": {"endpoint_url": "http://127.0.0.1:1", "region_name": "eu-west-1"},
        }
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        assert aws_environment(logging.getLogger()) == {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        }


def test_the_environment_is_that_of_the_tests(airflow_home):
    """Airflow keeps to the tests' own folder."""
    from airflow.configuration import AIRFLOW_HOME

    assert Path(AIRFLOW_HOME) == airflow_home == Path(os.environ["AIRFLOW_HOME"])
