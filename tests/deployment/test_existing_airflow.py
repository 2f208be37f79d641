"""A Git bundle of the repository, with the plugin from the wheel or from a checkout's folder of plugins.

``test_wheel.py`` has the wheel without a bundle, ``tests/dags`` the folders of a checkout.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from pipeline import __version__
from pipeline.captioner import registry
from pipeline.storage import open_bucket
from tests.support import secrets, toy
from tests.support.airflow_server import NIGHT_DAG, start_airflow
from tests.support.paths import PROJECT
from tests.support.repository import Repository
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git on the PATH")

DAGS = ["caption_new_images", "maintain_captioning", "retrain_captioner"]

LOAD = """
import json, sys
from types import SimpleNamespace
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import BundleDagBag

loaded = []
for name, version in json.loads(sys.argv[1]):
    bundle = DagBundlesManager().get_bundle(name, version=version)
    bundle.initialize()
    bag = BundleDagBag(bundle.path, bundle_path=bundle.path, bundle_name=name)
    result = None
    if dag := bag.dags.get("caption_new_images"):
        context = {"dag": dag, "ti": SimpleNamespace(xcom_push=lambda key, value: None), "outlet_events": {}}
        result = dag.task_dict["list_inbox"].execute(context)
    loaded.append([sorted(bag.dags), bag.import_errors, result])
print(json.dumps(loaded))
"""
"""Load bundles, each at a commit or, as the DAG processor does, at the newest, and run a task of each."""

MAIN = """
import json, os
print(json.dumps({{"commit": "{commit}", "folder": os.getcwd(), "store": os.environ["CAPTION_STORE"]}}))
"""
"""A command line that says which code it is."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with two commits."""
    made = Repository(
        tmp_path_factory.mktemp("git") / "repository", {"pipeline/__main__.py": MAIN.format(commit="first")}
    )
    made.commit({"pipeline/__main__.py": MAIN.format(commit="second")})
    return made


@pytest.fixture
def load(installed, tmp_path):
    """Loads bundles in Airflow; returns for each the ids of the DAGs, the import errors, and the result of a task."""

    def load(repository, *bundles, plugin="wheel"):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPTION_")}
        environment |= {
            "AIRFLOW_CONN_AWS_DEFAULT": json.dumps({"conn_type": "aws"}),
            "AIRFLOW_HOME": str(tmp_path / "airflow"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins" if plugin == "checkout" else tmp_path),
            "PYTHONPATH": str(PROJECT if plugin == "checkout" else installed),
            "XDG_DATA_HOME": str(tmp_path),
            **repository.bundles(root=None, dags="dags"),
        }
        command = [sys.executable, "-c", LOAD, json.dumps(bundles)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return load


@pytest.mark.parametrize("plugin", ["wheel", "checkout"])
def test_a_bundle_shows_both_dags_and_runs_its_own_code(plugin, load, repository, tmp_path):
    """As the whole repository or its folder of DAGs; a run keeps to its commit's code, and to the plugin's data."""
    first = repository.first
    loaded = load(repository, ("root", None), ("dags", None), ("root", first), ("dags", first), plugin=plugin)
    data = PROJECT / "data" if plugin == "checkout" else tmp_path / "captioning"
    assert loaded == [
        [DAGS, {}, {"commit": commit, "folder": f"{repository.clones}/{place}", "store": (data / "store").as_uri()}]
        for commit, place in (
            ("second", "root/tracking_repo"),
            ("second", "dags/tracking_repo"),
            ("first", f"root/versions/{first}"),
            ("first", f"dags/versions/{first}"),
        )
    ]


def test_a_bundle_that_does_not_fit_the_plugin(load, tmp_path):
    """The import errors of its DAG files say so: it is of another version, or imports what the plugin lacks."""
    project = (PROJECT / "pyproject.toml").read_text()
    other = project.replace(f'\nversion = "{__version__}"\n', '\nversion = "9.8.7"\n')
    repository = Repository(tmp_path / "repository", {"pyproject.toml": other})
    night = (PROJECT / "dags" / "caption_new_images.py").read_text()
    asking = night.replace("import RECONCILE\n", "import RECONCILE, SOMETHING\n")
    repository.commit({"pyproject.toml": project, "dags/caption_new_images.py": asking})
    (dags, errors, _), (other_dags, other_errors, _) = load(repository, ("root", repository.first), ("root", None))
    assert (dags, sorted(errors)) == ([], [f"dags/{name}.py" for name in DAGS])
    does_not_fit = (
        r"The DAG files in \S+/dags \(version {}\) do not fit the installed plugin \(version {}\){}: install "
    )
    for error in errors.values():
        assert re.search(does_not_fit.format("9.8.7", __version__, ""), error.splitlines()[-1])
    assert (other_dags, list(other_errors)) == (DAGS[1:], ["dags/caption_new_images.py"])
    lacks = r", which lacks something that they import \(cannot import name 'SOMETHING' .*\)"
    [error] = other_errors.values()
    assert re.search(does_not_fit.format(__version__, __version__, lacks), error.splitlines()[-1])


COMMAND_LINE = """
import pathlib, sys, time
sys.stderr.write("the code of the {commit} commit\\n")
while sys.argv[1:3] == ["night", "list"] and not pathlib.Path("{until}").exists():
    time.sleep(0.1)
"""
"""What a command does first: it says which code it is, and the listing of the inbox waits."""


@pytest.fixture
def night_airflow(trained, tmp_path):
    """A whole Airflow with a bundle of a repository, and a photograph to caption."""
    store, inbox = open_bucket(str(tmp_path / "store")), open_bucket(str(tmp_path / "inbox"))
    toy.copy(trained.store, store, "models/", "encoders/")
    registry.promote(trained.model.version, store)
    inbox.put("red.jpg", toy.picture("red"))
    repository = Repository(tmp_path / "repository", code(tmp_path, "first"))
    environment = {
        **secrets.without_credentials(),
        **repository.bundles(captioning=None),
        "CAPTION_STORE": store.uri,
        "CAPTION_INBOX": inbox.uri,
    }
    with start_airflow(tmp_path / "airflow", environment) as server:
        yield server, repository


def code(folder, commit):
    """The changes of a commit: its commands say that they are its own."""
    command_line = (PROJECT / "pipeline" / "__main__.py").read_text()
    dag_file = (PROJECT / "dags" / "caption_new_images.py").read_text()
    return {
        "pipeline/__main__.py": COMMAND_LINE.format(commit=commit, until=folder / "go on") + command_line,
        "dags/caption_new_images.py": f"{dag_file}# the {commit} commit\n",
    }


@pytest.mark.airflow
def test_a_night_keeps_to_its_commit(night_airflow, tmp_path):
    """Its tasks run the code of the commit with which it began, although the repository has moved on meanwhile."""
    server, repository = night_airflow
    server.unpause(NIGHT_DAG)
    night = server.first_run(NIGHT_DAG)
    night.wait_for_task("list_inbox", "running")
    second = repository.commit(code(tmp_path, "second"))

    def parsed():
        return server.call("GET", f"/api/v2/dags/{NIGHT_DAG}")["bundle_version"] == second

    wait_for("the second commit", parsed)
    (tmp_path / "go on").touch()
    night.seconds()
    next_night = server.trigger(NIGHT_DAG)
    next_night.seconds()
    commands = {"list_inbox", "plan_extraction", "extract", "plan_captions", "caption", "reconcile", "end_run"}
    assert codes(tmp_path, night) == dict.fromkeys(commands, "first")
    assert codes(tmp_path, next_night) == dict.fromkeys(commands - {"extract", "caption"}, "second")
    assert server.call("GET", "/api/v2/importErrors")["import_errors"] == []


def codes(folder, run):
    """By task, the commit of the code that a run's log names."""
    logs = (folder / "airflow" / "logs").glob(f"dag_id={NIGHT_DAG}/run_id={run.id}/task_id=*/**/*.log")
    found = {}
    for log in logs:
        [task_id] = [part.removeprefix("task_id=") for part in log.parts if part.startswith("task_id=")]
        if named := re.search("the code of the (.+) commit", log.read_text()):
            found[task_id] = named[1]
    return found
