"""Captions in other languages than English, from their table to the report of the model."""

import pytest

from pipeline.captioner import bundle
from pipeline.config import DecodingConfig
from pipeline.data import dataset
from pipeline.data.text import clean, join
from pipeline.evaluation.drift import Profile
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.features.splits import read_split
from pipeline.storage import json, layout, open_bucket
from tests.support import toy

BEAM = DecodingConfig(beam_width=2)


@pytest.mark.parametrize("language", ["de", "zh"])
def test_captions_in_another_language_are_learned_and_scored(tmp_path, toy_encoder, caplog, language):
    """The test pictures get one of their true captions, written as the language is; nothing English is measured."""
    caplog.set_level("INFO")
    store = open_bucket(str(tmp_path / "store"))
    inputs = toy.prepare(open_bucket(str(tmp_path / "source")), store, toy_encoder, language=language)
    # By default the vectors are GloVe's, which are English.
    model = toy.train(inputs, store, toy.CONFIG.model_copy(update={"embedding": "glove"}))
    assert model.language == language
    assert "the word vectors are learned" in caplog.text

    captioner, _ = bundle.load(model.version, store)
    pictures = read_split(
        dataset.load(inputs.dataset, store), "test", encoder_id=inputs.encoder_id, store=store, max_failed_fraction=0
    )
    for image, beam in zip(pictures.image_ids, captioner.alternatives(pictures.features, BEAM), strict=True):
        true = {join(clean(caption)) for caption in toy.captions(image.partition("-")[0], language)}
        assert {caption.text for caption in beam} == true

    metrics = evaluate_model(model.version, store=store, decoding=BEAM, max_failed_fraction=0)
    assert metrics.scores["chosen"].tokenizer == "words"
    assert metrics.summary["BLEU-1"] == pytest.approx(1)
    assert "METEOR" not in metrics.summary
    assert metrics.errors == {}
    assert metrics.diversity["human"].ends_in_function_word is None
    keys = layout.evaluation(model.version, inputs.dataset, BEAM)
    assert json.read(Profile, keys.profile, store).words.mean > 1
    report = store.get(keys.report).decode()
    assert "METEOR is missing: it is computed for English only" in report
    assert "Tokenised into words of letters" in report
    assert "Error analysis" not in report
