"""The table of captions: its columns and partitions, and how readers find the newest captions."""

import re
from collections import Counter

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.config import DecodingConfig
from pipeline.data.images import is_image
from pipeline.errors import PipelineError
from pipeline.nightly import captions, current
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


def test_captions_say_how_sure_they_are(inbox, store):
    """In the history and in the current captions; what has failed says nothing."""

    def judgement(row):
        return row["confidence"], row["novel"], row["review"]

    night("n1", inbox, store)
    written = {row["image_key"]: row for row in rows_in(store)}
    assert {row["status"] for row in written.values()} == {"ok", "failed"}
    for row in written.values():
        if row["status"] == "ok":
            assert 0 < row["confidence"] < 1
            assert row["review"] == (row["novel"] or row["confidence"] < 0.5)
        else:
            assert judgement(row) == (None, None, None)
    now = {row["image_key"]: judgement(row) for row in current.read(store).to_pylist()}
    assert now == {key: judgement(row) for key, row in written.items()}


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
            captions.caption_shard(shard, store=store, decoding=BEAM, review_below=0.5)
    assert rows_in(store) == []
    with pytest.raises(PipelineError, match="only 0 are accounted for"):
        reconciled("n1", store)
    assert runs.read_record(runs.NIGHT, "n1", store).status == "failed"
    done = captions.caption_shard(shard, store=store, decoding=BEAM, review_below=0.5)
    made_by = {"version": trained.model.version, "encoder_id": trained.inputs.encoder_id}
    counts = {"images": 7, "captioned": 6, "failed": 1, "summary": "7 images, 1 failed"}
    assert done == {"shard": shard, **counts, **made_by}
    assert identities(rows_in(store)) == photographs(inbox, trained.model.version)


def test_a_night_never_writes_forbidden_words(inbox, store):
    """The photographs whose captions had the word get others; what is forbidden after a night changes none of it."""
    nights.list_inbox("n1", inbox=inbox, store=store, options=nights.NightOptions())
    extract("n1", store)
    for shard in nights.plan_captions("n1", store=store, date=DATE, shard_size=10):
        decoding = BEAM.model_copy(update={"forbidden_words": ("red", "blue")})
        captions.caption_shard(shard, store=store, decoding=decoding, review_below=0.5)
    written = [row["caption"] for row in rows_in(store) if row["caption"] is not None]
    assert len(written) == 6
    assert not {"red", "blue"} & {word for caption in written for word in caption.split()}
    night("n2", inbox, store, date="2026-02-04")
    assert sorted(row["caption"] for row in rows_in(store) if row["caption"] is not None) == sorted(written)


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


PAGES = {name: (PROJECT / name).read_text() for name in ("README.md", "docs/captions.md")}
LINES = sorted(
    {line for page in PAGES.values() for line in re.findall(r"^\| \w+ \| `(.*current.*)` \|$", page, re.MULTILINE)}
)
"""The lines of the documents that read the current captions."""

SNIPPETS = re.findall(r"```python\n(.*?)```", PAGES["docs/captions.md"], re.DOTALL)


def value(line, store):
    """What a line gives, with another address of the store."""
    module = line.partition("(")[0].rpartition(".")[0]
    names = {module.partition(".")[0]: __import__(module)}
    return eval(line.replace("data/store", store), names)  # noqa: S307 - the documents' own lines


def test_every_reader_has_one_line():
    """The README has three of them, and docs/captions.md all."""
    assert [line.partition(".")[0] for line in LINES] == ["duckdb", "pandas", "polars", "pyarrow"]
    assert [line in PAGES["README.md"] for line in LINES] == [True, True, True, False]
    assert all(line in PAGES["docs/captions.md"] for line in LINES)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_the_documented_lines_read_the_current_captions(archive, inbox):
    """pandas, polars, DuckDB and pyarrow alone give one row of each photograph, with the caption that counts."""
    keys = {item.key for item in inbox.list() if is_image(item.key)}
    for line in LINES:
        found = value(line, str(archive.root))
        if isinstance(found, duckdb.DuckDBPyRelation):
            found = found.to_arrow_table()
        table = pa.Table.from_pandas(found) if isinstance(found, pd.DataFrame) else pa.table(found)
        assert table.column_names == current.SCHEMA.names
        rows = {row["image_key"]: row for row in table.to_pylist()}
        assert len(rows) == len(table)
        assert rows.keys() == keys
        assert "cannot be decoded" in rows.pop("broken.jpg")["error"]
        colours = {key: colour_in(row["caption"]) for key, row in rows.items()}
        assert colours == {key: "green" if key == "red.jpg" else colour_in(key) for key in rows}
        assert {row["model_version"] for row in rows.values()} == {"v2"}


@pytest.mark.parametrize("new_bucket", ["s3"], indirect=True)
@pytest.mark.parametrize("line", [line for line in LINES if "duckdb" not in line])  # its extension for S3 is a download
def test_the_documented_lines_read_from_s3(bucket, line, monkeypatch):
    """With the address of the store on S3, and credentials from the environment."""
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")  # polars asks for this where a service has no TLS
    parquet.write(current.SCHEMA.empty_table(), layout.CURRENT_CAPTIONS, bucket)
    assert len(value(line, bucket.uri)) == 0


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_the_documented_code_reads_the_history(archive, trained):
    """Every caption that an image has had, in order."""
    [snippet] = [each for each in SNIPPETS if "history" in each]
    names = {}
    exec(snippet.replace("data/store", str(archive.root)), names)  # noqa: S102 - the documents' own lines
    history = names["history"].to_arrow_table().to_pylist()
    assert len(history) == len(rows_in(archive))
    assert [row["model"] for row in history if row["image_key"] == "red.jpg"] == [trained.model.version] * 2 + ["v2"]


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
