"""The share of captions that people found right, by model and week."""

from datetime import UTC, date, datetime

import pyarrow as pa

from pipeline.data.corrections import LOG
from pipeline.ops import acceptance
from pipeline.ops.acceptance import Acceptance

MONDAY, SUNDAY, NEXT = (datetime(2026, 3, day, 23, 59, tzinfo=UTC) for day in (2, 8, 9))


def events(*said):
    """What people said: image, model, action and time of each."""
    rows = [
        {
            **dict.fromkeys(LOG.names, ""),
            "name": str(number),
            "action": action,
            "image_key": key,
            "model_version": version,
            "corrected_at": at,
        }
        for number, (key, version, action, at) in enumerate(said)
    ]
    return pa.Table.from_pylist(rows, schema=LOG)


def test_by_week_and_model():
    """A week begins on Monday; the last word about each picture counts, and none that was withdrawn or of no model."""
    weeks = acceptance.by_week(
        events(
            ("a", "m1", "confirmed", MONDAY),
            ("b", "m1", "corrected", MONDAY),
            ("c", "m1", "corrected", MONDAY),
            ("c", "m1", "confirmed", SUNDAY),
            ("d", "m2", "confirmed", SUNDAY),
            ("e", "m1", "corrected", NEXT),
            ("f", "m1", "confirmed", MONDAY),
            ("f", "m1", "withdrawn", NEXT),
            ("g", "", "confirmed", MONDAY),
        )
    )
    assert weeks == [
        Acceptance("m1", date(2026, 3, 2), 3, 2),
        Acceptance("m2", date(2026, 3, 2), 1, 1),
        Acceptance("m1", date(2026, 3, 9), 1, 0),
    ]
    assert {version: str(each) for version, each in acceptance.by_model(weeks).items()} == {
        "m1": "50 % of 4",
        "m2": "100 % of 1",
    }


def test_nobody_has_judged_anything():
    """There is no share of nothing."""
    assert acceptance.by_week(events()) == []
    assert acceptance.by_model([]) == {}
