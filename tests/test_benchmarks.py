"""What is said about speed is what was measured."""

import json
from collections import Counter

import pyarrow as pa
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import table
from benchmarks.gallery import NEW, OLD, RARE, prepare
from benchmarks.plot import log_log
from pipeline import gallery, tables
from pipeline.storage import open_bucket


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


def test_an_archive_is_as_nights_leave_it(tmp_path):
    """As many captions as were asked for, by two models, each picture of the first half by both; one word is rare."""
    store = open_bucket(str(tmp_path))
    prepare(store, 900)
    rows = pa.concat_tables(tables.read(shard.key, store) for shard in gallery.shards(store)).to_pylist()
    assert len(rows) == 900
    said = Counter(row["image_key"] for row in rows)
    assert Counter(said.values()) == {1: 300, 2: 300}
    assert {row["model_version"] for row in rows} == {OLD, NEW}
    assert sum(RARE in (row["caption"] or "") for row in rows) == 1
    assert sum(row["status"] == "failed" for row in rows) == 9
