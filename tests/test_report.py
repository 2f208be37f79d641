"""The report page: complete, self-contained, and unharmed by hostile texts."""

import base64
import io
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from pipeline.metrics import Diversity, Scores
from pipeline.report import Example, render

HOSTILE = "<script>alert('x')</script> & \"quoted\" {{ 7 * 7 }}"


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "teal").save(buffer, "JPEG")
    return buffer.getvalue()


def scores(**corpus: float) -> Scores:
    return Scores(tokenizer="builtin", corpus=corpus, image_cider={})


def page(**changes: Any) -> str:
    """A report of made-up values."""
    values: dict[str, Any] = {
        "title": "20260102T030405-abcdef01",
        "metadata": {"Dataset": "flickr8k", "Encoder": "resnet50"},
        "scores": {"greedy": scores(CIDEr=0.4321), "beam 3": scores(CIDEr=0.4567)},
        "diversity": {
            "greedy": Diversity(captions=9, distinct_captions=0.5, words=7, vocabulary_used=0.25, mean_length=8.4)
        },
        "curves": [
            {"epoch": 1, "loss": 4.0, "dev_loss": 3.5, "dev_cider": 0.2},
            {"epoch": 2, "loss": 3.0, "dev_loss": 3.2, "dev_cider": 0.4},
            {"epoch": 3, "loss": 2.0, "dev_loss": 3.4, "dev_cider": 0.3},
        ],
        "best_epoch": 2,
        "examples": {"Best": [Example("1.jpg", jpeg(), "a dog runs", ["A dog .", "It runs ."], 1.234)]},
        "configuration": {"units": 256},
    }
    return render(**{**values, **changes})


class Outline(HTMLParser):
    """The elements of a page with their attributes, and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_report_shows_what_it_is_given() -> None:
    """Heading, metadata, scores, diversity, captions, references and configuration stand on the page."""
    text = Outline(page()).text
    for shown in ("20260102T030405-abcdef01", "flickr8k", "0.432", "0.457", "50.0 %", "8.4", "Best", "a dog runs"):
        assert shown in text
    for shown in ("1.jpg", "CIDEr 1.23", "2 references", "It runs .", "units", "256"):
        assert shown in text


def test_report_needs_nothing_else() -> None:
    """No element refers to anything outside the page, and pictures are the JPEGs themselves."""
    outline = Outline(page())
    assert [tag for tag, _ in outline.elements if tag in ("script", "link", "iframe", "object", "embed")] == []
    for _, attributes in outline.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    [image] = outline.all("img")
    assert base64.b64decode((image["src"] or "").removeprefix("data:image/jpeg;base64,")) == jpeg()
    assert "url(" not in page()
    assert "@import" not in page()


@pytest.mark.parametrize(
    "changes",
    [
        {"title": HOSTILE},
        {"metadata": {HOSTILE: HOSTILE}},
        {"scores": {HOSTILE: scores(CIDEr=1.0)}},
        {"examples": {HOSTILE: [Example(HOSTILE, jpeg(), HOSTILE, [HOSTILE], 0.0)]}},
        {"configuration": {HOSTILE: HOSTILE}},
    ],
)
def test_hostile_texts_are_shown_and_not_run(changes: dict[str, Any]) -> None:
    """Markup in a title, caption, file name or setting is text on the page."""
    outline = Outline(page(**changes))
    assert outline.all("script") == []
    assert HOSTILE in outline.text


def test_metrics_that_are_missing_are_left_out() -> None:
    """Without Java there is no METEOR column, and the page says why; with it there is."""
    assert "METEOR is missing" in Outline(page()).text
    both = Outline(page(scores={"greedy": scores(METEOR=0.2, CIDEr=0.4), "beam 3": scores(CIDEr=0.5)}))
    assert "METEOR is missing" not in both.text
    assert {"data-label": "METEOR"} in both.all("td")
    assert "–" in both.text


def points(line: dict[str, str | None]) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in (line["points"] or "").split())
    return [(float(x), float(y)) for x, y in pairs]


def test_curves_follow_their_values() -> None:
    """A lower loss stands lower (SVG's y grows downwards), all on one scale, and the best epoch is marked."""
    outline = Outline(page())
    training, dev, cider = map(points, outline.all("polyline"))
    assert [y for _, y in training] == sorted(y for _, y in training)
    assert dev[0][1] - training[0][1] == pytest.approx((training[1][1] - training[0][1]) / 2, abs=0.2)
    assert min(cider, key=lambda point: point[1]) == cider[1]
    best = [line for line in outline.all("line") if line["class"] == "best"]
    assert [float(line["x1"] or 0) for line in best] == [training[1][0]] * 2
    assert "best epoch: 2" in outline.text


@pytest.mark.parametrize("loss", [0.0, 1.0, 1234.5])
def test_one_epoch_is_a_chart_too(loss: float) -> None:
    """A single epoch, with equal losses, is drawn inside the plot."""
    outline = Outline(page(curves=[{"epoch": 1, "loss": loss, "dev_loss": loss}], best_epoch=1))
    [view] = outline.all("svg")
    _, _, width, height = map(float, (view["viewbox"] or "").split())
    for line in outline.all("polyline"):
        [(x, y)] = points(line)
        assert 0 < x < width
        assert 0 < y < height


def test_no_curves_is_no_chart() -> None:
    """A model without recorded epochs has a report without charts."""
    assert Outline(page(curves=[])).all("svg") == []
