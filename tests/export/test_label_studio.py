"""Label Studio: tasks with predictions, and annotations that come back as corrections."""

import json
import re
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from pipeline.data import corrections
from pipeline.errors import PipelineError
from pipeline.export import label_studio
from pipeline.nightly import current
from pipeline.storage import open_bucket
from tests.support import toy
from tests.support.paths import PROJECT

AT = "2126-01-02T03:04:05.678901Z"
"""When an annotation was made: later than all that the tests say."""


@pytest.fixture
def inbox(new_bucket):
    """An inbox with two photographs, of either kind."""
    bucket = new_bucket()
    for key in ("2026/a red & é.jpg", "b.jpg"):
        bucket.put(key, toy.picture("red"))
    return bucket


@pytest.fixture
def store(new_bucket):
    """An empty store."""
    return new_bucket()


def rows(inbox):
    """Current captions of these photographs: one by a model, one by a person."""
    common = {**dict.fromkeys(current.SCHEMA.names), "captioned_at": datetime(2026, 1, 1, tzinfo=UTC)}
    model = {"caption": "a dog", "source": "model", "model_version": "m1", "confidence": 0.72, "novel": False}
    person = {"caption": "two dogs", "source": "person"}
    found = [
        {**common, "image_key": item.key, "image_etag": item.etag, **words}
        for item, words in zip(inbox.list(), (model, person), strict=True)
    ]
    return pa.Table.from_pylist(found, schema=current.SCHEMA)


@pytest.fixture
def tasks(inbox):
    """The tasks of these captions."""
    return json.loads(label_studio.render(rows(inbox), inbox))


def annotate(task, text, **changes):
    """Add an annotation as Label Studio exports it."""
    result = {
        "id": "Dx_aB91ISN",
        "from_name": "caption",
        "to_name": "image",
        "type": "textarea",
        "origin": "prediction-changed",
        "value": {"text": [text] if isinstance(text, str) else text},
    }
    annotation = {
        "id": 7,
        "completed_by": {"id": 1, "email": "ann@example.org", "first_name": "", "last_name": ""},
        "result": [result],
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": AT,
        "updated_at": AT,
        "lead_time": 4.2,
        **changes,
    }
    task.setdefault("annotations", []).append(annotation)


@pytest.fixture
def bring_back(inbox, store):
    """A function that imports tasks, as Label Studio exports them."""

    def run(tasks):
        exported = [{"id": 1, "annotations": [], "meta": {}, "project": 3, **task} for task in tasks]
        return label_studio.import_annotations(json.dumps(exported).encode(), "x.json", inbox=inbox, store=store)

    return run


def said(store):
    """What people said: action, caption and author."""
    return [(row["action"], row["caption"], row["corrected_by"]) for row in corrections.read(store).to_pylist()]


@pytest.mark.parametrize("new_bucket", ["file", "s3"], indirect=True)
def test_a_task_has_its_caption_as_a_prediction(inbox, tasks):
    """With the confidence as its score, an address that Label Studio can fetch, and what leads back."""
    first, second = tasks
    key = "2026/a red & é.jpg"
    etag = inbox.etag(key)
    if inbox.uri.startswith("s3://"):
        assert first["data"]["image"] == f"{inbox.uri}/{key}"
    else:
        folder = inbox.root.name
        assert first["data"]["image"] == f"/data/local-files/?d={folder}/2026/a%20red%20%26%20%C3%A9.jpg"
    assert first["data"] == {
        "image": first["data"]["image"],
        "image_key": key,
        "image_etag": etag,
        "caption": "a dog",
        "model_version": "m1",
        "novel": False,
        "confidence": 0.72,
    }
    value = {"text": ["a dog"]}
    result = {"id": "caption-1", "from_name": "caption", "to_name": "image", "type": "textarea", "value": value}
    assert first["predictions"] == [{"model_version": "m1", "result": [result], "score": 0.72}]
    [prediction] = second["predictions"]
    assert (prediction["model_version"], "score" in prediction) == ("person", False)
    assert prediction["result"][0]["id"] == "caption-2"


@pytest.mark.parametrize("new_bucket", ["file", "s3"], indirect=True)
def test_annotations_come_back_as_corrections(tasks, store, bring_back):
    """A changed caption corrects, one that was left confirms; a second import of the file changes nothing."""
    annotate(tasks[0], " a red square ")
    annotate(tasks[1], "two dogs", completed_by=5, updated_at="2126-02-01T00:00:00Z")
    done = bring_back(tasks)
    assert str(done) == "2 tasks = 1 corrected + 1 confirmed + 0 unanswered + 0 known + 0 changed + 0 refused"
    author = "user 5 of Label Studio"
    assert said(store) == [("corrected", "a red square", "ann@example.org"), ("confirmed", "two dogs", author)]
    [first, _] = corrections.read(store).to_pylist()
    assert (first["model_caption"], first["model_version"]) == ("a dog", "m1")
    assert first["corrected_at"] == datetime.fromisoformat(AT)
    again = bring_back(tasks)
    assert (again.known, again.corrected, len(said(store))) == (2, 0, 2)


def test_the_newest_finished_annotation_counts(tasks, store, bring_back):
    """Not one that was cancelled, or left empty; without any, the task is unanswered."""
    annotate(tasks[0], "a newer cat", updated_at="2126-02-01T00:00:00Z")
    annotate(tasks[0], "a cat")
    annotate(tasks[0], "a cancelled cat", was_cancelled=True, updated_at="2126-03-01T00:00:00Z")
    annotate(tasks[1], [])
    assert (bring_back(tasks).unanswered, said(store)) == (1, [("corrected", "a newer cat", "ann@example.org")])


def test_nothing_that_was_said_later_is_replaced(tasks, store, inbox, bring_back):
    """The annotation is older than the gallery's correction, which stays."""
    annotate(tasks[0], "a cat", updated_at="2026-01-01T00:00:00Z")
    identity = {name: tasks[0]["data"][name] for name in ("image_key", "image_etag")}
    words = {"caption": "a wolf", "model_caption": "a dog", "model_version": "m1", "corrected_by": "bob"}
    corrections.add(toy.picture("red"), store=store, **words, **identity)
    assert (bring_back(tasks).known, said(store)) == (1, [("corrected", "a wolf", "bob")])


def test_what_cannot_be_stored_is_said(tasks, store, inbox, bring_back):
    """Photographs that changed are counted; a caption that can't be one is named, and the others are stored."""
    annotate(tasks[0], ["12", "!?"])
    annotate(tasks[1], "a cat")
    done = bring_back([*tasks, {**tasks[1], "data": {**tasks[1]["data"], "image_key": "../x"}}])
    [first, second] = done.refused
    assert first.startswith("2026/a red & é.jpg: The correction can't be stored: caption: expected one line")
    assert second.startswith("../x: ")
    assert done.corrected == 1
    inbox.put("b.jpg", toy.picture("blue"))
    annotate(tasks[1], "a bird", updated_at="2126-02-01T00:00:00Z")
    assert bring_back(tasks[1:]).changed == 1


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"{", "the file: Invalid JSON"),
        (b"{}", "the file: Input should be a valid array"),
        (b'[{"image": "x", "caption": "a dog", "annotator": 1}]', "0.data: Field required"),
        (b'[{"data": {"image": "x"}, "annotations": []}]', "0.data.image_key: Field required"),
        (b"image,caption\n", "the file: Invalid JSON"),
        (b"\xff", "the file: Invalid JSON"),
    ],
)
def test_a_file_of_another_shape(tmp_path, content, place):
    """The error says what is wrong where, and what to choose in Label Studio."""
    bucket = open_bucket(str(tmp_path))
    with pytest.raises(PipelineError, match=rf"x\.json is not an export of tasks .*\({re.escape(place)}.*JSON-MIN"):
        label_studio.import_annotations(content, "x.json", inbox=bucket, store=bucket)
    assert list(bucket.list()) == []


def test_the_labelling_configuration_has_our_names():
    """That in the documentation: the photograph and the field, as the tasks name them."""
    text = (PROJECT / "docs" / "captions.md").read_text()
    [found] = re.findall(r"```xml\n(<View>.*?)```", text, re.DOTALL)
    assert f'<Image name="{label_studio.IMAGE}" value="${label_studio.IMAGE}"' in found
    assert f'<TextArea name="{label_studio.CAPTION}" toName="{label_studio.IMAGE}"' in found
