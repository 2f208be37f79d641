"""The evaluation report: one self-contained HTML page with scores, errors, training curves and photographs."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.captioner.metadata import EnsembleMember
from pipeline.evaluation.calibration import Calibration
from pipeline.evaluation.error_analysis import ErrorCount, ErrorKind, LengthGroup, Rate
from pipeline.metrics.coco import METRICS, Agreement, Diversity, Scores


@dataclass(frozen=True)
class Example:
    """A captioned photograph.

    Attributes:
        image_id: the name shown on the page.
        thumbnail: a JPEG; a width of a few hundred pixels is enough.
        caption: the generated caption.
        references: the human captions.
        label: a note on the caption, such as its score.
    """

    image_id: str
    thumbnail: bytes
    caption: str
    references: Sequence[str]
    label: str

    @property
    def source(self) -> str:
        """The thumbnail as a ``data:`` URI."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.thumbnail).decode()}"


@dataclass(frozen=True)
class Attention:
    """Where the captioner looks.

    Attributes:
        example: the photograph; its thumbnail is the whole picture.
        words: those of the caption that are shown, each with the weights (rows, columns) of the regions of the picture.
    """

    example: Example
    words: Sequence[tuple[str, npt.NDArray[np.floating]]]


@dataclass(frozen=True)
class Report:
    """The content of the page.

    Attributes:
        title: the heading, such as the model's version.
        metadata: facts shown below the heading, by label.
        decoding: name of the decoding ("beam 5") whose captions are analyzed and compared with the human baseline.
        scores: by name of the decoding, one row of the table each.
        agreement: the scores of the analyzed decoding beside the human baseline.
        diversity: by name of the decoding, and of human captions.
        by_length: scores of the analyzed decoding by length of the references.
        errors: of the analyzed decoding, by kind.
        error_examples: captions with these errors, by kind.
        calibration: of the confidence of the analyzed decoding's captions; None if they have none.
        attention: photographs with where the captioner looks; empty if it does not attend.
        ensemble: how each model of the captioner was trained.
        examples: photographs by the heading of their group ("Best", "Worst", …).
        configuration: the model's training settings, by name.
    """

    title: str
    metadata: Mapping[str, object]
    decoding: str
    scores: Mapping[str, Scores]
    agreement: Agreement
    diversity: Mapping[str, Diversity]
    by_length: Sequence[LengthGroup]
    errors: Mapping[ErrorKind, ErrorCount]
    error_examples: Mapping[ErrorKind, Sequence[Example]]
    calibration: Calibration | None
    attention: Sequence[Attention]
    ensemble: Sequence[EnsembleMember]
    examples: Mapping[str, Sequence[Example]]
    configuration: Mapping[str, object]


def render(report: Report) -> str:
    """The page as HTML. All text is escaped, so captions and file names may contain anything."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = (
        _Chart.of("Loss (nats per word)", {"training": "loss", "dev": "dev_loss"}, report.ensemble),
        _Chart.of("CIDEr on dev, greedy decoding", {"dev": "dev_cider"}, report.ensemble),
        _Chart.of("Reward (mean CIDEr-D of sampled captions)", {"training": "reward"}, report.ensemble),
    )
    return environment.get_template("report.html.jinja").render(
        report=report,
        metrics=[name for name in METRICS if any(name in row.corpus for row in report.scores.values())],
        tokenizers=sorted({row.tokenizer for row in report.scores.values()}),
        agreement=_agreement_bars(report.agreement, report.decoding),
        by_length=_length_bars(report.by_length),
        errors=_error_bars(report.errors, report.decoding),
        error_texts=_ERROR_TEXTS,
        attention=[(each.example, _heat_maps(each)) for each in report.attention],
        even_share=next((100 / weights.size for each in report.attention for _, weights in each.words), 0.0),
        charts=[chart for chart in charts if chart is not None],
        calibration_charts=_calibration_charts(report.calibration) if report.calibration else [],
    )


_ERROR_TEXTS: Mapping[ErrorKind, tuple[str, str]] = {
    "gender": ("Gender", "Names a man or a boy while the references name only women or girls, or the other way round."),
    "number": ("Number", "Names one person or animal while the references name several, or the other way round."),
    "colour": ("Colour", "Names a colour that no reference names, while a reference names another."),
    "object": ("Hallucinated object", "Names an object that no reference names."),
}


@dataclass(frozen=True)
class _Bar:
    """A labelled bar; length and whisker are percentages of the track's width."""

    label: str
    text: str
    length: float
    human: bool = False
    whisker: tuple[float, float] | None = None


def _agreement_bars(agreement: Agreement, decoding: str) -> dict[str, list[_Bar]]:
    """By metric, the human bar and the captioner's, the longer one at full length."""
    return {
        name: [
            _Bar("human", f"{human:.3f}", _percent(human, whole), human=True),
            _Bar(decoding, f"{captioner:.3f}", _percent(captioner, whole)),
        ]
        for name, human in agreement.human.items()
        if (captioner := agreement.captioner.get(name)) is not None
        for whole in (max(human, captioner),)
    }


def _length_bars(groups: Sequence[LengthGroup]) -> list[tuple[LengthGroup, _Bar]]:
    whole = max((group.interval[1] for group in groups), default=0.0)
    return [
        (
            group,
            _Bar(
                f"{_span(f'{group.shortest:.1f}', f'{group.longest:.1f}')} words",
                f"{group.cider:.2f}",
                _percent(group.cider, whole),
                whisker=(_percent(group.interval[0], whole), _percent(group.interval[1], whole)),
            ),
        )
        for group in groups
    ]


def _error_bars(errors: Mapping[ErrorKind, ErrorCount], decoding: str) -> dict[ErrorKind, list[_Bar]]:
    """By kind, the captioner's bar and the human bar, all on one scale."""
    whole = max((rate.share for count in errors.values() for rate in (count.captioner, count.human)), default=0.0)

    def bar(label: str, rate: Rate, *, human: bool = False) -> _Bar:
        text = f"{100 * rate.share:.1f} % ({rate.wrong} of {rate.checked})" if rate.checked else "nothing to check"
        return _Bar(label, text, _percent(rate.share, whole), human)

    return {
        kind: [bar(decoding, count.captioner), bar("human", count.human, human=True)] for kind, count in errors.items()
    }


def _percent(value: float, whole: float) -> float:
    return round(100 * value / whole, 1) if whole > 0 else 0.0


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low}–{high}"


@dataclass(frozen=True)
class _HeatMap:
    """The weights of a word as a picture with a pixel for each region, which browsers enlarge smoothly.

    Attributes:
        word: the word.
        source: the picture as a ``data:`` URI: of one colour, the more opaque, the larger the weight.
        share: the largest weight, in percent.
        place: where it is.
    """

    word: str
    source: str
    share: str
    place: str


_HEAT = (255, 180, 0)
"""The colour of a heat map, warm and light: the photograph below it is dimmed in dark blue."""

_OPACITY = 0.9
"""Of the largest weight of a caption."""


def _heat_maps(attention: Attention) -> list[_HeatMap]:
    """The words, all on one scale."""
    whole = max((float(weights.max()) for _, weights in attention.words), default=1.0)
    found = []
    for word, weights in attention.words:
        pixels = np.full((*weights.shape, 4), (*_HEAT, 0), np.uint8)
        pixels[..., 3] = np.round(255 * _OPACITY * weights / whole)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
        source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        found.append(_HeatMap(word, source, f"{100 * weights.max():.0f} %", _place(weights)))
    return found


def _place(weights: npt.NDArray[np.floating]) -> str:
    """Where the largest weight is: "top left", "bottom", "middle", …"""
    row, column = np.unravel_index(weights.argmax(), weights.shape)
    vertical = ("top", "", "bottom")[int(3 * (row + 0.5) / weights.shape[0])]
    horizontal = ("left", "", "right")[int(3 * (column + 0.5) / weights.shape[1])]
    return f"{vertical} {horizontal}".strip() or "middle"


@dataclass(frozen=True)
class _Tick:
    at: float
    label: str


@dataclass(frozen=True)
class _Line:
    colour: int
    points: Sequence[tuple[float, float]]
    labels: Sequence[str]


@dataclass(frozen=True)
class _Chart:
    """Lines in the coordinates of an SVG whose plot area of WIDTH by HEIGHT begins at (LEFT, TOP)."""

    LEFT, TOP, WIDTH, HEIGHT = 48, 24, 420, 180

    title: str
    names: Sequence[str]
    lines: Sequence[_Line]
    x_ticks: Sequence[_Tick]
    y_ticks: Sequence[_Tick]
    best: Sequence[_Tick]
    x_label: str = "epoch"

    @classmethod
    def of_shares(cls, title: str, x_label: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> "_Chart":
        """The chart of named lines through points of shares, both axes from 0 to 100 %."""

        def x(share: float) -> float:
            return round(cls.LEFT + share * cls.WIDTH, 1)

        def y(share: float) -> float:
            return round(cls.TOP + (1 - share) * cls.HEIGHT, 1)

        steps = [number / 5 for number in range(6)]
        return cls(
            title=title,
            names=list(lines),
            lines=[
                _Line(
                    number,
                    [(x(across), y(up)) for across, up in points],
                    [f"{name}: {100 * up:.0f} % at {100 * across:.0f} %" for across, up in points],
                )
                for number, (name, points) in enumerate(lines.items())
            ],
            x_ticks=[_Tick(x(step), f"{100 * step:.0f}") for step in steps],
            y_ticks=[_Tick(y(step), f"{100 * step:.0f} %") for step in steps],
            best=[],
            x_label=x_label,
        )

    @classmethod
    def of(cls, title: str, fields: Mapping[str, str], ensemble: Sequence[EnsembleMember]) -> "_Chart | None":
        """The chart of the ``fields`` of epochs, given by the name of their line; None if no epoch has a value.

        Each model has a line through the epochs that have a value. The axis covers all epochs, so that charts shown
        side by side share it.
        """
        known = [
            (member, name, points)
            for name, field in fields.items()
            for member in ensemble
            if (points := [(e.epoch, value) for e in member.epochs if (value := getattr(e, field)) is not None])
        ]
        if not known:
            return None
        epochs = sorted({epoch.epoch for member in ensemble for epoch in member.epochs})
        steps = _round_steps(*_bounds([value for _, _, points in known for _, value in points]), wanted=5)
        low, high = steps[0], steps[-1]
        first, last = epochs[0], epochs[-1]

        def x(epoch: int) -> float:
            share = (epoch - first) / (last - first) if last > first else 0.5
            return round(cls.LEFT + share * cls.WIDTH, 1)

        def y(value: float) -> float:
            return round(cls.TOP + (high - value) / (high - low) * cls.HEIGHT, 1)

        names = list(dict.fromkeys(name for _, name, _ in known))
        lines = [
            _Line(
                names.index(name) if len(names) > 1 else 1,
                [(x(epoch), y(value)) for epoch, value in points],
                [f"seed {member.seed}, epoch {epoch}, {name}: {value:.3f}" for epoch, value in points],
            )
            for member, name, points in known
        ]
        every = max(1, math.ceil((last - first) / 10))
        digits = max(0, -math.floor(math.log10(steps[1] - steps[0]) + 1e-9))
        return cls(
            title=title,
            names=names,
            lines=lines,
            x_ticks=[_Tick(x(epoch), str(epoch)) for epoch in epochs if (epoch - first) % every == 0],
            y_ticks=[_Tick(y(value), f"{value:.{digits}f}") for value in steps],
            best=[_Tick(x(epoch), str(epoch)) for epoch in sorted({member.best_epoch for member in ensemble})],
        )


def _calibration_charts(calibration: Calibration) -> list[_Chart]:
    """The reliability of the confidence, and the risk of the surest captions."""
    return [
        _Chart.of_shares(
            "Reliability: captions that are accepted",
            "confidence in percent",
            {
                "if exactly right": [(0.0, 0.0), (1.0, 1.0)],
                "captions": [(each.confidence, each.accepted) for each in calibration.bins],
            },
        ),
        _Chart.of_shares(
            "Risk of the surest captions",
            "percent of the captions, the surest first",
            {
                "not accepted": [(each.share, 1 - each.accepted) for each in calibration.coverage],
                "not even partly right": [(each.share, 1 - each.at_least_partly) for each in calibration.coverage],
            },
        ),
    ]


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _round_steps(low: float, high: float, *, wanted: int) -> list[float]:
    """About ``wanted`` multiples of 1, 2 or 5 times a power of ten, from one below ``low`` to one above ``high``."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough)
    return [number * step for number in range(math.floor(low / step), math.ceil(high / step) + 1)]
