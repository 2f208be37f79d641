"""A plot of measurements over sizes, both on logarithmic scales, as SVG."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT, MARGIN = 320, 220, 50
COLOUR, GREY = "#1f6feb", "#8b949e"


def log_log(panels: Mapping[str, Sequence[tuple[float, float]]], x_label: str) -> str:
    """One panel for each name, side by side, with its points (x, y) joined; a dashed line shows linear growth."""
    width = len(panels) * (WIDTH + 2 * MARGIN)
    drawn = [_panel(name, points, x_label, offset) for offset, (name, points) in enumerate(panels.items())]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 2 * MARGIN}" '
        f'font-family="sans-serif" font-size="12" fill="{GREY}">\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _panel(name: str, points: Sequence[tuple[float, float]], x_label: str, offset: int) -> str:
    xs, ys = zip(*points, strict=True)
    linear = [(x, ys[-1] * x / xs[-1]) for x in xs]
    x_scale = _scale(xs, 0, WIDTH)
    y_scale = _scale([*ys, *(y for _, y in linear)], HEIGHT, 0)

    def line(of: Sequence[tuple[float, float]], style: str) -> str:
        joined = " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in of)
        return f'<polyline points="{joined}" fill="none" stroke-width="2" {style}/>'

    marks = "".join(
        f'<circle cx="{x_scale(x):.1f}" cy="{y_scale(y):.1f}" r="4" fill="{COLOUR}"/>'
        f'<text x="{x_scale(x):.1f}" y="{y_scale(y) - 10:.1f}" text-anchor="middle">{y:.3g}</text>'
        f'<text x="{x_scale(x):.1f}" y="{HEIGHT + 18}" text-anchor="middle">{x:,.0f}</text>'
        for x, y in points
    )
    return (
        f'<g transform="translate({offset * (WIDTH + 2 * MARGIN) + MARGIN},{MARGIN})">'
        f'<text x="{WIDTH / 2}" y="-25" text-anchor="middle" font-size="14">{escape(name)}</text>'
        f'<path d="M0 0V{HEIGHT}H{WIDTH}" fill="none" stroke="{GREY}"/>'
        f'{line(linear, f"""stroke="{GREY}" stroke-dasharray="4" """)}{line(points, f"""stroke="{COLOUR}" """)}{marks}'
        f'<text x="{WIDTH / 2}" y="{HEIGHT + 38}" text-anchor="middle">{escape(x_label)}</text></g>'
    )


def _scale(values: Sequence[float], start: float, stop: float) -> Callable[[float], float]:
    """From a value to its place between ``start`` and ``stop``, by its logarithm."""
    low, high = math.log(min(values)), math.log(max(values))
    return lambda value: start + (math.log(value) - low) / (high - low) * (stop - start)
