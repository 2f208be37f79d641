"""The evaluation report: one HTML page that needs nothing else, with scores, curves and captioned photographs."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.metrics import METRICS, Diversity, Scores


@dataclass(frozen=True)
class Example:
    """A captioned photograph.

    Attributes:
        image_id: what the page calls it.
        thumbnail: a JPEG; a few hundred pixels wide are enough.
        caption: the generated one.
        references: those by people.
        cider: the caption's score.
    """

    image_id: str
    thumbnail: bytes
    caption: str
    references: Sequence[str]
    cider: float

    @property
    def source(self) -> str:
        """The thumbnail as a ``data:`` URI."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.thumbnail).decode()}"


def render(
    *,
    title: str,
    metadata: Mapping[str, object],
    scores: Mapping[str, Scores],
    diversity: Mapping[str, Diversity],
    curves: Sequence[Mapping[str, float]],
    best_epoch: int,
    examples: Mapping[str, Sequence[Example]],
    configuration: Mapping[str, object],
) -> str:
    """The page. Every text is escaped, so that captions and file names may hold anything.

    Args:
        title: the heading; the model's version, for example.
        metadata: what stands beneath the heading, by its label.
        scores: by the name of the way of decoding ("greedy", "beam 5"), a row of the table each.
        diversity: by the same names.
        curves: of each epoch ``epoch``, ``loss`` and ``dev_loss`` (nats a word), and ``dev_cider`` where it is known.
        best_epoch: the one whose weights were kept.
        examples: photographs by the heading of their group ("Best", "Worst", …).
        configuration: what the model was trained with, by its name.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = [_Chart.of("Loss (nats a word)", {"training": "loss", "dev": "dev_loss"}, curves, best_epoch)]
    charts += [_Chart.of("CIDEr on dev, greedy", {"dev": "dev_cider"}, curves, best_epoch)]
    return environment.get_template("report.html.jinja").render(
        title=title,
        metadata=metadata,
        metrics=[name for name in METRICS if any(name in row.corpus for row in scores.values())],
        scores=scores,
        tokenizers=sorted({row.tokenizer for row in scores.values()}),
        diversity=diversity,
        charts=[chart for chart in charts if chart is not None],
        examples=examples,
        configuration=configuration,
    )


@dataclass(frozen=True)
class _Tick:
    at: float
    label: str


@dataclass(frozen=True)
class _Line:
    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str]


@dataclass(frozen=True)
class _Chart:
    """Lines over epochs in the coordinates of an SVG whose plot area is WIDTH by HEIGHT from (LEFT, TOP)."""

    LEFT, TOP, WIDTH, HEIGHT = 48, 24, 420, 180

    title: str
    lines: Sequence[_Line]
    x_ticks: Sequence[_Tick]
    y_ticks: Sequence[_Tick]
    best_x: float
    best_epoch: int

    @classmethod
    def of(
        cls, title: str, keys: Mapping[str, str], curves: Sequence[Mapping[str, float]], best_epoch: int
    ) -> "_Chart | None":
        """The chart of those ``keys`` (by the name of their line); None where the curves lack them."""
        if not curves or not all(key in point for key in keys.values() for point in curves):
            return None
        epochs = [point["epoch"] for point in curves]
        steps = _round_steps(*_bounds([point[key] for key in keys.values() for point in curves]), wanted=5)
        low, high = steps[0], steps[-1]
        first, last = min(epochs), max(epochs)

        def x(epoch: float) -> float:
            share = (epoch - first) / (last - first) if last > first else 0.5
            return round(cls.LEFT + share * cls.WIDTH, 1)

        def y(value: float) -> float:
            return round(cls.TOP + (high - value) / (high - low) * cls.HEIGHT, 1)

        lines = [
            _Line(
                name,
                [(x(point["epoch"]), y(point[key])) for point in curves],
                [f"epoch {point['epoch']:g}, {name}: {point[key]:.3f}" for point in curves],
            )
            for name, key in keys.items()
        ]
        every = max(1, math.ceil((last - first) / 10))
        digits = max(0, -math.floor(math.log10(steps[1] - steps[0]) + 1e-9))
        return cls(
            title=title,
            lines=lines,
            x_ticks=[_Tick(x(epoch), f"{epoch:g}") for epoch in epochs if (epoch - first) % every == 0],
            y_ticks=[_Tick(y(value), f"{value:.{digits}f}") for value in steps],
            best_x=x(best_epoch),
            best_epoch=best_epoch,
        )


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _round_steps(low: float, high: float, *, wanted: int) -> list[float]:
    """About ``wanted`` multiples of 1, 2 or 5 times a power of ten, from one below ``low`` to one above ``high``."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough)
    return [number * step for number in range(math.floor(low / step), math.ceil(high / step) + 1)]
