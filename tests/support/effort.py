"""How much the tests try: a profile, by the variable ``CAPTION_TESTS``.

* ``dev``, that of `make test`: of everything that varies, each kind once, and a few random inputs.
* ``ci``, that of continuous integration: more random inputs.
* ``stress``, that of `make stress`: every combination, and very many random inputs.
"""

import os

PROFILE = os.environ.get("CAPTION_TESTS", "dev")

STRESS = PROFILE == "stress"
"""Whether tests try every combination."""

_FACTOR = {"dev": 0.25, "ci": 1, "stress": 40}[PROFILE]


def random_inputs(count: int) -> int:
    """How many random inputs a test takes in this profile; ``count`` is for continuous integration."""
    return max(1, int(count * _FACTOR))
