"""Airflow in an environment without what computes, and the pipeline's commands in another, which has no Airflow."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest

from pipeline.captioner import registry
from pipeline.storage import open_bucket
from tests.support import toy
from tests.support.environments import make_environment, packages
from tests.support.nights import colour_in, rows_in
from tests.support.paths import PROJECT

FIND = """
import importlib.util, sys
print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name)])
"""

ITSELF = """
import sys
from airflow.dag_processing.dagbag import DagBag

bag = DagBag()
assert (len(bag.dags), bag.import_errors) == (2, {})

from airflow.api_fastapi.app import create_app, get_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from starlette.testclient import TestClient

app = create_app("core")
token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="someone", role="admin"))
headers = {"Authorization": f"Bearer {token}"}
with TestClient(app, base_url="http://127.0.0.1:8080", headers=headers) as client:
    for page in ("", "thumbnail?key=red.jpg", "nights", "models", "corrections", "try"):
        answer = client.get(f"/captions/{page}")
        assert answer.status_code == 200, (page, answer.text)
    answer = client.post("/captions/caption", content=sys.stdin.buffer.read())
print(answer.text)
"""


def importable(python):
    """Those of our packages, and of the packages that only one environment has, that can be imported."""
    names = ["airflow", "captioning", "pipeline", "pyarrow", "keras", "mlflow", "nncf", "openvino", "tensorflow"]
    # Without the working folder, where any folder passes for a package.
    return subprocess.check_output([python, "-P", "-c", FIND, *names], env={}, text=True).split()


def install(folder, wheel, extra):
    """Make an environment with the wheel, and have pip install what it needs, in the locked versions; its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    locked = re.findall(r"^(\S+==.*?) \\$", (PROJECT / "requirements.txt").read_text(), re.MULTILINE)
    (folder / "constraints.txt").write_text("\n".join(locked))
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", folder / "constraints.txt", f"{wheel}[{extra}]"]
    subprocess.run(pip, check=True)
    return python


def link(folder, wheel, extra):
    """The same in a second, without pip, and with links to the packages of the tests."""
    python = make_environment(folder, extra)
    zipfile.ZipFile(wheel).extractall(packages(python))
    return python


def link_without_wheel(folder, _, extra):
    """The same without the wheel."""
    return make_environment(folder, extra)


BY_PIP = pytest.param("pip", marks=[pytest.mark.by_hand, pytest.mark.timeout(3600)])

MAKERS = {"wheel": link, "checkout": link_without_wheel, "pip": install}


@pytest.fixture(scope="module", params=["wheel", "checkout", BY_PIP])
def pythons(request, wheel, tmp_path_factory):
    """The Pythons of an environment with Airflow and of one with what captions, and whether both have the wheel."""
    folder = tmp_path_factory.mktemp("environments")
    pythons = [MAKERS[request.param](folder / extra, wheel, extra) for extra in ("airflow", "inference")]
    has_wheel = request.param != "checkout"
    ours = ["captioning", "pipeline"] if has_wheel else []
    assert importable(pythons[0]) == ["airflow", *ours, "pyarrow"]
    assert importable(pythons[1]) == [*ours, "pyarrow", "keras", "openvino", "tensorflow"]
    return *pythons, has_wheel


@pytest.fixture
def deployment(pythons, airflow_database, trained, tmp_path):
    """A store with a champion, and a function that runs a program in Airflow's environment and returns its output."""
    store, inbox = open_bucket(str(tmp_path / "store")), open_bucket(str(tmp_path / "inbox"))
    toy.copy(trained.store, store, "models/", "encoders/")
    registry.promote(trained.model.version, store)
    for colour in ("red", "blue"):
        inbox.put(f"{colour}.jpg", toy.picture(colour))
    home = tmp_path / "airflow"
    home.mkdir()
    shutil.copy(airflow_database, home)
    python, other, has_wheel = pythons
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__API_AUTH__JWT_SECRET": "0" * 64,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "CAPTION_INBOX": inbox.uri,
        "CAPTION_PYTHON": str(other),
        "CAPTION_STORE": store.uri,
    }

    def run(*arguments, data=None):
        done = subprocess.run(
            [python, *arguments], cwd=tmp_path, env=environment, input=data, capture_output=True, check=False
        )
        assert done.returncode == 0, (done.stdout[-8000:] + done.stderr[-4000:]).decode()
        return done.stdout.decode()

    if has_wheel:
        (home / "dags").mkdir()
        run("-m", "pipeline", "install-dags", home / "dags")
    else:
        environment |= {
            "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
            "PYTHONPATH": str(PROJECT),
        }
    return SimpleNamespace(run=run, store=store)


@pytest.mark.parametrize("pythons", ["wheel", BY_PIP], indirect=True)
def test_a_night(deployment):
    """Each of its commands runs in the other environment."""
    deployment.run("-m", "airflow", "dags", "test", "caption_new_images")
    captions = {row["image_key"]: row["caption"] for row in rows_in(deployment.store)}
    assert {key: colour_in(caption) for key, caption in captions.items()} == {"red.jpg": "red", "blue.jpg": "blue"}


def test_what_airflow_does_itself(deployment):
    """It parses both DAGs and shows the pages of the gallery; an upload is captioned in the other environment."""
    answer = json.loads(deployment.run("-c", ITSELF, data=toy.picture("green")).splitlines()[-1])
    assert colour_in(answer["captions"][0]["caption"]) == "green"
