"""A candidate beside the champion, as Markdown, for a person who decides which of them captions the nights."""

from collections.abc import Mapping, Sequence

from pipeline import evaluation, registry
from pipeline.errors import PipelineError
from pipeline.evaluation import Metrics, load_metrics
from pipeline.storage import Bucket, ObjectNotFoundError

SHOWN = 8
"""Photographs whose captions are shown."""

SCORES = ("CIDEr", "BLEU-1", "BLEU-4", "METEOR", "ROUGE-L")


def compare(version: str, *, store: Bucket, max_failed_fraction: float) -> str:
    """Scores of both, and what they say of some test photographs.

    The champion stands beside the candidate where both were evaluated on the same photographs, with the same search;
    otherwise only its CIDEr does, scored anew.

    Raises:
        ObjectNotFoundError: the candidate was not evaluated.
        PipelineError: too many of the test photographs have no features.
    """
    candidate = load_metrics(version, store)
    try:
        champion = registry.champion(store).version
    except PipelineError:
        return _page(candidate, None, {}, store) + "\n\nThere is no champion yet."
    if champion == version:
        return _page(candidate, None, {}, store) + "\n\nIt is the champion already."
    known = registry.evaluated_alike(champion, candidate, store)
    if known is not None:
        return _page(candidate, champion, known.summary, store)
    cider = registry.champion_cider(champion, candidate, store=store, max_failed_fraction=max_failed_fraction)
    return _page(candidate, champion, {"CIDEr": cider}, store)


def _page(candidate: Metrics, champion: str | None, scores: Mapping[str, float], store: Bucket) -> str:
    names = ["", f"candidate {candidate.version}", *([f"champion {champion}"] if champion else [])]
    rows = [
        [name, f"{candidate.summary[name]:.3f}", *([_number(scores.get(name))] if champion else [])]
        for name in SCORES
        if name in candidate.summary
    ]
    return "\n".join(
        [
            f"Scores on {candidate.images} test photographs ({candidate.search}):",
            "",
            *_table(names, rows),
            "",
            "What is said of some of them:",
            "",
            *_captions(candidate.version, champion, store),
            "",
            f"The candidate's report: {store.url(evaluation.report_key(candidate.version))}",
        ]
    )


def _captions(candidate: str, champion: str | None, store: Bucket) -> Sequence[str]:
    written = evaluation.load_captions(candidate, store)
    theirs: Mapping[str, str] = {}
    if champion:
        try:
            theirs = {row["image_id"]: row["caption"] for row in evaluation.load_captions(champion, store)}
        except ObjectNotFoundError:  # promoted by hand, without an evaluation
            theirs = {}
    some = written[:: max(1, len(written) // SHOWN)][:SHOWN]
    names = ["photograph", "candidate", *(["champion"] if champion else []), "a person"]
    rows = [
        [
            row["image_id"],
            row["caption"],
            *([theirs.get(row["image_id"], "")] if champion else []),
            row["references"][0],
        ]
        for row in some
    ]
    return _table(names, rows)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [names, ["---"] * len(names), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
