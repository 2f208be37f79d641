"""Training and decoding, against the usual way: captions and pictures per CPU second."""

from dataclasses import replace

import keras
import numpy as np

from benchmarks.measure import alternate, cpu, spread
from benchmarks.usual import PICTURES, batches_of_prefixes, caption, model_of_prefixes
from pipeline.captioner.captioner import Captioner
from pipeline.captioner.merge_model import build
from pipeline.config import GREEDY, DecodingConfig, TrainingConfig
from pipeline.data.vocabulary import END, SPECIAL_WORDS, START, Vocabulary
from pipeline.features.store import Features
from pipeline.training.batches import EncodedCaptions
from pipeline.training.loop import compile_for_training, evaluate_loss, train_epoch

WORDS, DIMENSION, LONGEST = 2549, 2048, 25
"""Flickr8k's vocabulary at 10 occurrences, ResNet50's features, and the longest caption that is not cut."""

SUBJECTS = 10
"""Number of subjects that a picture may show."""

REGIONS = (49, 256)
"""The places of a picture and the numbers of each, as encoders with regions yield them."""

CONFIG = TrainingConfig(embedding="learned")

BEAM = DecodingConfig(beam_width=5)

LEARNT_PICTURES, LEARNT_THE_USUAL_WAY = 1200, 12
WRITTEN_PICTURES, WRITTEN_THE_USUAL_WAY = 1024, 4


def captions_like_flickr8k(pictures: int) -> EncodedCaptions:
    """Captions as long as Flickr8k's (10.8 ± 3.7 words), five a picture, which a few epochs teach a model to write.

    A picture's vector says, in noise, about how long its captions are, and what it shows. Each place in a caption has
    words of its own, a few of them frequent; which, depends on what is shown.
    """
    rng = np.random.default_rng(0)
    words = WORDS // LONGEST
    frequency = np.arange(1, words + 1) ** -1.5
    shown = rng.integers(SUBJECTS, size=pictures)
    usual_length = rng.normal(10.8, 3.2, pictures).round().clip(2, LONGEST).astype(int)
    of_length, of_subject, noise = (
        rng.random((size, DIMENSION), dtype=np.float32) for size in (LONGEST + 1, SUBJECTS, pictures)
    )
    vectors = of_length[usual_length] + of_subject[shown] + noise
    image = np.repeat(np.arange(pictures), 5)
    lengths = rng.normal(usual_length[image], 2.0).round().clip(2, LONGEST).astype(int)
    ids = []
    for subject, length in zip(shown[image], lengths, strict=True):
        ranks = rng.choice(words, length, p=frequency / frequency.sum())
        of_place = (ranks + subject) % words
        ids.append([START, *(len(SPECIAL_WORDS) + of_place * LONGEST + np.arange(length)).tolist(), END])
    return EncodedCaptions(Features(vectors), image, ids)


def head(captions: EncodedCaptions, pictures: int) -> EncodedCaptions:
    """The first pictures with their captions."""
    return EncodedCaptions(captions.features[:pictures], captions.image[: 5 * pictures], captions.ids[: 5 * pictures])


def training(rounds: int) -> dict[str, float]:
    """Captions trained on per CPU second, by whole captions and by their prefixes; and how far apart the losses are."""
    captions = captions_like_flickr8k(LEARNT_PICTURES)
    few = head(captions, LEARNT_THE_USUAL_WAY)
    size = WORDS + len(SPECIAL_WORDS)
    ours = build(size, captions.features, CONFIG)
    compile_for_training(ours, CONFIG.learning_rate)
    theirs = model_of_prefixes(ours, CONFIG)
    difference = _loss_of_prefixes(theirs, few, size) / evaluate_loss(ours, few.evaluation_batches(64)) - 1

    def learn_whole_captions() -> None:
        train_epoch(ours, captions.training_batches(CONFIG.batch_size, np.random.default_rng(0)))

    def learn_prefixes() -> None:
        steps = LEARNT_THE_USUAL_WAY // PICTURES
        theirs.fit(batches_of_prefixes(few, size), steps_per_epoch=steps, verbose=0)

    whole, prefixes = alternate(learn_whole_captions, learn_prefixes, rounds=rounds)
    rate, usual = len(captions.ids) / cpu(whole), len(few.ids) / cpu(prefixes)
    keras.backend.clear_session()
    return {
        "captions_per_cpu_second": rate,
        "captions_per_cpu_second_usual": usual,
        "training_over_prefix_expansion": rate / usual,
        "relative_difference_of_loss": float(abs(difference)),
        "training_spread": max(spread(whole), spread(prefixes)),
    }


def _loss_of_prefixes(model: keras.Model, captions: EncodedCaptions, size: int) -> float:
    """The mean loss of a next word, prefix by prefix."""
    total = words = 0.0
    for inputs, targets in batches_of_prefixes(captions, size):
        total += float(model.test_on_batch(inputs, targets)) * len(targets)
        words += len(targets)
    return total / words


def briefly_trained(captions: EncodedCaptions) -> tuple[keras.Model, Vocabulary]:
    """A model that has seen these until its captions are of all lengths; untrained, it would never end one."""
    words = [f"w{number}" for number in range(WORDS)]
    vocabulary = Vocabulary((*SPECIAL_WORDS, *words), (*([0] * len(SPECIAL_WORDS)), *([10] * WORDS)), 10)
    model = build(len(vocabulary), captions.features, CONFIG)
    compile_for_training(model, 5e-3)
    for epoch in range(6):
        train_epoch(model, captions.training_batches(64, np.random.default_rng(epoch)))
    return model, vocabulary


def decoding(rounds: int) -> dict[str, float]:
    """Pictures captioned per CPU second; and which share of the captions is the same the usual way."""
    from pipeline.captioner.networks import NetworkDecoder, export

    captions = captions_like_flickr8k(WRITTEN_PICTURES)
    vectors = captions.features.vectors
    regions = np.random.default_rng(0).random((WRITTEN_PICTURES, *REGIONS), dtype=np.float32).astype(np.float16)
    with_regions = Features(vectors, regions)
    model, vocabulary = briefly_trained(captions)
    attending_model, _ = briefly_trained(replace(captions, features=with_regions))
    captioner, attending = (
        Captioner(NetworkDecoder([export(each)], advice=""), vocabulary, max_length=LONGEST)
        for each in (model, attending_model)
    )
    of_prefixes = model_of_prefixes(model, CONFIG)
    greedy, beam, attending_greedy, attending_beam, usual = alternate(
        lambda: captioner.caption(captions.features, GREEDY),
        lambda: captioner.caption(captions.features, BEAM),
        lambda: attending.caption(with_regions, GREEDY),
        lambda: attending.caption(with_regions, BEAM),
        lambda: caption(of_prefixes, vectors[:WRITTEN_THE_USUAL_WAY], LONGEST),
        rounds=rounds,
    )
    ours = [found.text for found in captioner.caption(captions.features, GREEDY)[: 4 * WRITTEN_THE_USUAL_WAY]]
    theirs = [vocabulary.decode(ids) for ids in caption(of_prefixes, vectors[: 4 * WRITTEN_THE_USUAL_WAY], LONGEST)]
    rate, usual_rate = WRITTEN_PICTURES / cpu(greedy), WRITTEN_THE_USUAL_WAY / cpu(usual)
    return {
        "greedy_pictures_per_cpu_second": rate,
        "beam5_pictures_per_cpu_second": WRITTEN_PICTURES / cpu(beam),
        "usual_pictures_per_cpu_second": usual_rate,
        "greedy_over_per_word_predict": rate / usual_rate,
        "beam5_time_over_greedy": cpu(beam) / cpu(greedy),
        "attending_greedy_time_over_greedy": cpu(attending_greedy) / cpu(greedy),
        "attending_beam5_time_over_greedy": cpu(attending_beam) / cpu(attending_greedy),
        "same_captions": sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours),
        "decoding_spread": max(map(spread, (greedy, beam, attending_greedy, attending_beam, usual))),
    }
