"""The report page: complete, self-contained, and unharmed by hostile texts."""

import base64
import io
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.captioner.metadata import EnsembleMember, Epoch
from pipeline.evaluation.calibration import Bin, Calibration, Coverage
from pipeline.evaluation.error_analysis import Case, ErrorCount, LengthGroup, Rate
from pipeline.evaluation.report import Attention, Example, Report, render
from pipeline.metrics.coco import Agreement, Diversity, Scores

CALIBRATION = Calibration(
    accepted=0.61,
    at_least_partly=0.75,
    human_accepted=0.9,
    auroc=0.767,
    log_prob_auroc=0.741,
    error=0.048,
    interval=(0.04, 0.09),
    chance=0.045,
    constant_error=0.162,
    novel=0.07,
    bins=[
        Bin(captions=5, confidence=0.25, accepted=0.5),
        Bin(captions=5, confidence=0.75, accepted=1.0),
    ],
    coverage=[
        Coverage(share=0.5, accepted=0.8, at_least_partly=0.9),
        Coverage(share=1, accepted=0.6, at_least_partly=0.7),
    ],
)

HOSTILE = "<script>alert('x')</script> & \"quoted\" {{ 7 * 7 }}"


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "teal").save(buffer, "JPEG")
    return buffer.getvalue()


def scores(**corpus: float) -> Scores:
    intervals = {name: (value - 0.01, value + 0.01) for name, value in corpus.items() if name != "METEOR"}
    return Scores(tokenizer="builtin", corpus=corpus, intervals=intervals, image_cider={})


def agreement(human: dict[str, float], captioner: dict[str, float], images_left_out: int = 0) -> Agreement:
    return Agreement(images=9, images_left_out=images_left_out, human=human, captioner=captioner)


def errors(captioner: Rate, human: Rate, *words: str) -> ErrorCount:
    cases = [Case(image="1.jpg", caption="a man", word=word) for word in words]
    return ErrorCount(captioner=captioner, human=human, words=dict.fromkeys(words, 1), cases=cases)


def epoch(number: int, loss: float | None, dev_loss: float, dev_cider: float, reward: float | None = None) -> Epoch:
    return Epoch(
        epoch=number,
        phase="cross_entropy" if reward is None else "scst",
        loss=loss,
        reward=reward,
        dev_loss=dev_loss,
        dev_cider=dev_cider,
        seconds=1,
    )


def attention(*words: str) -> Attention:
    """Maps of 3 rows and 4 columns; the captioner looks at the next place for each word, but half at the last."""
    weights = np.full((len(words), 3, 4), 0.05)
    for number, of_word in enumerate(weights):
        of_word.flat[number] = 0.45
    weights[-1] /= 2
    return Attention(
        Example("5.jpg", jpeg(), "a dog runs", ["A dog ."], "CIDEr 0.77"), [*zip(words, weights, strict=True)]
    )


def page(**changes: Any) -> str:
    """A report of made-up values."""
    values: dict[str, Any] = {
        "title": "20260102T030405-abcdef01",
        "metadata": {"Dataset": "flickr8k", "Encoder": "resnet50"},
        "decoding": "beam 3",
        "scores": {"greedy": scores(CIDEr=0.4321), "beam 3": scores(CIDEr=0.4567)},
        "agreement": agreement({"BLEU-4": 0.2, "CIDEr": 0.8}, {"BLEU-4": 0.4, "CIDEr": 0.2}, images_left_out=3),
        "diversity": {
            "greedy": Diversity(
                captions=9,
                distinct_captions=0.5,
                novel_captions=0.75,
                ends_in_function_word=0.125,
                words=7,
                vocabulary_used=0.25,
                mean_length=8.4,
            )
        },
        "by_length": [
            LengthGroup(shortest=6, longest=8.5, images=5, cider=0.6, interval=(0.4, 0.8), written=9.25),
            LengthGroup(shortest=9, longest=9, images=4, cider=0.2, interval=(0.1, 0.4), written=9.5),
        ],
        "errors": {
            "gender": errors(Rate(checked=40, wrong=8), Rate(checked=200, wrong=4), "man"),
            "object": errors(Rate(checked=0, wrong=0), Rate(checked=200, wrong=20)),
        },
        "error_examples": {
            "gender": [Example("7.jpg", jpeg(), "a man walks", ["A woman ."], "“man”")],
            "object": [],
        },
        "calibration": None,
        "attention": [],
        "ensemble": [
            EnsembleMember(
                seed=0, best_epoch=2, epochs=[epoch(1, 4, 3.5, 0.2), epoch(2, 3, 3.2, 0.4), epoch(3, 2, 3.4, 0.3)]
            )
        ],
        "examples": {"Best": [Example("1.jpg", jpeg(), "a dog runs", ["A dog .", "It runs ."], "CIDEr 1.23")]},
        "configuration": {"units": 256},
    }
    return render(Report(**{**values, **changes}))


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
    """The page has the heading, metadata, scores, errors, diversity, captions, references and configuration."""
    text = Outline(page()).text
    for shown in ("20260102T030405-abcdef01", "flickr8k", "0.432", "0.422–0.442", "0.457", "Best", "a dog runs"):
        assert shown in text
    for shown in ("9 images; 3 with a single reference are left out", "50.0 %", "75.0 %", "12.5 %", "8.4"):
        assert shown in text
    for shown in (
        "6.0–8.5 words",
        "9.0 words",
        "5 images, 9.2 words per generated caption",
        "20.0 % (8 of 40)",
        "2.0 % (4 of 200)",
        "man (1)",
        "“man”",
    ):
        assert shown in text
    assert "nothing to check" in text
    for shown in ("1.jpg", "CIDEr 1.23", "2 references", "It runs .", "units", "256"):
        assert shown in text


def test_report_is_self_contained() -> None:
    """No element refers to anything outside the page, and the images are embedded JPEGs."""
    outline = Outline(page(attention=[attention("dog"), attention("dog", "runs")]))
    assert [tag for tag, _ in outline.elements if tag in ("script", "link", "iframe", "object", "embed")] == []
    for _, attributes in outline.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) == 2
    assert {use["href"] for use in outline.all("use")} == {f"#{each}" for each in ids}
    for image in outline.all("img"):
        assert base64.b64decode((image["src"] or "").removeprefix("data:image/jpeg;base64,")) == jpeg()
    assert "url(" not in page()
    assert "@import" not in page()


@pytest.mark.parametrize(
    "changes",
    [
        {"title": HOSTILE},
        {"metadata": {HOSTILE: HOSTILE}},
        {"scores": {HOSTILE: scores(CIDEr=1.0)}},
        {"examples": {HOSTILE: [Example(HOSTILE, jpeg(), HOSTILE, [HOSTILE], HOSTILE)]}},
        {"decoding": HOSTILE},
        {"errors": {"gender": errors(Rate(checked=1, wrong=1), Rate(checked=1, wrong=1), HOSTILE)}},
        {"configuration": {HOSTILE: HOSTILE}},
        {"attention": [attention(HOSTILE)]},
    ],
)
def test_hostile_texts_are_shown_and_not_run(changes: dict[str, Any]) -> None:
    """Markup in a title, caption, file name or setting is shown as text."""
    outline = Outline(page(**changes))
    assert outline.all("script") == []
    assert HOSTILE in outline.text


def test_metrics_that_are_missing_are_left_out() -> None:
    """The METEOR column exists only with Java; without it the page says why."""
    assert "METEOR is missing" in Outline(page()).text
    both = Outline(page(scores={"greedy": scores(METEOR=0.2, CIDEr=0.4), "beam 3": scores(CIDEr=0.5)}))
    assert "METEOR is missing" not in both.text
    assert {"data-label": "METEOR"} in both.all("td")
    assert "–" in both.text


def widths(outline: Outline) -> list[float]:
    """The lengths of all bars, in percent, from the top."""
    styles = [span["style"] or "" for span in outline.all("span") if span.get("class") == "fill"]
    return [float(style.removeprefix("width: ").removesuffix("%")) for style in styles]


def test_bars_are_as_long_as_their_values() -> None:
    """The better bar of each metric is full; the groups by length share one scale, as do the error rates."""
    found = widths(Outline(page()))
    assert found[:4] == [50, 100, 100, 25]  # BLEU-4 and CIDEr: human, then the captioner
    assert found[4:6] == [75, 25]  # by length; the longest interval is full
    assert found[6:] == [100, 10, 0, 50]  # gender and object: the captioner, then human


def test_nothing_to_compare_is_no_section() -> None:
    """Without images that have two references there is no human baseline, and bars of zeros are empty."""
    outline = Outline(page(agreement=agreement({}, {})))
    assert "Human baseline" not in outline.text
    assert "Human baseline" in Outline(page()).text
    zero = page(agreement=agreement({"CIDEr": 0.0}, {"CIDEr": 0.0}), errors={}, error_examples={}, by_length=[])
    assert widths(Outline(zero)) == [0, 0]


def test_only_metrics_of_both_are_compared() -> None:
    """A metric that either the human baseline or the captioner lacks has no bars."""
    text = Outline(page(agreement=agreement({"METEOR": 0.777, "CIDEr": 0.666}, {"CIDEr": 0.555}), errors={})).text
    assert "0.666" in text
    assert "0.777" not in text


def points(line: dict[str, str | None]) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in (line["points"] or "").split())
    return [(float(x), float(y)) for x, y in pairs]


def test_curves_follow_their_values() -> None:
    """A lower loss is drawn lower (SVG's y grows downwards), all on one scale, and the best epoch is marked."""
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
    """A single epoch with equal losses is drawn inside the plot."""
    outline = Outline(page(ensemble=[EnsembleMember(seed=0, best_epoch=1, epochs=[epoch(1, loss, loss, loss)])]))
    view, _ = outline.all("svg")
    _, _, width, height = map(float, (view["viewbox"] or "").split())
    for line in outline.all("polyline"):
        [(x, y)] = points(line)
        assert 0 < x < width
        assert 0 < y < height


def test_curves_go_through_the_epochs_that_have_their_value() -> None:
    """SCST epochs have a reward and no loss: each line has its own points, on a common axis."""
    epochs = [
        epoch(1, 3, 3.1, 0.3),
        epoch(2, 2, 3.0, 0.4),
        epoch(3, None, 3.2, 0.5, 1.0),
        epoch(4, None, 3.3, 0.6, 1.1),
    ]
    outline = Outline(page(ensemble=[EnsembleMember(seed=0, best_epoch=4, epochs=epochs)]))
    loss, dev_loss, cider, reward = map(points, outline.all("polyline"))
    across = [x for x, _ in cider]
    assert len(across) == 4
    assert [x for x, _ in dev_loss] == across
    assert [x for x, _ in loss] == across[:2]
    assert [x for x, _ in reward] == across[2:]


def test_every_model_of_an_ensemble_has_its_lines() -> None:
    """Each model of an ensemble has a line of the same colour, and its best epoch."""
    ensemble = [
        EnsembleMember(seed=0, best_epoch=1, epochs=[epoch(1, 3, 3.1, 0.5), epoch(2, 2, 3.0, 0.4)]),
        EnsembleMember(seed=1, best_epoch=3, epochs=[epoch(n, 3, 3.1, 0.1 * n) for n in (1, 2, 3)]),
    ]
    outline = Outline(page(ensemble=ensemble))
    assert [len(points(line)) for line in outline.all("polyline")] == [2, 3, 2, 3, 2, 3]
    assert [group["class"] for group in outline.all("g")] == ["line-0"] * 2 + ["line-1"] * 4
    assert len([line for line in outline.all("line") if line["class"] == "best"]) == 4
    assert "best epochs: 1, 3" in outline.text


def test_no_curves_is_no_chart() -> None:
    """A model without recorded epochs has a report without charts."""
    assert Outline(page(ensemble=[])).all("svg") == []


def overlay(image: dict[str, str | None]) -> Image.Image:
    data = (image["href"] or "").removeprefix("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_heat_maps_lie_on_what_the_captioner_looks_at() -> None:
    """A pixel for each region, the more opaque, the larger its weight, on one scale; it covers the photograph."""
    outline = Outline(page(attention=[attention("dog", "two", "three", "runs")]))
    photograph, *images = outline.all("image")
    assert photograph["href"] == f"data:image/jpeg;base64,{base64.b64encode(jpeg()).decode()}"
    for image in (photograph, *images):
        assert (image["width"], image["height"], image["preserveaspectratio"]) == ("100", "100", "none")
    found = [np.asarray(overlay(image))[..., 3].astype(int) for image in images]
    assert [alpha.shape for alpha in found] == [(3, 4)] * 4
    assert [alpha.argmax() for alpha in found] == [0, 1, 2, 3]
    assert found[0].max() == found[1].max() == pytest.approx(2 * found[3].max(), abs=1)
    assert found[0].max() == pytest.approx(9 * found[0].min(), abs=9)
    labels = [svg["aria-label"] for svg in outline.all("svg") if svg.get("role") == "img"]
    assert labels[:5] == [
        "a dog runs",
        "“dog”: most at the top left, 45 %",
        "“two”: most at the top, 45 %",
        "“three”: most at the top, 45 %",
        "“runs”: most at the top right, 22 %",
    ]
    for shown in ("Where the captioner looks", "5.jpg", "CIDEr 0.77", "8.3 %"):
        assert " ".join(shown.split()) in " ".join(outline.text.split())


def test_what_does_not_attend_has_no_heat_maps() -> None:
    """Without attention there is no section; a caption without words that are shown has its photograph alone."""
    assert "Where the captioner looks" not in Outline(page()).text
    outline = Outline(page(attention=[Attention(Example("5.jpg", jpeg(), "", ["A dog ."], "CIDEr 0.00"), [])]))
    assert "(no words)" in outline.text
    assert len(outline.all("image")) == 1


def test_confidence():
    """The reliability and the risk of the surest captions are curves of shares; the text has the numbers."""
    html = page(calibration=CALIBRATION)
    assert "<h2>Confidence</h2>" in html
    text = " ".join(Outline(html).text.split())
    for phrase in (
        "Accepted are 61.0 % of the captions of beam 3, 75.0 % are at least partly right, and 90.0 % of the human",
        "with a probability of 0.767 (AUROC; by the mean log probability of a word alone, 0.741)",
        "in 2 bins of equal size, is 0.048 (0.040–0.090)",
        "captions: 50 % at 25 %",
        "not even partly right: 10 % at 50 %",
        "if exactly right: 100 % at 100 %",
    ):
        assert phrase in text
    assert "<h2>Confidence</h2>" not in page()
    alike = CALIBRATION.model_copy(update={"auroc": None, "log_prob_auroc": None})
    assert "AUROC" not in page(calibration=alike)
