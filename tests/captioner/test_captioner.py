"""The captioner: greedy search, beams, ensembles and batches."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.captioner import keras_decoder, networks
from pipeline.captioner.captioner import Captioner
from pipeline.captioner.keras_decoder import KerasDecoder
from pipeline.captioner.networks import NetworkDecoder
from pipeline.captioner.sentences import Sentences
from pipeline.config import GREEDY, DecodingConfig
from pipeline.data.vocabulary import END, PAD, START, UNKNOWN, Vocabulary
from pipeline.errors import PipelineError
from pipeline.features.store import Features
from pipeline.training.batches import EncodedCaptions
from pipeline.training.loop import compile_for_training
from tests.support.small_captioner import (
    FEATURES,
    REGIONS,
    SENTENCES,
    VOCABULARY,
    build_last_stage,
    build_model,
    next_probabilities,
    softmax,
)


@pytest.mark.parametrize("ensemble_size", [1, 2])
def test_greedy_search_follows_the_models(ensemble, ensemble_size, captioner_of):
    """The captions are those of repeated calls of the whole models on the growing prefix, averaged over the models."""
    models, features = ensemble[0][:ensemble_size], ensemble[1]
    captions = captioner_of(*models).caption(features, GREEDY)
    for image, caption in enumerate(captions):
        ids, probabilities = [START], []
        while len(ids) <= 6 and ids[-1] != END:
            allowed = next_probabilities(models, features[[image]], ids)
            again = [c for a, b, c in zip(ids, ids[1:], ids[2:], strict=False) if [a, b] == ids[-2:]]
            allowed[[PAD, START, UNKNOWN, ids[-1], *again]] = 0
            ids.append(int(allowed.argmax()))
            probabilities.append(allowed[ids[-1]])
        assert caption.text == VOCABULARY.decode(ids[1:])
        assert caption.log_prob == pytest.approx(np.log(probabilities).mean(), rel=1e-4)
        assert caption.probability == pytest.approx(np.prod(probabilities), rel=1e-4)


def test_two_equal_models_caption_like_one(model, captioner_of):
    """An ensemble of a model and itself writes the captions of the model alone."""
    alone, twice = (captioner_of(*[model] * n).caption(FEATURES, DecodingConfig(beam_width=3)) for n in (1, 2))
    assert [caption.text for caption in alone] == [caption.text for caption in twice]
    np.testing.assert_allclose([c.log_prob for c in alone], [c.log_prob for c in twice], rtol=1e-5)


def test_alternatives_come_best_first(model, captioner_of):
    """The whole beam is returned in order; its first is the caption, and no two are the same."""
    captioner = captioner_of(model)
    alternatives = captioner.alternatives(FEATURES, DecodingConfig(beam_width=4))
    assert [best for best, *_ in alternatives] == captioner.caption(FEATURES, DecodingConfig(beam_width=4))
    for captions in alternatives:
        assert len({caption.text for caption in captions}) == len(captions) == 4
        assert [c.log_prob for c in captions] == sorted((c.log_prob for c in captions), reverse=True)


def test_the_batch_size_does_not_change_captions(ensemble, monkeypatch, captioner_of):
    """The captions are the same for any number of images per batch, with a last batch that is not full.

    So are the standardized vectors.
    """
    [model, _], features = ensemble
    captioner = captioner_of(model)
    together = captioner.caption(features, DecodingConfig(beam_width=2))
    standardized = captioner.standardized(features)
    monkeypatch.setattr(keras_decoder, "BATCH_SIZE", 2)
    monkeypatch.setattr(networks, "BATCH_FLOATS", 4 * len(VOCABULARY))
    monkeypatch.setattr(networks, "BATCH_IMAGES", 2)
    np.testing.assert_allclose(captioner.standardized(features), standardized, rtol=1e-5)
    apart = captioner.caption(features, DecodingConfig(beam_width=2))
    assert [caption.text for caption in apart] == [caption.text for caption in together]
    np.testing.assert_allclose([c.log_prob for c in apart], [c.log_prob for c in together], rtol=1e-5)
    assert captioner.caption(features[:0], DecodingConfig(beam_width=2)) == []


@pytest.mark.parametrize(("is_there", "expected"), [(False, [1, 2, 4]), (True, [keras_decoder.BATCH_SIZE] * 3)])
def test_an_accelerator_decodes_batches_of_one_size(model, monkeypatch, is_there, expected):
    """Whatever the number of images, so that one shape is compiled; each image has its own beam, and no other has."""
    sizes = []

    class OneWord:
        def predict_on_batch(self, inputs):
            """A beam of one word, which is the first number of the image."""
            sizes.append(len(inputs["features"]))
            words = inputs["features"][:, :1, None]
            return [Sentences(words, np.ones(words.shape[:2], int), np.zeros(words.shape[:2]))]

    monkeypatch.setattr(keras_decoder.accelerator, "present", lambda: is_there)
    monkeypatch.setattr(KerasDecoder, "_compile", lambda *_: OneWord())
    decoder = KerasDecoder([model])
    options = {"max_length": 6, "allow_repeats": False, "forbidden_words": ()}
    for count in (1, 2, 3):
        [(beam, _)] = decoder.decode(FEATURES[:count], DecodingConfig(beam_width=2), **options)
        np.testing.assert_array_equal(beam.ids[:, 0, 0], FEATURES.vectors[:count, 0])
    assert sizes == expected


def test_mbr_reorders_the_beam(ensemble, monkeypatch, captioner_of):
    """MBR decoding returns the captions of the beam in another order, which does not depend on the batches."""
    models, features = ensemble
    captioner = captioner_of(*models)
    beam, mbr = DecodingConfig(beam_width=4), DecodingConfig(beam_width=4, mbr_samples=20)
    plain, reranked = (captioner.alternatives(features, decoding) for decoding in (beam, mbr))
    for by_probability, by_score in zip(plain, reranked, strict=True):
        assert {caption.text for caption in by_score} == {caption.text for caption in by_probability}
    assert [best for best, *_ in reranked] != [best for best, *_ in plain]
    limits = (
        (keras_decoder, "BATCH_SIZE", 2),
        (keras_decoder, "BATCH_ROWS", 20),
        (networks, "BATCH_FLOATS", 8 * len(VOCABULARY)),
    )
    for module, name, limit in limits:
        monkeypatch.setattr(module, name, limit)
        again = captioner.alternatives(features, mbr)
        assert [[c.text for c in captions] for captions in again] == [[c.text for c in found] for found in reranked]


def test_forbidden_words_are_never_written(ensemble, captioner_of, caplog):
    """Neither in a caption nor in an alternative or a sample, however they are spelled; the others are as before."""
    models, features = ensemble
    captioner = captioner_of(*models)
    plain = DecodingConfig(beam_width=4, mbr_samples=20)
    used = {word for captions in captioner.alternatives(features, plain) for c in captions for word in c.text.split()}
    word = sorted(used)[0]
    decoding = plain.model_copy(update={"forbidden_words": (f" {word.upper()}", "zebra")})
    with caplog.at_level("INFO"):
        found = [captioner.alternatives(features, decoding) for _ in range(2)]
    assert found[0] == found[1]
    assert all(captions for captions in found[0])
    assert word not in {word for captions in found[0] for caption in captions for word in caption.text.split()}
    assert caplog.text.count("does not know anyway: zebra") == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("hot dog",), "'hot dog' is 2 words, not one. Separate words by commas"),
        (("cat", "…"), "'…' is 0 words, not one"),
        (VOCABULARY.words[4:], "forbids every word of the model"),
    ],
)
def test_what_can_not_be_forbidden(model, captioner_of, words, error):
    """Phrases, texts without a word, and all words together: the error says so."""
    with pytest.raises(PipelineError, match=re.escape(error)):
        captioner_of(model).caption(FEATURES, DecodingConfig(forbidden_words=words))


def test_forbidden_words_of_another_language(model, networks):
    """Where a caption is split into characters, one of them is a word, and two are not."""
    words = Vocabulary.build(["一只狗在草地上跑步玩", "一只猫"], min_count=1, language="zh")
    vocabulary = Vocabulary((*words.words, *VOCABULARY.words[len(words) :]), VOCABULARY.counts, 1, "zh")
    decoder = NetworkDecoder([networks(model)], advice="")
    captioner = Captioner(decoder, vocabulary, max_length=6, language="zh")
    [before, *_] = captioner.caption(FEATURES, GREEDY)
    word = before.text[0]
    after = captioner.caption(FEATURES, GREEDY.model_copy(update={"forbidden_words": (word,)}))
    assert word not in "".join(caption.text for caption in after)
    with pytest.raises(PipelineError, match="'一只' is 2 words"):
        captioner.caption(FEATURES, GREEDY.model_copy(update={"forbidden_words": ("一只",)}))


BEAMS = [
    ["a man and his dog", "a woman and her dog", "a person and his dog", "a person and a dog", "people"],
    ["a man jumps", "a boy jumps", "a child jumps"],
    ["a person", "a child"],
]
"""What a model would write about three images, the most probable first."""


class ScriptedDecoder:
    """Decodes what the beams say, without forbidden words."""

    attends = False
    vocabulary = Vocabulary.build(itertools.chain(*BEAMS), min_count=1)

    def decode(self, features, decoding, *, max_length, allow_repeats, forbidden_words):
        """One batch of beams."""
        found = [
            [ids for text in BEAMS[int(image)] if not set(ids := self.vocabulary.encode(text)[1:]) & {*forbidden_words}]
            for [image] in features.vectors
        ]
        width = decoding.beam_width
        ids = [[[*sentence, *[PAD] * (9 - len(sentence))] for sentence in beam[:width]] for beam in found]
        log_probs = np.tile(-np.arange(1.0, width + 1), (len(ids), 1))
        yield Sentences(np.array(ids), np.ones((len(ids), width)), log_probs), None


def test_neutral_wording(caplog):
    """The captions of a picture about which the beam disagrees say no gender; all others are as before."""
    captioner = Captioner(ScriptedDecoder(), ScriptedDecoder.vocabulary, max_length=9)
    images = Features(np.arange(3.0)[:, None])

    def texts(**decoding):
        found = captioner.alternatives(images, DecodingConfig(beam_width=2, **decoding))
        return [[caption.text for caption in captions] for captions in found]

    assert texts() == [beam[:2] for beam in BEAMS]
    with caplog.at_level("INFO"):
        assert texts(neutral_wording=True) == [["a person and a dog", "people"], *texts()[1:]]
    assert "captioning 1 image again" in caplog.text
    assert texts(neutral_wording=True, forbidden_words=("woman",)) == texts(forbidden_words=("woman",))


def test_neutral_wording_is_english():
    """In another language, the setting changes nothing."""
    vocabulary = replace(ScriptedDecoder.vocabulary, language="de")
    captioner = Captioner(ScriptedDecoder(), vocabulary, max_length=9, language="de")
    found = captioner.caption(Features(np.zeros((1, 1))), DecodingConfig(beam_width=2, neutral_wording=True))
    assert found[0].text == BEAMS[0][0]


def test_crops_are_averaged(model, captioner_of):
    """The vectors of several crops are captioned as their mean."""
    crops = np.stack([FEATURES.vectors - 1, FEATURES.vectors + 1], axis=1)
    captioner = captioner_of(model)
    assert captioner.caption(Features(crops), GREEDY) == captioner.caption(Features(crops.mean(axis=1)), GREEDY)


def test_a_model_of_vectors_leaves_regions_alone(model, attending, captioner_of):
    """It captions images with regions as it does without; one that attends does not."""
    pooled, with_attention = (captioner_of(each) for each in (model, attending))
    assert (pooled.attends, with_attention.attends) == (False, True)
    assert pooled.caption(REGIONS, GREEDY) == pooled.caption(FEATURES, GREEDY)
    other = Features(REGIONS.vectors, REGIONS.regions[::-1])
    assert with_attention.caption(REGIONS, GREEDY) != with_attention.caption(other, GREEDY)


def test_attention_is_the_mean_of_heads_and_models(model, attending, other_attending, captioner_of):
    """For each word of a caption, the weights after the words before it; models that don't attend don't count."""
    captions = ["a dog runs", "", "the cat"]
    found = captioner_of(attending, model, other_attending).attention(REGIONS, captions)
    assert [weights.shape for weights in found] == [(3, 6), (0, 6), (2, 6)]
    for row in (0, 2):
        read = np.array([VOCABULARY.encode(captions[row])[:-2]], np.int32)
        of_models = [weights_by_hand(each, REGIONS.regions[[row]], read) for each in (attending, other_attending)]
        np.testing.assert_allclose(found[row], np.mean(of_models, axis=0), rtol=1e-4)
        np.testing.assert_allclose(found[row].sum(axis=1), 1, rtol=1e-5)


def weights_by_hand(model, regions, words):
    """The mean of the heads' weights (T, R) for an image, from the states of a whole caption."""
    layer = model.get_layer
    states, _, _ = layer("lstm")(layer("embedding")(words))
    scores = np.einsum("bthd,brhd->bthr", layer("queries")(states), layer("places")(regions))
    return softmax(scores / np.sqrt(layer("places").output.shape[-1]))[0].mean(axis=1)


def test_vectors_are_standardized_alike(ensemble, captioner_of):
    """Those of the encoder, even where a model tunes its last stage, by mean and variance of the training images."""
    models, features = ensemble
    found = captioner_of(*models).standardized(features[:2])
    vectors = FEATURES.vectors
    np.testing.assert_allclose(found, (vectors[:2] - vectors.mean(axis=0)) / vectors.std(axis=0), rtol=1e-4, atol=1e-5)


def test_attention_finds_the_region_that_answers(captioner_of):
    """Queries that all want the same of a region find the one that has it, in every picture and for every word."""
    model = build_model(REGIONS)
    places = model.get_layer("places").layers
    dense = next(layer for layer in places if layer.name.startswith("dense"))
    dense.set_weights([np.eye(4, 12, dtype=np.float32), np.zeros(12, np.float32)])
    ask = model.get_layer("queries").layers
    asked = next(layer for layer in ask if layer.name.startswith("dense"))
    # The first number of each head; only the first head's is of the region.
    asked.set_weights([np.zeros_like(asked.get_weights()[0]), np.tile([200.0, 0, 0], 4).astype(np.float32)])
    regions = np.zeros((3, 6, 4), np.float32)
    regions[[0, 1, 2], [5, 0, 3], 0] = 9
    features = Features(FEATURES.vectors, regions)
    found = captioner_of(model).attention(features, ["a dog", "the cat", "grass"])
    assert [set(each.argmax(axis=1)) for each in found] == [{5}, {0}, {3}]


@pytest.mark.parametrize(
    ("features", "part"),
    [(FEATURES, None), (REGIONS, None), (REGIONS, build_last_stage)],
    ids=["vectors", "regions", "last stage"],
)
def test_captions_follow_the_training(features, part):
    """A captioner that has captioned before uses the weights that its model has now."""
    model = build_model(features, part and part())
    compile_for_training(model, 0.1, fine_tuning=0.1)
    captioner = Captioner(KerasDecoder([model]), VOCABULARY, max_length=12)
    before = captioner.caption(features, DecodingConfig(beam_width=2))
    captions = EncodedCaptions(features, np.arange(3), [VOCABULARY.encode(text) for text in SENTENCES[:3]])
    for _ in range(60):
        for batch in captions.training_batches(3, np.random.default_rng(0)):
            model.train_on_batch(*batch)
    after = captioner.caption(features, DecodingConfig(beam_width=2))
    assert [caption.text for caption in after] == SENTENCES[:3]
    assert [caption.text for caption in before] != SENTENCES[:3]
