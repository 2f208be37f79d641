"""What is said about speed is what was measured."""

import json

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import table
from benchmarks.plot import log_log


@pytest.fixture
def results():
    """What was measured last."""
    return json.loads(benchmarks.RESULTS.read_text())


def test_the_table_is_of_what_was_measured(results, tmp_path, monkeypatch):
    """The README beside the benchmarks shows the figures of results.json, all of them, and would not change."""
    assert {name for _, _, name, _ in table.ROWS} <= results.keys()
    copy = tmp_path / "README.md"
    copy.write_text(table.README.read_text())
    monkeypatch.setattr(table, "README", copy)
    table.write(results)
    assert copy.read_text() == (benchmarks.RESULTS.parent / "README.md").read_text()
    table.write(results | {"training_over_prefix_expansion": 987})
    assert "**987**" in copy.read_text()


def test_a_plot_has_all_points():
    """Each panel has its name, a mark for each point, and the points' values."""
    drawn = log_log({"seconds": [(10, 1), (100, 5), (1000, 50)], "a < b": [(10, 2), (100, 2.5)]}, "keys")
    assert drawn.count("<circle") == 5
    assert drawn.count("<polyline") == 4
    assert "a &lt; b" in drawn
    assert ">1,000<" in drawn
