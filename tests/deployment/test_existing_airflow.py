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
from tests.support.paths import PROJECT
from tests.support.repository import Repository

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git on the PATH")

DAGS = ["caption_new_images", "retrain_captioner"]

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
    assert (other_dags, list(other_errors)) == (["retrain_captioner"], ["dags/caption_new_images.py"])
    lacks = r", which lacks something that they import \(cannot import name 'SOMETHING' .*\)"
    [error] = other_errors.values()
    assert re.search(does_not_fit.format(__version__, __version__, lacks), error.splitlines()[-1])
