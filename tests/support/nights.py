"""Nights of the nightly job, step by step, and the rows of captions that they leave.

Photographs are those of ``toy``: the colour in a photograph's key is the colour that its caption must name.
"""

import contextlib
from collections import Counter

from pipeline.captioner import registry
from pipeline.captioner.metadata import load_metadata
from pipeline.config import DecodingConfig
from pipeline.data.images import is_image
from pipeline.features import extraction
from pipeline.nightly import captions, reconcile
from pipeline.nightly import night as nights
from pipeline.storage import json, layout, parquet
from tests.support import toy

DATE = "2026-01-02"


def colour_in(text):
    """The one colour that a text names."""
    [colour] = [colour for colour in toy.COLOURS if colour in text]
    return colour


def extract(run, store):
    """Plan the extraction of a night and do it."""
    for shard in nights.plan_extraction(run, store=store, shard_size=3):
        extraction.extract(shard, store=store)


def write(run, store, *, date=DATE):
    """Plan the captions of a night and write them."""
    for shard in nights.plan_captions(run, store=store, date=date, shard_size=3):
        captions.caption_shard(shard, store=store, decoding=DecodingConfig(beam_width=2), review_below=0.5)


def reconciled(run, store, *, max_failed_fraction=0.2, sidecars="none"):
    """Reconcile a night; its record."""
    return reconcile.reconcile(
        run,
        store=store,
        max_failed_fraction=max_failed_fraction,
        max_shrink_fraction=0.2,
        drift_limit=0.5,
        review_below=0.5,
        sidecars=sidecars,
    )


def night(
    run,
    inbox,
    store,
    *,
    max_failed_fraction=0.2,
    options=nights.NightOptions(),  # noqa: B008
    sidecars="none",
    **kwargs,
):
    """All steps of a night; its record."""
    nights.list_inbox(run, inbox=inbox, store=store, options=options)
    extract(run, store)
    write(run, store, **kwargs)
    return reconciled(run, store, max_failed_fraction=max_failed_fraction, sidecars=sidecars)


@contextlib.contextmanager
def removed(inbox, key):
    """Remove an object from the inbox, and put it back as it was: with the same etag."""
    if inbox.uri.startswith("file:"):
        hidden = inbox.root / ".hidden"
        (inbox.root / key).rename(hidden)
        yield
        hidden.rename(inbox.root / key)
    else:
        data = inbox.get(key)
        inbox.delete(key)
        yield
        inbox.put(key, data)


def rows_in(store):
    """Every row of captions."""
    return [row for item in store.list(layout.CAPTIONS) for row in parquet.read(item.key, store).to_pylist()]


def identities(rows):
    """How many rows each version of an image has from each model."""
    return Counter((row["image_key"], row["image_etag"], row["model_version"]) for row in rows)


def photographs(inbox, version):
    """The result that ``identities`` must have after a night: one row for each photograph."""
    return Counter((item.key, item.etag, version) for item in inbox.list() if is_image(item.key))


def counts(record):
    """The numbers of a record."""
    return (record.listed, record.already_done, record.extracted, record.captioned, record.failed)


def promote_copy(version, store):
    """Copy the champion under another version, and promote it."""
    champion = registry.read_champion(store).version
    for item in list(store.list(f"{layout.model_folder(champion)}/")):
        store.put(item.key.replace(champion, version), store.get(item.key))
    metadata = load_metadata(champion, store).model_copy(update={"version": version})
    json.write(metadata, layout.model_metadata(version), store)
    registry.promote(version, store)
