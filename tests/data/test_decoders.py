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

from pipeline.data import decoders as module
from pipeline.data.decoders import Decoders, DecodersBusyError, DecoderStartError, Thumbnails
from pipeline.data.images import BadImageError, SlowImageError, decode
from tests.support import damaged_images
from tests.support.decoder_code import AT_A_MARK, CANNOT_START, MARK, in_decoders
from tests.support.paths import PROJECT
from tests.support.processes import children, gone, stat, suspend
from tests.support.waiting import wait_for


def picture(seed=0, *, size=(60, 80), form="JPEG"):
    """A picture of noise, of a size (height, width)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    return damaged_images.encoded(Image.fromarray(pixels), form)


@pytest.fixture
def started():
    """The processes that were started since the test began, at each call."""
    before = set(children(os.getpid()))
    return lambda: sorted(set(children(os.getpid())) - before)


@pytest.fixture
def decoders_run(tmp_path, monkeypatch):
    """Make decoders run some code first; returns a function that ends that."""

    def run(code):
        for name, value in in_decoders(code, tmp_path / "code").items():
            monkeypatch.setenv(name, value)
        return (tmp_path / "code" / "sitecustomize.py").unlink

    return run


def test_pictures_are_those_that_decode_gives():
    """From many threads at once, each gets its own picture, as it would be without a process between."""
    pictures = [picture(seed) for seed in range(40)]
    with Decoders((20, 30)) as decoders, ThreadPoolExecutor(8) as threads:
        for data, found in zip(pictures, threads.map(decoders.decode, pictures), strict=True):
            np.testing.assert_array_equal(found.pixels, decode(data, (20, 30)).pixels)
            assert (found.width, found.height) == (80, 60)


def test_pixels_are_put_where_they_are_wanted():
    """Into an array of several pictures, of which the others stay as they are."""
    batch = np.full((3, 20, 30, 3), 7, np.uint8)
    with Decoders((20, 30)) as decoders:
        found = decoders.decode(picture(), out=batch[1])
        assert np.shares_memory(found.pixels, batch)
        np.testing.assert_array_equal(batch[1], decode(picture(), (20, 30)).pixels)
        assert (batch[[0, 2]] == 7).all()
        with pytest.raises(BadImageError, match="the file is empty"):
            decoders.decode(b"", out=batch[0])
        assert (batch[0] == 7).all()


def test_large_files_and_small_ones_take_turns(monkeypatch):
    """A seat that has given its memory back takes the next picture, be it smaller or larger."""
    monkeypatch.setattr(module, "KEPT", 5000)
    large = damaged_images.encoded(
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 90, 3), np.uint8)), "PNG"
    )
    small = damaged_images.encoded(damaged_images.plain(size=(9, 9)), "PNG")
    assert len(small) < module.KEPT < len(large)
    with Decoders((90, 90)) as decoders:
        for data in [small, large] * 4:
            np.testing.assert_array_equal(decoders.decode(data).pixels, decode(data, (90, 90)).pixels)


def test_without_shared_memory(monkeypatch):
    """Systems without such files have temporary ones, with the same pixels."""

    def missing(_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(module.os, "memfd_create", missing)
    with Decoders((20, 30)) as decoders:
        np.testing.assert_array_equal(decoders.decode(picture()).pixels, decode(picture(), (20, 30)).pixels)


@pytest.mark.parametrize("act", ["all(time.process_time() < 60 for _ in iter(int, 1))", "os.kill(os.getpid(), 9)"])
def test_pictures_that_wait_in_a_process_that_ends(act, decoders_run, monkeypatch, started):
    """They are decoded by its successor, though more hostile ones come between them, and only these fail."""
    decoders_run(AT_A_MARK.format(act=f"import os, time; {act}"))
    monkeypatch.setattr(module.os, "cpu_count", lambda: 1)
    pictures = [picture(seed) for seed in range(9)]
    with Decoders((20, 20), seconds=0.5) as decoders, ThreadPoolExecutor(module.SEATS + 2) as threads:
        found = []
        for number, data in enumerate(pictures):
            if number % 3 == 0:
                found.append((None, threads.submit(decoders.decode, data + MARK)))
            found.append((data, threads.submit(decoders.decode, data)))
        for data, future in found:
            if data is None:
                with pytest.raises(BadImageError, match=r"takes longer than 0\.5 s|killed twice"):
                    future.result()
            else:
                np.testing.assert_array_equal(future.result().pixels, decode(data, (20, 20)).pixels)
        assert len(started()) <= 1


def test_an_answer_that_nobody_waits_for(decoders_run, monkeypatch):
    """After an interruption, the next picture gets its own pixels, and not those of the one before."""
    decoders_run(AT_A_MARK.format(act="import time; time.sleep(0.3)"))
    monkeypatch.setattr(module.os, "cpu_count", lambda: 1)
    with Decoders((20, 20)) as decoders:
        decoders.decode(picture())
        with monkeypatch.context() as patch:

            def interrupted(*_):
                raise KeyboardInterrupt

            patch.setattr(module.os, "read", interrupted)
            with pytest.raises(KeyboardInterrupt):
                decoders.decode(picture(1) + MARK)
        for seed in range(2, 2 + module.SEATS):
            np.testing.assert_array_equal(decoders.decode(picture(seed)).pixels, decode(picture(seed), (20, 20)).pixels)


def test_the_process_with_the_fewest_pictures_gets_the_next(decoders_run, started):
    """No process has two pictures while another has none; and one picture after the other needs one process."""
    decoders_run(AT_A_MARK.format(act="import time; time.sleep(0.5)"))
    with Decoders((20, 20)) as decoders, ThreadPoolExecutor(os.cpu_count()) as threads:
        for seed in range(4):
            decoders.decode(picture(seed))
        assert len(started()) == 1
        futures = [threads.submit(decoders.decode, picture() + MARK) for _ in range(os.cpu_count())]
        wait_for("pictures", lambda: sum(worker.pictures for worker in decoders._workers) == len(futures), 60)
        assert [worker.pictures for worker in decoders._workers] == [1] * os.cpu_count()
        for each in futures:
            each.result()
        assert [worker.pictures for worker in decoders._workers] == [0] * os.cpu_count()


def test_too_much_memory_is_an_error(tmp_path):
    """A picture that needs more than a process may take is refused, and the next one is decoded."""
    large = damaged_images.encoded(damaged_images.plain(size=(9000, 9000)), "PNG")
    with Decoders((20, 20), memory=200 << 20) as decoders:
        with pytest.raises(BadImageError, match="needs more memory than a picture may take; scale it down"):
            decoders.decode(large)
        assert decoders.decode(picture()).pixels.shape == (20, 20, 3)


def test_the_largest_picture_fits(monkeypatch):
    """As many pixels as Pillow lets through, with transparency, which takes most, stay within the usual limit."""
    large = damaged_images.encoded(
        damaged_images.plain("RGBA", size=(9450, 9450), colour=(*damaged_images.GREEN, 255)), "PNG"
    )
    with Decoders((8, 8)) as decoders:
        np.testing.assert_allclose(decoders.decode(large).pixels[0, 0], damaged_images.GREEN, atol=2)


def test_the_memory_that_others_left_behind(decoders_run):
    """A picture that fails only because earlier ones have used up the memory of the process is decoded in another."""
    decoders_run(AT_A_MARK.format(act="Image.left_behind = bytearray(200 << 20)"))
    large = damaged_images.encoded(damaged_images.plain(size=(4500, 4500)), "PNG")
    with Decoders((20, 20), memory=300 << 20) as decoders:
        decoders.decode(picture() + MARK)
        np.testing.assert_allclose(decoders.decode(large).pixels[0, 0], damaged_images.GREEN, atol=2)


def test_a_process_keeps_its_memory_for_the_next_picture(started):
    """A file of two megabytes, again and again, costs no page faults."""
    large = picture(size=(800, 1000), form="PNG")
    with Decoders((20, 20)) as decoders:
        faults = []
        for _ in range(6):
            decoders.decode(large)
            [pid] = started()
            faults.append(int(stat(pid)[7]))
    assert faults[-1] - faults[1] < len(large) / os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_dies_costs_no_picture(sent, started):
    """The picture is decoded by another process."""
    with Decoders((20, 20)) as decoders:
        decoders.decode(picture())
        [pid] = started()
        suspend(pid)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(decoders.decode, picture(1))
            time.sleep(0.2)
            os.kill(pid, sent)
            os.kill(pid, signal.SIGCONT)
            np.testing.assert_array_equal(waiting.result().pixels, decode(picture(1), (20, 20)).pixels)
        assert decoders.decode(picture()).pixels.shape == (20, 20, 3)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (signal.SIGKILL, r"killed twice, probably because the machine ran out of memory; scale it down, or give"),
        (signal.SIGSEGV, r"crashes the decoder \(status -11\); save it again with another program"),
    ],
)
def test_a_picture_at_which_two_processes_die_fails(sent, error, decoders_run, started):
    """Others that are decoded at the same time do not, and no process is lost."""
    decoders_run(AT_A_MARK.format(act=f"import os; os.kill(os.getpid(), {sent})"))
    pictures = [picture(seed) for seed in range(12)]
    with Decoders((20, 20)) as decoders, ThreadPoolExecutor(4) as threads:
        deadly = [threads.submit(decoders.decode, picture() + MARK) for _ in range(3)]
        for data, found in zip(pictures, threads.map(decoders.decode, pictures), strict=True):
            np.testing.assert_array_equal(found.pixels, decode(data, (20, 20)).pixels)
        for each in deadly:
            with pytest.raises(BadImageError, match=error):
                each.result()
        assert len(started()) <= os.cpu_count()


def test_a_slow_machine_fails_no_picture(decoders_run):
    """Only a picture's own computing counts: not the time in which its process waits."""
    decoders_run(AT_A_MARK.format(act="import time; time.sleep(0.5)"))
    with Decoders((20, 20), seconds=0.4) as decoders:
        assert decoders.decode(picture() + MARK).pixels.shape == (20, 20, 3)


def test_a_thumbnail_does_not_wait_without_a_limit(decoders_run):
    """While pictures that need long keep all processes busy, the others are refused; then they are made again."""
    end = decoders_run(AT_A_MARK.format(act="import time; all(time.process_time() < 60 for _ in iter(int, 1))"))
    with Thumbnails(20, seconds=2, wait=0.2) as thumbnails, ThreadPoolExecutor(os.cpu_count()) as threads:
        slow = [threads.submit(thumbnails.thumbnail, picture() + MARK) for _ in range(os.cpu_count())]
        wait_for("busy processes", lambda: all(each.pictures for each in thumbnails._workers), 60)
        with pytest.raises(DecodersBusyError, match="No decoder was free within 0\\.2 s"):
            thumbnails.thumbnail(picture())
        for each in slow:
            with pytest.raises(SlowImageError):
                each.result()
        end()
        assert thumbnails.thumbnail(picture())[:2] == b"\xff\xd8"


def test_a_picture_may_have_a_limit_of_its_own(decoders_run):
    """It has no effect on the next picture, which has that of the pool."""
    computing = "import time; all(time.process_time() < 0.6 for _ in iter(int, 1))"
    decoders_run(AT_A_MARK.format(act=computing))
    with Decoders((20, 20)) as decoders:
        with pytest.raises(SlowImageError, match=r"takes longer than 0\.1 s to decode; save it again with another"):
            decoders.decode(picture() + MARK, seconds=0.1)
        assert decoders.decode(picture() + MARK).pixels.shape == (20, 20, 3)


NO_WEBP = "from PIL import features; features.modules['webp'] = ('PIL.missing', None)"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (CANNOT_START, r"\(status 1\): libjpeg\.so\.62: cannot open shared object file\. Check its free memory.*again"),
        (NO_WEBP, r"\(status 1\): Pillow lacks webp\. Check"),
        ("import os; os.kill(os.getpid(), 9)", r"\(status -9\): no output\. Check"),
    ],
    ids=["library", "format", "killed"],
)
def test_a_process_that_cannot_start_is_no_fault_of_a_picture(code, error, decoders_run):
    """The error has what the process wrote, and what to do; once it can start, pictures are decoded."""
    repair = decoders_run(code)
    with Decoders((20, 20)) as decoders:
        for _ in range(os.cpu_count() + 1):
            with pytest.raises(DecoderStartError, match=error):
                decoders.decode(picture())
        repair()
        assert decoders.decode(picture()).pixels.shape == (20, 20, 3)


def test_a_machine_without_processes(monkeypatch):
    """So is a machine that can't start any process."""

    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(module.subprocess, "Popen", refuse)
    with Decoders((20, 20)) as decoders, pytest.raises(DecoderStartError, match="Resource temporarily unavailable"):
        decoders.decode(picture())


def test_a_system_that_cannot_limit_memory(decoders_run):
    """Pictures are decoded without that limit, as on macOS."""
    decoders_run("""
import resource
def refuse(which, limits, set=resource.setrlimit):
    if which == resource.RLIMIT_DATA:
        raise ValueError("current limit exceeds maximum limit")
    set(which, limits)
resource.setrlimit = refuse
""")
    with Decoders((20, 20)) as decoders:
        assert decoders.decode(picture()).pixels.shape == (20, 20, 3)


def test_nothing_is_left_behind(started):
    """At the end of the context there is no process any more."""
    with Decoders((20, 20)) as decoders, ThreadPoolExecutor(4) as threads:
        list(threads.map(decoders.decode, [picture()] * 8))
        pids = started()
        assert pids
    assert gone(pids)


def test_pictures_after_the_end():
    """After the processes were ended, the next picture starts others."""
    with Thumbnails(8, wait=0) as thumbnails:
        first = thumbnails.thumbnail(picture())
        thumbnails.close()
        assert thumbnails.thumbnail(picture()) == first


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
