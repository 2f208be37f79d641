"""The documents report the measured speeds, and the benchmarks run where they have to."""

import json
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import encoders, extraction, table
from benchmarks.gallery import NEW, OLD, RARE, prepare
from benchmarks.measure import Cost
from benchmarks.plot import log_log
from pipeline.features import applications
from pipeline.ops import browse
from pipeline.storage import open_bucket, parquet
from tests.support.paths import PROJECT


@pytest.fixture
def results():
    """The last results."""
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
    assert "**987** | at least 25 |" in copy.read_text()


def test_the_costs_of_encoders_are_those_of_the_networks():
    """The table of encoders has every network, by its operations, and a network costs what its row says."""
    text = encoders.DOCUMENT.read_text()
    rows = re.findall(r"^\| `([\w-]+)` \|(?: [\w,.×]+ \|){2} ([\d.]+) \|", text, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(applications.networks())
    assert [float(operations) for _, operations in rows] == sorted(float(operations) for _, operations in rows)
    assert encoders.measure("mobilenetv3small")[1] in text


@pytest.mark.parametrize(
    ("value", "aim", "added"),
    [
        (24.9, "at least 25", ", missed"),
        (25, "at least 25", ""),
        (1000, "at most 1,000", ""),
        (1001, "at most 1,000", ", missed"),
        (1, "", ""),
    ],
)
def test_a_missed_aim_is_marked(value, aim, added):
    """The table says so beside the aim."""
    assert table.missed(value, aim) == added


def test_the_fastest_product_is_the_measure():
    """Of the libraries at hand, however slow one is; and the table names it."""
    costs = {"NumPy": [Cost(cpu=seconds, wall=0) for seconds in (2, 4, 3)], "OpenVINO": [Cost(cpu=1.5, wall=9)]}
    library, rate = extraction.roofline(costs)
    assert (library, rate) == ("OpenVINO", pytest.approx(2 * extraction.SIDE**3 / extraction.PICTURE_FLOP / 1.5))
    assert "NumPy" in extraction.products()


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
    rows = pa.concat_tables(parquet.read(shard.key, store) for shard in browse.shards(store)).to_pylist()
    assert len(rows) == 900
    said = Counter(row["image_key"] for row in rows)
    assert Counter(said.values()) == {1: 300, 2: 300}
    assert {row["model_version"] for row in rows} == {OLD, NEW}
    assert sum(RARE in (row["caption"] or "") for row in rows) == 1
    assert sum(row["status"] == "failed" for row in rows) == 9


def test_the_machine_has_the_versions_of_installed_packages(monkeypatch):
    """A package that is not installed is left out: on a GPU, benchmarks run without Airflow, OpenVINO or TensorFlow."""
    monkeypatch.setattr(table, "PACKAGES", ("not-installed", "numpy", "not-installed-either"))
    assert table.machine().endswith(f", numpy {np.__version__}")
    assert "not-installed" not in table.machine()


def test_the_gpu_is_measured_without_airflow_and_openvino():
    """The measurement loads in a process that can import neither."""
    script = "import sys; sys.modules.update(dict.fromkeys(['airflow', 'nncf', 'openvino'])); import benchmarks.gpu"
    subprocess.run([sys.executable, "-c", script], cwd=PROJECT, check=True)


def test_an_error_of_a_quality_benchmark_is_one_line(tmp_path):
    """Bad input has no traceback, as in the command line."""
    command = [sys.executable, "-m", "benchmarks.quality", "WRONG", "random"]
    environment = {**os.environ, "CAPTION_STORE": str(tmp_path)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
