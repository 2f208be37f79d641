"""The child processes that run the pipeline's code, for tasks and for the gallery.

By default they run with Airflow's own Python. The setting ``CAPTION_PYTHON`` names another one, whose environment holds
what computes (OpenVINO; for trainings Keras and TensorFlow, too) and need not hold Airflow. Airflow's then needs the
base packages only.
"""

import errno
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pipeline
from captioning.settings import read_settings
from pipeline.errors import PipelineError
from pipeline.settings import PROJECT

BASE = (
    "boto3", "cryptography", "jinja2", "markdown_it", "numpy", "pandas", "pandera", "PIL", "pillow_heif", "pyarrow",
    "pydantic", "pydantic_settings", "tqdm", "typer",
)  # fmt: skip
"""The modules of the base packages, which every command needs."""

PROBE = """
import sys
if sys.version_info < (3, 11):
    sys.exit("it is Python %d.%d" % sys.version_info[:2])
import importlib.util, json
try:
    import pipeline
    found = [getattr(pipeline, "__version__", "unknown"), pipeline.__file__]
except ModuleNotFoundError:
    found = None
print(json.dumps([found, [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]]))
"""
"""A program that prints the version and the file of a Python's ``pipeline``, and the modules that it lacks."""

PROBE_SECONDS = 60
"""Time limit of that program. It takes a fraction of a second, unless the disk is slow."""

NOT_RUNNABLE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC, errno.ELOOP, errno.ENAMETOOLONG}
"""Errors at the start of a program that a retry does not cure."""


class Child(NamedTuple):
    """How a module of the pipeline is run: the name of the module and its arguments complete the command."""

    command: list[str]
    folder: Path
    environment: dict[str, str]


def prepare_child(environment: Mapping[str, str], code: Path | None) -> Child:
    """How a child process with this environment is run by the Python that the settings name.

    Args:
        environment: that of the child, as Airflow's own Python would get it.
        code: the checkout whose code it runs; ``None`` for the package in the environment of its Python.

    Raises:
        PipelineError: that Python can't run the pipeline, or has another version of it than Airflow.
        subprocess.TimeoutExpired: it does not answer.
    """
    folder = code or PROJECT
    if not (python := read_settings().python):
        return Child([sys.executable, "-m"], folder, dict(environment))
    # These variables are meant for Airflow's Python, whose packages are not for this one.
    child = {name: value for name, value in environment.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    # Without a checkout, the folder is that of Airflow's packages: a Python would import from there.
    child |= {"PYTHONSAFEPATH": "1"} if code is None else {"PYTHONPATH": str(code)}
    _check(python, folder, child)
    return Child([python, "-m"], folder, child)


def _check(python: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Raise ``PipelineError`` unless this Python can run the same version of the pipeline as Airflow has."""
    if Path(python).is_dir():
        inside = Path(python) / "bin" / "python"
        raise _refusal(f"{python} is a folder", f"Name the Python in it{f': {inside}' if inside.exists() else ''}.")
    try:
        done = subprocess.run(
            [python, "-c", PROBE, *BASE],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=True,
        )
        found, missing = json.loads(done.stdout)
    except OSError as error:
        if error.errno not in NOT_RUNNABLE:
            raise
        advice = "Correct the setting, or install that Python on this machine."
        raise _refusal(f"{python} can't be run: {error.strerror}", advice) from error
    except (subprocess.CalledProcessError, TypeError, ValueError) as error:
        output = getattr(error, "stderr", b"").decode(errors="replace").strip()
        why = output.rpartition("\n")[2] or "it does not run Python code"
        raise _refusal(f"{python} is not a working Python 3.11 or later ({why})", "Name another one.") from error
    advice = (
        f"Install the wheel of Airflow's version there: {python} -m pip install "
        f"'image_captioning_pipeline-{pipeline.__version__}-py3-none-any.whl[training]'"
    )
    if found is None:
        raise _refusal(f"the environment of {python} does not have the package image-captioning-pipeline", advice)
    version, file = found
    if version != pipeline.__version__:
        what = f"{python} has version {version} of the pipeline ({file}), and Airflow has {pipeline.__version__}"
        raise _refusal(what, advice)
    if missing:
        raise _refusal(f"the environment of {python} does not have {', '.join(missing)}", advice)


def _refusal(what: str, advice: str) -> PipelineError:
    return PipelineError(f"CAPTION_PYTHON can't be used: {what}. {advice}")
