"""Decoding in processes of their own: limits that hold, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decoders import Decoders
from pipeline.data.images import BadImageError, decode
from tests.support import damaged_images
from tests.support.paths import PROJECT
from tests.support.processes import children, gone, suspend


def picture(seed=0):
    """A JPEG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    return damaged_images.encoded(Image.fromarray(pixels), "JPEG")


@pytest.fixture
def started():
    """The processes that were started since the test began, at each call."""
    before = set(children(os.getpid()))
    return lambda: sorted(set(children(os.getpid())) - before)


def test_pictures_are_those_that_decode_gives():
    """From many threads at once, each gets its own picture, as it would be without a process between."""
    pictures = [picture(seed) for seed in range(40)]
    with Decoders((20, 30)) as decoders, ThreadPoolExecutor(8) as threads:
        for data, found in zip(pictures, threads.map(decoders.decode, pictures), strict=True):
            np.testing.assert_array_equal(found, decode(data, (20, 30)))


def test_too_much_memory_is_an_error(tmp_path):
    """A picture that needs more than a process may take is refused, and the next one is decoded."""
    large = damaged_images.encoded(damaged_images.plain(size=(9000, 9000)), "PNG")
    with Decoders((20, 20), memory=200 << 20) as decoders:
        with pytest.raises(BadImageError, match="needs more memory than a picture may take; scale it down"):
            decoders.decode(large)
        assert decoders.decode(picture()).shape == (20, 20, 3)


def test_the_largest_picture_fits(monkeypatch):
    """As many pixels as Pillow lets through, with transparency, which takes most, stay within the usual limit."""
    large = damaged_images.encoded(
        damaged_images.plain("RGBA", size=(9450, 9450), colour=(*damaged_images.GREEN, 255)), "PNG"
    )
    with Decoders((8, 8)) as decoders:
        np.testing.assert_allclose(decoders.decode(large)[0, 0], damaged_images.GREEN, atol=2)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_dies_costs_one_picture(sent, started):
    """The picture that it died of fails with advice; another process decodes the next one."""
    with Decoders((20, 20)) as decoders:
        decoders.decode(picture())
        [pid] = started()
        suspend(pid)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(decoders.decode, picture())
            time.sleep(0.2)
            os.kill(pid, sent)
            os.kill(pid, signal.SIGCONT)
            with pytest.raises(BadImageError, match=rf"crashes the decoder \(status {-sent}\); save it again"):
                waiting.result()
        assert decoders.decode(picture()).shape == (20, 20, 3)


def test_nothing_is_left_behind(started):
    """At the end of the context there is no process any more."""
    with Decoders((20, 20)) as decoders, ThreadPoolExecutor(4) as threads:
        list(threads.map(decoders.decode, [picture()] * 8))
        pids = started()
        assert pids
    assert gone(pids)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_they_end_with_their_parent(sent):
    """A process that started decoders leaves none behind when it is killed or interrupted."""
    code = f"""
import time
from pipeline.data.decoders import Decoders
decoders = Decoders((20, 20))
decoders.decode(bytes.fromhex({picture().hex()!r}))
print("ready", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b"ready\n"
    started = children(process.pid)
    assert started
    process.send_signal(sent)
    process.wait()
    process.stdout.close()
    assert gone(started)


def test_they_load_little():
    """A process imports NumPy and Pillow, and nothing that takes long to load."""
    code = """
import sys
import pipeline.data.decoders, pipeline.data.images
print([name for name in ("keras", "openvino", "pyarrow", "boto3", "pydantic", "airflow") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
