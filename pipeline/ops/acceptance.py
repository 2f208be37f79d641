"""Acceptance: the share of a model's captions that people found right, of those that they judged.

A caption is accepted if the last word about it confirms it, and not accepted if that corrects it. People judge the
captions that they are shown, which in the review queue are the unsure ones: this is not the share of all captions.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data import corrections


@dataclass(frozen=True)
class Acceptance:
    """How many of the captions that people judged they accepted: ``str`` gives the share.

    Attributes:
        version: of the model that generated them.
        week: the Monday of the week, in UTC, in which they were judged.
        judged: how many were judged.
        accepted: how many of these were right.
    """

    version: str
    week: date
    judged: int
    accepted: int

    @property
    def share(self) -> float:
        """The accepted ones of the judged ones, 0 to 1."""
        return self.accepted / self.judged

    def __str__(self) -> str:
        return f"{round(100 * self.share)} % of {self.judged:,}"


def by_week(events: pa.Table) -> list[Acceptance]:
    """The acceptance of each model in each week, the oldest week first.

    Args:
        events: what people said, as ``corrections.read`` gives it.
    """
    counting = corrections.latest(events).select(["model_version", "corrected_at", "action"])
    judged, accepted = Counter[tuple[date, str]](), Counter[tuple[date, str]]()
    for row in counting.filter(pc.field("model_version") != "").to_pylist():
        day = row["corrected_at"].date()
        place = day - timedelta(day.weekday()), row["model_version"]
        judged[place] += 1
        accepted[place] += row["action"] == "confirmed"
    return [
        Acceptance(version, week, count, accepted[week, version]) for (week, version), count in sorted(judged.items())
    ]


def by_model(weeks: Iterable[Acceptance]) -> dict[str, Acceptance]:
    """The acceptance of each model in all weeks together, by its version; ``week`` is the last one."""
    found: dict[str, Acceptance] = {}
    for each in weeks:
        before = found.get(each.version, Acceptance(each.version, each.week, 0, 0))
        found[each.version] = Acceptance(
            each.version, each.week, before.judged + each.judged, before.accepted + each.accepted
        )
    return found
