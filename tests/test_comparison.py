"""What a person sees of a candidate before it is promoted."""

import pytest
import toy

from pipeline import comparison, evaluation, registry
from pipeline.recipe import GREEDY, Search
from pipeline.storage import ObjectNotFoundError, open_bucket

BEAM = Search(beam_width=2)


@pytest.fixture
def store(tmp_path, trained, monkeypatch):
    """A store with an evaluated model and another one of the same files, that says something else."""
    monkeypatch.setattr("pipeline.java.available", lambda: False)
    store = open_bucket(str(tmp_path / "store"))
    toy.copy(trained.store, store, "models/", "encoders/", "features/", "datasets/")
    evaluation.evaluate(trained.model.version, store=store, search=BEAM, max_failed_fraction=0)
    return store


@pytest.fixture
def other(store, trained):
    """The version of a second model with the first one's evaluation, but for one caption."""
    folder = f"models/{trained.model.version}/"
    for item in list(store.list(folder)):
        store.put(item.key.replace(folder, "models/v2/"), store.get(item.key).replace(b"yellow", b"purple"))
    metadata = trained.model.model_copy(update={"version": "v2"})
    store.put("models/v2/metadata.json", metadata.model_dump_json().encode())
    metrics = evaluation.load_metrics(trained.model.version, store).model_copy(update={"version": "v2"})
    store.put("models/v2/metrics.json", metrics.model_dump_json().encode())
    rows = evaluation.load_captions(trained.model.version, store)
    changed = [{**row, "caption": row["caption"].replace("yellow", "purple")} for row in rows]
    table = evaluation.pa.Table.from_pylist(changed, schema=evaluation.CAPTIONS)
    evaluation.tables.write(table, "models/v2/test-captions.parquet", store)
    return "v2"


def compare(version, store):
    """The page's lines."""
    return comparison.compare(version, store=store, max_failed_fraction=0).splitlines()


def cells(line):
    """The cells of a row of a table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_first_candidate_stands_alone(store, trained):
    """Without a champion there are the candidate's scores, its captions and what people said."""
    lines = compare(trained.model.version, store)
    metrics = evaluation.load_metrics(trained.model.version, store)
    assert f"| CIDEr | {metrics.cider:.3f} |" in lines
    rows = [cells(line) for line in lines if "pictures/" in line or ".jpg" in line]
    said = {
        row["image_id"]: (row["caption"], row["references"][0])
        for row in evaluation.load_captions(trained.model.version, store)
    }
    assert {image: (caption, person) for image, caption, person in rows} == said
    assert lines[-1] == "There is no champion yet."


def test_a_candidate_beside_the_champion(store, trained, other):
    """Scores and captions of both stand side by side, where both were evaluated alike."""
    registry.promote(trained.model.version, store)
    lines = compare(other, store)
    cider = evaluation.load_metrics(other, store).cider
    assert f"| CIDEr | {cider:.3f} | {cider:.3f} |" in lines
    [row] = [cells(line) for line in lines if "yellow" in line and ".jpg" in line]
    assert ("purple" in row[1], "yellow" in row[2]) == (True, True)


def test_a_champion_that_was_evaluated_otherwise(store, trained, other, monkeypatch):
    """Its CIDEr is that on the candidate's photographs; the scores that can't be compared are left out."""
    evaluation.evaluate(trained.model.version, store=store, search=GREEDY, max_failed_fraction=0)
    registry.promote(trained.model.version, store)
    monkeypatch.setattr(registry, "cider_on", lambda *_, **__: 1.234)
    lines = compare(other, store)
    [cider] = [cells(line) for line in lines if line.startswith("| CIDEr ")]
    [bleu] = [cells(line) for line in lines if line.startswith("| BLEU-4 ")]
    assert (cider[2], bleu[2]) == ("1.234", "")


def test_the_champion_itself(store, trained):
    """Of the champion, trained once more, the page says that it is the champion."""
    registry.promote(trained.model.version, store)
    assert compare(trained.model.version, store)[-1] == "It is the champion already."


def test_a_candidate_without_evaluation(store):
    """There is nothing to show: the error names what is missing."""
    with pytest.raises(ObjectNotFoundError, match=r"models/v9/metrics\.json"):
        compare("v9", store)
