"""Child processes: with Airflow's own Python, and with that of another environment, which the settings name."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pipeline
from captioning import checkout, child
from captioning.checkout import find_code
from captioning.child import prepare_child
from captioning.settings import AirflowSettings
from pipeline.errors import PipelineError
from pipeline.settings import load_settings
from tests.support.environments import make_environment, packages
from tests.support.paths import PROJECT

SHOW = "import json, sys, numpy, pipeline; print(json.dumps([sys.prefix, numpy.__file__, pipeline.__file__]))"

OLD = f"""#!{sys.executable}
import sys
sys.version_info = (3, 10)
exec(sys.argv[2])
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of an environment with the base packages."""
    return make_environment(tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The Python of an empty environment."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


@pytest.fixture
def strange(tmp_path):
    """A folder with packages that must not be imported."""
    for name in ("numpy", "pipeline"):
        (tmp_path / "strange" / name).mkdir(parents=True)
        (tmp_path / "strange" / name / "__init__.py").write_text("__version__ = '0.0.1'\n")
    return tmp_path / "strange"


@pytest.fixture
def use(monkeypatch):
    """Returns how a child process is run by the Python that it is given."""

    def use(python, code=PROJECT, **environment):
        monkeypatch.setenv("CAPTION_PYTHON", str(python))
        return prepare_child({**os.environ, **environment}, code)

    return use


def show(found):
    """The environment of a child process, and where it finds NumPy and the pipeline."""
    [python, _] = found.command
    shown = subprocess.check_output([python, "-c", SHOW], cwd=found.folder, env=found.environment)
    return json.loads(shown)


def program(path, text, mode=0o755):
    """Write a program, and return its path."""
    path.write_text(text)
    path.chmod(mode)
    return path


def test_by_default_it_is_airflows_python():
    """Its environment is unchanged, and its folder that of the code."""
    assert prepare_child(os.environ, PROJECT) == ([sys.executable, "-m"], PROJECT, dict(os.environ))
    assert prepare_child(os.environ, None).folder == PROJECT


def test_a_checkout_in_another_environment(use, python, strange):
    """It runs the code of the checkout with the packages of that environment; all other variables reach it."""
    found = use(python, PYTHONHOME="/nowhere", PYTHONPATH=str(strange))
    assert found.environment == {**os.environ, "PYTHONPATH": str(PROJECT)}
    numpy = packages(python) / "numpy" / "__init__.py"
    assert show(found) == [str(python.parents[1]), str(numpy), pipeline.__file__]


def test_an_installed_package_in_another_environment(use, python, strange, monkeypatch):
    """Everything is from that environment, and nothing from the folder in which Airflow has its packages."""
    monkeypatch.setattr(child, "PROJECT", strange)
    link = packages(python) / "pipeline"
    link.symlink_to(PROJECT / "pipeline")
    found = use(python, None, PYTHONHOME="/nowhere", PYTHONPATH=str(strange))
    assert show(found)[1:] == [str(packages(python) / name / "__init__.py") for name in ("numpy", "pipeline")]
    link.unlink()


def test_where_the_code_is(monkeypatch, tmp_path):
    """A checkout, or the folder of a bundle or an image, is told from the folder where a wheel was installed."""
    assert find_code() == PROJECT
    monkeypatch.setattr(checkout, "PROJECT", tmp_path)
    assert find_code() == tmp_path
    (tmp_path / f"image_captioning_pipeline-{pipeline.__version__}.dist-info").mkdir()
    assert find_code() is None


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda folder, bare: folder / "nowhere", r"can't be run: No such file .* install that Python on this machine"),
        (lambda folder, bare: folder, r"is a folder\. Name the Python in it\.$"),
        (lambda folder, bare: bare.parents[1], r"is a folder\. Name the Python in it: .*/bin/python\.$"),
        (lambda folder, bare: program(folder / "p", "", 0o644), "can't be run: Permission denied"),
        (lambda folder, bare: program(folder / "p", "print(1)"), "can't be run: Exec format error"),
        (
            lambda folder, bare: "/bin/true",
            r"not a working Python 3.11 or later \(it does not run Python code\)\. Name another",
        ),
        (
            lambda folder, bare: program(folder / "p", "#!/bin/sh\necho lost >&2; exit 9"),
            r"or later \(lost\)\. Name another",
        ),
        (lambda folder, bare: program(folder / "p", OLD), r"or later \(it is Python 3\.10\)"),
        (lambda folder, bare: bare, "does not have boto3, crypto.* Install the wheel of Airflow's version there"),
    ],
    ids=["nowhere", "folder", "environment", "no program", "no format", "no Python", "broken", "old", "empty"],
)
def test_an_unusable_python(make, why, use, bare, tmp_path):
    """The error is one line that names the setting and the file, says what is wrong, and what to do."""
    python = make(tmp_path, bare)
    with pytest.raises(PipelineError, match=why) as error:
        use(python)
    assert str(error.value).startswith("CAPTION_PYTHON can't be used: ")
    assert str(python) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "does not have the package image-captioning-pipeline"),
        ("__version__ = '0.0.1'", r"has version 0\.0\.1 of the pipeline \(.*/__init__.py\), and Airflow has [0-9.]+"),
        ("", r"has version unknown of the pipeline \(.*/__init__.py\), and Airflow has [0-9.]+"),
    ],
    ids=["none", "another version", "another package"],
)
def test_another_version_of_the_package(content, why, use, bare):
    """What Airflow has not is not run; the error says how to install what it has."""
    package = packages(bare) / "pipeline"
    if content is not None:
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text(content)
    advice = rf"\. Install .*: {re.escape(str(bare))} -m pip install 'image_captioning_pipeline-.*\.whl\[training\]'$"
    with pytest.raises(PipelineError, match=why + advice):
        use(bare, None)


def test_a_python_that_does_not_answer(use, tmp_path, monkeypatch):
    """As a slow disk may be the cause, it is not an error that a person must mend."""
    monkeypatch.setattr(child, "PROBE_SECONDS", 0.1)
    with pytest.raises(subprocess.TimeoutExpired):
        use(program(tmp_path / "p", "#!/bin/sh\nexec sleep 600"))


def test_the_path_is_absolute(monkeypatch):
    """Airflow's parts have different working folders."""
    monkeypatch.setenv("CAPTION_PYTHON", "venv/bin/python")
    with pytest.raises(PipelineError, match=r"CAPTION_PYTHON: .* expected the absolute path of a Python"):
        load_settings(AirflowSettings)


def test_all_base_packages_are_looked_for():
    """Those of the project, by the names of their modules; and the oldest Python that it supports."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    required = {canonicalize_name(Requirement(each).name) for each in project["dependencies"]}
    distributions = packages_distributions()
    assert {canonicalize_name(name) for module in child.BASE for name in distributions[module]} == required
    assert project["requires-python"].startswith(">=3.11,")
