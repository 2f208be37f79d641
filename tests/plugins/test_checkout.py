"""Which code a task runs, and whether a DAG file fits the plugin."""

import tomllib

import pytest

from captioning.checkout import NAME, find_checkout, matching_plugin
from pipeline import __version__
from pipeline.errors import PipelineError
from pipeline.settings import PROJECT
from tests.support.checkout import checkout

BOTH_VERSIONS = rf"\(version 9.8.7\) do not fit the installed plugin \(version {__version__}\): install the plugin of "


def test_this_checkout_is_one():
    """Its name is that by which it is known, and its version that of the package."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert (project["name"], project["version"]) == (NAME, __version__)
    assert find_checkout(str(PROJECT / "dags" / "caption_new_images.py")) == PROJECT


def test_a_dag_file_in_a_checkout_belongs_to_its_code(tmp_path):
    """Through a link, too, which may lead to another folder while the task runs."""
    folder = checkout(tmp_path)
    assert find_checkout(str(folder / "dags" / "some.py")) == folder
    (tmp_path / "link").symlink_to(folder / "dags")
    assert find_checkout(str(tmp_path / "link" / "some.py")) == folder


@pytest.mark.parametrize(
    "case", ["no checkout", "another project", "no project", "damaged", "no text", "DAG files alone"]
)
def test_every_other_dag_file_belongs_to_the_installed_code(case, tmp_path):
    """In Airflow's folder of DAGs, in a repository that has a package of the same name, in a sparse checkout."""
    checkout(tmp_path, name="theirs" if case == "another project" else NAME)
    project = tmp_path / "pyproject.toml"
    if case == "no checkout":
        project.unlink()
    elif case == "no project":
        project.write_text("[tool.ruff]\nline-length = 100\n")
    elif case == "damaged":
        project.write_text("[project\n")
    elif case == "no text":
        project.write_bytes(b"\xff")
    elif case == "DAG files alone":
        (tmp_path / "pipeline").rmdir()
    assert find_checkout(str(tmp_path / "dags" / "some.py")) is None


def test_a_dag_file_of_another_version(tmp_path, monkeypatch):
    """The error names both versions; in a task, Airflow would not show it, and the operator raises it."""
    file = str(checkout(tmp_path, version="9.8.7") / "dags" / "some.py")
    with pytest.raises(PipelineError, match=BOTH_VERSIONS), matching_plugin(file):
        pytest.fail("it must not import anything")
    with pytest.raises(PipelineError, match=BOTH_VERSIONS):
        find_checkout(file)
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_TASK_ID", "list_inbox")
    with matching_plugin(file):
        pass


@pytest.mark.parametrize(
    "statement", ["from captioning.names import ALL", "import captioning.nothing", "import pipeline.nothing"]
)
@pytest.mark.parametrize("version", [__version__, "unknown"])
def test_a_dag_file_that_asks_for_more(statement, version, tmp_path):
    """An import that the plugin does not have is an error with both versions, as far as they are known."""
    file = checkout(tmp_path) / "dags" / "some.py"
    if version == "unknown":
        (tmp_path / "pyproject.toml").unlink()
    expected = (
        rf"{file.parent} \(version {version}\) do not fit the installed plugin \(version {__version__}\), which lacks "
        r"something that they import \((cannot import name 'ALL' from|No module named) .*\): install the plugin of "
    )
    with pytest.raises(PipelineError, match=expected), matching_plugin(str(file)):
        exec(statement)  # noqa: S102 - one of those above


def test_other_packages_are_not_meant(tmp_path):
    """The error of an import of anything else says itself what is missing."""
    with pytest.raises(ModuleNotFoundError, match="nothing"), matching_plugin(str(tmp_path / "dags" / "some.py")):
        import nothing  # noqa: F401
