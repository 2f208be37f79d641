"""The geometry of plots: what can be read without a mouse."""

from datetime import UTC, date, datetime

import pytest

from captioning.gallery import plots
from captioning.gallery.plots import plot_acceptance, plot_drift
from pipeline.ops.acceptance import Acceptance
from pipeline.work.runs import NightRecord


def nights(*values):
    """The records of nights by their drift from the model's test and from earlier nights, the oldest first."""
    return [
        NightRecord(
            run=str(day),
            started_at=datetime(2026, 1, day, tzinfo=UTC),
            drift={name: {"words": value} for name, value in zip(plots.REFERENCES, pair, strict=True)},
        )
        for day, pair in enumerate(values, 1)
    ]


def test_the_ends_have_their_dates_and_values():
    """The dates below, the last value of each line on the right, and the limits on the left."""
    plot = plot_drift("words", nights((0.3, -0.3), (0.2, -0.4)), limit=0.5)
    assert plot.dates == [(plot.left, date(2026, 1, 1)), (plot.right, date(2026, 1, 2))]
    assert [text for _, text in plot.last] == ["+0.20", "−0.40"]
    assert [y for y, _ in plot.last] == [line[-1].y for line in plot.lines]
    assert [text for _, text in plot.labels] == ["+0.5", "0", "−0.5"]
    assert all(plot.left <= dot.x <= plot.right for line in plot.lines for dot in line)


def test_a_single_night_has_one_date():
    """In the middle, below its dots, as both ends of its plot are the same."""
    plot = plot_drift("words", nights((0.3, 0.3)), limit=0.5)
    middle = (plot.left + plot.right) / 2
    assert plot.dates == [(middle, date(2026, 1, 1))]
    assert [dot.x for line in plot.lines for dot in line] == [middle] * 2


@pytest.mark.parametrize("pair", [(0.2, 0.21), (0.21, 0.2), (0.2, 0.2)])
def test_values_that_are_close_do_not_cover_each_other(pair):
    """They stay in their order, around their middle."""
    plot = plot_drift("words", nights(pair), limit=0.5)
    (first, _), (second, _) = plot.last
    assert abs(first - second) == plots.APART
    assert (first < second) == (pair[0] >= pair[1])
    assert (first + second) / 2 == pytest.approx(sum(line[-1].y for line in plot.lines) / 2)


def test_acceptance_has_its_weeks_and_last_shares():
    """Of each model."""
    weeks = [
        Acceptance("m1", date(2026, 1, 5), 10, 5),
        Acceptance("m2", date(2026, 1, 12), 10, 9),
    ]
    plot = plot_acceptance(weeks)
    assert [each for _, each in plot.dates] == [date(2026, 1, 5), date(2026, 1, 12)]
    assert dict(zip(plot.names, (text for _, text in plot.last), strict=True)) == {"m1": "50 %", "m2": "90 %"}
