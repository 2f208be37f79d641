"""Two models side by side: scores, captions of the same photographs, and corrections."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from pipeline.data.corrections import SCHEMA
from pipeline.data.ingest import ingest
from pipeline.errors import PipelineError
from pipeline.nightly import shadow
from pipeline.ops import side_by_side
from pipeline.ops.side_by_side import HeldOutPhotographs, compare_inbox, compare_tests
from pipeline.storage import layout, open_bucket, parquet
from tests.support import toy
from tests.support.caption_tables import row, shard_key, write
from tests.support.models import BEAM, write_evaluation, write_model


@pytest.fixture
def store(bucket):
    """A store with two models."""
    for version in ("m1", "m2"):
        write_model(version, bucket)
    return bucket


def say(store, *said):
    """Write corrections: key, action, caption and the model's caption of each."""
    for number, (key, action, caption, before) in enumerate(said):
        correction = {
            **dict.fromkeys(SCHEMA.names, ""),
            **{"picture": f"{number}.jpg", "image_key": key, "image_etag": "e", "corrected_by": "ann"},
            **{"action": action, "caption": caption, "model_caption": before},
            "corrected_at": datetime(2026, 1, 2, tzinfo=UTC),
        }
        table = pa.Table.from_pylist([correction], schema=SCHEMA)
        parquet.write(table, layout.correction("2026-01-02", f"c{number}"), store)


def test_scores_and_test_photographs(store):
    """Those whose captions differ come first, by how much the score changes; all scores have their difference."""
    captions = dict.fromkeys(("a", "b", "c", "d"), "a dog")
    others = {**captions, "b": "a cat", "c": "a big dog"}
    write_evaluation("m1", store, cider=0.4, captions=captions, image_cider=dict.fromkeys(captions, 0.5))
    gains = {"a": 0.5, "b": 0.6, "c": 0.1, "d": 0.5}
    write_evaluation("m2", store, cider=0.5, captions=others, image_cider=gains)
    found = compare_tests("m1", "m2", store)
    assert [(pair.image, pair.differs) for pair in found.pairs] == [
        ("c", True),
        ("b", True),
        ("a", False),
        ("d", False),
    ]
    first = found.pairs[0]
    assert (first.captions, first.human) == (("a dog", "a big dog"), ("a human caption",))
    assert (first.gain, found.pairs[2].gain) == (pytest.approx(-0.4), 0)
    scores = {score.name: score for score in found.scores}
    assert scores["CIDEr"].gain == pytest.approx(0.1)
    assert (scores["BLEU-4"].gain, scores["Different captions"].gain) == (0, 0)
    assert next(iter(scores)) == "CIDEr"
    assert found.warnings == []
    assert compare_tests("m2", "m1", store).scores[0].gain == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("first", "second", "warning"),
    [
        ({"cider": 0.5}, {"cider": 0.49}, None),
        ({"cider": 0.5}, {"cider": 0.48}, "Its CIDEr is 0.020 lower. Another seed changes it by 0.015"),
        ({"cider": 0.1}, {"cider": 0.09}, "Its CIDEr of 0.090 is below the floor of the promotion gate, 0.1"),
        ({"cider": 0.5, "wrong": 50}, {"cider": 0.5, "wrong": 60}, None),
        (
            {"cider": 0.5, "wrong": 50},
            {"cider": 0.5, "wrong": 100},
            "It names a wrong colour in 10.0 % of the captions",
        ),
        ({"cider": 0.5, "wrong": 100}, {"cider": 0.5, "wrong": 50}, None),
        ({"cider": 0.5, "distinct": 0.8}, {"cider": 0.5, "distinct": 0.5}, None),
        ({"cider": 0.5, "distinct": 0.8}, {"cider": 0.5, "distinct": 0.2}, "It repeats itself: 20 % of its captions"),
    ],
)
def test_warnings(store, first, second, warning):
    """Of what is much worse, and not of what chance or another seed does."""
    write_evaluation("m1", store, **first)
    write_evaluation("m2", store, **second)
    found = compare_tests("m1", "m2", store).warnings
    assert len(found) == (warning is not None)
    assert all(each.startswith(warning) for each in found)


def test_evaluations_that_cannot_be_compared(store):
    """On other photographs, or with another search."""
    write_evaluation("m1", store, cider=0.4, dataset="other/0123456789abcdef")
    assert compare_tests("m1", "m2", store) is None
    write_evaluation("m2", store, cider=0.5)
    assert compare_tests("m1", "m2", store) is None
    write_evaluation("m1", store, cider=0.4, decoding=BEAM.greedy)
    assert compare_tests("m1", "m2", store) is None
    write_evaluation("m2", store, cider=0.45, decoding=BEAM.greedy)
    assert compare_tests("m1", "m2", store).second.cider == 0.45


def test_the_captions_of_nights(store):
    """Photographs that both captioned, with the newest caption of each; failed ones and others are left out."""
    write(store, [row("a", "old"), row("b", "a dog"), row("x")], night="2026-01-01", shard="s", version="m1")
    write(store, [row("a", "a dog"), row("c", error="empty")], night="2026-01-02", shard="t", version="m1")
    write(store, [row("a", "a dog"), row("b", "a cat"), row("c")], night="2026-01-03", shard="u", version="m2")
    found = compare_inbox("m1", "m2", store, damaged=[])
    assert [(pair.image, pair.etag, *pair.captions) for pair in found.pairs] == [
        ("b", "e", "a dog", "a cat"),
        ("a", "e", "a dog", "a dog"),
    ]
    assert (found.before_approval, found.corrected) == (False, [])


def test_only_the_newest_shards_are_read(store, monkeypatch):
    """Of each model, however many there are."""
    monkeypatch.setattr(side_by_side, "SHARDS", 1)
    for version in ("m1", "m2"):
        for night in (1, 2):
            write(store, [row(f"{night}.jpg")], night=f"2026-01-0{night}", shard=str(night), version=version)
    assert [pair.image for pair in compare_inbox("m1", "m2", store, damaged=[]).pairs] == ["2.jpg"]


def test_a_damaged_shard_is_named(store):
    """And the others are compared."""
    for version in ("m1", "m2"):
        write(store, [row("a")], night="2026-01-01", shard="s", version=version)
    store.put(shard_key("2026-01-02", "t", version="m2"), b"{")
    damaged = []
    assert len(compare_inbox("m1", "m2", store, damaged=damaged).pairs) == 1
    assert "is damaged" in damaged[0]


def test_the_captions_before_an_approval(store):
    """They are shown where both models wrote them for it; beside another champion, those of nights are."""
    rows = [
        {
            **{"image_key": "a", "image_etag": "e", "caption": "a cat"},
            **{"champion_version": "m1", "champion_caption": "a dog", "person_caption": None},
        }
    ]
    parquet.write(pa.Table.from_pylist(rows, schema=shadow.SCHEMA), layout.shadow("m2"), store)
    found = compare_inbox("m1", "m2", store, damaged=[])
    assert ([pair.captions for pair in found.pairs], found.before_approval) == ([("a dog", "a cat")], True)
    write_model("m0", store)
    assert compare_inbox("m0", "m2", store, damaged=[]).pairs == []


def test_corrections_that_the_second_model_gets_right(store):
    """Letters and punctuation aside; and whether it is nearer to the person's words. Withdrawn ones are left out."""
    captions = {
        "right": ("a ball", "a red ball"),
        "wrong": ("a red ball", "a ball"),
        "nearer": ("a dog", "a big red dog"),
        "same": ("a tree", "a tree"),
        "gone": ("a house", "a small house"),
    }
    for place, version in enumerate(("m1", "m2")):
        rows = [row(key, pair[place]) for key, pair in captions.items()]
        write(store, rows, night="2026-01-01", shard="s", version=version)
    say(
        store,
        ("right", "corrected", "A red ball.", "a ball"),
        ("wrong", "corrected", "a red ball", "a ball"),
        ("nearer", "corrected", "a red dog", "a dog"),
        ("same", "confirmed", "a tree", "a tree"),
        ("gone", "withdrawn", None, "a house"),
    )
    found = compare_inbox("m1", "m2", store, damaged=[])
    pairs = {pair.image: pair for pair in found.pairs}
    assert list(pairs) == ["right", "wrong", "nearer", "gone", "same"]
    assert (len(found.corrected), found.now_right, found.no_longer_right) == (3, 1, 1)
    assert (pairs["right"].right, pairs["right"].human) == ((False, True), ("A red ball.",))
    assert (pairs["same"].right, pairs["same"].nearer) == ((True, True), 0)
    assert pairs["nearer"].nearer == pytest.approx(2 * 3 / 7 - 2 * 2 / 5)
    assert (pairs["wrong"].nearer < 0, pairs["gone"].nearer, pairs["gone"].said) == (True, None, None)


def test_a_model_that_is_not_there(store):
    """It is an error, which names it."""
    with pytest.raises(PipelineError, match="no model 'm9'"):
        compare_inbox("m1", "m9", store, damaged=[])


def test_where_test_photographs_are(bucket, tmp_path):
    """Only those of the test split are found; the table is read once for all of them."""
    source = open_bucket(str(tmp_path / "source"))
    toy.draw(source)
    dataset = ingest([source.url("captions.csv")], bucket, name="toy").dataset
    photographs = HeldOutPhotographs()
    place = photographs.find(dataset, "red-5.jpg", bucket)
    assert (place.source, place.key) == (source.uri, "pictures/red-5.jpg")
    assert photographs.find(dataset, "red-0.jpg", bucket) is None, "it is in train"
    bucket.delete(layout.dataset_table(dataset))
    assert photographs.find(dataset, "blue-5.jpg", bucket).etag
    with pytest.raises(PipelineError):
        photographs.find("toy/0123456789abcdef", "red-5.jpg", bucket)
