"""The one exception for errors that a person has to fix, and how programs report it, on one line."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

EXTRAS = {
    "keras": "training",
    "mlflow": "training",
    "nncf": "training",
    "openvino": "inference",
    "pycocoevalcap": "training",
    "pyiceberg": "iceberg",
    "tensorflow": "training",
}
"""The optional packages that the pipeline imports, each with the extra that installs it."""


class PipelineError(Exception):
    """Bad input or configuration: a retry changes nothing until a person acts.

    The message says what was wrong, where, and what to do. The command line prints it without a traceback and exits
    with status 2, and the DAGs then fail the task without a retry. All other errors (a network failure, a full disk)
    keep their own exception, and the DAGs retry them.
    """


@contextmanager
def name_missing_extra() -> Iterator[None]:
    """Turn the error of a missing optional package into a ``PipelineError`` that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        extra = EXTRAS[package]
        advice = "Run this in the image train or gpu, or install it" if extra == "training" else "Install it"
        raise PipelineError(
            f"{package} is not installed. {advice}: "
            f"{sys.executable} -m pip install 'image-captioning-pipeline[{extra}]'"
        ) from error


def printable(text: str) -> str:
    """The text on one line, as it reads in a terminal: control and bidirectional characters are escaped.

    So are all others that Python does not call printable, and bytes that are not UTF-8. The escapes are those of a
    string in Python, such as ``\\n`` and ``\\u202e``.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """For a program: print a ``PipelineError`` on one line without a traceback, and exit with status 2."""
    try:
        with name_missing_extra():
            yield
    except PipelineError as error:
        _exit_with(str(error))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        _exit_with(f"{error}. Give a shorter name.")


def _exit_with(error: str) -> NoReturn:
    sys.stderr.write(f"error: {printable(error)}\n")
    sys.exit(2)
