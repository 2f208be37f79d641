"""An inbox that nights of these tests caption."""

import pytest

from tests.support import toy


@pytest.fixture
def inbox(new_bucket):
    """A photograph of each colour."""
    inbox = new_bucket()
    for number, colour in enumerate(toy.COLOURS):
        inbox.put(f"{number}-{colour}.jpg", toy.picture(colour, 40 + number))
    return inbox
