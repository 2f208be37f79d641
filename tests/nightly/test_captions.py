"""The table of captions: its columns and partitions, and how readers find the newest captions."""

import re
from collections import Counter

import duckdb
import pandas as pd
import pytest

from pipeline.config import DecodingConfig
from pipeline.data.images import is_image
from pipeline.errors import PipelineError
from pipeline.nightly import captions
from pipeline.nightly import night as nights
from pipeline.storage import layout, parquet
from pipeline.work import runs, shards
from pipeline.work.outcomes import latest_outcome
from tests.support import toy
from tests.support.nights import (
    DATE,
    colour_in,
    extract,
    identities,
    night,
    photographs,
    promote_copy,
    reconciled,
    rows_in,
)
from tests.support.paths import PROJECT

BEAM = DecodingConfig(beam_width=2)


def test_the_table_is_as_documented(inbox, store, trained):
    """Shards are in the partition of their model and date, and have the documented columns and types."""
    night("n1", inbox, store, date="2026-02-03")
    shards = [item.key for item in store.list("captions/")]
    assert len(shards) == 3
    for key in shards:
        assert key.startswith(f"captions/model={trained.model.version}/date=2026-02-03/")
        assert parquet.read(key, store).schema == captions.SCHEMA


def test_a_crash_before_the_shard_is_written_leaves_no_row(inbox, store, trained, monkeypatch):
    """If writing the shard fails, the images are captioned by the retry."""
    nights.list_inbox("n1", inbox=inbox, store=store, options=nights.NightOptions())
    extract("n1", store)
    [shard] = nights.plan_captions("n1", store=store, date=DATE, shard_size=10)

    def fail(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(parquet, "write", fail)
        with pytest.raises(OSError, match="disk full"):
            captions.caption_shard(shard, store=store, decoding=BEAM)
    assert rows_in(store) == []
    with pytest.raises(PipelineError, match="only 0 are accounted for"):
        reconciled("n1", store)
    assert runs.read_record(runs.NIGHT, "n1", store).status == "failed"
    done = captions.caption_shard(shard, store=store, decoding=BEAM)
    assert done == {"shard": shard, "images": 7, "captioned": 6, "failed": 1, "summary": "7 images, 1 failed"}
    assert identities(rows_in(store)) == photographs(inbox, trained.model.version)


@pytest.fixture
def archive(inbox, store):
    """A store after nights with a failed picture, a changed one, a new champion and one more photograph."""
    night("n1", inbox, store)
    inbox.put("red.jpg", toy.picture("green", 77))
    night("n2", inbox, store, date="2026-01-03", options=nights.NightOptions(retry_failed=True))
    promote_copy("v2", store)
    inbox.put("yellow, new.jpg", toy.picture("yellow", 3))
    night("n3", inbox, store, date="2026-01-04")
    return store


def snippets():
    """The code of the README and of docs/captions.md that reads the newest captions."""
    [chapter] = re.findall(r"## Read the captions\n(.*?)\n## ", (PROJECT / "README.md").read_text(), re.DOTALL)
    text = chapter + (PROJECT / "docs" / "captions.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
@pytest.mark.parametrize("snippet", snippets(), ids=["pandas", "duckdb", "pyarrow"])
def test_the_documented_code_reads_the_newest_captions(archive, inbox, snippet, capfd):
    """pandas, DuckDB and pyarrow alone print exactly one newest caption of each photograph that could be read."""
    names = {}
    exec(snippet.replace("data/store", str(archive.root)), names)  # noqa: S102 - the documents' own lines
    printed = capfd.readouterr().out
    found = names["newest"]
    if isinstance(found, duckdb.DuckDBPyRelation):
        found = found.to_arrow_table()
    frame = found if isinstance(found, pd.DataFrame) else found.to_pandas()
    frame = frame.rename(columns=lambda name: name.removesuffix("_first"))
    expected = {item.key for item in inbox.list() if is_image(item.key)} - {"broken.jpg"}
    assert sorted(frame["image_key"]) == sorted(expected)
    assert set(frame["model"].astype(str)) == {"v2"}
    colours = {key: colour_in(text) for key, text in zip(frame["image_key"], frame["caption"], strict=True)}
    assert colours == {key: "green" if key == "red.jpg" else colour_in(key) for key in expected}
    assert all(text in printed for text in [*frame["image_key"], *frame["caption"]])


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_the_partitions_are_columns(archive, trained):
    """Readers that know Hive partitions find model and date as columns; times are in UTC."""
    frame = pd.read_parquet(archive.root / "captions")
    assert list(frame.columns) == [*captions.SCHEMA.names, "model", "date"]
    by_night = Counter(zip(frame["model"].astype(str), frame["date"].astype(str), strict=True))
    first = trained.model.version
    assert by_night == {(first, DATE): 7, (first, "2026-01-03"): 2, ("v2", "2026-01-04"): 8}
    assert str(frame["captioned_at"].dt.tz) == "UTC"


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_the_latest_outcomes_of_a_model(archive, trained):
    """One row for each version of an image: of several attempts the last one that succeeded, or the last failure."""
    version = trained.model.version
    attempts = captions.read(shards.results(layout.captions_of_model(version), archive), archive)
    outcomes = latest_outcome(attempts, by="captioned_at").to_pylist()
    assert len(attempts) == len(outcomes) + 1
    [broken] = [row for row in outcomes if row["image_key"] == "broken.jpg"]
    rows = [row for row in attempts.to_pylist() if row["image_key"] == "broken.jpg"]
    assert broken == max(rows, key=lambda row: row["captioned_at"])
    assert min(row["captioned_at"] for row in rows) < broken["captioned_at"]
