"""Where the parts of a plot of drift lie; the template ``plot.svg`` draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT, MARGIN = 560, 160, 8

REFERENCES = ("the model's test", "earlier nights")
"""What a night is compared with, as its record names them."""


@dataclass(frozen=True)
class Dot:
    """A night: its place, whether it lies beyond the limit, and what is said of it."""

    x: float
    y: float
    beyond: bool
    title: str


@dataclass(frozen=True)
class Plot:
    """A figure over the nights, one line a reference; ``top`` and ``bottom`` are the heights of the limit."""

    lines: Sequence[Sequence[Dot]]
    limit: float
    top: float
    bottom: float
    title: str
    width: int = WIDTH
    height: int = HEIGHT


def plot(figure: str, records: Sequence[Mapping[str, Any]], *, limit: float) -> Plot | None:
    """Lay a figure out; ``None`` where no night has it.

    Args:
        figure: a name in the records' differences, in standard deviations.
        records: of the nights, the oldest first.
        limit: beyond which a night warns.
    """
    lines = [
        [
            (place, record["drift"][reference][figure])
            for place, record in enumerate(records)
            if figure in record["drift"].get(reference, {})
        ]
        for reference in REFERENCES
    ]
    values = [value for line in lines for _, value in line]
    if not values:
        return None
    most = 1.05 * max(1.2 * limit, *map(abs, values))
    step = (WIDTH - 2 * MARGIN) / max(1, len(records) - 1)

    def height(value: float) -> float:
        return HEIGHT / 2 - (HEIGHT / 2 - MARGIN) * value / most

    def dot(reference: str, place: int, value: float) -> Dot:
        night = records[place]["finished_at"][:10]
        title = f"{night}: {value:+.2f} from {reference}"
        return Dot(MARGIN + step * place, height(value), abs(value) > limit, title)

    return Plot(
        lines=[[dot(reference, *point) for point in line] for reference, line in zip(REFERENCES, lines, strict=True)],
        limit=limit,
        top=height(limit),
        bottom=height(-limit),
        title=f"{len(values)} values between {min(values):+.2f} and {max(values):+.2f} standard deviations",
    )
