"""The model card: what a model is for, what it learned from, its scores, errors and limits, on one page of Markdown.

The sections are those of Mitchell et al. 2019 ("Model Cards for Model Reporting", https://arxiv.org/abs/1810.03993) on
which the store has records. A card is made from these records alone, so writing it again gives the same page.
"""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.captioner import bundle
from pipeline.captioner.metadata import ModelMetadata
from pipeline.data.ingest import IngestReport
from pipeline.data.text import is_english
from pipeline.data.vocabulary import SPECIAL_WORDS, Vocabulary
from pipeline.evaluation.comparison import SCORES, escape, tabulate
from pipeline.evaluation.error_analysis import Rate
from pipeline.evaluation.results import Metrics, list_metrics
from pipeline.metrics.coco import Scores
from pipeline.progress import counted
from pipeline.storage import Bucket, ObjectChangedError, json, layout

TRIES = 20
"""How often a card is written that evaluations at the same time write, too."""

PURPOSE = (
    "It writes a caption of one sentence for a photograph, by which photographs can be searched and browsed. Captions "
    "can be wrong: look at the photograph before you rely on one."
)


def write(model: ModelMetadata, store: Bucket) -> str:
    """Write the card of a model from what the store holds at the moment, in place of an earlier one, and return it.

    Raises:
        PipelineError: the vocabulary of the model is missing or damaged.
    """
    key = layout.model_card(model.version)
    for attempt in range(1, TRIES + 1):
        etag = store.etag(key)
        card = render(
            model,
            vocabulary=bundle.load_vocabulary(model, store),
            ingested=json.find(IngestReport, layout.ingest_report(model.dataset), store),
            evaluations=list_metrics(layout.evaluations(model.version), store),
        )
        try:
            store.put(key, card.encode(), if_match=etag)
            break
        except ObjectChangedError:
            if attempt == TRIES:
                raise
    return card


def render(
    model: ModelMetadata, *, vocabulary: Vocabulary, ingested: IngestReport | None, evaluations: Sequence[Metrics]
) -> str:
    """The card as Markdown. All texts are escaped, so names may contain anything.

    Args:
        model: the model.
        vocabulary: its words.
        ingested: the report of its dataset; None if there is none.
        evaluations: of the model, in any order.
    """
    newest_first = sorted(evaluations, key=lambda metrics: metrics.evaluated_at, reverse=True)
    evaluations = sorted(newest_first, key=lambda metrics: metrics.dataset != model.dataset)
    main = evaluations[0] if evaluations else None
    sections = [
        [f"# Model {escape(model.version)}", "", PURPOSE],
        ["## Data", "", *_facts(_data(model, ingested))],
        ["## Training", "", *_training(model, vocabulary)],
        ["## Scores", "", *_scores(evaluations)],
        *([["## Errors", "", *_errors(main)]] if main and main.errors else []),
        *([["## Calibration", "", *_calibration(main)]] if main and main.calibration else []),
        ["## Limits", "", *(f"- {limit}" for limit in _limits(model, vocabulary, ingested, main))],
        ["## Sources", "", *_facts(_sources(model))],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _data(model: ModelMetadata, ingested: IngestReport | None) -> dict[str, str]:
    facts = {"Dataset": model.dataset, "Language": model.language}
    if ingested is None:
        return facts | {"Licence": "not stated"}
    images = ", ".join(f"{count:,} {split}" for split, count in ingested.images.items())
    # Only the last part of an address: the card is shown to people who need not know where the data is.
    sources = (
        f"{name.rpartition('/')[2] if '://' in name else name} ({counted(counts.images, 'photograph')}, "
        f"{counted(counts.captions, 'caption')})"
        for name, counts in ingested.sources.items()
    )
    return facts | {
        "Licence": ingested.licence or "not stated",
        "Photographs": images,
        "Captions": f"{ingested.captions:,}, and {len(ingested.dropped_rows):,} dropped",
        "From": ", ".join(sources),
    }


def _training(model: ModelMetadata, vocabulary: Vocabulary) -> list[str]:
    changed = model.config.model_dump(exclude_defaults=True)
    facts = {
        "Encoder": model.encoder_id,
        "Trained": f"{model.created_at:%Y-%m-%d %H:%M} UTC",
        "Configuration": ", ".join(f"{name} {value}" for name, value in changed.items()) or "the defaults",
    }
    if vocabulary.neutral_wording:
        facts["Wording"] = (
            "person and child in place of man, woman, boy and girl, where the captions of a photograph disagree about "
            "the gender"
        )
    names = ["seed", "best epoch", "epochs", "minutes", "CIDEr on dev"]
    rows = [
        [
            str(member.seed),
            str(member.best_epoch),
            str(len(member.epochs)),
            f"{sum(epoch.seconds for epoch in member.epochs) / 60:.1f}",
            *(f"{epoch.dev_cider:.3f}" for epoch in member.epochs if epoch.epoch == member.best_epoch),
        ]
        for member in model.ensemble
    ]
    return [*_facts(facts), "", *tabulate(names, rows)]


def _scores(evaluations: Sequence[Metrics]) -> list[str]:
    if not evaluations:
        return ["It has not been evaluated."]
    lines = [
        "In brackets are 95 % intervals over the test photographs; how much another seed changes is not in them. "
        "A human caption can only be scored against the others of its photograph: against one reference fewer."
    ]
    for metrics in evaluations:
        decoding = str(metrics.decoding)
        by_decoding = {decoding if name == "chosen" else name: scores for name, scores in metrics.scores.items()}
        names = [name for name in SCORES if name in metrics.summary]
        agreement = {decoding: metrics.agreement.captioner, "human": metrics.agreement.human}
        rows = [
            *([name, *(_score(scores, metric) for metric in names)] for name, scores in by_decoding.items()),
            *(
                [f"{name}, one reference fewer", *(_number(scores.get(metric)) for metric in names)]
                for name, scores in agreement.items()
                if scores
            ),
        ]
        keys = layout.evaluation(metrics.version, metrics.dataset, metrics.decoding)
        lines += [
            "",
            f"### {escape(decoding)}, {metrics.images:,} test photographs of {escape(metrics.dataset)}",
            "",
            *tabulate(["captions", *names], rows),
            "",
            f"Evaluated {metrics.evaluated_at:%Y-%m-%d %H:%M} UTC; the report is {escape(keys.report)}.",
        ]
    return lines


def _score(scores: Scores, metric: str) -> str:
    interval = scores.intervals.get(metric)
    return _number(scores.corpus.get(metric)) + (f" ({interval[0]:.3f}–{interval[1]:.3f})" if interval else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _errors(metrics: Metrics) -> list[str]:
    names = ["error", "captions", "human captions", "most frequent words"]
    rows = [
        [
            kind,
            _rate(count.captioner),
            _rate(count.human),
            escape(", ".join(f"{word} ({times})" for word, times in [*count.words.items()][:3])),
        ]
        for kind, count in metrics.errors.items()
    ]
    return [
        f"Of the captions by {metrics.decoding} on {escape(metrics.dataset)}, those that name a wrong gender, number, "
        "colour or object. They are found by comparing words with the human captions, so the counts are estimates; "
        "what this finds in human captions is beside them.",
        "",
        *tabulate(names, rows),
    ]


def _calibration(metrics: Metrics) -> list[str]:
    found = metrics.calibration
    assert found is not None  # noqa: S101 - for type checkers
    [half] = [each for each in found.coverage if each.share == 0.5]
    # It is None where all captions are accepted, or none is.
    orders = (
        ""
        if found.auroc is None or found.log_prob_auroc is None
        else (
            f" An accepted caption has a higher one than another with a probability of {found.auroc:.3f} (by the mean "
            f"log probability of a word alone, {found.log_prob_auroc:.3f})."
        )
    )
    low, high = found.interval
    return [
        "The confidence of a caption is the probability that it is accepted: that it scores above the weakest tenth of "
        f"the human captions. So do {_percent(found.accepted)} of the captions by {metrics.decoding} on "
        f"{escape(metrics.dataset)}, and {_percent(found.human_accepted)} of the human captions.{orders} Of the surer "
        f"half of the captions, {_percent(half.accepted)} are accepted and {_percent(half.at_least_partly)} at least "
        f"partly right. The expected calibration error is {found.error:.3f} ({low:.3f}–{high:.3f}); if each confidence "
        f"were exactly right, it would be {found.chance:.3f} by chance.",
        "",
        *tabulate(
            ["confidence", "accepted", "captions"],
            [[f"{each.confidence:.2f}", f"{each.accepted:.2f}", str(each.captions)] for each in found.bins],
        ),
        "",
        f"Of the test photographs, {_percent(found.novel)} count as unlike all training photographs. The confidence "
        "says nothing about such photographs.",
    ]


def _rate(rate: Rate) -> str:
    return f"{_percent(rate.share)} ({rate.wrong:,} of {rate.checked:,})" if rate.checked else "nothing to check"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _limits(
    model: ModelMetadata, vocabulary: Vocabulary, ingested: IngestReport | None, metrics: Metrics | None
) -> Iterator[str]:
    """What the model can't do, as far as numbers say so."""
    words = len(vocabulary) - len(SPECIAL_WORDS)
    yield (
        f"It knows {counted(words, 'word')}, in the language {escape(model.language)}: those that occur at least "
        f"{counted(vocabulary.min_count, 'time')} in its training captions. It calls everything else by one of them. A "
        f"caption has at most {counted(model.max_length, 'word')}."
    )
    if ingested is not None:
        marked = bundle.CONFIDENCE in model.files
        yield (
            f"It learned from {counted(ingested.images.get('train', 0), 'photograph')}. Photographs unlike these get "
            f"captions, too{', but are marked as novel' if marked else ', and the captions do not tell'}."
        )
    if not is_english(model.language):
        yield "Errors are counted in English captions only."
    if model.config.attention_heads:
        yield "The heat maps of a report show where it looked for each word. They do not prove why it wrote the word."
    if metrics is None:
        yield "How often its captions are wrong is not known."
        return
    gender = metrics.errors.get("gender")
    if gender is not None and gender.captioner.checked:
        yield (
            f"When it names the gender of people, it names a wrong one in {_percent(gender.captioner.share)} of the "
            f"captions (humans: {_percent(gender.human.share)})."
        )
    variety = metrics.diversity["chosen"]
    yield (
        f"Of {counted(variety.captions, 'caption')}, {_percent(variety.distinct_captions)} are different ones, and "
        f"{_percent(1 - variety.novel_captions)} are training captions word for word. Together they use "
        f"{_percent(variety.vocabulary_used)} of its words."
    )
    if len(metrics.by_length) > 1:
        first, *_, last = metrics.by_length
        yield (
            f"CIDEr is {first.cider:.3f} on photographs that people describe in {first.shortest:.1f} to "
            f"{first.longest:.1f} words, and {last.cider:.3f} on those that they describe in {last.shortest:.1f} to "
            f"{last.longest:.1f}."
        )


def _sources(model: ModelMetadata) -> dict[str, str]:
    """How to cite the model, and where the records are; keys are relative to the store."""
    return {
        "Cite as": f"model {model.version}, trained with image-captioning-pipeline on {model.dataset}, "
        f"{model.created_at:%Y-%m-%d}",
        "All fields of the configuration and all epochs": layout.model_metadata(model.version),
        "The addresses of the data, and the dropped rows": layout.ingest_report(model.dataset),
    }


def _facts(facts: Mapping[str, str]) -> list[str]:
    return [f"- {name}: {escape(text)}" for name, text in facts.items()]
