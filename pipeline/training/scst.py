"""Self-critical sequence training (SCST): sampled captions are rewarded by their CIDEr-D relative to other samples.

Rennie et al. 2017, "Self-critical Sequence Training for Image Captioning" (https://arxiv.org/abs/1612.00563), with the
baseline of Luo 2020, "A Better Variant of Self-Critical Sequence Training" (https://arxiv.org/abs/2003.09971): a sample
is compared with the mean of the other samples of its image. The end of a caption counts as a word, so that no caption
is rewarded for ending too early.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.captioner.merge_model import decode_step, encode_images
from pipeline.captioner.sentences import padded
from pipeline.config import TrainingConfig
from pipeline.data.text import allows_repeats
from pipeline.data.vocabulary import PAD, START
from pipeline.features.crops import sample_crop
from pipeline.metrics.cider import CiderD, Ids
from pipeline.progress import track
from pipeline.training.batches import Batch, EncodedCaptions, TrainingData
from pipeline.training.loop import Phase

if TYPE_CHECKING:
    import keras

    from pipeline.captioner.decoding import CompiledFunction
    from pipeline.captioner.sentences import Tensor

log = logging.getLogger(__name__)

SAMPLES_PER_IMAGE = 5

IMAGES_PER_STEP = 64

CROSS_ENTROPY_WEIGHT = 0.2
"""Weight of the loss on human captions. Without it captions become short and alike, which CIDEr alone rewards."""


def leave_one_out(rewards: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The advantage of each sample over the mean of the other samples of its image: (B, S) to (B, S) float32."""
    of_others = (rewards.sum(axis=1, keepdims=True) - rewards) / (rewards.shape[1] - 1)
    advantages: npt.NDArray[np.float32] = (rewards - of_others).astype(np.float32)
    return advantages


def sampler(
    model: "keras.Model", *, max_length: int, seed: "keras.random.SeedGenerator", allow_repeats: bool = False
) -> "CompiledFunction":
    """A compiled function of images' inputs to the ids of ``SAMPLES_PER_IMAGE`` captions each, (B, S, T) int32."""
    from keras import ops
    from keras.random import uniform

    from pipeline.captioner.decoding import CompiledFunction, sample

    def sample_captions(inputs: Mapping[str, "Tensor"]) -> "Tensor":
        uniforms = uniform((ops.shape(inputs["features"])[0], SAMPLES_PER_IMAGE, max_length), seed=seed)
        pictures, state = encode_images([model], inputs)
        step = partial(decode_step, [model], pictures)
        return sample(step, state, uniforms=uniforms, allow_repeats=allow_repeats).ids

    return CompiledFunction(sample_captions, [model, seed])


def batches(
    captions: EncodedCaptions,
    references: Ids,
    sample_captions: "CompiledFunction",
    reward: CiderD,
    rng: np.random.Generator,
) -> Iterator[tuple[Batch, float]]:
    """Sampled captions of all images once, shuffled, ``IMAGES_PER_STEP`` at a time, each batch with its mean reward.

    The weight of a sampled word is the advantage of its caption over the number of sampled words, so the gradient of
    the weighted loss is the policy gradient. Each batch also has one human caption per image. The samples depend on the
    model, which changes between batches.
    """
    first, count = np.searchsorted(captions.image, np.arange(len(captions.features))), np.bincount(captions.image)
    features = sample_crop(captions.features, rng)
    order = rng.permutation(len(features))
    for start in range(0, len(order), IMAGES_PER_STEP):
        images = order[start : start + IMAGES_PER_STEP]
        of_images = features[images].inputs
        sampled = np.asarray(sample_captions.predict_on_batch(of_images)).reshape(-1, references.shape[1])
        every_row = np.arange(len(images), dtype=np.int32)
        rows = np.append(np.repeat(every_row, SAMPLES_PER_IMAGE), every_row)
        rewards = reward(sampled, images[rows[: len(sampled)]]).reshape(-1, SAMPLES_PER_IMAGE)
        human = references[first[images] + rng.integers(count[images])]
        targets = np.concatenate([sampled, human])
        # The last words of the few longest captions teach little, and would double the padding.
        targets = targets[:, : captions.pad_length(np.percentile((targets != PAD).sum(axis=1), 95))]
        words = np.concatenate([np.full((len(targets), 1), START, np.int32), targets[:, :-1]], axis=1)
        not_padding = (targets != PAD).astype(np.float32)
        of_samples, of_human = not_padding[: len(sampled)], not_padding[len(sampled) :]
        weights = np.concatenate(
            [
                leave_one_out(rewards).reshape(-1, 1) * of_samples / of_samples.sum(),
                CROSS_ENTROPY_WEIGHT * of_human / of_human.sum(),
            ]
        )
        yield ({**of_images, "words": words, "rows": rows}, targets, weights), float(rewards.mean())


def phase(model: "keras.Model", config: TrainingConfig, data: TrainingData) -> Phase:
    """The phase that optimizes CIDEr-D itself; the model should write reasonable captions already."""
    import keras

    captions = data.train_captions
    generator = keras.random.SeedGenerator(0)
    sample_captions = sampler(
        model, max_length=data.max_length + 1, seed=generator, allow_repeats=allows_repeats(data.language)
    )
    references = padded(captions.ids, data.max_length + 1)
    # Computed when it is first needed: a phase that was finished before needs none.
    reward = cache(lambda: CiderD(references, captions.image, len(data.vocabulary)))
    steps = math.ceil(len(captions.features) / IMAGES_PER_STEP)

    def train(model: "keras.Model", rng: np.random.Generator, name: str) -> dict[str, float]:
        generator.state.assign(rng.integers(2**31, size=2))
        rewards = []
        sampled = batches(captions, references, sample_captions, reward(), rng)
        for batch, mean_reward in track(sampled, total=steps, unit=f"batches of {name}", log=log):
            # The loss of a policy gradient has no meaning of its own, but one that is not finite destroys the weights.
            if not math.isfinite(model.train_on_batch(*batch)):
                return {"reward": math.nan}
            rewards.append(mean_reward)
        return {"reward": float(np.mean(rewards))}

    return Phase(
        "scst", config.scst_epochs, config.scst_epochs, steps, config.scst_learning_rate, config.fine_tuning, train
    )
