"""Plots of drift as SVG, drawn without a library: a line a reference, over the nights."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

WIDTH, HEIGHT, MARGIN = 560, 160, 8

REFERENCES = ("the model's test", "earlier nights")
"""What a night is compared with, as its record names them."""


def plot(figure: str, records: Sequence[Mapping[str, Any]], *, limit: float) -> Markup | None:
    """A figure over the nights, the oldest first, with the limit as a band; ``None`` where none has it.

    Args:
        figure: a name in the records' differences, in standard deviations.
        records: of the nights.
        limit: beyond which a night warns.
    """
    series = {
        reference: [
            (place, record["drift"][reference][figure])
            for place, record in enumerate(records)
            if figure in record["drift"].get(reference, {})
        ]
        for reference in REFERENCES
    }
    values = [value for points in series.values() for _, value in points]
    if not values:
        return None
    top = max(limit * 1.2, *(abs(value) for value in values)) * 1.05

    def x(place: int) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * (place / (len(records) - 1) if len(records) > 1 else 0.5)

    def y(value: float) -> float:
        return HEIGHT / 2 - (HEIGHT / 2 - MARGIN) * value / top

    def line(number: int, reference: str, points: Sequence[tuple[int, float]]) -> Markup:
        corners = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in points)
        drawn = Markup('<polyline class="line{}" points="{}"/>').format(number, corners)
        for place, value in points:
            beyond = " beyond" if abs(value) > limit else ""
            title = f"{records[place]['finished_at'][:10]}: {value:+.2f} from {reference}"
            dot = Markup('<circle class="dot{}{}" cx="{:.1f}" cy="{:.1f}" r="3.5"><title>{}</title></circle>')
            drawn += dot.format(number, beyond, x(place), y(value), title)
        return drawn

    lines = Markup("").join(line(number, *named) for number, named in enumerate(series.items()))
    return Markup(
        '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">'
        '<rect class="band" x="0" width="{}" y="{:.1f}" height="{:.1f}"/>'
        '<line class="zero" x1="0" x2="{}" y1="{}" y2="{}"/>{}</svg>'
    ).format(
        WIDTH,
        HEIGHT,
        f"{len(values)} values between {min(values):+.2f} and {max(values):+.2f} standard deviations",
        WIDTH,
        y(limit),
        y(-limit) - y(limit),
        WIDTH,
        HEIGHT / 2,
        HEIGHT / 2,
        lines,
    )
