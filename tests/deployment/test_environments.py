"""Environments without TensorFlow and Keras: one with Airflow and what captions, as in the image light; and two, one
with Airflow alone, and another in which the pipeline's commands run.
"""

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
from tests.support.compose_file import DOCKERFILE
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
assert (len(bag.dags), bag.import_errors) == (3, {})

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
    return set(subprocess.check_output([python, "-P", "-c", FIND, *names], env={}, text=True).split())


def link(folder, _, *extras):
    """Make an environment with what the extras need, in a second: links to the packages of the tests; its Python."""
    return make_environment(folder, *extras)


def link_with_wheel(folder, wheel, *extras):
    """The same with the wheel in it."""
    python = make_environment(folder, *extras)
    zipfile.ZipFile(wheel).extractall(packages(python))
    return python


def install(folder, wheel, *extras):
    """Make an environment with the wheel, and have pip install what it needs, in the locked versions; its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    locked = re.findall(r"^(\S+==.*?) \\$", (PROJECT / "requirements-training.txt").read_text(), re.MULTILINE)
    (folder / "constraints.txt").write_text("\n".join(locked))
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", folder / "constraints.txt"]
    subprocess.run([*pip, f"{wheel}[{','.join(extras)}]"], check=True)
    return python


def install_lock(folder, *_):
    """Make an environment as the Dockerfile makes that of the image light; its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    [options] = re.findall(r"^RUN pip install (.+) -r /requirements\.txt$", DOCKERFILE, re.MULTILINE)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", *options.split()]
    subprocess.run([*pip, "-r", PROJECT / "requirements.txt"], check=True)
    return python


LIGHT, APART = [("airflow", "inference")], [("airflow",), ("inference",)]
"""The extras of each environment."""

KINDS = {
    "light": (link, LIGHT),
    "lock": (install_lock, LIGHT),
    "checkout": (link, APART),
    "wheel": (link_with_wheel, APART),
    "pip": (install, APART),
}
BY_PIP = [pytest.param(kind, marks=[pytest.mark.by_hand, pytest.mark.timeout(3600)]) for kind in ("lock", "pip")]


@pytest.fixture(scope="module", params=["light", "checkout", "wheel", *BY_PIP])
def pythons(request, wheel, tmp_path_factory):
    """The Python of Airflow, that of what captions, which may be the same, and whether they have the wheel."""
    make, environments = KINDS[request.param]
    has_wheel = make in (link_with_wheel, install)
    folder = tmp_path_factory.mktemp("environments")
    pythons = [make(folder / extras[-1], wheel, *extras) for extras in environments]
    ours = {"captioning", "pipeline"} if has_wheel else set()
    theirs = {"airflow": "airflow", "inference": "openvino"}
    for python, extras in zip(pythons, environments, strict=True):
        assert importable(python) == {"pyarrow", *ours, *(theirs[extra] for extra in extras)}
    return pythons[0], pythons[-1], has_wheel


@pytest.fixture
def deployment(pythons, airflow_database, trained, tmp_path):
    """A store with a champion, and functions that run programs of Airflow and commands of the pipeline."""
    store, inbox = open_bucket(str(tmp_path / "store")), open_bucket(str(tmp_path / "inbox"))
    toy.copy(trained.store, store, "")
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
        "CAPTION_PYTHON": str(other) if other != python else "",
        "CAPTION_STORE": store.uri,
    }

    def run(*arguments, python=python, status=0, data=None):
        """Run a program; return what it prints, or where it fails its errors."""
        done = subprocess.run(
            [python, *arguments], cwd=tmp_path, env=environment, input=data, capture_output=True, check=False
        )
        assert done.returncode == status, (done.stdout[-8000:] + done.stderr[-4000:]).decode()
        return (done.stderr if status else done.stdout).decode()

    def command(*arguments, status=0):
        """Run a command of the pipeline where it captions."""
        return run("-m", "pipeline", *arguments, python=other, status=status)

    if has_wheel:
        (home / "dags").mkdir()
        run("-m", "pipeline", "install-dags", home / "dags")
    else:
        environment |= {
            "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
            "PYTHONPATH": str(PROJECT),
        }
    return SimpleNamespace(run=run, command=command, store=store, python=other)


@pytest.mark.parametrize("pythons", ["light", "wheel", *BY_PIP], indirect=True)
def test_a_night(deployment):
    """Each of its commands runs where there is neither Keras nor TensorFlow."""
    deployment.run("-m", "airflow", "dags", "test", "caption_new_images")
    captions = {row["image_key"]: row["caption"] for row in rows_in(deployment.store)}
    assert {key: colour_in(caption) for key, caption in captions.items()} == {"red.jpg": "red", "blue.jpg": "blue"}


def test_what_airflow_does_itself(deployment):
    """It parses the DAGs and shows the pages of the gallery, and has an upload captioned without Keras."""
    answer = json.loads(deployment.run("-c", ITSELF, data=toy.picture("green")).splitlines()[-1])
    assert colour_in(answer["captions"][0]["caption"]) == "green"


@pytest.mark.parametrize("pythons", ["light", *BY_PIP], indirect=True)
def test_commands(deployment, trained, tmp_path):
    """Pictures are captioned; what trains or scores fails with one sentence, which says what it needs and where."""
    (tmp_path / "red.jpg").write_bytes(toy.picture("red"))
    assert colour_in(json.loads(deployment.command("caption", "red.jpg", "--json"))["caption"]) == "red"
    inputs = trained.inputs
    for arguments in (
        ["register-encoder", "random"],
        ["train", inputs.dataset, inputs.vocabulary, inputs.encoder_id, "--set=epochs=1"],
        ["evaluate", trained.model.version],
    ):
        *_, error = deployment.command(*arguments, status=2).splitlines()
        assert re.fullmatch(
            r"error: (keras|pycocoevalcap) is not installed\. Run this in the image train or gpu, or install it: "
            rf"{deployment.python} -m pip install 'image-captioning-pipeline\[training\]'",
            error,
        )
