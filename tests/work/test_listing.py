"""Listings as tables."""

from datetime import UTC, datetime

from pipeline.storage import StoredObject
from pipeline.work import listing


def stored(number):
    """An object of a listing."""
    return StoredObject(f"{number}.jpg", f"e{number}", 1, datetime(2026, 1, 2, tzinfo=UTC))


def test_a_listing_is_a_table(monkeypatch):
    """Every object is a row, in its order, through several pages; only one page of objects is in memory."""
    monkeypatch.setattr(listing, "PAGE", 3)
    table = listing.tabulate(map(stored, range(7)))
    assert table.schema == listing.LISTING
    time = datetime(2026, 1, 2, tzinfo=UTC)
    assert table.to_pylist() == [
        {"image_key": f"{n}.jpg", "image_etag": f"e{n}", "bytes": 1, "modified": time} for n in range(7)
    ]


def test_an_empty_listing():
    """It has the columns, and no rows."""
    assert listing.tabulate(iter([])).schema == listing.LISTING
    assert len(listing.tabulate(iter([]))) == 0
