"""The table of metrics, the dashboard and the alert rules name the metrics that runs send, and no others."""

import json
import re
from datetime import UTC, datetime

import pyarrow as pa
import pytest
import yaml

from pipeline.captioner import registry
from pipeline.data import corrections
from pipeline.metrics.coco import METRICS
from pipeline.nightly import current
from pipeline.ops import measures
from pipeline.storage import json as documents
from pipeline.storage import layout, parquet
from pipeline.work.runs import NightRecord, RetrainingRecord
from tests.support import toy
from tests.support.compose_file import SERVICES, known_options
from tests.support.models import write_evaluation, write_model
from tests.support.paths import PROJECT

BOARD = json.loads((PROJECT / "docs" / "monitoring" / "dashboard.json").read_text())
ALERTS = yaml.safe_load((PROJECT / "docs" / "monitoring" / "alerts.yaml").read_text())
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]

PAGE = (PROJECT / "docs" / "operations.md").read_text()
[CHAPTER] = re.findall(r"^### Metrics$(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def sections():
    """The sections of runs, as the code names them where it measures them."""
    sources = [path.read_text() for path in (PROJECT / "pipeline").rglob("*.py")]
    return {name for source in sources for name in re.findall(r'stopwatch\.section\("(\w+)"\)', source)}


@pytest.fixture
def sent(bucket, sections):
    """The names that runs send in a store that has everything."""
    row = {"image_key": "a.jpg", "image_etag": "e", "caption": "a dog", "source": "model", "captioned_at": NOW}
    table = pa.Table.from_pylist([{**dict.fromkeys(current.SCHEMA.names), **row, "review": True}], current.SCHEMA)
    parquet.write(table, layout.CURRENT_CAPTIONS, bucket, metadata={"listed_at": NOW.isoformat()})
    write_model("m1", bucket)
    registry.promote("m1", bucket)
    metrics = write_evaluation("m1", bucket, cider=0.5)
    scores = {"chosen": metrics.scores["chosen"].model_copy(update={"corpus": dict.fromkeys(METRICS, 0.5)})}
    key = layout.evaluation(metrics.version, metrics.dataset, metrics.decoding).metrics
    documents.write(metrics.model_copy(update={"scores": scores}), key, bucket)
    said = {"caption": "a cat", "model_caption": "a dog", "model_version": "m1", "corrected_by": "ann"}
    corrections.add(toy.picture("red"), store=bucket, **said)
    facts = {"status": "succeeded", "started_at": NOW, "finished_at": NOW, "seconds": dict.fromkeys(sections, 1)}
    records = NightRecord(run="n1", **facts), RetrainingRecord(run="r1", **facts)
    return {name for record in records for name in measures.of_run(record)} | measures.of_store(bucket).keys()


def named(query):
    """The metrics that a query names."""
    return {name.removeprefix("airflow_captioning_") for name in re.findall(r"\bairflow_\w+", query)}


def test_the_table_lists_every_metric(sent, sections):
    """It has each name once, and one for all sections of a run, which it lists."""
    cells = re.findall(r"^\| (`.*?) \|", CHAPTER, re.MULTILINE)
    listed = [name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)]
    assert sorted(listed) == sorted({re.sub(r"seconds\.\w+", "seconds.SECTION", name) for name in sent})
    assert all(f"`{section}`" in CHAPTER for section in sections)


@pytest.mark.parametrize("query", [*QUERIES, *(rule["expr"] for rule in RULES)])
def test_queries_name_what_is_sent(sent, query):
    """Each query of the dashboard and of a rule reads metrics, and all of them are sent."""
    assert named(query)
    assert named(query) <= {name.replace(".", "_") for name in sent}
    assert query.count("(") == query.count(")")


def test_the_dashboard():
    """Its panels have ids of their own, do not overlap, and read the source that one chooses above them."""
    [variable] = BOARD["templating"]["list"]
    assert {panel["datasource"]["uid"] for panel in BOARD["panels"]} == {f"${{{variable['name']}}}"}
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    cells = []
    for place in (panel["gridPos"] for panel in BOARD["panels"]):
        assert place["x"] + place["w"] <= 24
        cells += [(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])]
    assert len(set(cells)) == len(cells)


def test_the_rules():
    """Each has a name of its own and says what is wrong."""
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    assert all(rule.keys() == {"alert", "expr", "annotations"} and rule["annotations"]["summary"] for rule in RULES)


def test_metrics_are_switched_on_in_every_part_of_airflow():
    """The addition to docker-compose.yaml sets the same options in all parts; Airflow knows all options of the page."""
    [addition] = re.findall(r"```yaml\n(.*?)```", CHAPTER, re.DOTALL)
    services = yaml.safe_load(addition)["services"]
    exporter = services.pop("statsd-exporter")
    parts = {name for name, service in SERVICES.items() if service["image"].startswith("captioning:")}
    assert services.keys() == parts - {"mlflow", "init", "worker-gpu"}
    assert all(service == services["scheduler"] for service in services.values())
    assert set(exporter["networks"]) <= set(SERVICES["scheduler"]["networks"])
    known = known_options()
    options = set(re.findall(r"AIRFLOW__METRICS__(\w+)", CHAPTER))
    assert {"STATSD_ON", "STATSD_HOST", "STATSD_PORT", "OTEL_ON"} <= options
    assert {("metrics", option.lower()) for option in options} <= known
