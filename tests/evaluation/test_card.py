"""The model card: exact for the toy model, in every state, whatever the names in it."""

import re
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from pipeline.captioner.metadata import EnsembleMember, Epoch
from pipeline.config import GREEDY, TrainingConfig
from pipeline.data.ingest import IngestReport
from pipeline.data.vocabulary import Vocabulary
from pipeline.evaluation import card
from pipeline.evaluation.error_analysis import ErrorCount, LengthGroup, Rate
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.storage import layout
from tests.support import toy
from tests.support.loading import load_once
from tests.support.models import BEAM, DATASET, write_evaluation, write_model

HOSTILE = "<script>alert('x')</script> | `a` [b](c:d) ![e](f) *g* &amp; \n# h"

VOCABULARY = Vocabulary.build(["a dog", "a cat"], min_count=1)

COUNTS = [("Licence", "not stated"), ("Photographs", "16 train, 4 dev, 4 test"), ("Captions", "48, and 0 dropped")]


@pytest.fixture
def store(bucket, trained, monkeypatch):
    """A store with the toy model, its dataset, encoder and features."""
    load_once(monkeypatch)
    toy.copy(trained.store, bucket, "models/", "encoders/", "features/", "datasets/")
    return bucket


def read(version, store):
    """The card in the store."""
    return store.get(layout.model_card(version)).decode()


def evaluate(version, store, decoding=BEAM):
    """Evaluate the model."""
    return evaluate_model(version, store=store, decoding=decoding, max_failed_fraction=0)


def escaped(text):
    """A text without asterisks, bars and the like, as Markdown."""
    return text.replace("_", "\\_").replace("~", "\\~")


def section(text, title):
    """The lines of a section, without its heading."""
    [found] = re.findall(rf"^## {title}\n\n(.*?)(?=\n\n## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found.strip().splitlines()


def report(**changes):
    """The report of an ingest."""
    values = {
        "dataset": DATASET,
        "sources": {},
        "merged": 0,
        "images": {"train": 1, "dev": 0, "test": 0},
        "captions": 5,
        "split_by_hash": 0,
        "dropped": {},
        "dropped_rows": (),
    }
    return IngestReport(**{**values, **changes})


def render(model, evaluations=(), ingested=None):
    """The card of a made-up model."""
    return card.render(model, vocabulary=VOCABULARY, ingested=ingested, evaluations=evaluations)


def test_the_card_of_a_trained_model(trained, store):
    """Training writes it: everything but scores and errors, with the configuration where it is not the default."""
    model = trained.model
    [member] = model.ensemble
    minutes = sum(epoch.seconds for epoch in member.epochs) / 60
    [best] = [epoch for epoch in member.epochs if epoch.epoch == member.best_epoch]
    changed = {
        name: value for name, value in model.config.model_dump().items() if value != getattr(TrainingConfig(), name)
    }
    assert len(changed) >= 8
    words = {word for text in toy.TEXTS["en"][1] for word in text.format("red").split()} | toy.COLOURS.keys()
    assert read(model.version, store).splitlines() == [
        f"# Model {model.version}",
        "",
        card.PURPOSE,
        "",
        "## Data",
        "",
        f"- Dataset: {model.dataset}",
        "- Language: en",
        *(f"- {name}: {text}" for name, text in COUNTS),
        "- From: captions.csv (24 photographs, 48 captions)",
        "",
        "## Training",
        "",
        f"- Encoder: {escaped(model.encoder_id)}",
        f"- Trained: {model.created_at:%Y-%m-%d %H:%M} UTC",
        f"- Configuration: {escaped(', '.join(f'{name} {value}' for name, value in changed.items()))}",
        "",
        "| seed | best epoch | epochs | minutes | CIDEr on dev |",
        "| --- | --- | --- | --- | --- |",
        f"| 0 | {member.best_epoch} | {len(member.epochs)} | {minutes:.1f} | {best.dev_cider:.3f} |",
        "",
        "## Scores",
        "",
        "It has not been evaluated.",
        "",
        "## Limits",
        "",
        f"- It knows {len(words)} words, in the language en: those that occur at least 1 time in its training "
        f"captions. It calls everything else by one of them. A caption has at most {model.max_length} words.",
        "- It learned from 16 photographs. Photographs unlike these get captions, too, but are marked as novel.",
        "- How often its captions are wrong is not known.",
        "",
        "## Sources",
        "",
        f"- Cite as: model {model.version}, trained with image-captioning-pipeline on {model.dataset}, "
        f"{model.created_at:%Y-%m-%d}",
        f"- All fields of the configuration and all epochs: models/{model.version}/metadata.json",
        f"- The addresses of the data, and the dropped rows: datasets/{model.dataset}/ingest.json",
    ]


def test_the_card_of_an_evaluated_model(trained, store):
    """The evaluation writes it again, with scores, intervals, the human baseline, errors, and limits in numbers."""
    version, before = trained.model.version, read(trained.model.version, store)
    metrics = evaluate(version, store)
    after = read(version, store)
    for title in ("Data", "Training", "Sources"):
        assert section(after, title) == section(before, title)
    names = ["CIDEr", "BLEU-1", "BLEU-4", "ROUGE-L"]  # METEOR needs Java

    def cells(scores):
        values = ((scores.corpus[name], *scores.intervals[name]) for name in names)
        return " | ".join(f"{value:.3f} ({low:.3f}–{high:.3f})" for value, low, high in values)

    def agreed(scores):
        return " | ".join(f"{scores[name]:.3f}" for name in names)

    assert section(after, "Scores")[1:] == [
        "",
        f"### beam 3, 20 neighbours, 4 test photographs of {metrics.dataset}",
        "",
        f"| captions | {' | '.join(names)} |",
        "| --- | --- | --- | --- | --- |",
        f"| greedy | {cells(metrics.scores['greedy'])} |",
        f"| beam 3, 20 neighbours | {cells(metrics.scores['chosen'])} |",
        f"| beam 3, 20 neighbours, one reference fewer | {agreed(metrics.agreement.captioner)} |",
        f"| human, one reference fewer | {agreed(metrics.agreement.human)} |",
        "",
        f"Evaluated {metrics.evaluated_at:%Y-%m-%d %H:%M} UTC; the report is "
        f"{layout.evaluation(version, metrics.dataset, BEAM).report}.",
    ]
    assert section(after, "Errors")[2:] == [
        "| error | captions | human captions | most frequent words |",
        "| --- | --- | --- | --- |",
        "| gender | nothing to check | nothing to check |  |",
        "| number | nothing to check | nothing to check |  |",
        "| colour | 0.0 % (0 of 4) | 0.0 % (0 of 8) |  |",
        "| object | nothing to check | nothing to check |  |",
    ]
    found = metrics.calibration
    first, *rest = section(after, "Calibration")
    assert f"error is {found.error:.3f} ({found.interval[0]:.3f}–{found.interval[1]:.3f})" in first
    assert rest[1:3] == ["| confidence | accepted | captions |", "| --- | --- | --- |"]
    assert rest[3] == f"| {found.bins[0].confidence:.2f} | {found.bins[0].accepted:.2f} | 1 |"
    assert rest[-1].startswith(f"Of the test photographs, {100 * found.novel:.1f} % count as unlike all training")
    variety = metrics.diversity["chosen"]
    *same, last = section(after, "Limits")
    assert same == section(before, "Limits")[:-1]
    assert last == (
        f"- Of 4 captions, 100.0 % are different ones, and {100 * (1 - variety.novel_captions):.1f} % are training "
        f"captions word for word. Together they use {100 * variety.vocabulary_used:.1f} % of its words."
    )
    assert store.uri not in after and trained.inputs.source.uri not in after


def test_a_card_has_every_evaluation(trained, store):
    """Those on the model's own dataset come first, the newest of them before the others; its errors are counted."""
    version, own = trained.model.version, trained.model.dataset
    write_evaluation(version, store, cider=0.1, dataset=own, decoding=GREEDY)
    write_evaluation(version, store, cider=0.2, dataset=own, decoding=BEAM)
    write_evaluation(version, store, cider=0.3, dataset=DATASET)
    text = card.write(trained.model, store)
    assert text == read(version, store) == card.write(trained.model, store)
    headings = [line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")]
    assert headings == [
        f"beam 3, 20 neighbours, 4 test photographs of {own}",
        f"greedy, 4 test photographs of {own}",
        f"beam 3, 20 neighbours, 4 test photographs of {DATASET}",
    ]
    rows = [line for line in text.splitlines() if line.startswith(("| beam", "| greedy", "| human"))]
    assert rows == [
        "| greedy | 5.200 | 0.200 |",
        "| beam 3, 20 neighbours | 0.200 | 0.200 |",
        "| greedy | 0.100 | 0.200 |",
        "| greedy | 5.300 | 0.200 |",
        "| beam 3, 20 neighbours | 0.300 | 0.200 |",
    ]
    store.put(layout.evaluation(version, own, BEAM).metrics, b"damaged")
    assert f"beam 3, 20 neighbours, 4 test photographs of {own}" not in card.write(trained.model, store)


def measured(version, store, **changes):
    """An evaluation with errors and groups by length."""
    metrics = write_evaluation(version, store, cider=0.4)
    rate = Rate(checked=200, wrong=4)
    errors = {
        "gender": ErrorCount(captioner=Rate(checked=40, wrong=8), human=rate, words={"man": 6, "woman": 2}, cases=[]),
        "object": ErrorCount(captioner=rate, human=Rate(checked=0, wrong=0), words={"ball": 4}, cases=[]),
    }
    groups = [
        LengthGroup(shortest=low, longest=high, images=2, cider=cider, interval=(0, 1), written=9)
        for low, high, cider in ((6, 8.5, 0.6), (9, 10, 0.4), (11, 15, 0.2))
    ]
    return metrics.model_copy(update={"errors": errors, "by_length": groups, **changes})


def test_limits_come_from_numbers(bucket):
    """The share of wrong genders, and CIDEr by the length of human captions, are told where they are known."""
    model = write_model("v1", bucket)
    lines = render(model, [measured("v1", bucket)], report()).splitlines()
    assert "| gender | 20.0 % (8 of 40) | 2.0 % (4 of 200) | man (6), woman (2) |" in lines
    assert "| object | 2.0 % (4 of 200) | nothing to check | ball (4) |" in lines
    assert (
        "- When it names the gender of people, it names a wrong one in 20.0 % of the captions (humans: 2.0 %)." in lines
    )
    assert (
        "- CIDEr is 0.600 on photographs that people describe in 6.0 to 8.5 words, and 0.200 on those that they "
        "describe in 11.0 to 15.0." in lines
    )
    assert any(line.startswith("- It learned from 1 photograph.") for line in lines)
    german = model.model_copy(update={"language": "de"})
    other = render(german, [measured("v1", bucket, errors={}, by_length=[])])
    assert "- Errors are counted in English captions only." in other.splitlines()
    for absent in ("## Errors", "gender", "CIDEr is", "It learned from"):
        assert absent not in other


def test_heat_maps_prove_nothing(bucket):
    """The card of a model with attention says so, and each model of an ensemble has its row."""
    model = write_model("v1", bucket)
    epochs = [Epoch(epoch=n, phase="cross_entropy", dev_loss=1, dev_cider=n / 10, seconds=90) for n in (1, 2, 3)]
    ensemble = [EnsembleMember(seed=seed, best_epoch=seed, epochs=epochs) for seed in (2, 3)]
    text = render(model.model_copy(update={"ensemble": ensemble, "config": TrainingConfig()}))
    assert "They do not prove why it wrote the word." in text
    without = render(model.model_copy(update={"config": TrainingConfig(attention_heads=0)}))
    assert "heat maps" not in without and "- Configuration: attention\\_heads 0" in without.splitlines()
    assert "- Configuration: the defaults" in text.splitlines()
    assert section(text, "Training")[-2:] == ["| 2 | 2 | 3 | 4.5 | 0.200 |", "| 3 | 3 | 3 | 4.5 | 0.300 |"]


def test_neutral_wording_is_said(bucket):
    """The card of a model that learned neutral captions says so."""
    model = write_model("v1", bucket)
    neutral = replace(VOCABULARY, neutral_wording=True)
    facts = card.render(model, vocabulary=neutral, ingested=None, evaluations=[]).splitlines()
    assert (
        "- Wording: person and child in place of man, woman, boy and girl, where the captions of a photograph disagree "
        "about the gender" in facts
    )
    assert "Wording" not in render(model)


@pytest.mark.parametrize("field", ["encoder_id", "dataset", "language", "licence", "source", "embedding", "word"])
def test_hostile_texts_are_shown_as_they_are(bucket, field):
    """Markup in a name, a licence or a word of a caption is text: it makes no element, row, link or heading."""
    model, metrics = write_model("v1", bucket), measured("v1", bucket)
    ingested = report(sources={"a": {"images": 1, "captions": 5, "dropped": 0}})
    plain = MarkdownIt("gfm-like", {"linkify": False}).render(render(model, [metrics], ingested))
    match field:
        case "licence":
            ingested = ingested.model_copy(update={"licence": HOSTILE})
        case "source":
            ingested = ingested.model_copy(update={"sources": {HOSTILE: next(iter(ingested.sources.values()))}})
        case "embedding":
            model = model.model_copy(update={"config": model.config.model_copy(update={"embedding": HOSTILE})})
        case "word":
            gender = metrics.errors["gender"].model_copy(update={"words": {HOSTILE: 1}})
            metrics = metrics.model_copy(update={"errors": {**metrics.errors, "gender": gender}})
        case _:
            model = model.model_copy(update={field: HOSTILE})
    html = MarkdownIt("gfm-like", {"linkify": False}).render(render(model, [metrics], ingested))
    assert "alert('x')" in html and "[b](c:d) ![e](f) *g*" in html

    def tags(text):
        return [tag for tag in re.findall(r"<[^>]+>", text) if tag not in ("<li>", "</li>")]

    assert tags(html) == tags(plain)


def test_two_evaluations_at_once(trained, store, monkeypatch):
    """The card that is written last has the evaluations of both."""
    version, own = trained.model.version, trained.model.dataset
    write_evaluation(version, store, cider=0.1, dataset=own, decoding=GREEDY)
    render, calls = card.render, []

    def meanwhile(model, **records):
        text = render(model, **records)
        calls.append(1)
        if len(calls) == 1:
            write_evaluation(version, store, cider=0.2, dataset=own)
            card.write(model, store)
        return text

    monkeypatch.setattr(card, "render", meanwhile)
    card.write(trained.model, store)
    assert len(calls) == 3
    assert "### greedy" in read(version, store) and "### beam 3" in read(version, store)
