"""Which code a task runs, and whether the DAG files fit the installed plugin.

A DAG file in a checkout of this project, such as a version of a Git bundle, belongs to the code beside it: its tasks
run this code. Any other DAG file belongs to the installed package. The operators are always those of the plugin.
"""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airflow.sdk import get_parsing_context

from pipeline import __version__
from pipeline.errors import PipelineError
from pipeline.settings import PROJECT

NAME = "image-captioning-pipeline"
"""The name of this project in ``pyproject.toml``."""

PACKAGES = ("captioning", "pipeline")
"""The packages that the DAG files import from the plugin's environment."""


@contextmanager
def matching_plugin(dag_file: str) -> Iterator[None]:
    """The context of a DAG file's imports, in which the plugin must have what the file imports.

    Raises:
        PipelineError: the plugin is of another version than the file, or lacks something that it imports.
    """
    # For a task, Airflow would only report that the DAG is missing, after some minutes: the operator checks instead.
    if get_parsing_context().task_id is None:
        find_checkout(dag_file)
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in PACKAGES:
            raise
        raise mismatch(dag_file, f", which lacks something that they import ({error.msg})") from None


def find_checkout(dag_file: str) -> Path | None:
    """The folder whose package ``pipeline`` the tasks of a DAG run; ``None`` for the installed package.

    Raises:
        PipelineError: the plugin is of another version than the DAG file.
    """
    version = _version(dag_file)
    if version is None:
        return None
    if version != __version__:
        raise mismatch(dag_file)
    folder = _folder(dag_file).parent
    # A sparse checkout may have the DAG files alone.
    return folder if (folder / "pipeline").is_dir() else None


def find_code() -> Path | None:
    """The checkout whose code this process runs; ``None`` if the code is that of an installed package."""
    is_installed = any(PROJECT.glob("image_captioning_pipeline-*.dist-info"))
    return None if is_installed else PROJECT


def mismatch(dag_file: str, what: str = "") -> PipelineError:
    """The error of a DAG file that does not fit the plugin. ``what`` says what is wrong with the plugin."""
    return PipelineError(
        f"The DAG files in {_folder(dag_file)} (version {_version(dag_file) or 'unknown'}) do not fit the installed "
        f"plugin (version {__version__}){what}: install the plugin of their commit in every part of Airflow and "
        "restart it, or use the DAG files of the plugin's version."
    )


def _folder(dag_file: str) -> Path:
    return Path(dag_file).resolve().parent


def _version(dag_file: str) -> str | None:
    """The version of the checkout that a DAG file is in; ``None`` if it is in none."""
    try:
        project = tomllib.loads((_folder(dag_file).parent / "pyproject.toml").read_text())["project"]
        return str(project["version"]) if project["name"] == NAME else None
    except (OSError, KeyError, TypeError, ValueError):
        return None
