"""A comparison of a candidate with the champion, as Markdown, for a person who decides on its promotion."""

import re
from collections.abc import Mapping, Sequence

from pipeline.captioner.registry import find_champion
from pipeline.config import DecodingConfig
from pipeline.errors import printable
from pipeline.evaluation.results import Metrics, candidate_metrics, comparable_metrics, read_captions
from pipeline.storage import Bucket

SHOWN = 8
"""Photographs whose captions are shown."""

SCORES = ("CIDEr", "BLEU-1", "BLEU-4", "METEOR", "ROUGE-L")


def compare(version: str, *, decoding: DecodingConfig, store: Bucket) -> str:
    """The scores of both models and their captions of some test photographs.

    Raises:
        PipelineError: the candidate was not evaluated with this decoding.
    """
    candidate = candidate_metrics(version, decoding, store)
    champion = find_champion(store)
    if champion is None:
        return f"{_page(candidate, None, store)}\n\nThere is no champion yet."
    if champion.version == version:
        return f"{_page(candidate, None, store)}\n\nThis model is the champion already."
    theirs = comparable_metrics(champion.version, candidate, store)
    if theirs is None:
        return (
            f"{_page(candidate, None, store)}\n\nThe champion {champion.version} was not evaluated on these "
            f"photographs with {decoding}: `captioning evaluate-champion {version} {decoding.options}` does so."
        )
    return _page(candidate, theirs, store)


def _page(candidate: Metrics, champion: Metrics | None, store: Bucket) -> str:
    names = ["", f"candidate {candidate.version}", *([f"champion {champion.version}"] if champion else [])]
    rows = [
        [name, *(_number(metrics.summary.get(name)) for metrics in (candidate, champion) if metrics)]
        for name in SCORES
        if name in candidate.summary
    ]
    return "\n".join(
        [
            f"Scores on {candidate.images} test photographs ({candidate.decoding}):",
            "",
            *tabulate(names, rows),
            "",
            "Captions of some test photographs:",
            "",
            *_captions(candidate, champion, store),
        ]
    )


def _captions(candidate: Metrics, champion: Metrics | None, store: Bucket) -> Sequence[str]:
    written = read_captions(candidate, store)
    theirs: Mapping[str, str] = {}
    if champion:
        theirs = {row["image_id"]: row["caption"] for row in read_captions(champion, store)}
    shown = written[:: max(1, len(written) // SHOWN)][:SHOWN]
    names = ["photograph", "candidate", *(["champion"] if champion else []), "human"]
    rows = [
        [
            row["image_id"],
            row["caption"],
            *([theirs.get(row["image_id"], "")] if champion else []),
            row["references"][0],
        ]
        for row in shown
    ]
    return tabulate(names, [list(map(escape, row)) for row in rows])


def tabulate(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown; so are its cells."""
    return ["| " + " | ".join(line) + " |" for line in [names, ["---"] * len(names), *rows]]


def escape(text: str) -> str:
    """Markdown that shows a text as it is, on one line, also as a cell of a table."""
    return re.sub(r"[\\`*_\[\]<>|~&$]", r"\\\g<0>", printable(text))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
