"""The DAGs as Airflow reads them, and the operator that all are made of."""

import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import __version__
from pipeline.data import decoders
from pipeline.errors import PipelineError
from pipeline.features import extraction
from pipeline.settings import DATA_SETTINGS, Settings
from tests.support.checkout import checkout
from tests.support.paths import PROJECT
from tests.support.variables import DEFAULTS


@pytest.fixture(scope="module")
def dagbag(airflow_home):
    """All DAGs, loaded as the DAG processor does."""
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(str(PROJECT / "dags"))


@pytest.fixture
def dag(dagbag, request):
    """The DAG named by the parameter."""
    return dagbag.dags[request.param]


OURS = ("choose_approval", "approval", "emit_champion_event", "emit_retraining_event")
"""Tasks that run no command."""

NAMES = ("caption_new_images", "maintain_captioning", "retrain_captioner")
ALL = pytest.mark.parametrize("dag", NAMES, indirect=True)
MAINTENANCE = pytest.mark.parametrize("dag", ["maintain_captioning"], indirect=True)
BOTH = pytest.mark.parametrize("dag", ["retrain_captioner", "caption_new_images"], indirect=True)


def test_every_dag_loads(dagbag):
    """There are three DAGs and no import errors."""
    assert dagbag.import_errors == {}
    assert sorted(dagbag.dags) == sorted(NAMES)


@pytest.mark.parametrize("syntax", ["glob", "regexp"])
def test_the_repository_is_a_bundle(syntax, airflow_home, monkeypatch):
    """Where the whole repository is a DAG bundle, Airflow parses the DAG files and nothing else."""
    from airflow.dag_processing.dagbag import DagBag
    from airflow.utils.file import list_py_file_paths

    monkeypatch.setenv("AIRFLOW__CORE__DAG_IGNORE_FILE_SYNTAX", syntax)
    dags = [PROJECT / "dags" / f"{name}.py" for name in NAMES]
    for bundle in (PROJECT, PROJECT / "dags"):
        assert sorted(map(Path, list_py_file_paths(bundle, safe_mode=False))) == dags
    assert DagBag(str(PROJECT)).import_errors == {}


PARSE = """
import os, socket, subprocess, sys

def refuse(*arguments, **options):
    raise AssertionError("parsing must not do this")

from airflow.dag_processing.dagbag import DagBag  # which starts a child itself

socket.socket.connect = socket.getaddrinfo = subprocess.Popen.__init__ = os.fork = refuse
bag = DagBag("dags", safe_mode=False)
assert not bag.import_errors, bag.import_errors
heavy = ("keras", "tensorflow", "jax", "pandas", "pyarrow", "numpy", "boto3")
print([name for name in heavy if name in sys.modules], len(bag.dags))
"""


def test_parsing_is_light(airflow_home):
    """Parsing the DAG files imports neither Keras nor pandas, Arrow or boto3, and needs no network and no child."""
    done = subprocess.run([sys.executable, "-c", PARSE], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[] 3"], done.stdout + done.stderr


@ALL
def test_the_grid_explains_itself(dag):
    """Every task says what it does and has the deployment's owner, and related tasks are folded into groups."""
    assert [task.task_id for task in dag.tasks if not task.doc_md] == []
    assert {task.owner for task in dag.tasks} == {"captioning"}
    groups = {
        "maintain_captioning": {},
        "caption_new_images": {
            "features": {"plan_extraction", "extract"},
            "captions": {"plan_captions", "caption"},
        },
        "retrain_captioner": {
            "features": {"plan_extraction", "extract"},
            "promotion": {
                "evaluate_champion", "choose_approval", "compare", "approval", "gate", "emit_champion_event",
            },
        },
    }  # fmt: skip
    found = {name: set(group.children) for name, group in dag.task_group_dict.items()}
    assert found == groups[dag.dag_id]


@ALL
def test_tasks_retry_with_backoff_and_end(dag):
    """Every task of the pipeline is retried with growing pauses and has a time limit; one run is active at a time."""
    tasks = [task for task in dag.tasks if task.task_id not in OURS]
    assert all(task.retries >= 2 and task.retry_exponential_backoff and task.execution_timeout for task in tasks)
    assert dag.max_active_runs == 1
    assert not dag.catchup
    assert dag.doc_md.strip().startswith("### ")


@BOTH
def test_hostile_pictures_do_not_outlast_a_task(dag):
    """Two cores extract a shard in which no picture ever ends in nine tenths of the time that the task has."""
    images = Settings.model_fields["shard_size"].default
    restart = 0.2  # seconds of CPU time in which a decoder is replaced
    needed = images * (extraction.USUAL_SECONDS + restart) + extraction.SLOW_IMAGES * decoders.SECONDS
    assert needed / 2 < 0.9 * dag.get_task("extract").execution_timeout.total_seconds()


@ALL
def test_keras_waits_for_the_accelerator(dag):
    """Tasks that run Keras are in the pool and the queue of the accelerator, the others are not."""
    heavy = {task.task_id for task in dag.tasks if task.pool == "gpu"}
    assert heavy == {task.task_id for task in dag.tasks if task.queue == "gpu"}
    assert (
        heavy
        == {
            "retrain_captioner": {"register_encoder", "extract", "train", "evaluate", "evaluate_champion", "compare"},
            "caption_new_images": {"extract", "caption"},
            "maintain_captioning": set(),
        }[dag.dag_id]
    )


@BOTH
def test_every_run_is_ended(dag):
    """The last task runs whatever happened, once nothing else is running, and has no say in the state of the run."""
    end_run = dag.task_dict["end_run"]
    assert end_run.is_teardown
    assert not end_run.on_failure_fail_dagrun
    assert end_run.downstream_task_ids == set()
    kind = {"retrain_captioner": "retraining", "caption_new_images": "night"}[dag.dag_id]
    assert end_run.arguments == ["end-run", kind, "{{ run_id }}"]
    # A task that can fail while others run must be waited for together with those.
    waits = {
        "retrain_captioner": {"vocabulary", "extract", "emit_champion_event"},
        "caption_new_images": {"extract", "caption", "emit_retraining_event"},
    }
    assert end_run.upstream_task_ids == waits[dag.dag_id]


@pytest.mark.parametrize("dag", ["retrain_captioner"], indirect=True)
def test_the_retraining_goes_from_data_to_champion(dag):
    """Each task follows those whose results it takes; the extraction is mapped over shards and may be skipped."""
    upstream = {task.task_id: task.upstream_task_ids for task in dag.tasks if task.task_id != "end_run"}
    assert upstream == {
        "resolve_inputs": set(),
        "ingest": {"resolve_inputs"},
        "register_encoder": {"resolve_inputs", "ingest"},
        "vocabulary": {"ingest"},
        "plan_extraction": {"ingest", "register_encoder"},
        "extract": {"plan_extraction"},
        "train": {"ingest", "vocabulary", "register_encoder", "extract"},
        "evaluate": {"train"},
        "evaluate_champion": {"train", "evaluate"},
        "choose_approval": {"evaluate_champion"},
        "compare": {"train", "choose_approval"},
        "approval": {"compare"},
        "gate": {"train", "choose_approval", "approval"},
        "emit_champion_event": {"gate"},
    }
    assert dag.task_dict["extract"].is_mapped
    assert dag.task_dict["train"].trigger_rule == "none_failed"
    assert [asset.name for asset in dag.task_dict["emit_champion_event"].outlets] == ["champion_captioner"]
    assert "retraining_due" in str(dag.timetable.asset_condition)


@pytest.mark.parametrize("dag", ["retrain_captioner"], indirect=True)
def test_evaluations_decode_alike(dag):
    """Candidate and champion are decoded, compared and judged with the beam width and the MBR samples of the form."""
    for task_id in ("evaluate", "evaluate_champion", "compare", "gate"):
        arguments = dag.task_dict[task_id].arguments
        assert arguments[2:4] == [
            "--beam-width={{ params.beam_width }}",
            "--mbr-samples={{ params.mbr_samples }}",
        ]


@pytest.mark.parametrize("dag", ["retrain_captioner"], indirect=True)
@pytest.mark.parametrize(("place", "option"), [(-2, "regions"), (-1, "int8")])
@pytest.mark.parametrize(("asked", "dataset"), [(True, "flickr8k/0123456789abcdef"), (False, "")])
def test_an_encoder_is_calibrated_on_the_dataset(dag, place, option, asked, dataset):
    """If the form asks for regions or 8-bit integers, they are learnt from the ingested dataset."""

    class Instance:
        def xcom_pull(self, task_ids, key):
            return {("ingest", "dataset"): "flickr8k/0123456789abcdef"}[task_ids, key]

    template = dag.get_template_env().from_string(dag.task_dict["register_encoder"].arguments[place])
    assert template.render(params={option: asked}, ti=Instance()) == f"--{option}={dataset}"


@pytest.mark.parametrize("dag", ["retrain_captioner"], indirect=True)
@pytest.mark.parametrize("empty", ["", None])
def test_dataset_and_encoder_may_be_empty(dag, empty):
    """Neither is required; without them `resolve-inputs` gets empty options, also where the form sends null."""
    assert (dag.params["dataset"], dag.params["encoder"]) == ("", "")
    for name in ("dataset", "encoder"):
        dag.params.get_param(name).resolve(empty)
    templates = map(dag.get_template_env().from_string, dag.task_dict["resolve_inputs"].arguments[-3:])
    params = {"dataset": empty, "encoder": empty}
    rendered = [template.render(params=params, triggering_asset_events={}) for template in templates]
    assert rendered == ["--dataset=", "--encoder=", "--cause="]


@pytest.mark.parametrize("dag", ["retrain_captioner"], indirect=True)
def test_the_dataset_may_be_several_lines(dag):
    """The field has several lines, one for each source, and `resolve-inputs` gets them as they are."""
    lines = "/data/Flickr 8k\ns3://photos/a,b.csv"
    param = dag.params.get_param("dataset")
    assert (param.schema["format"], param.resolve(lines)) == ("multiline", lines)
    template = dag.get_template_env().from_string(dag.task_dict["resolve_inputs"].arguments[-3])
    assert template.render(params={"dataset": lines}) == f"--dataset={lines}"


@pytest.mark.parametrize("dag", ["retrain_captioner"], indirect=True)
@pytest.mark.parametrize(
    ("cause", "text"), [("12 corrections", "Started by 12 corrections.\n\nScores"), ("", "Scores")]
)
def test_what_a_person_decides_by(dag, cause, text):
    """Why a night has started the retraining, unless a person has; the scores; and links to pages of the gallery."""
    found = {("resolve_inputs", "cause"): cause, ("compare", "comparison"): "Scores", ("train", "version"): "m1"}

    class Instance:
        def xcom_pull(self, task_ids, key):
            return found[task_ids, key]

    shown, links = (
        dag.get_template_env().from_string(dag.task_dict["approval"].body).render(ti=Instance()).rsplit("\n\n", 1)
    )
    assert shown == text
    # Make names the server by its address.
    base = os.environ.get("AIRFLOW__API__BASE_URL", "http://localhost:8080")
    assert f"[Both models, photograph by photograph]({base}/captions/compare?b=m1)" in links
    assert f"[report of the candidate]({base}/captions/models/m1/report)" in links
    assert f"[all models]({base}/captions/models)" in links
    assert dag.task_dict["compare"].arguments[-1] == f"--picture-page={base}/captions/image?key="


@pytest.mark.parametrize("dag", ["retrain_captioner"], indirect=True)
@pytest.mark.parametrize("value", ["", None, "de"])
@pytest.mark.parametrize(("place", "name"), [(2, "language"), (3, "licence")])
def test_language_and_licence_of_the_form_are_those_of_the_dataset(dag, place, name, value):
    """They are given to the ingest; empty, the ingest takes those of the dataset in the store."""
    dag.params.get_param(name).resolve(value)
    template = dag.get_template_env().from_string(dag.task_dict["ingest"].arguments[place])
    assert template.render(params={name: value}) == f"--{name}={value or ''}"


@pytest.mark.parametrize("dag", ["caption_new_images"], indirect=True)
def test_the_night_is_a_chain(dag):
    """From the listing to the event of a retraining; at two o'clock, and when there is a new champion."""
    chain = [
        "list_inbox", "plan_extraction", "extract", "plan_captions", "caption", "reconcile", "emit_retraining_event",
    ]  # fmt: skip
    for before, after in itertools.pairwise(chain):
        assert dag.task_dict[after].upstream_task_ids == {before}
    assert all(dag.task_dict[name].is_mapped for name in ("extract", "caption"))
    assert dag.timetable.timetable.expression == "0 2 * * *"
    assert "champion_captioner" in str(dag.timetable.asset_condition)


@pytest.mark.parametrize("dag", ["caption_new_images"], indirect=True)
@pytest.mark.parametrize(
    ("chosen", "options"),
    [
        ({}, ["--archive=all", "--no-retry-failed", "--recaption=", "--no-accept-smaller-inbox"]),
        ({"recaption": None}, ["--archive=all", "--no-retry-failed", "--recaption=", "--no-accept-smaller-inbox"]),
        (
            {"archive": "new", "retry_failed": True, "recaption": "2026/*,a b.jpg", "accept_smaller_inbox": True},
            ["--archive=new", "--retry-failed", "--recaption=2026/*,a b.jpg", "--accept-smaller-inbox"],
        ),
    ],
)
def test_the_form_of_a_night(dag, chosen, options):
    """The choices of the form become options of the listing; other values are refused."""
    from airflow.sdk.exceptions import ParamValidationError

    params = {**dag.params.dump(), **chosen}
    templates = map(dag.get_template_env().from_string, dag.task_dict["list_inbox"].arguments[-4:])
    assert [template.render(params=params) for template in templates] == options
    bad = {"archive": "old", "retry_failed": "maybe", "recaption": 1, "review_below": 1.5, "accept_smaller_inbox": 3}
    for name, wrong in bad.items():
        assert dag.params.get_param(name).description
        with pytest.raises(ParamValidationError):
            dag.params.get_param(name).resolve(wrong)


@pytest.mark.parametrize("dag", ["caption_new_images"], indirect=True)
@pytest.mark.parametrize(("chosen", "option"), [({}, ""), ({"review_below": 0}, "0"), ({"review_below": 0.25}, "0.25")])
def test_the_form_of_a_night_has_the_limit_of_reviews(dag, chosen, option):
    """For the captions and for the current ones; empty is the setting, and 0 is not."""
    params = {**dag.params.dump(), **chosen}
    for name in ("caption", "reconcile"):
        arguments = (
            dag.task_dict[name].partial_kwargs["arguments"] if name == "caption" else dag.task_dict[name].arguments
        )
        [template] = [argument for argument in arguments if "review" in argument]
        assert dag.get_template_env().from_string(template).render(params=params) == f"--review-below={option}"


@MAINTENANCE
def test_the_maintenance_is_a_chain(dag):
    """Nothing runs beside anything else, and pruning comes after the backup; once a week, and never twice at once."""
    chain = ["await_runs", "forget", "fold", "back_up", "prune", "report", "choose_recaption", "recaption"]
    assert {task.task_id for task in dag.tasks} == set(chain)
    for before, after in itertools.pairwise(chain):
        assert dag.task_dict[after].upstream_task_ids == {before}
    assert dag.timetable.expression == "0 12 * * 0"
    assert dag.start_date is None  # with one, unpausing the DAG would start a run that was due before
    assert dag.task_dict["await_runs"].mode == "reschedule"


@MAINTENANCE
@pytest.mark.parametrize(
    ("chosen", "forget", "prune"),
    [
        ({}, ["--keys=", "--no-remove"], ["--keep=3", "--no-remove"]),
        ({"forget": None}, ["--keys=", "--no-remove"], ["--keep=3", "--no-remove"]),
        (
            {"forget": "a b.jpg\nc/d.jpg", "remove_forgotten": True},
            ["--keys=a b.jpg\nc/d.jpg", "--remove"],
            ["--keep=3", "--no-remove"],
        ),
        ({"keep": 5, "remove_pruned": True}, ["--keys=", "--no-remove"], ["--keep=5", "--remove"]),
    ],
)
def test_the_form_of_a_maintenance(dag, chosen, forget, prune):
    """Its choices become options of the commands, and nothing is removed unless it says so; bad values are refused."""
    from airflow.sdk.exceptions import ParamValidationError

    params = {**dag.params.dump(), **chosen}
    environment = dag.get_template_env()
    for task_id, options in (("forget", forget), ("prune", prune)):
        templates = map(environment.from_string, dag.task_dict[task_id].arguments[1:])
        assert [template.render(params=params) for template in templates] == options
    skipped = environment.from_string(dag.task_dict["forget"].skip).render(params=params)
    assert bool(skipped) is not bool(chosen.get("forget"))
    for name, wrong in {
        "forget": 1,
        "remove_forgotten": "yes",
        "remove_pruned": 1,
        "keep": 0,
        "recaption": "*",
    }.items():
        assert dag.params.get_param(name).description
        with pytest.raises(ParamValidationError):
            dag.params.get_param(name).resolve(wrong)


def test_the_maintenance_knows_the_task_that_waits_for_a_person(dagbag):
    """It is the one in the retraining."""
    from captioning.names import APPROVAL

    assert APPROVAL in dagbag.dags["retrain_captioner"].task_dict


@pytest.mark.parametrize("dag", ["retrain_captioner"], indirect=True)
def test_the_form_shows_the_training_configuration(dag):
    """Every field of the configuration is a parameter with its default and description; bad values are refused."""
    from airflow.sdk.exceptions import ParamValidationError

    from pipeline.config import TrainingConfig

    for name, value in TrainingConfig().model_dump().items():
        assert dag.params[name] == value
    bounded = dag.params.get_param("learning_rate").description
    assert bounded == f"{TrainingConfig.model_fields['learning_rate'].description} (at least 1e-06, at most 1)"
    for name in dag.params:
        param = dag.params.get_param(name)
        assert param.description
        assert param.schema["title"]
        assert param.schema["section"]
    for name, wrong in {"promotion": "maybe", "dataset": 1}.items():
        with pytest.raises(ParamValidationError):
            dag.params.get_param(name).resolve(wrong)


@pytest.mark.parametrize("dag", ["retrain_captioner"], indirect=True)
def test_numbers_stay_within_their_bounds(dag):
    """All bounds are inclusive, as the form knows no others; whatever is outside, Airflow's server refuses by name."""
    from airflow.exceptions import ParamValidationError
    from airflow.serialization.serialized_objects import DagSerialization

    refusals = (ParamValidationError, ValueError)  # that of Airflow 3.2 is the second
    server = DagSerialization.from_dict(DagSerialization.to_dict(dag)).params
    numbers = [name for name in server if server.get_param(name).schema["type"] in ("integer", "number")]
    assert {"dropout", "epochs", "learning_rate", "beam_width", "min_count", "floor"} < set(numbers)
    for name in numbers:
        schema, description = server.get_param(name).schema, server.get_param(name).description
        assert not {"exclusiveMinimum", "exclusiveMaximum"} & schema.keys()
        wrong = [schema["minimum"] - 1, *([schema["maximum"] + 1] if "maximum" in schema else [])]
        if schema["type"] == "integer":
            assert "(a whole number, at least " in description
            wrong.append(schema["minimum"] + 1.5)
        for value in wrong:
            with pytest.raises(refusals, match=f"Invalid input for param {name}: {value} is "):
                server.deep_merge({name: value}).validate()


@ALL
def test_choices_are_shown_in_words(dag):
    """Each choice of a list has a text, which begins with the choice itself."""
    for name in dag.params:
        schema = dag.params.get_param(name).schema
        if "enum" in schema:
            words = schema["values_display"]
            assert list(words) == schema["enum"]
            assert all(text.startswith(f"{choice}: ") for choice, text in words.items())


def test_lineage(dagbag):
    """Each asset is an outlet of the tasks that produce it, and an inlet of those that read it."""
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
        "retrain_captioner.emit_champion_event": ["champion_captioner"],
        "caption_new_images.extract": ["image_features"],
        "caption_new_images.reconcile": ["image_captions"],
        "caption_new_images.emit_retraining_event": ["retraining_due"],
    }
    assert read == {
        "retrain_captioner.train": ["captioning_dataset", "image_features"],
        "retrain_captioner.gate": ["candidate_captioner"],
        "caption_new_images.reconcile": ["champion_captioner", "image_features"],
    }


class TestOperator:
    """A task's handling of its command."""

    @pytest.fixture
    def run(self, airflow_home, monkeypatch):
        """Runs an operator whose command is replaced by Python code; returns its result, XComs and asset events."""
        from captioning import operators

        monkeypatch.setattr(operators, "child_environment", lambda folder: {**os.environ, "FOLDER": str(folder)})

        def run(code, arguments=("x",), **kwargs):
            operator = operators.PipelineOperator(task_id="t", arguments=arguments, **kwargs)
            run.operators.append(operator)
            real = operator.hook.run_command
            monkeypatch.setattr(
                operator.hook, "run_command", lambda command, **options: real([sys.executable, "-c", code], **options)
            )
            run.pushed = pushed = {}
            events = {asset: SimpleNamespace(extra=None) for asset in operator.outlets}
            dag, instance = SimpleNamespace(fileloc=str(run.dag_file)), SimpleNamespace(xcom_push=pushed.__setitem__)
            return operator.execute({"dag": dag, "ti": instance, "outlet_events": events}), pushed, events

        run.operators = []
        run.dag_file = PROJECT / "dags" / "some.py"
        return run

    def test_returns_the_last_line(self, run):
        """The JSON of the last line is the result; a dictionary is pushed key by key and becomes the assets' extra."""
        from captioning.assets import DATASET

        result, pushed, events = run(
            'import sys; print(\'a log line\', file=sys.stderr); print(\'{"dataset": "toy/0", "images": 3}\')',
            outlets=[DATASET],
        )
        assert result == pushed == events[DATASET].extra == {"dataset": "toy/0", "images": 3}

    def test_a_command_that_is_not_to_run(self, run):
        """The task is skipped, and its note says why."""
        from airflow.sdk.exceptions import AirflowSkipException

        with pytest.raises(AirflowSkipException, match="there is no backup"):
            run("raise SystemExit(1)", skip="there is no backup")
        assert run.pushed == {"summary": "skipped: there is no backup"}

    def test_a_mapped_task_is_named_by_its_summary(self, run):
        """A mapped task is named by number and shard until it has succeeded, then by number and summary."""
        from jinja2 import Template

        from captioning.operators import MAP_INDEX_TEMPLATE

        run('print(\'{"summary": "2,000 images, 3 failed"}\')', shard="0123456789abcdef")
        [operator] = run.operators
        instance = SimpleNamespace(map_index=11)
        assert Template(MAP_INDEX_TEMPLATE).render(ti=instance, task=operator) == "12: 2,000 images, 3 failed"
        operator.summary = None
        assert Template(MAP_INDEX_TEMPLATE).render(ti=instance, task=operator) == "12: 01234567"

    def test_links_lead_to_pages_of_the_server(self, run, monkeypatch):
        """A task has a button for each of its pages, with a URL on Airflow's server, whatever its path."""
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/prefix/")
        run("print(0)", pages={"Report": "captions/models/v1/report", "Models": "captions/models"})
        [operator] = run.operators
        assert {link.name: link.get_link(operator, ti_key=None) for link in operator.operator_extra_links} == {
            "Report": "https://airflow.example.com/prefix/captions/models/v1/report",
            "Models": "https://airflow.example.com/prefix/captions/models",
        }
        assert len({link.xcom_key for link in operator.operator_extra_links}) == 2

    def test_runs_with_the_connections(self, run):
        """The command's environment is that of the connections, whose folder is gone afterwards."""
        code = "import json, os; folder = os.environ['FOLDER']; print(json.dumps([folder, os.path.isdir(folder)]))"
        folder, existed = run(code)[0]
        assert (existed, Path(folder).exists()) == (True, False)

    @pytest.mark.parametrize("place", ["store", "inbox", "dataset", "encoder", "argument", None])
    def test_an_unusable_connection(self, run, place, monkeypatch, tmp_path):
        """It stops a task that names a bucket on S3, whose error says why; any other runs without it."""
        from airflow.sdk.exceptions import AirflowFailException

        from captioning import operators

        def unusable(folder):
            raise PipelineError("The Airflow connection aws_default can't be used.")

        monkeypatch.setattr(operators, "child_environment", unusable)
        for name in ("store", "inbox", "dataset", "encoder"):
            monkeypatch.setenv(f"CAPTION_{name.upper()}", "s3://b" if name == place else tmp_path.as_uri())
        arguments = ["ingest", "--dataset=s3://b"] if place == "argument" else ["ingest"]
        if place is None:
            assert run("print(3)", arguments=arguments)[0] == 3
            return
        with pytest.raises(AirflowFailException, match="aws_default"):
            run("print(3)", arguments=arguments)
        assert run.pushed == {"error": "The Airflow connection aws_default can't be used."}

    def test_runs_with_the_python_of_the_settings(self, airflow_home, monkeypatch, tmp_path):
        """One that can't run the command stops the task, whose error says why."""
        from airflow.sdk.exceptions import AirflowFailException

        from captioning import operators

        operator = operators.PipelineOperator(task_id="t", arguments=["datasets"])
        dag = SimpleNamespace(fileloc=str(PROJECT / "dags" / "some.py"))
        context = {"dag": dag, "ti": SimpleNamespace(xcom_push=(pushed := {}).__setitem__)}
        monkeypatch.setenv("CAPTION_STORE", tmp_path.as_uri())
        monkeypatch.setenv("CAPTION_PYTHON", sys.executable)
        assert operator.execute(context) == []
        monkeypatch.setenv("CAPTION_PYTHON", str(tmp_path))
        with pytest.raises(AirflowFailException, match=r"CAPTION_PYTHON can't be used: .* is a folder"):
            operator.execute(context)
        assert "is a folder" in pushed["error"]

    def test_bad_input_is_not_retried(self, run):
        """Status 2 fails the task at once with the command's message; any other status leaves it to the retries."""
        from airflow.sdk.exceptions import AirflowException, AirflowFailException

        with pytest.raises(AirflowFailException, match="no such bucket"):
            run("import sys; sys.exit('no such bucket' and (print('error: no such bucket') or 2))")
        with pytest.raises(AirflowException, match="status 1") as caught:
            run("raise OSError('disk full')")
        assert not isinstance(caught.value, AirflowFailException)
        assert "disk full" in str(caught.value)

    def test_a_command_that_does_not_know_an_option(self, run):
        """It is of another commit than the plugin: the error says so, and what to do, instead of a retry."""
        from airflow.sdk.exceptions import AirflowFailException

        with pytest.raises(
            AirflowFailException, match=r"with which a command failed \(No such option: --no\): install"
        ):
            run(
                "import os, runpy, sys; sys.argv[1:] = ['datasets', '--no'];"
                "runpy.run_module('pipeline', run_name='__main__')"
            )

    def test_a_dag_file_of_another_version(self, run, tmp_path):
        """Its tasks start no command; the error names both versions."""
        from airflow.sdk.exceptions import AirflowFailException

        run.dag_file = checkout(tmp_path, version="9.8.7") / "dags" / "some.py"
        with pytest.raises(
            AirflowFailException, match=rf"\(version 9.8.7\) .* plugin \(version {__version__}\): install"
        ):
            run("print(1)")
        assert run.pushed["error"].startswith(f"The DAG files in {tmp_path / 'dags'} (version 9.8.7)")

    def test_runs_the_code_of_the_dag_file(self, run, tmp_path, monkeypatch):
        """The command is that of the checkout of the DAG file; all data is where the plugin has it."""
        monkeypatch.delenv("CAPTION_TRACKING_URI")
        run.dag_file = checkout(tmp_path) / "dags" / "some.py"
        names = [f"CAPTION_{name.upper()}" for name in DATA_SETTINGS]
        code = f"import json, os; print(json.dumps([os.getcwd(), *map(os.environ.get, {names})]))"
        assert run(code)[0] == [str(tmp_path), *(DEFAULTS[name] for name in names)]

    def test_pushes_the_error_of_a_failed_command(self, run):
        """The error is an XCom, for the run note and the notifications."""
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


def test_the_environment_is_that_of_the_tests(airflow_home):
    """Airflow keeps to the tests' own folder."""
    from airflow.configuration import AIRFLOW_HOME

    assert Path(AIRFLOW_HOME) == airflow_home == Path(os.environ["AIRFLOW_HOME"])
