"""Attacks on the gallery of a running Airflow, while which the API server must answer the heartbeats of tasks."""

import os
import statistics
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from urllib.parse import urlencode

import psutil
import pytest
from PIL import Image

from pipeline.data.images import MAX_PIXELS
from pipeline.storage import open_bucket
from tests.support import secrets, toy
from tests.support.airflow_server import start_airflow
from tests.support.damaged_images import encoded
from tests.support.long_history import write_history
from tests.support.waiting import wait_for

pytestmark = pytest.mark.airflow

MEMORY = 400 << 20
"""Bytes that an attack may leave behind in the API server and its decoders: those of one bomb."""


class Gallery:
    """The gallery of a running Airflow, with a store of years, and an inbox with hostile files."""

    def __init__(self, server, store):
        self.server, self.store = server, store

    def get(self, path, seconds=60.0):
        """The status of a GET."""
        request = urllib.request.Request(  # noqa: S310 - always http
            self.server.url + path, headers={"Authorization": f"Bearer {self.server.token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=seconds) as response:  # noqa: S310
                response.read()
                return response.status
        except urllib.error.HTTPError as error:
            error.read()
            return error.code

    def memory(self):
        """The memory of Airflow's processes and of the gallery's decoders, in bytes."""
        total = 0
        for process in psutil.process_iter():
            try:
                if process.environ().get("CAPTION_STORE") == self.store.uri:
                    total += process.memory_info().rss
            except psutil.Error:  # it has ended, or is not ours to look at
                continue
        return total


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """An Airflow whose store and inbox are folders."""
    folder = tmp_path_factory.mktemp("attacks")
    store, inbox = open_bucket(str(folder / "store")), open_bucket(str(folder / "inbox"))
    toy.copy(write_history(), store, "captions/")
    inbox.put("bomb.png", encoded(Image.new("RGB", (9000, MAX_PIXELS // 9000)), "PNG"))
    os.mkfifo(inbox.root / "pipe.jpg")
    (inbox.root / "zero.jpg").symlink_to("/dev/zero")
    environment = {**secrets.without_credentials(), "CAPTION_STORE": store.uri, "CAPTION_INBOX": inbox.uri}
    with start_airflow(folder / "airflow", environment) as server:
        yield Gallery(server, store)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("image?" + urlencode({"key": "unknown.jpg"}), 60),
        ("image?" + urlencode({"key": "2024/01/05/zzz.jpg", "night": "2024-01-05"}), 60),
        ("?" + urlencode({"words": "xylophone"}), 60),
        ("thumbnail?" + urlencode({"key": "pipe.jpg"}), 45),
        ("thumbnail?" + urlencode({"key": "zero.jpg"}), 45),
        ("thumbnail?" + urlencode({"key": "bomb.png"}), 42),
        ("thumbnail?" + urlencode({"key": "bomb.png", "whole": "true"}), 42),
    ],
    ids=["unknown picture", "unknown in a night", "search", "pipe", "device", "bomb", "large bomb"],
)
def test_airflow_answers_under_attack(gallery, path, number):
    """Whatever the gallery is asked at once, its host answers within two seconds; and the memory comes back.

    Where other work keeps the machine busy, single answers may take longer; a gallery without limits blocks all of them
    for half a minute.
    """
    assert gallery.get("/captions/static/gallery.css") == 200
    before, seconds = gallery.memory(), []
    with ThreadPoolExecutor(number) as viewers:
        requests = [viewers.submit(gallery.get, f"/captions/{path}") for _ in range(number)]
        while wait(requests, timeout=0.2).not_done:
            start = time.monotonic()
            assert gallery.get("/api/v2/version", seconds=15) == 200
            seconds.append(time.monotonic() - start)
    assert statistics.median(seconds or [0]) < 2
    answers = Counter(request.result() for request in requests)
    assert set(answers) <= {200, 404, 503, 504}, answers
    # A picture that nobody waits for any more is decoded to its end.
    wait_for("the memory of the attack", lambda: gallery.memory() - before < MEMORY)
