"""The rule by which a caption is accepted: it is no worse than what people wrote about the same pictures.

A caption's score is its CIDEr against the references, less ``ERROR_COST`` for each kind of error that
``error_analysis`` finds in it (in English). Each human caption is scored in the same way against the others of its
picture. A caption is accepted if it scores above the weakest tenth of the human captions, of which 90 % therefore pass,
and partly right if it scores above their weakest 3 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.data.text import is_english
from pipeline.evaluation.error_analysis import kinds_of_error
from pipeline.metrics.coco import caption_cider

ERROR_COST = 0.25
"""CIDEr that a kind of error costs."""

ACCEPTED, PARTLY = 0.10, 0.03
"""The shares of the human captions that fail each limit."""


@dataclass(frozen=True)
class Acceptance:
    """Captions by the rule.

    Attributes:
        accepted: (N,) bool.
        at_least_partly: (N,) bool: accepted, or partly right.
        human_accepted: the share of the human captions that are accepted, too.
    """

    accepted: npt.NDArray[np.bool_]
    at_least_partly: npt.NDArray[np.bool_]
    human_accepted: float


def judge(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], *, language: str
) -> Acceptance | None:
    """Judge captions by the references of their images; None if no image has two, which the limits come from.

    Args:
        candidates: caption by image.
        references: raw captions by image.
        language: of the captions, a BCP 47 code.
    """
    generated = [(caption, references[image]) for image, caption in candidates.items()]
    human = [
        (caption, [*captions[:place], *captions[place + 1 :]])
        for captions in (references[image] for image in candidates)
        for place, caption in enumerate(captions)
        if len(captions) > 1
    ]
    if not human:
        return None
    # Together, so that n-grams weigh the same for both.
    pairs = [*generated, *human]
    scores = np.array(caption_cider(pairs, language=language))
    if is_english(language):
        scores -= ERROR_COST * np.array(kinds_of_error(pairs))
    ours, theirs = scores[: len(generated)], scores[len(generated) :]
    # A score that occurs, so that no rounding makes the captions that have it fail.
    accepted, partly = np.quantile(theirs, (ACCEPTED, PARTLY), method="lower")
    return Acceptance(ours >= accepted, ours >= partly, float(np.mean(theirs >= accepted)))
