"""The log: one line a record, whatever the keys in it."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import printable
from tests.support.paths import PROJECT

FORGED = "a.jpg\n12:00:00 INFO all is well\r\x1b[2K\u202egpj.b\u2028\x85"
"""A key that would end the line, remove it from a terminal, and write backwards."""

PROGRAM = """
import logging, sys
from pipeline import logs
logs.configure(gpu=False)
log = logging.getLogger("a")
log.warning("%s: %s", sys.argv[1], "too large")
try:
    raise ValueError(sys.argv[1])
except ValueError:
    log.exception("failed")
"""


@given(st.text(st.characters(exclude_categories=[])))
def test_printable_text(text: str) -> None:
    """It is one line that any terminal and any record takes; what is printable already is not changed."""
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    assert printable(shown) == shown
    assert not text.isprintable() or shown == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("déjà vu/猫 🐈 100%41\\n.jpg", "déjà vu/猫 🐈 100%41\\n.jpg"),
        (FORGED, r"a.jpg\n12:00:00 INFO all is well\r\x1b[2K\u202egpj.b\u2028\x85"),
        ("\udcff", r"\udcff"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    """They are those of a string in Python."""
    assert printable(text) == shown


def test_a_record_is_one_line() -> None:
    """A key forges no second one. A traceback keeps its lines."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, FORGED], cwd=PROJECT, capture_output=True, encoding="utf-8", check=True
    )
    warning, failed, traceback, *_ = done.stderr.split("\n")
    assert warning.partition(" ")[2] == f"WARNING {printable(FORGED)}: too large"
    assert failed.endswith("ERROR failed")
    assert traceback == "Traceback (most recent call last):"
