"""Captions for a web page, from a process that stays: right ones, and whatever happens the next picture has its own."""

import fcntl
import io
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import toy
from PIL import Image
from processes import gone

from pipeline import on_demand, pipes, registry
from pipeline.caption_worker import (
    BadPictureError,
    BusyError,
    CaptionWorker,
    TimeLimitError,
    UnavailableError,
)
from pipeline.captioner import load_metadata
from pipeline.images import MAX_BYTES
from pipeline.recipe import Search
from pipeline.storage import open_bucket

PROJECT = Path(__file__).resolve().parents[1]

HEAVY = ("keras", "tensorflow", "numpy", "openvino", "PIL", "pandas", "pyarrow")


def promoted(trained, folder):
    """A store in a folder, whose champion is the toy world's model."""
    store = open_bucket(str(folder))
    toy.copy(trained.store, store, "models/", "encoders/")
    registry.promote(trained.model.version, store)
    return store


def environment(store, **changes):
    """The environment of a process that captions by a store."""
    return lambda: {**os.environ, "CAPTION_STORE": store.uri, **changes}


@pytest.fixture(scope="module")
def store(trained, tmp_path_factory):
    """A store whose champion is the toy world's model."""
    return promoted(trained, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def worker(store):
    """A worker that captions by that store."""
    with CaptionWorker(environment=environment(store)) as worker:
        yield worker


def pid(worker):
    """The process that a worker has started."""
    return worker._process.pid


def sent(worker):
    """How many bytes its process has been sent and not read."""
    return int.from_bytes(fcntl.ioctl(worker._process.stdin, termios.FIONREAD, bytes(4)), sys.byteorder)


def colour(answer):
    """The colour that the best caption names."""
    [named] = set(toy.COLOURS) & set(answer.captions[0].caption.split())
    return named


def encoded(image, form):
    """A picture as bytes."""
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def copy_model(trained, version, store, **changes):
    """Store the model under another version, with changes to its metadata."""
    for item in trained.store.list(f"models/{trained.model.version}/"):
        store.put(item.key.replace(trained.model.version, version), trained.store.get(item.key))
    metadata = load_metadata(trained.model.version, store).model_copy(update={"version": version, **changes})
    store.put(f"models/{version}/metadata.json", metadata.model_dump_json().encode())


def to_fifo(store, version):
    """Put a pipe in the place of a model's metadata, so that loading it hangs until somebody writes; and its path."""
    path = store.root / "models" / version / "metadata.json"
    path.unlink()
    os.mkfifo(path)
    return path


def test_captions_are_those_of_the_command_line(worker, trained, store, tmp_path):
    """The champion's captions and probabilities, the best first, as `caption --alternatives 4` has them."""
    for name in toy.COLOURS:
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(toy.picture(name))
        answer = worker.caption(path.read_bytes())
        [expected] = on_demand.caption([str(path)], version=None, search=Search(), alternatives=4, store=store)
        assert answer.version == trained.model.version
        assert colour(answer) == name
        assert [found.caption for found in answer.captions] == [caption.text for caption in expected.captions]
        for of in ("log_prob", "probability"):
            wanted = [getattr(caption, of) for caption in expected.captions]
            assert [getattr(found, of) for found in answer.captions] == pytest.approx(wanted, rel=1e-4)
        log_probs = [found.log_prob for found in answer.captions]
        assert len(log_probs) == 5
        assert log_probs == sorted(log_probs, reverse=True)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "the file is empty"),
        (b"no picture", "not a picture in a known format"),
        (toy.picture("red")[:300], "cannot be decoded"),
        (encoded(Image.new("1", (9500, 9500)), "PNG"), "more than 89 million pixels; scale it down"),
        (bytes(MAX_BYTES + 1), "larger than 64 MB; scale it down"),
    ],
    ids=["empty", "text", "truncated", "bomb", "large"],
)
def test_what_is_no_picture_is_said(data, error, worker):
    """A bad picture has its error, and costs no other its caption, nor the process its life."""
    worker.caption(toy.picture("red"))
    before = pid(worker)
    with pytest.raises(BadPictureError, match=error):
        worker.caption(data)
    assert colour(worker.caption(toy.picture("blue"))) == "blue"
    assert pid(worker) == before


def test_each_thread_gets_its_own_answer(worker):
    """Callers at the same time take turns, and none has another's captions."""
    names = [*toy.COLOURS, *toy.COLOURS]
    with ThreadPoolExecutor(len(names)) as threads:
        answers = threads.map(lambda name: worker.caption(toy.picture(name)), names)
        assert [colour(answer) for answer in answers] == names


def test_a_dead_process_is_replaced(worker):
    """Killed between two pictures, it costs none; killed at one, it costs that one alone."""
    worker.caption(toy.picture("red"))
    os.kill(pid(worker), signal.SIGKILL)
    os.waitid(os.P_PID, pid(worker), os.WEXITED | os.WNOWAIT)
    assert colour(worker.caption(toy.picture("green"))) == "green"
    os.kill(pid(worker), signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        caption = threads.submit(worker.caption, toy.picture("red"))
        while not sent(worker):
            time.sleep(0.01)
        os.kill(pid(worker), signal.SIGKILL)
        with pytest.raises(UnavailableError, match="ended with status -9; its log says why"):
            caption.result()
    assert colour(worker.caption(toy.picture("yellow"))) == "yellow"


def test_a_picture_that_hangs_is_given_up(worker, monkeypatch):
    """The process is killed after the limit, even one that does not read; the next picture has captions."""
    for data in (toy.picture("red"), bytes(1_000_000)):
        worker.caption(toy.picture("red"))
        stopped = pid(worker)
        os.kill(stopped, signal.SIGSTOP)
        with monkeypatch.context() as patch, pytest.raises(TimeLimitError, match=r"No captions within 0\.5 s"):
            patch.setattr(worker, "seconds", 0.5)
            worker.caption(data)
        assert gone([stopped])
    assert colour(worker.caption(toy.picture("blue"))) == "blue"


def test_an_answer_that_was_not_heard_is_nobodys(worker, monkeypatch):
    """Where a caller is interrupted, the next picture has its own captions, and not those of the one before."""
    worker.caption(toy.picture("red"))

    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipes, "receive", interrupt)
        worker.caption(toy.picture("red"))
    assert colour(worker.caption(toy.picture("blue"))) == "blue"


def test_too_many_are_turned_away_at_once(worker):
    """One is served and eight wait; the tenth is told so, and the nine have their captions."""
    worker.caption(toy.picture("red"))
    os.kill(pid(worker), signal.SIGSTOP)
    with ThreadPoolExecutor(10) as threads:
        callers = {threads.submit(worker.caption, toy.picture("red")) for _ in range(10)}
        [refused], others = wait(callers, return_when=FIRST_COMPLETED)
        os.kill(pid(worker), signal.SIGCONT)
        with pytest.raises(BusyError, match="try again"):
            refused.result()
        assert [colour(caller.result()) for caller in others] == ["red"] * 9
    assert colour(worker.caption(toy.picture("green"))) == "green"


def test_a_new_champion_captions_the_next_picture(worker, trained, store, monkeypatch):
    """Without another process; the time of its loading, however long, is not the picture's; and so back again."""
    copy_model(trained, "second", store, max_length=1)
    before = worker.caption(toy.picture("red"))
    process = pid(worker)
    registry.promote("second", store)
    metadata = store.get("models/second/metadata.json")
    pipe = to_fifo(store, "second")
    monkeypatch.setattr(worker, "seconds", 1)
    slow = threading.Timer(2, pipe.write_bytes, [metadata])
    slow.start()
    answer = worker.caption(toy.picture("red"))
    slow.join()
    pipe.unlink()
    store.put("models/second/metadata.json", metadata)
    assert answer.version == "second"
    assert len(answer.captions[0].caption.split()) == 1
    registry.roll_back(store)
    monkeypatch.undo()
    assert worker.caption(toy.picture("red")) == before
    assert pid(worker) == process


def test_without_a_champion_it_is_said_what_to_do(trained, tmp_path):
    """Each picture is told; as soon as there is a champion it captions, in the process that was begun before."""
    store = open_bucket(str(tmp_path / "store"))
    with CaptionWorker(environment=environment(store)) as worker:
        worker.warm()
        process = pid(worker)
        for _ in range(2):
            with pytest.raises(UnavailableError, match=r"No model has been promoted .* trigger retrain_captioner"):
                worker.caption(toy.picture("red"))
        promoted(trained, tmp_path / "store")
        assert colour(worker.caption(toy.picture("red"))) == "red"
        assert pid(worker) == process


def test_a_process_that_cannot_start_is_said(store):
    """Wrong settings, an end at its start, and a start that takes too long; and once that is mended, captions come."""
    environments = iter(
        [
            environment(store, CAPTION_BEAM_WIDTH="wide")(),
            environment(store, CAPTION_BEAM_WIDTH="wide")(),
            environment(store, PYTHONHOME="/nowhere")(),
            environment(store)(),
            environment(store)(),
        ]
    )
    with CaptionWorker(environment=lambda: next(environments)) as worker:
        for _ in range(2):
            with pytest.raises(UnavailableError, match="wrong settings: CAPTION_BEAM_WIDTH"):
                worker.caption(toy.picture("red"))
        with pytest.raises(UnavailableError, match="ended with status 1; its log says why"):
            worker.caption(toy.picture("red"))
        worker.start_seconds = 0.1
        with pytest.raises(TimeLimitError, match=r"within 0\.1 s"):
            worker.caption(toy.picture("red"))
        worker.start_seconds = 120
        assert colour(worker.caption(toy.picture("red"))) == "red"


def test_it_ends_when_nobody_needs_it(store):
    """After some time without a picture it is gone; the next picture starts another."""
    with CaptionWorker(environment=environment(store), idle_seconds=2) as worker:
        worker.caption(toy.picture("red"))
        assert gone([pid(worker)])
        assert colour(worker.caption(toy.picture("blue"))) == "blue"


NOISY = """
import os, sys
sys.addaudithook(lambda event, what: event == "import" and what[0] == "keras" and os.write(1, b"a noise\\n"))
"""


def test_what_libraries_print_spoils_no_answer(store, tmp_path, capfd):
    """It goes to the log. And of a narrow beam there are as many alternatives as it holds."""
    (tmp_path / "sitecustomize.py").write_text(NOISY)
    noisy = environment(store, PYTHONPATH=str(tmp_path), CAPTION_BEAM_WIDTH="2")
    with CaptionWorker(environment=noisy) as worker:
        assert len(worker.caption(toy.picture("red")).captions) == 2
    said = capfd.readouterr()
    assert "a noise" in said.err
    assert said.out == ""


def serve_page(code):
    """A process that has a worker, as the server of a page would; its output is to be read."""
    code = f"""
import sys
from pipeline.caption_worker import CaptionWorker
worker = CaptionWorker()
{code}
print(worker._process.pid, *[name for name in {HEAVY} if name in sys.modules], flush=True)
sys.stdin.read()
"""
    return [sys.executable, "-c", code]


CAPTION = f"worker.caption(bytes.fromhex({toy.picture('red').hex()!r}))"


def test_whoever_serves_the_page_loads_nothing_heavy(store):
    """Neither Keras nor NumPy nor what goes with them; and when it ends so does what it has started."""
    done = subprocess.run(
        serve_page(CAPTION), cwd=PROJECT, env=environment(store)(), input=b"", stdout=subprocess.PIPE, check=True
    )
    [process, *heavy] = done.stdout.split()
    assert heavy == []
    assert gone([int(process)])


@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_with_whoever_started_it(busy, trained, tmp_path):
    """Idle or busy without end, it does not outlive a killed server."""
    store = promoted(trained, tmp_path / "store")
    # Opened for writing as soon as the process has opened it, which then waits for what never comes.
    pipe = to_fifo(store, trained.model.version) if busy else os.devnull
    server = subprocess.Popen(
        serve_page("worker.warm()" if busy else CAPTION),
        cwd=PROJECT,
        env=environment(store)(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with server, open(pipe, "wb"):
        process = int(server.stdout.readline())
        server.kill()
        server.wait()
        assert gone([process])
