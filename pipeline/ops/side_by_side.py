"""Two models side by side: their scores on the same test photographs, and their captions of the same photographs.

The second one is the candidate, and all differences are what it gains or loses against the first.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captioner.metadata import load_metadata
from pipeline.data import corrections
from pipeline.data.corrections import Correction
from pipeline.data.text import clean
from pipeline.evaluation.promotion_gate import GateConfig
from pipeline.evaluation.results import Metrics, comparable_metrics, list_metrics, read_captions
from pipeline.metrics.coco import METRICS
from pipeline.nightly import shadow
from pipeline.ops.browse import Shard, shards
from pipeline.storage import Bucket, ObjectNotFoundError, layout, parquet
from pipeline.work.outcomes import IDENTITY
from pipeline.work.shards import REDONE

SHARDS = 4
"""Newest shards of each model that are read: up to 40,000 captions."""

ERRORS_APART = 3
"""Standard errors by which a kind of error must be more frequent to be called so."""

FAR_FEWER = 0.5
"""Share of the first model's different captions below which the second one repeats itself."""


@dataclass(frozen=True)
class Pair:
    """A photograph with the captions of both models.

    Attributes:
        image: id in the dataset, or key in the inbox.
        etag: version of the image.
        captions: of the first and of the second model.
        human: human captions of it; in the inbox, the one that a person wrote or confirmed.
        gain: CIDEr of the second caption, less that of the first; None without references.
        nearer: how much nearer the second caption is to the person's, in shared words, from -1 to 1; None in a test.
        said: what a person said about it last, in the inbox.
        right: whether each caption has the same words as the person's.
    """

    image: str
    etag: str
    captions: tuple[str, str]
    human: tuple[str, ...] = ()
    gain: float | None = None
    nearer: float | None = None
    said: Correction | None = None
    right: tuple[bool, bool] = (False, False)

    @property
    def differs(self) -> bool:
        """Whether the captions are different."""
        return self.captions[0] != self.captions[1]


@dataclass(frozen=True)
class Score:
    """A measure of both models; ``values`` are None where one was not measured."""

    name: str
    values: tuple[float | None, float | None]
    is_share: bool = False
    lower_is_better: bool = False

    @property
    def gain(self) -> float | None:
        """The second value less the first."""
        first, second = self.values
        return None if first is None or second is None else second - first


@dataclass(frozen=True)
class Tested:
    """Evaluations of two models on the same test photographs, with the same decoding.

    Attributes:
        first: the evaluation of the first model.
        second: that of the second, on whose dataset both are compared.
        pairs: the test photographs, first those whose captions differ, by how much the score changes.
    """

    first: Metrics
    second: Metrics
    pairs: list[Pair]

    @cached_property
    def scores(self) -> list[Score]:
        """All scores that one of them has, then the shares of errors and of different captions."""
        both = self.first, self.second
        found = [
            Score(name, _both(metrics.summary.get(name) for metrics in both))
            for name in ("CIDEr", *(name for name in METRICS if name != "CIDEr"))
            if any(name in metrics.summary for metrics in both)
        ]
        calibrations = [metrics.calibration for metrics in both]
        if any(calibrations):
            values = _both(each.accepted if each else None for each in calibrations)
            found.append(Score("Accepted by the rule of the report", values, is_share=True))
        for kind in self.second.errors:
            values = _both(metrics.errors[kind].captioner.share if kind in metrics.errors else None for metrics in both)
            found.append(Score(f"Wrong {kind}", values, is_share=True, lower_is_better=True))
        values = _both(metrics.diversity["chosen"].distinct_captions for metrics in both)
        return [*found, Score("Different captions", values, is_share=True)]

    @cached_property
    def warnings(self) -> list[str]:
        """In what the second model is much worse, as sentences about it."""
        gate, first, second = GateConfig(), self.first, self.second
        found = []
        if second.cider < first.cider - gate.tolerance:
            found.append(
                f"Its CIDEr is {first.cider - second.cider:.3f} lower. Another seed changes it by {gate.tolerance:g}, "
                "and the promotion gate promotes no model that loses more."
            )
        if second.cider < gate.floor:
            found.append(f"Its CIDEr of {second.cider:.3f} is below the floor of the promotion gate, {gate.floor:g}.")
        for kind, count in second.errors.items():
            if kind in first.errors:
                rates = first.errors[kind].captioner, count.captioner
                deviation = math.hypot(*(_standard_error(rate.share, rate.checked) for rate in rates))
                if rates[1].share - rates[0].share > ERRORS_APART * deviation:
                    found.append(
                        f"It names a wrong {kind} in {100 * rates[1].share:.1f} % of the captions that can have this "
                        f"error, and the other model in {100 * rates[0].share:.1f} %."
                    )
        before, after = (metrics.diversity["chosen"].distinct_captions for metrics in (first, second))
        if after < FAR_FEWER * before:
            found.append(
                f"It repeats itself: {100 * after:.0f} % of its captions are different, not {100 * before:.0f} %."
            )
        return found


def _both(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    first, second = values
    return first, second


def _standard_error(share: float, count: int) -> float:
    return math.sqrt(share * (1 - share) / count) if count else 0.0


def compare_tests(first: str, second: str, store: Bucket) -> Tested | None:
    """The newest evaluations of two models that can be compared, or None if there are none.

    Raises:
        PipelineError: the captions of an evaluation are missing or damaged.
    """
    evaluations = list_metrics(layout.evaluations(second), store)
    for theirs in sorted(evaluations, key=lambda metrics: metrics.evaluated_at, reverse=True):
        if ours := comparable_metrics(first, theirs, store):
            return Tested(ours, theirs, _test_pairs(ours, theirs, store))
    return None


def _test_pairs(first: Metrics, second: Metrics, store: Bucket) -> list[Pair]:
    ours = {row["image_id"]: row["caption"] for row in read_captions(first, store)}
    before, after = (metrics.scores["chosen"].image_cider for metrics in (first, second))
    pairs = [
        Pair(
            row["image_id"],
            row["image_etag"],
            (ours[row["image_id"]], row["caption"]),
            human=tuple(row["references"]),
            gain=after[row["image_id"]] - before[row["image_id"]]
            if row["image_id"] in before and row["image_id"] in after
            else None,
        )
        for row in read_captions(second, store)
        if row["image_id"] in ours
    ]
    return sorted(pairs, key=lambda pair: (not pair.differs, -abs(pair.gain or 0)))


@dataclass(frozen=True)
class InInbox:
    """Captions of photographs in the inbox by two models.

    Attributes:
        pairs: first those whose captions differ, and of these the ones that people have corrected.
        before_approval: whether they were written for an approval; otherwise nights wrote them.
    """

    pairs: list[Pair]
    before_approval: bool

    @property
    def corrected(self) -> list[Pair]:
        """The photographs whose caption a person has corrected."""
        return [pair for pair in self.pairs if pair.said and pair.said.action == "corrected"]

    @property
    def now_right(self) -> int:
        """Corrections whose words the second model writes, and the first does not."""
        return sum(pair.right == (False, True) for pair in self.corrected)

    @property
    def no_longer_right(self) -> int:
        """The other way round."""
        return sum(pair.right == (True, False) for pair in self.corrected)


def compare_inbox(first: str, second: str, store: Bucket, *, damaged: list[str]) -> InInbox:
    """What two models wrote about the same photographs in the inbox.

    They are those that both captioned before the approval of the second one. Without them, they are those that both
    captioned in nights, as far as they are in the newest ``SHARDS`` shards of each.

    Args:
        first: version of a model.
        second: version of another one.
        store: the store.
        damaged: gets the messages of damaged shards and corrections, which are left out.

    Raises:
        PipelineError: there is no such model, or the captions before its approval are damaged.
    """
    language = load_metadata(second, store).language
    written = _before_approval(first, second, store)
    before_approval = bool(written)
    if not written:
        found = shards(store)
        ours, theirs = (_of_nights(version, found, store, damaged) for version in (first, second))
        written = {identity: (ours[identity], caption) for identity, caption in theirs.items() if identity in ours}
    said = corrections.by_image(corrections.latest(corrections.read(store, damaged=damaged)))
    pairs = [_inbox_pair(identity, captions, said.get(identity), language) for identity, captions in written.items()]
    pairs.sort(key=lambda pair: (not pair.differs, pair.said is None, -abs(pair.nearer or 0), pair.image))
    return InInbox(pairs, before_approval)


def _inbox_pair(identity: tuple[str, str], captions: tuple[str, str], said: Correction | None, language: str) -> Pair:
    if said is None or said.caption is None:
        return Pair(*identity, captions)
    words = clean(said.caption, language)
    first, second = (clean(caption, language) for caption in captions)
    return Pair(
        *identity,
        captions,
        human=(said.caption,),
        nearer=_shared(second, words) - _shared(first, words),
        said=said,
        right=(first == words, second == words),
    )


def _shared(words: list[str], others: list[str]) -> float:
    """The share of the words of two captions that are in both, from 0 to 1 (the F1 score)."""
    left = list(others)
    for word in words:
        if word in left:
            left.remove(word)
    return 2 * (len(others) - len(left)) / (len(words) + len(others)) if words or others else 0.0


def _before_approval(first: str, second: str, store: Bucket) -> dict[tuple[str, str], tuple[str, str]]:
    """Both captions by key and etag, as they were written for the approval of the second; empty if they were not."""
    try:
        table = parquet.read(layout.shadow(second), store, columns=shadow.SCHEMA)
    except ObjectNotFoundError:
        return {}
    return {
        (row["image_key"], row["image_etag"]): (row["champion_caption"], row["caption"])
        for row in table.to_pylist()
        if row["champion_version"] == first
    }


def _of_nights(version: str, found: Iterable[Shard], store: Bucket, damaged: list[str]) -> dict[tuple[str, str], str]:
    """The captions of a model by key and etag; of an image with several, the newest."""
    keys = [shard.key for shard in islice((shard for shard in found if shard.version == version), SHARDS)]
    names = (*IDENTITY, "caption", "status")
    captions: dict[tuple[str, str], str] = {}
    # The newest shard comes last, so that its captions stay.
    for _, table in parquet.read_all(keys[::-1], store, columns=names, advice=REDONE, damaged=damaged):
        written = table.filter(pc.field("status") == "ok")
        key, etag, caption = (written[name].to_pylist() for name in names[:3])
        captions |= zip(zip(key, etag, strict=True), caption, strict=True)
    return captions


@dataclass(frozen=True)
class Place:
    """Where a photograph of a dataset is: the name of its source, its key and its etag."""

    source: str
    key: str
    etag: str


class HeldOutPhotographs:
    """Where the test photographs of datasets are. The last dataset that was asked for is kept in memory.

    A dataset never changes, but its table is too large to be read for each picture of a page.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: tuple[str, str] | None = None
        self._places: Mapping[str, Place] = {}

    def find(self, dataset_id: str, image_id: str, store: Bucket) -> Place | None:
        """The place of a test photograph; None if the dataset has no such one.

        Raises:
            PipelineError: there is no such dataset, or its table is damaged.
        """
        with self._lock:
            if self._known != (store.uri, dataset_id):
                self._places = _places(dataset_id, store)
                self._known = store.uri, dataset_id
            return self._places.get(image_id)


def _places(dataset_id: str, store: Bucket) -> Mapping[str, Place]:
    columns = ["image_id", "source", "image_key", "image_etag", "split"]
    table: pa.Table = parquet.read(layout.dataset_table(dataset_id), store, columns=columns)
    rows: list[dict[str, Any]] = table.to_pylist()
    return {
        row["image_id"]: Place(row["source"], row["image_key"], row["image_etag"])
        for row in rows
        if row["split"] == "test"
    }
