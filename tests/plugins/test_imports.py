"""Our modules in Airflow's processes: each file is loaded under one name only, and plugins stay light."""

import ast
import importlib.metadata
import json
import os
import runpy
import subprocess
import sys

import pytest

from tests.support.paths import PROJECT

NAMES = """
import collections, json, os, sys

def names():
    found = collections.defaultdict(list)
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        file = getattr(module, "__file__", None) or (spec and spec.origin) or ""
        if file.endswith(".py"):
            found[os.path.realpath(file)].append(name)
    return found

print(json.dumps(names()))
"""

API_SERVER = """
from starlette.testclient import TestClient
from airflow.api_fastapi.app import create_app

with TestClient(create_app("core")) as client:
    assert client.get("/captions/nights").status_code == 401
"""

DAG_PROCESSOR = """
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.plugins_manager import ensure_plugins_loaded

ensure_plugins_loaded()
bag = BundleDagBag("{bundle}", bundle_path="{bundle}", bundle_name="captioning")
assert len(bag.dags) == 3 and not bag.import_errors
"""

TASK = """
import os

from airflow.dag_processing.dagbag import DagBag

run = DagBag(os.path.abspath("dags")).dags["caption_new_images"].test()
states = {instance.task_id: instance.state for instance in run.get_task_instances()}
assert (run.state, states["list_inbox"], states["end_run"]) == ("failed", "failed", "success"), states
"""


@pytest.fixture
def load(airflow_home, tmp_path):
    """Runs code in a child process; returns the names under which it has loaded our files, by path in the checkout."""

    def load(code):
        environment = {
            **os.environ,
            "CAPTION_STORE": (tmp_path / "store").as_uri(),
            "CAPTION_INBOX": (tmp_path / "inbox").as_uri(),
        }
        command = [sys.executable, "-c", code + NAMES]
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        files = json.loads(done.stdout.splitlines()[-1])
        ours = [f"{PROJECT}/{folder}/" for folder in ("dags", "pipeline", "plugins")]
        return {
            path.removeprefix(f"{PROJECT}/"): names for path, names in files.items() if path.startswith(tuple(ours))
        }

    return load


PLUGINS_LOADED = ["captioning_plugin", "captioning/plugin"]


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        (API_SERVER, [*PLUGINS_LOADED, "captioning/run_notes", "captioning/gallery/app"]),
        (
            DAG_PROCESSOR.replace("{bundle}", str(PROJECT)),
            [*PLUGINS_LOADED, "captioning/operators"],
        ),
        (
            DAG_PROCESSOR.replace("{bundle}", str(PROJECT / "dags")),
            [*PLUGINS_LOADED, "captioning/operators"],
        ),
        (TASK, [*PLUGINS_LOADED, "captioning/run_notes", "captioning/operators"]),
    ],
    ids=["API server", "DAG processor, repository", "DAG processor, dags", "task"],
)
def test_each_file_has_one_name(load, code, loaded):
    """The plugin file, the package and the DAG files: none is executed twice under different names."""
    files = load(code)
    assert {path: names for path, names in files.items() if len(names) > 1} == {}
    for path in loaded:
        assert files[f"plugins/{path}.py"] == [path.replace("/", ".")]


PLUGINS = """
import sys
from airflow import plugins_manager

apps, _ = plugins_manager.get_fastapi_plugins()
assert plugins_manager.get_import_errors() == {}
early = [name for name in ("pyarrow", "captioning.gallery.app", "captioning.operators") if name in sys.modules]
import captioning.gallery.app
heavy = [name for name in ("keras", "tensorflow", "jax", "torch", "openvino", "matplotlib") if name in sys.modules]
assert ([app["name"] for app in apps], early, heavy) == (["Captions"], [], []), (apps, early, heavy)
"""


def test_plugins_are_light(load):
    """Loading the plugins, which each part of Airflow does, does not load the gallery, and the gallery no Keras."""
    files = load(PLUGINS)
    assert [path for path in files if path.startswith("dags/")] == []


@pytest.mark.parametrize("installed", [True, False])
def test_the_plugins_folder_shows_what_no_package_shows(installed, monkeypatch):
    """Where the package is not installed, as in the image of a cluster, the folder has both plugins; else none."""
    found = ["an entry point"] if installed else []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: found)
    names = runpy.run_path(str(PROJECT / "plugins" / "captioning_plugin.py"))
    assert {"GalleryPlugin", "RunNotesPlugin"} & names.keys() == (
        set() if installed else {"GalleryPlugin", "RunNotesPlugin"}
    )


PUBLIC = (
    "airflow.listeners", "airflow.plugins_manager", "airflow.sdk.exceptions", "airflow.sdk.observability",
    "airflow.triggers.base", "airflow.triggers.shared_stream",
)  # fmt: skip
"""Modules of Airflow's public interface beside ``airflow.sdk``, whose names are listed in it, and the providers."""


def airflow_imports(path):
    """The names that a module imports from Airflow, in any of its lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "airflow")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "airflow":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_what_is_internal_to_airflow_is_in_one_module():
    """Everything imported from Airflow is public, but for the list in one module, which is what an upgrade checks."""
    import airflow.sdk

    def is_public(name):
        module, _, attribute = name.rpartition(".")
        if module == "airflow.sdk":
            return attribute in airflow.sdk.__all__
        return module in PUBLIC or module.startswith("airflow.providers.")

    internal = {
        (path.relative_to(PROJECT).as_posix(), name)
        for folder in ("dags", "pipeline", "plugins", "scripts")
        for path in (PROJECT / folder).rglob("*.py")
        for name in airflow_imports(path)
        if not is_public(name)
    }
    assert {path for path, _ in internal} == {"plugins/captioning/internals.py"}
    assert {name for _, name in internal} == {
        "airflow.api_fastapi.app.get_auth_manager",
        "airflow.api_fastapi.auth.managers.models.base_user.BaseUser",
        "airflow.api_fastapi.auth.managers.models.resource_details.DagAccessEntity",
        "airflow.api_fastapi.auth.managers.models.resource_details.DagDetails",
        "airflow.api_fastapi.core_api.security.GetUserDep",
        "airflow.api_fastapi.core_api.security.bearer_scheme",
        "airflow.api_fastapi.core_api.security.get_user",
        "airflow.api_fastapi.core_api.security.requires_access_dag",
        "airflow.models.DagRun",
        "airflow.models.Pool",
        "airflow.models.TaskInstance",
        "airflow.models.xcom.XComModel",
        "airflow.settings",
    }
