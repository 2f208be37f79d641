"""The wheel: what is in it, and how it works where there is no checkout."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import PROJECT

PACKAGES = {"dags": "captioning_dags", "pipeline": "pipeline", "plugins/captioning": "captioning"}
"""The packages of the wheel, by folder of the checkout."""


@pytest.fixture
def run(installed, tmp_path):
    """Runs a program in an empty folder, where our code is only in the installed wheel; returns its output."""

    def run(*command, **environment):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CAPTION_")}
        own = {"PYTHONPATH": str(installed), "HOME": str(tmp_path), "AIRFLOW_HOME": str(tmp_path / "airflow")}
        done = subprocess.run(
            command, cwd=tmp_path, env={**inherited, **own, **environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_wheel_holds_all_files(wheel):
    """Every module, template and static file of the packages is in the wheel, and nothing else."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{path.relative_to(PROJECT / folder)}"
        for folder, package in PACKAGES.items()
        for path in (PROJECT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.name != ".airflowignore"
    }
    assert names == expected


def test_the_base_is_light(wheel):
    """Without an extra, neither Airflow nor anything that computes is installed."""
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
    required = [line for line in archive.read(metadata).decode().splitlines() if line.startswith("Requires-Dist: ")]
    base = " ".join(line for line in required if "extra ==" not in line)
    assert "pyarrow" in base
    assert not [name for name in ("airflow", "tensorflow", "keras", "openvino", "mlflow", "nncf") if name in base]


def test_the_command_line_works(run, installed):
    """The command shows its help, and the code is the wheel's."""
    assert "Caption photographs" in run(installed / "bin" / "captioning", "--help")
    assert run(sys.executable, "-c", "import pipeline; print(pipeline.__file__)").startswith(str(installed))


@pytest.mark.parametrize("variable", ["XDG_DATA_HOME", "HOME"])
def test_data_is_in_the_users_folder(variable, run, tmp_path):
    """By default the store is below the folder that the user has for data, and never beside the code."""
    code = "from pipeline.settings import Settings; print(Settings().store)"
    folder = {"XDG_DATA_HOME": tmp_path / "data", "HOME": tmp_path / "home" / ".local" / "share"}[variable]
    environment = {"XDG_DATA_HOME": "", variable: str(tmp_path / ("data" if variable == "XDG_DATA_HOME" else "home"))}
    assert run(sys.executable, "-c", code, **environment).strip() == (folder / "captioning" / "store").as_uri()


DAGS = ["caption_new_images", "maintain_captioning", "retrain_captioner"]

PARSE = """
from airflow.dag_processing.dagbag import DagBag
bag = DagBag("dags")
assert bag.import_errors == {}, bag.import_errors
print(*sorted(bag.dags))
"""


def test_airflow_reads_a_file_that_imports_the_dags(run, tmp_path):
    """The user's own, as docs/existing-airflow.md shows it, gives Airflow the DAGs."""
    page = (PROJECT / "docs" / "existing-airflow.md").read_text()
    [code] = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "ours.py").write_text(code)
    dags = run(sys.executable, "-c", PARSE, AIRFLOW__CORE__PLUGINS_FOLDER=str(tmp_path / "plugins"))
    assert dags.splitlines()[-1] == " ".join(DAGS)


def test_airflow_reads_the_dags(run, installed, tmp_path):
    """The files that `install-dags` writes show Airflow the DAGs; in a folder that is not there it writes nothing."""
    (tmp_path / "dags").mkdir()
    output = run(installed / "bin" / "captioning", "install-dags", "dags")
    assert json.loads(output) == {"files": [f"dags/{name}.py" for name in DAGS]}
    assert all(len(path.read_text().splitlines()) == 2 for path in (tmp_path / "dags").iterdir())
    dags = run(sys.executable, "-c", PARSE, AIRFLOW__CORE__PLUGINS_FOLDER=str(tmp_path / "plugins"))
    assert dags.splitlines()[-1] == " ".join(DAGS)


@pytest.mark.parametrize("folder", ["nowhere", PROJECT / "plugins"], ids=["wheel alone", "plugins folder too"])
def test_airflow_lists_each_plugin_once(folder, run, tmp_path):
    """The plugins come with the wheel; where Airflow's plugins folder has them as well, they are not doubled."""
    airflow = Path(sys.executable).with_name("airflow")
    output = run(airflow, "plugins", "--output", "json", AIRFLOW__CORE__PLUGINS_FOLDER=str(tmp_path / folder))
    assert "already registered" not in output
    names = [plugin["name"] for plugin in json.loads(output[output.index("[{") :])]
    assert sorted(name for name in names if name.startswith("captioning")) == [
        "captioning_gallery",
        "captioning_run_notes",
    ]


@pytest.mark.by_hand
def test_an_empty_environment(wheel, tmp_path):
    """With the wheel and its base dependencies alone, the command line works, and says what it has not."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([tmp_path / "venv" / "bin" / "pip", "install", "--quiet", wheel], check=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    captioning = tmp_path / "venv" / "bin" / "captioning"
    shown = subprocess.run([captioning, "--help"], env=environment, cwd=tmp_path, check=True, capture_output=True)
    assert b"Caption photographs" in shown.stdout
    status = subprocess.run([captioning, "status"], env=environment, cwd=tmp_path, check=True, capture_output=True)
    assert b"No model has been promoted" in status.stdout
