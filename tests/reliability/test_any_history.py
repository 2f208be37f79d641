"""Nights on any listing, with any history, broken off at any write: what holds whatever happened."""

import fnmatch
from collections import Counter
from functools import partial
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
from hypothesis import example, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.captioner import bundle, registry
from pipeline.captioner.captioner import Caption
from pipeline.captioner.metadata import ModelMetadata
from pipeline.config import DecodingConfig, TrainingConfig
from pipeline.data.images import Picture, is_image
from pipeline.features import encoder, extraction
from pipeline.nightly import captions, reconcile
from pipeline.nightly import night as nights
from pipeline.nightly.arrivals import count_arrivals
from pipeline.storage import ObjectChangedError, ObjectNotFoundError, json, layout, parquet
from pipeline.work import outcomes, runs
from tests.support.effort import random_inputs
from tests.support.memory import CrashError, MemoryBucket

DECODING = DecodingConfig(beam_width=2)
KEYS = st.sampled_from([f"{name}.jpg" for name in "abcdefghij"])
CONTENTS = st.sampled_from([b"1", b"2", b"3", b"broken"])
STEPS = ("plan extraction", "extract", "plan captions", "caption", "reconcile")
"""Of a night, after the listing; one that has ended may be repeated from its first."""

CRASHES = st.one_of(st.none(), st.tuples(st.integers(1, 6), st.booleans()))
"""At which write from now the process ends, and whether before or after it; or that it doesn't."""


def read_picture(bucket, decoders, image, out, **_):
    """A picture of one brightness, or why there is none: as the real one, without a decoder."""
    try:
        data = bucket.get(image[0], etag=image[1])
    except (ObjectNotFoundError, ObjectChangedError):
        return outcomes.GONE
    return "broken" if data == b"broken" else Picture(np.full((2, 2, 3), int(data), np.uint8), 2, 2)


class Captioner:
    """Captions that say how bright a picture is."""

    attends = False

    def caption(self, features, decoding):
        """A caption a vector."""
        return [Caption(f"brightness {vector[0]:.0f}", -1.0, 0.5) for vector in features.vectors]

    def standardized(self, features):
        """The vectors."""
        return features.vectors


class Nights(RuleBasedStateMachine):
    """Photographs come, change and go; models are promoted; nights are begun, go on side by side, and die."""

    def __init__(self):
        super().__init__()
        self.inbox, self.store = MemoryBucket("inbox"), MemoryBucket("store")
        self.runs = 0
        self.next_step: dict[str, int] = {}
        self.requests: dict[str, str] = {}
        self.seen = set()
        loaded = encoder.Encoder("e-1", (2, 2), (3,), None, 4, 1, lambda pictures: [pictures.mean(axis=(1, 2))])
        self.patches = [
            patch.object(extraction, "open_source", lambda name, store: self.inbox),
            patch.object(extraction, "read_picture", read_picture),
            patch.object(encoder, "load", lambda encoder_id, store: loaded),
            patch.object(bundle, "load", lambda version, store: (Captioner(), None)),
        ]
        for each in self.patches:
            each.start()

    def teardown(self):
        """After one more night of each kind everything is as if nothing had ever happened."""
        self.store.crash_in = None
        try:
            self.finish("the night after")
            record = self.finish("the last night")
            assert (record.captioned, record.extracted) == (0, 0)
            record = self.finish("all again", recaption="*")
            assert record.captioned + record.failed == record.listed
            record = self.finish("all again", recaption="*")
            assert (record.captioned, record.extracted) == (0, 0)
            self.nothing_is_captioned_twice()
        finally:
            for each in self.patches:
                each.stop()

    @initialize(photographs=st.dictionaries(KEYS, CONTENTS, min_size=3))
    def start(self, photographs):
        """There are a model and some photographs."""
        self.promote("v1")
        for key, data in photographs.items():
            self.inbox.put(key, data)

    @rule(version=st.sampled_from(["v1", "v2"]))
    def promote(self, version):
        """A model becomes champion."""
        metadata = ModelMetadata(
            version=version,
            created_at="2026-01-01T00:00:00Z",
            encoder_id="e-1",
            dataset="none",
            max_length=5,
            config=TrainingConfig(),
            ensemble=[],
            files={},
        )
        json.write(metadata, layout.model_metadata(version), self.store)
        registry.promote(version, self.store)

    @rule(key=KEYS, data=CONTENTS)
    def arrive(self, key, data):
        """A photograph arrives, or is written again, perhaps as it was."""
        self.inbox.put(key, data)

    @rule(key=KEYS)
    def leave(self, key):
        """A photograph is removed."""
        self.inbox.delete(key)

    @rule(
        archive=st.sampled_from(nights.Archive),
        retry_failed=st.booleans(),
        recaption=st.one_of(st.just(""), KEYS, st.just("[abc]*")),
        crash=CRASHES,
    )
    def begin(self, archive, retry_failed, recaption, crash):
        """A night lists the inbox."""
        if not any(fnmatch.fnmatchcase(item.key, recaption) for item in self.inbox.list()):
            recaption = ""
        self.runs += 1
        run = f"n{self.runs}"

        def step():
            options = nights.NightOptions(
                archive=archive, retry_failed=retry_failed, accept_smaller_inbox=True, recaption=recaption
            )
            nights.list_inbox(run, inbox=self.inbox, store=self.store, options=options)

        self.requests[run] = recaption
        if self.crashing(step, crash):
            self.next_step[run] = 0

    @precondition(lambda self: self.next_step)
    @rule(moves=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4), CRASHES), min_size=2, max_size=12))
    def go_on(self, moves):
        """Nights do their next steps; where one dies in it, it is repeated at some later time."""
        for which, size, crash in moves:
            run = list(self.next_step)[which % len(self.next_step)]
            step = self.next_step[run]
            if self.crashing(partial(self.do, run, STEPS[step], size), crash):
                self.next_step[run] = (step + 1) % len(STEPS)

    @invariant()
    def nothing_is_captioned_twice(self):
        """No model has captioned a version of an image more than once, and once for each request; no row has gone."""
        rows = self.rows()
        for (key, _, _), captions_of_it in Counter(row[:3] for row in rows if row[3] == "ok").items():
            requests = sum(fnmatch.fnmatchcase(key, recaption) for recaption in self.requests.values())
            assert captions_of_it <= 1 + requests
        assert self.seen <= set(rows)
        self.seen = set(rows)

    @invariant()
    def captions_tell_the_truth(self):
        """A caption is that of the bytes with the etag in its row."""
        for item in self.store.list(layout.CAPTIONS):
            for row in parquet.read(item.key, self.store).to_pylist():
                if row["status"] == "ok":
                    brightness = row["caption"].removeprefix("brightness ").encode()
                    probe = MemoryBucket("probe")
                    probe.put("x", brightness)
                    assert probe.etag("x") == row["image_etag"]

    def finish(self, run, recaption=""):
        """A whole night that nobody disturbs: then each photograph has a caption, or has failed for good."""
        if not any(self.inbox.list()):
            recaption = ""
        self.requests[run] = recaption
        options = nights.NightOptions(accept_smaller_inbox=True, recaption=recaption)
        nights.list_inbox(run, inbox=self.inbox, store=self.store, options=options)
        for step in STEPS[:-1]:
            self.do(run, step, 3)
        record = self.reconcile(run)
        assert record.listed == record.captioned + record.failed + record.gone + record.already_done
        version = registry.read_champion(self.store).version
        rows = self.rows()
        for item in self.inbox.list():
            status = "failed" if self.inbox.get(item.key) == b"broken" else "ok"
            assert (item.key, item.etag, version, status) in rows
        return record

    def do(self, run, step, size):
        """A step of a night."""
        if step == "plan extraction":
            nights.plan_extraction(run, store=self.store, shard_size=size)
        elif step == "extract":
            for shard in runs.recorded_shards(run, runs.EXTRACTION, self.store):
                extraction.extract(shard, store=self.store)
        elif step == "plan captions":
            nights.plan_captions(run, store=self.store, date=f"2026-01-0{size}", shard_size=size)
        elif step == "caption":
            for shard in runs.recorded_shards(run, runs.CAPTIONS, self.store):
                captions.caption_shard(shard, store=self.store, decoding=DECODING, review_below=0.5)
        else:
            self.reconcile(run)

    def reconcile(self, run):
        """The last step of a night."""
        return reconcile.reconcile(
            run, store=self.store, max_failed_fraction=1, max_shrink_fraction=1, drift_limit=0.5, review_below=0.5
        )

    def crashing(self, step, crash):
        """Do it, and die at a write where ``crash`` says so; whether it came to its end."""
        self.store.crash_in, self.store.crash_after_write = crash or (None, False)
        try:
            step()
        except CrashError:
            return False
        finally:
            self.store.crash_in = None
        return True

    def rows(self):
        """Image, etag, model and status of every row of captions."""
        return [
            (row["image_key"], row["image_etag"], row["model_version"], row["status"])
            for item in self.store.list(layout.CAPTIONS)
            for row in parquet.read(item.key, self.store).to_pylist()
        ]


TestAnyHistory = Nights.TestCase
TestAnyHistory.settings = settings(max_examples=random_inputs(150), stateful_step_count=20)


MOMENTS = ("before the listing", *STEPS, "second look", "end")
"""Of a night: what arrives at one of them is there when the step begins."""

CHANGES = st.tuples(KEYS, st.one_of(st.none(), CONTENTS), st.sampled_from(MOMENTS))
"""Which photograph is written or removed, and when."""

TOO_LATE = [("a.jpg", b"2", "caption"), ("b.jpg", b"broken", "reconcile")]
CAME_BACK = [("a.jpg", None, "extract"), ("a.jpg", b"1", "plan captions")]


@settings(max_examples=random_inputs(100), deadline=None)
@given(
    listed=st.dictionaries(KEYS, CONTENTS, min_size=1),
    changes=st.lists(CHANGES, min_size=2, max_size=12),
    are_lost=st.booleans(),
)
@example(listed={"a.jpg": b"1"}, changes=TOO_LATE, are_lost=True)
@example(listed={"a.jpg": b"1"}, changes=CAME_BACK, are_lost=True)
def test_what_arrives_during_a_night_is_captioned_by_one_more(listed, changes, are_lost):
    """Whenever it arrives, and even if Airflow loses all reports that come before the second look."""
    machine = Nights()
    machine.promote("v1")
    for key, data in listed.items():
        machine.inbox.put(key, data)

    def arrive(moment):
        """Make the changes of a moment; whether a report of them queues the next night."""
        queued = False
        for key, data, when in changes:
            if when != moment:
                continue
            if data is None:
                machine.inbox.delete(key)
            else:
                machine.inbox.put(key, data)
                queued |= not are_lost or moment == "end"
        return queued

    def night(run):
        """A night; whether another one is queued at its end."""
        queued = arrive("before the listing") if run == "n1" else False
        options = nights.NightOptions(accept_smaller_inbox=True)
        nights.list_inbox(run, inbox=machine.inbox, store=machine.store, options=options)
        for step in STEPS:
            queued |= run == "n1" and arrive(step)
            machine.do(run, step, 3)
        queued |= run == "n1" and arrive("second look")
        queued |= count_arrivals(run, inbox=machine.inbox, store=machine.store, options=options) > 0
        return queued | (run == "n1" and arrive("end"))

    try:
        if night("n1"):
            assert not night("n2")
        rows = machine.rows()
        for item in machine.inbox.list():
            status = "failed" if machine.inbox.get(item.key) == b"broken" else "ok"
            assert (item.key, item.etag, "v1", status) in rows
        machine.nothing_is_captioned_twice()
    finally:
        for each in machine.patches:
            each.stop()


def test_the_inbox_of_these_tests_holds_photographs():
    """All keys drawn here are those of photographs: a listing passes over none."""
    assert all(is_image(f"{name}.jpg") for name in "abcdefghij")
