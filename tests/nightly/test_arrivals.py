"""Photographs that arrive while a night runs: which of them make it look forward to another one."""

import pytest

from pipeline.errors import PipelineError
from pipeline.nightly import night as nights
from pipeline.nightly.arrivals import count_arrivals
from pipeline.nightly.inbox import Patterns
from pipeline.storage import open_bucket
from tests.support import toy
from tests.support.nights import night, removed


def arrivals(run, inbox, store, options=nights.NightOptions()):  # noqa: B008
    """The second look of a night."""
    return count_arrivals(run, inbox=inbox, store=store, options=options)


def test_new_and_replaced_photographs_arrive(inbox, store):
    """Of a night that has ended: until the next one has captioned them."""
    night("n1", inbox, store)
    assert arrivals("n1", inbox, store) == 0
    inbox.put("a late blue.jpg", toy.picture("blue", 20))
    inbox.put("red.jpg", toy.picture("red", 21))
    assert arrivals("n1", inbox, store) == 2
    night("n2", inbox, store)
    assert arrivals("n2", inbox, store) == 0


def test_what_no_night_captions_does_not_arrive(inbox, store):
    """Other files, excluded ones, what was listed and failed, and what left and came back with its caption."""
    options = nights.NightOptions(patterns=Patterns(exclude="private/*"))
    night("n1", inbox, store, options=options)
    with removed(inbox, "blue.jpeg"):
        night("n2", inbox, store, options=options)
    inbox.put("late.txt", b"not a picture")
    inbox.put("private/red.jpg", toy.picture("red", 20))
    assert arrivals("n2", inbox, store, options) == 0


def test_a_night_that_reached_its_limit_waits_for_the_clock(inbox, store):
    """Otherwise it would caption, night after night at once, what the limit leaves to later nights."""
    limited = nights.NightOptions(limit=2)
    assert night("n1", inbox, store, options=limited).postponed > 0
    inbox.put("a late blue.jpg", toy.picture("blue", 20))
    assert arrivals("n1", inbox, store, limited) == 0


def test_an_inbox_that_is_gone_is_an_error(inbox, store, tmp_path):
    """Nobody knows what has arrived."""
    night("n1", inbox, store)
    with pytest.raises(PipelineError, match="no-inbox"):
        arrivals("n1", open_bucket(str(tmp_path / "no-inbox")), store)
