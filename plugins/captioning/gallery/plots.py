"""The geometry of a plot of drift; the template ``plot.svg`` draws it."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.work.runs import NightRecord

WIDTH, HEIGHT, MARGIN = 560, 160, 8
"""In units of the SVG."""

REFERENCES = ("the model's test", "earlier nights")
"""The references that a night is compared with, by their names in its record."""


@dataclass(frozen=True)
class Dot:
    """A night in a plot."""

    x: float
    y: float
    beyond: bool
    title: str


@dataclass(frozen=True)
class Plot:
    """A drift measure over the nights.

    Attributes:
        lines: the nights that have the measure, a line for each reference.
        limit: beyond which a night warns, in standard deviations.
        top: y of the upper limit.
        bottom: y of the lower limit.
        title: a summary for screen readers.
    """

    lines: Sequence[Sequence[Dot]]
    limit: float
    top: float
    bottom: float
    title: str
    width: int = WIDTH
    height: int = HEIGHT


def plot(measure: str, records: Sequence[NightRecord], *, limit: float) -> Plot | None:
    """Lay out the plot of a drift measure; ``None`` where no night has it.

    Args:
        measure: a name in the records' drift, which is in standard deviations.
        records: of the nights, the oldest first.
        limit: beyond which a night warns.
    """
    lines = [
        [
            (number, record.drift[reference][measure])
            for number, record in enumerate(records)
            if measure in record.drift.get(reference, {})
        ]
        for reference in REFERENCES
    ]
    values = [value for line in lines for _, value in line]
    if not values:
        return None
    extent = 1.05 * max(1.2 * limit, *map(abs, values))
    step = (WIDTH - 2 * MARGIN) / max(1, len(records) - 1)

    def y(value: float) -> float:
        return HEIGHT / 2 - (HEIGHT / 2 - MARGIN) * value / extent

    def dot(reference: str, number: int, value: float) -> Dot:
        title = f"{records[number].started_at:%Y-%m-%d}: {value:+.2f} from {reference}"
        return Dot(MARGIN + step * number, y(value), abs(value) > limit, title)

    return Plot(
        lines=[[dot(reference, *point) for point in line] for reference, line in zip(REFERENCES, lines, strict=True)],
        limit=limit,
        top=y(limit),
        bottom=y(-limit),
        title=f"{len(values)} values between {min(values):+.2f} and {max(values):+.2f} standard deviations",
    )
