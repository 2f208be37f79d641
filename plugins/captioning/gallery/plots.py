"""The geometry of plots; the template ``plot.svg`` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from pipeline.ops.acceptance import Acceptance
from pipeline.work.runs import NightRecord

WIDTH, HEIGHT, MARGIN = 560, 160, 8
"""In units of the SVG; the height is that of the lines, with a margin above and below."""

LEFT, RIGHT, BELOW = 66, 70, 24
"""The room beside and below the lines: for the labels of the scale, the last values, and the dates."""

APART = 16
"""Between the last values of two lines, at least, so that both can be read."""

REFERENCES = ("the model's test", "earlier nights")
"""The references that a night is compared with, by their names in its record."""

WEEKS = 52
"""Weeks of acceptance that are plotted, up to the last one."""


@dataclass(frozen=True)
class Dot:
    """A night or a week in a plot."""

    x: float
    y: float
    beyond: bool
    title: str


@dataclass(frozen=True)
class Plot:
    """One or two lines over time.

    Attributes:
        lines: those of drift are of the nights that have the measure, one for each reference.
        rules: y of the horizontal lines.
        labels: texts at the left edge, with their y.
        dates: the first and the last date, each with its x; one, in the middle, where these are the same.
        last: the last value of each line, with its y; empty for a line without any.
        title: a summary for screen readers.
        band: y of the upper and the lower limit; None without limits.
        names: what the lines are.
    """

    lines: Sequence[Sequence[Dot]]
    rules: Sequence[float]
    labels: Sequence[tuple[float, str]]
    dates: Sequence[tuple[float, date]]
    last: Sequence[tuple[float, str]]
    title: str
    band: tuple[float, float] | None = None
    names: Sequence[str] = REFERENCES
    width: int = WIDTH
    height: int = HEIGHT + BELOW
    left: int = LEFT
    right: int = WIDTH - RIGHT


def plot_drift(measure: str, records: Sequence[NightRecord], *, limit: float) -> Plot | None:
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

    def y(value: float) -> float:
        return HEIGHT / 2 - (HEIGHT / 2 - MARGIN) * value / extent

    def dot(reference: str, number: int, value: float) -> Dot:
        title = f"{records[number].started_at:%Y-%m-%d}: {value:+.2f} from {reference}"
        return Dot(_across(number, len(records) - 1), y(value), abs(value) > limit, title)

    return Plot(
        lines=[[dot(reference, *point) for point in line] for reference, line in zip(REFERENCES, lines, strict=True)],
        rules=[HEIGHT / 2],
        labels=[(y(limit), f"+{limit}"), (y(0), "0"), (y(-limit), f"−{limit}")],
        dates=_ends(records[0].started_at.date(), records[-1].started_at.date()),
        last=_apart([(y(line[-1][1]), _signed(line[-1][1])) if line else None for line in lines]),
        title=f"{len(values)} values between {min(values):+.2f} and {max(values):+.2f} standard deviations",
        band=(y(limit), y(-limit)),
    )


def plot_acceptance(weeks: Sequence[Acceptance]) -> Plot | None:
    """Lay out the plot of what people accepted of the captions of the last two models that they judged.

    Args:
        weeks: of all models, the oldest first; None is returned if there is none.
    """
    if not weeks:
        return None
    last = weeks[-1].week
    versions = list(dict.fromkeys(each.version for each in reversed(weeks)))[:2]
    shown = [each for each in weeks if each.version in versions and each.week > last - timedelta(weeks=WEEKS)]

    def y(share: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 3 * MARGIN) * share

    def dot(each: Acceptance) -> Dot:
        x = _across((each.week - shown[0].week).days, (last - shown[0].week).days)
        return Dot(x, y(each.share), False, f"week of {each.week}: {each}, by {each.version}")

    shares = [each.share for each in shown]
    lines = [[each for each in shown if each.version == version] for version in versions]
    return Plot(
        lines=[[dot(each) for each in line] for line in lines],
        rules=[y(0), y(0.5), y(1)],
        labels=[(y(1), "100 %"), (y(0.5), "50 %"), (y(0), "0 %")],
        dates=_ends(shown[0].week, last),
        last=_apart([(y(line[-1].share), f"{round(100 * line[-1].share)} %") if line else None for line in lines]),
        title=f"{len(shown)} values between {min(shares):.0%} and {max(shares):.0%}".replace("%", " %"),
        names=versions,
    )


def _across(place: int, last: int) -> float:
    """The x of a place, from 0 to the last one; the middle, if there is only one."""
    return LEFT + (WIDTH - LEFT - RIGHT) * (place / last if last else 0.5)


def _ends(first: date, last: date) -> Sequence[tuple[float, date]]:
    """The dates at both ends of the lines, or in the middle the only one."""
    return [(_across(0, 0), first)] if first == last else [(_across(0, 1), first), (_across(1, 1), last)]


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _apart(values: Sequence[tuple[float, str] | None]) -> Sequence[tuple[float, str]]:
    """The last values of one or two lines, moved so that they do not cover each other."""
    found = [value or (0.0, "") for value in values]
    if all(text for _, text in found) and len(found) > 1 and abs(found[0][0] - found[1][0]) < APART:
        middle, upper = (found[0][0] + found[1][0]) / 2, found[0][0] <= found[1][0]
        shifts = (-APART / 2, APART / 2) if upper else (APART / 2, -APART / 2)
        found = [(middle + shift, text) for shift, (_, text) in zip(shifts, found, strict=True)]
    return found
