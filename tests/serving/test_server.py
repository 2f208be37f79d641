"""The captioning server and its client: right captions, and each picture gets its own, whatever happens before it."""

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

import pytest
from PIL import Image

from pipeline import pipes
from pipeline.captioner import registry
from pipeline.captioner.metadata import load_metadata
from pipeline.config import DecodingConfig
from pipeline.data.images import MAX_BYTES
from pipeline.serving import on_demand
from pipeline.serving.client import BadPictureError, BusyError, CaptionClient, TimeLimitError, UnavailableError
from pipeline.storage import json, layout, open_bucket
from tests.support import toy
from tests.support.decoder_code import CANNOT_START, in_decoders
from tests.support.paths import PROJECT
from tests.support.processes import gone, own_python, suspend

HEAVY = ("keras", "tensorflow", "numpy", "openvino", "PIL", "pandas", "pyarrow")


def promoted(trained, folder):
    """A store in a folder, whose champion is the model of the toy world."""
    store = open_bucket(str(folder))
    toy.copy(trained.store, store, "models/", "encoders/")
    registry.promote(trained.model.version, store)
    return store


def environment(store, **changes):
    """The environment of a server that uses this store."""
    return {**os.environ, "CAPTION_STORE": store.uri, **changes}


def server(store, **changes):
    """Return how a server that uses this store is run."""
    return lambda: own_python(environment(store, **changes))


@pytest.fixture(scope="module")
def store(trained, tmp_path_factory):
    """A store whose champion is the model of the toy world."""
    return promoted(trained, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """Where a named pipe is put to hold up decoders."""
    return tmp_path_factory.mktemp("pipe") / "pipe"


@pytest.fixture(scope="module")
def holding(pipe):
    """Variables with which decoders, and the server that starts one, wait for a writer to the pipe, if there is one."""
    return in_decoders(
        f"import os\nif os.path.exists({str(pipe)!r}):\n    open({str(pipe)!r}).close()", pipe.with_name("code")
    )


@pytest.fixture(scope="module")
def client(store, holding):
    """A client whose server uses that store."""
    with CaptionClient(server(store, **holding)) as client:
        yield client


def pid(client):
    """The server that a client has started."""
    return client._process.pid


def sent(client):
    """How many bytes were sent to the server that it has not read."""
    return int.from_bytes(fcntl.ioctl(client._process.stdin, termios.FIONREAD, bytes(4)), sys.byteorder)


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
    for item in trained.store.list(f"{layout.model_folder(trained.model.version)}/"):
        store.put(item.key.replace(trained.model.version, version), trained.store.get(item.key))
    metadata = load_metadata(trained.model.version, store).model_copy(update={"version": version, **changes})
    json.write(metadata, layout.model_metadata(version), store)


def test_the_captions_are_those_on_demand(client, trained, store, tmp_path):
    """The champion's captions and probabilities are those of `caption --alternatives 4`, the best first."""
    for name in toy.COLOURS:
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(toy.picture(name))
        answer = client.caption(path.read_bytes())
        [expected] = on_demand.caption(
            [str(path)], version=None, decoding=DecodingConfig(), alternatives=4, store=store
        )
        assert answer.version == trained.model.version
        assert colour(answer) == name
        assert [found.caption for found in answer.captions] == [caption.text for caption in expected.captions]
        for name_of in ("log_prob", "probability"):
            wanted = [getattr(caption, name_of) for caption in expected.captions]
            assert [getattr(found, name_of) for found in answer.captions] == pytest.approx(wanted, rel=1e-4)
        assert len(answer.captions) == 5


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "the file is empty"),
        (b"no picture", "not a picture in a known format"),
        (toy.picture("red")[:300], "cannot be decoded"),
        (encoded(Image.new("1", (9500, 9500)), "PNG"), "more than 90 million pixels; scale it down"),
        (bytes(MAX_BYTES + 1), "larger than 64 MB; scale it down"),
    ],
    ids=["empty", "text", "truncated", "bomb", "large"],
)
def test_a_bad_picture(data, error, client):
    """A bad picture has its error; the server captions the next picture."""
    client.caption(toy.picture("red"))
    before = pid(client)
    with pytest.raises(BadPictureError, match=error):
        client.caption(data)
    assert colour(client.caption(toy.picture("blue"))) == "blue"
    assert pid(client) == before


def test_each_thread_gets_its_own_answer(client):
    """Concurrent callers take turns, and each gets the captions of its own picture."""
    names = [*toy.COLOURS, *toy.COLOURS]
    with ThreadPoolExecutor(len(names)) as threads:
        answers = threads.map(lambda name: client.caption(toy.picture(name)), names)
        assert [colour(answer) for answer in answers] == names


def test_a_dead_server_is_replaced(client):
    """If it dies between two pictures, no caption is lost; if it dies at a picture, only that one is."""
    client.caption(toy.picture("red"))
    os.kill(pid(client), signal.SIGKILL)
    os.waitid(os.P_PID, pid(client), os.WEXITED | os.WNOWAIT)
    assert colour(client.caption(toy.picture("green"))) == "green"
    suspend(pid(client))
    with ThreadPoolExecutor(1) as threads:
        caption = threads.submit(client.caption, toy.picture("red"))
        while not sent(client):
            time.sleep(0.01)
        os.kill(pid(client), signal.SIGKILL)
        with pytest.raises(UnavailableError, match="ended with status -9: the API server's log says why"):
            caption.result()
    assert colour(client.caption(toy.picture("yellow"))) == "yellow"


def test_the_time_of_a_picture_is_limited(client, monkeypatch):
    """A server that hangs is killed after the limit, even one that does not read; the next picture has captions."""
    for data in (toy.picture("red"), bytes(1_000_000)):
        assert colour(client.caption(toy.picture("blue"))) == "blue"
        stopped = pid(client)
        suspend(stopped)
        with monkeypatch.context() as patch, pytest.raises(TimeLimitError, match=r"No captions within 0\.5 s"):
            patch.setattr(client, "seconds", 0.5)
            client.caption(data)
        assert gone([stopped])


def test_an_interrupted_caller_leaves_no_answer_behind(client, monkeypatch):
    """After a caller was interrupted, the next picture gets its own captions, not those of the one before."""
    client.caption(toy.picture("red"))

    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipes, "receive", interrupt)
        client.caption(toy.picture("red"))
    assert colour(client.caption(toy.picture("blue"))) == "blue"


def test_the_number_of_waiting_pictures_is_limited(client):
    """One is captioned and eight wait; the tenth is refused at once, and the nine get their captions."""
    client.caption(toy.picture("red"))
    suspend(pid(client))
    with ThreadPoolExecutor(10) as threads:
        callers = {threads.submit(client.caption, toy.picture("red")) for _ in range(10)}
        [refused], others = wait(callers, return_when=FIRST_COMPLETED)
        os.kill(pid(client), signal.SIGCONT)
        with pytest.raises(BusyError, match="try again"):
            refused.result()
        assert [colour(caller.result()) for caller in others] == ["red"] * 9
    assert colour(client.caption(toy.picture("green"))) == "green"


def test_a_new_champion_captions_the_next_picture(client, trained, store, pipe, monkeypatch):
    """The same server loads it; the time of loading does not count as that of the picture. A rollback works alike."""
    copy_model(trained, "second", store, max_length=1)
    before = client.caption(toy.picture("red"))
    process = pid(client)
    registry.promote("second", store)
    os.mkfifo(pipe)
    monkeypatch.setattr(client, "seconds", 1)
    slow = threading.Timer(2, pipe.write_bytes, [b""])
    slow.start()
    answer = client.caption(toy.picture("red"))
    slow.join()
    pipe.unlink()
    assert answer.version == "second"
    assert len(answer.captions[0].caption.split()) == 1
    registry.roll_back(store)
    monkeypatch.undo()
    assert client.caption(toy.picture("red")) == before
    assert pid(client) == process


def test_a_model_of_choice(client, trained, store):
    """The server loads it for a picture, and the champion again for the next; a model that is not there is an error."""
    copy_model(trained, "other", store, max_length=1)
    before = client.caption(toy.picture("red"))
    process = pid(client)
    answer = client.caption(toy.picture("red"), "other")
    assert (answer.version, len(answer.captions[0].caption.split())) == ("other", 1)
    with pytest.raises(UnavailableError, match="There is no model 'none'"):
        client.caption(toy.picture("red"), "none")
    assert client.caption(toy.picture("red")) == before
    assert pid(client) == process


def test_without_a_champion(trained, tmp_path):
    """The error says what to do; as soon as there is a champion, the same server captions with it."""
    store = open_bucket(str(tmp_path / "store"))
    with CaptionClient(server(store)) as client:
        client.warm()
        process = pid(client)
        for _ in range(2):
            with pytest.raises(UnavailableError, match=r"No model has been promoted .* trigger a retraining"):
                client.caption(toy.picture("red"))
        promoted(trained, tmp_path / "store")
        assert colour(client.caption(toy.picture("red"))) == "red"
        assert pid(client) == process


def test_a_server_that_cannot_start(store):
    """Invalid settings, an early end and a slow start are errors; once the cause is removed, captions come."""
    environments = iter(
        [
            environment(store, CAPTION_BEAM_WIDTH="wide"),
            environment(store, CAPTION_BEAM_WIDTH="wide"),
            environment(store, PYTHONHOME="/nowhere"),
            environment(store),
            environment(store),
        ]
    )
    with CaptionClient(lambda: own_python(next(environments))) as client:
        for _ in range(2):
            with pytest.raises(UnavailableError, match="Invalid settings in the environment: CAPTION_BEAM_WIDTH"):
                client.caption(toy.picture("red"))
        with pytest.raises(UnavailableError, match="ended with status 1: the API server's log says why"):
            client.caption(toy.picture("red"))
        client.start_seconds = 0.1
        with pytest.raises(TimeLimitError, match=r"within 0\.1 s"):
            client.caption(toy.picture("red"))
        client.start_seconds = 120
        assert colour(client.caption(toy.picture("red"))) == "red"


def test_decoders_that_cannot_start(store, tmp_path):
    """It is not the picture that is bad: no picture can be captioned until they can start, and then any can."""
    unable = server(store, **in_decoders(CANNOT_START, tmp_path / "code"))
    with CaptionClient(unable) as client:
        for _ in range(2):
            with pytest.raises(UnavailableError, match=r"Decoders of pictures can't start .*libjpeg\.so\.62"):
                client.caption(toy.picture("red"))
        process = pid(client)
        (tmp_path / "code" / "sitecustomize.py").unlink()
        assert colour(client.caption(toy.picture("red"))) == "red"
        assert pid(client) == process


CRASHING = """
import sys
sys.addaudithook(lambda event, what: 1 / 0 if event == "import" and what[0] == "openvino" else None)
"""

WITHOUT_OPENVINO = """
import sys
sys.modules["openvino"] = None
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (CRASHING, "ended with status 1: the API server's log says why"),
        (WITHOUT_OPENVINO, r"openvino is not installed\. Install it: .*\[inference\]'"),
    ],
    ids=["crashes", "without OpenVINO"],
)
def test_why_a_server_cannot_load(code, message, store, tmp_path):
    """The error has the server's own exit status, and not that of the client's kill; a missing package is named."""
    (tmp_path / "sitecustomize.py").write_text(code)
    with CaptionClient(server(store, PYTHONPATH=str(tmp_path))) as client:
        for _ in range(2):
            with pytest.raises(UnavailableError, match=message):
                client.caption(toy.picture("red"))


def test_an_idle_server_ends(store):
    """After some time without a picture it ends; a dead server is replaced, as another test shows."""
    with CaptionClient(server(store), idle_seconds=1) as client:
        client.caption(toy.picture("red"))
        assert gone([pid(client)])


NOISY = """
import os, sys
sys.addaudithook(lambda event, what: event == "import" and what[0] == "openvino" and os.write(1, b"a noise\\n"))
"""


def test_output_of_libraries_does_not_affect_answers(store, tmp_path, capfd):
    """It goes to the log. A narrow beam gives as many alternatives as it holds."""
    (tmp_path / "sitecustomize.py").write_text(NOISY)
    noisy = server(store, PYTHONPATH=str(tmp_path), CAPTION_BEAM_WIDTH="2")
    with CaptionClient(noisy) as client:
        assert len(client.caption(toy.picture("red")).captions) == 2
    output = capfd.readouterr()
    assert "a noise" in output.err
    assert output.out == ""


def serve_page(code):
    """The command of a process that has a client, as the server of a page does."""
    code = f"""
import os, sys
from tests.support.processes import own_python
from pipeline.serving.client import CaptionClient
client = CaptionClient(lambda: own_python(os.environ))
{code}
print(client._process.pid, *[name for name in {HEAVY} if name in sys.modules], flush=True)
sys.stdin.read()
"""
    return [sys.executable, "-c", code]


CAPTION = f"client.caption(bytes.fromhex({toy.picture('red').hex()!r}))"


def test_the_process_of_the_client_loads_nothing_heavy(store):
    """It loads neither Keras nor NumPy nor the like; and when it ends, the server ends."""
    done = subprocess.run(
        serve_page(CAPTION), cwd=PROJECT, env=environment(store), input=b"", stdout=subprocess.PIPE, check=True
    )
    [process, *heavy] = done.stdout.split()
    assert heavy == []
    assert gone([int(process)])


@pytest.mark.parametrize("busy", [False, True])
def test_the_server_ends_with_its_parent(busy, store, pipe, holding):
    """Idle or busy without end, it does not outlive a killed parent."""
    if busy:
        os.mkfifo(pipe)
    parent = subprocess.Popen(
        serve_page("client.warm()" if busy else CAPTION),
        cwd=PROJECT,
        env=environment(store, **holding),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    # Opened for writing as soon as a decoder has opened it, which the server then waits for.
    with parent, open(pipe if busy else os.devnull, "wb"):
        process = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        assert gone([process])
