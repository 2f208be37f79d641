"""One bucket under several addresses, and a folder that is moved: no picture is encoded twice."""

import shutil
from pathlib import Path

import pytest

from pipeline.data import dataset
from pipeline.data.ingest import ingest
from pipeline.features import encoder as encoders
from pipeline.features import extraction
from pipeline.nightly import night as nights
from pipeline.storage import open_bucket, source_name
from tests.support import toy
from tests.support.nights import night


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_an_inbox_has_one_name(store, inbox, monkeypatch):
    """However its address is written, a night finds what the one before has claimed and done."""
    folder = inbox.root
    link = folder.parent / "link"
    link.symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    spellings = [
        inbox.uri,
        f"{inbox.uri}/",
        inbox.uri.replace("file://", "file://localhost"),
        str(folder),
        f"{folder}/.",
        f"{folder.parent}/nowhere/../{folder.name}",
        folder.name,
        link.as_uri(),
    ]
    assert {source_name(open_bucket(each), store) for each in spellings} == {inbox.uri}
    # A night that stops after its planning has claimed all pictures.
    nights.list_inbox("n1", inbox=inbox, store=store, options=nights.NightOptions())
    claimed = nights.plan_extraction("n1", store=store, shard_size=3)
    for number, each in enumerate(spellings[1:], 2):
        other = open_bucket(each)
        nights.list_inbox(f"n{number}", inbox=other, store=store, options=nights.NightOptions())
        assert sorted(nights.plan_extraction(f"n{number}", store=store, shard_size=3)) == sorted(claimed)
    assert night("n99", open_bucket(spellings[-1]), store).extracted == 7


def test_a_prefix_on_s3_has_one_name(s3_bucket_name):
    """A slash at its end makes no difference."""
    store = open_bucket(f"s3://{s3_bucket_name}/store")
    address = f"s3://{s3_bucket_name}/photographs"
    assert {source_name(open_bucket(each), store) for each in (address, f"{address}/")} == {address}


def test_a_dataset_that_is_moved_is_not_extracted_again(tmp_path, toy_encoder):
    """Its features are found by the keys and etags of its pictures, wherever they are."""
    store = open_bucket(str(tmp_path / "store"))
    old, new = tmp_path / "old", tmp_path / "new" / "place"
    toy.draw(open_bucket(str(old)))
    encoder_id = encoders.register(str(toy_encoder), store)

    def plan(folder: Path, run: str) -> list[str]:
        report = ingest([str(folder / "captions.csv")], store, name="toy")
        table = dataset.load(report.dataset, store).table
        [(source, images)] = dataset.listings_by_source(table).items()
        return extraction.plan_extraction(
            images, run=run, source=source, encoder_id=encoder_id, store=store, shard_size=100
        )

    shards = plan(old, "r1")
    assert sum(extraction.extract(shard, store=store).images for shard in shards) == 24
    new.parent.mkdir()
    shutil.move(old, new)
    assert plan(new, "r2") == []
