"""The log of a process, one line for each record. Keys in it can't forge a line, or hide one."""

import logging
import os

from pipeline.errors import printable


class _OneLine(logging.Formatter):
    """Formats the message of a record as one line; a traceback follows as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging calls it
        return printable(super().formatMessage(record))


def configure(*, gpu: bool) -> None:
    """Log to standard error, and keep the C++ code of TensorFlow from logging what is of no use here.

    Args:
        gpu: whether this process may use one. If not, TensorFlow's errors are hidden as well as its warnings: its only
            one is that it has found no GPU. Python raises all others.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if gpu else "3")
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
