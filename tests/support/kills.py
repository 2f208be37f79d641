"""A harness that kills: commands of the pipeline in real processes, which die by SIGKILL where a test wants it.

A process that imports TensorFlow takes seconds to start. So the processes are forked from a server that has imported it
and never used it, Python's own fork server; what they run is what ``python -m pipeline`` runs.

Tests write scripts: generators that yield a ``Command``, are sent its result, and yield the next. ``play`` runs
scripts side by side, the commands of each in their order.
"""

import io
import itertools
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from fcntl import F_SETPIPE_SZ, fcntl
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import duckdb
import h5py
import numpy as np
import pandas as pd
import pyarrow.dataset

from pipeline.storage import Bucket, LocalBucket, S3Bucket, layout, open_bucket, parquet
from tests.support import toy

PATIENCE = 300
"""Seconds after which a command that has not ended hangs."""

LOG_BYTES = 1 << 20
"""Of a command's log, at most: it is kept in a pipe until the command has ended."""

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "boto3",
        "keras",
        "openvino",
        "tensorflow",
        "pipeline.cli",
        "pipeline.data.ingest",
        "pipeline.evaluation.promotion_gate",
        "pipeline.features.quantization",
        "pipeline.nightly.reconcile",
        "pipeline.training.train",
    ]
)


@dataclass(frozen=True)
class Command:
    """A command of the pipeline.

    Attributes:
        arguments: those of ``python -m pipeline``.
        environment: all of it.
        point: it dies at its so-many-th write point; each object has four or five, see ``die_at``.
        after: it is killed so many seconds after its start, unless it has ended.
        room: bytes that it may write into a file: a disk that is full.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    point: int | None = None
    after: float | None = None
    room: int | None = None


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit status (``-SIGKILL`` where it was killed), what it wrote, and its duration."""

    command: Command
    status: int
    output: str
    log: str
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status == -signal.SIGKILL

    def result(self) -> Any:
        """The JSON that it printed; fails where it did not succeed."""
        assert self.status == 0, f"{' '.join(self.command.arguments)} exited with {self.status}:\n{self.log[-6000:]}"
        return json.loads(self.output.splitlines()[-1])


Script = Generator[Command, Done, Any]


@dataclass
class World:
    """A store and an inbox, and the settings with which commands work on them."""

    store: Bucket
    inbox: Bucket
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    whole: set[tuple[str, str]] = field(default_factory=set)
    """Key and etag of the objects that were seen to be whole."""

    def command(self, *arguments: str) -> Command:
        """A command in this world. There is no Java in it, which would take most of an evaluation's time."""
        (self.folder / "bin").mkdir(exist_ok=True)
        return Command(
            arguments,
            {
                **os.environ,
                "CAPTION_STORE": self.store.uri,
                "CAPTION_INBOX": self.inbox.uri,
                "PATH": str(self.folder / "bin"),
                **self.settings,
            },
        )

    def snapshot(self) -> Bucket:
        """A copy of the store, with its etags and with what a killed process has left."""
        copy = open_bucket(f"{self.folder.as_uri() if _is_local(self.store) else self.store.uri}-{uuid.uuid4().hex}")
        _replace(copy, self.store)
        return copy

    def restore(self, snapshot: Bucket) -> None:
        """Make the store what it was."""
        _replace(self.store, snapshot)


def _is_local(bucket: Bucket) -> bool:
    return isinstance(bucket, LocalBucket)


def _replace(target: Bucket, source: Bucket) -> None:
    if _is_local(source):
        shutil.rmtree(target.root, ignore_errors=True)
        if source.root.exists():
            shutil.copytree(source.root, target.root)
        return
    for item in list(target.list()):
        target.delete(item.key)
    toy.copy(source, target, "")


class _Process:
    """A process with a command in it, and the ends of two pipes from which its output can be read."""

    def __init__(self, command: Command) -> None:
        self.command = command
        readers, writers = zip(*(PROCESSES.Pipe(duplex=False) for _ in range(2)), strict=True)
        for writer in writers:
            fcntl(writer.fileno(), F_SETPIPE_SZ, LOG_BYTES)
        self.readers: tuple[Connection, ...] = readers
        self.process = PROCESSES.Process(target=_run, args=(command, *writers))
        self.process.start()
        self.started = time.monotonic()
        for writer in writers:
            writer.close()

    @property
    def deadline(self) -> float:
        """When it is killed."""
        return self.started + (PATIENCE if self.command.after is None else self.command.after)

    def done(self) -> Done:
        """The command's result, after it has ended."""
        seconds = time.monotonic() - self.started
        self.process.join()
        output, log = (_drain(reader) for reader in self.readers)
        done = Done(self.command, self.process.exitcode, output, log, seconds)
        self.process.close()
        wanted = self.command.after is not None or self.command.point is not None
        assert wanted or not done.killed, f"{' '.join(self.command.arguments)} hung for {seconds:.0f} s:\n{log[-6000:]}"
        return done


def _drain(reader: Connection) -> str:
    data = bytearray()
    while part := os.read(reader.fileno(), LOG_BYTES):
        data += part
    reader.close()
    return data.decode()


def _run(command: Command, output: Connection, log: Connection) -> None:
    """In the new process: be what ``python -m pipeline`` is."""
    for descriptor, pipe in ((1, output), (2, log)):
        os.dup2(pipe.fileno(), descriptor)
        pipe.close()
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))
    os.environ.clear()
    os.environ.update(command.environment)
    sys.argv = ["pipeline", *command.arguments]
    if command.point is not None:
        die_at(command.point)
    if command.room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (command.room, resource.RLIM_INFINITY))
    from pipeline import cli

    cli.main()


def die_at(point: int) -> None:
    """Let this process kill itself at its so-many-th write point, counted over all the objects that it writes.

    Those of an object in a folder: before its temporary file is made, halfway through its bytes, before they are synced
    to the disk, before the rename, after it; and, where the write is conditional, once more, when the lock is held.
    Those of an object on S3: before the request, halfway through its head, halfway through its body, after the answer.
    """
    points = itertools.count(1)

    def reach(where: str, name: object) -> None:
        if next(points) == point:
            os.write(2, f"killed {where} {name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    _watch_folders(reach)
    _watch_s3(reach)


def _watch_folders(reach: Callable[[str, object], None]) -> None:
    path_open, fsync, os_replace = Path.open, os.fsync, os.replace

    class Halved(io.FileIO):
        def write(self, data: bytes) -> int:
            half = len(data) // 2
            super().write(data[:half])
            reach("halfway through", self.name)
            super().write(data[half:])
            return len(data)

    def watched_open(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if path.name.startswith(".tmp-"):
            reach("before", path)
            return Halved(path, mode.replace("b", ""))
        file = path_open(path, mode, *args, **kwargs)
        if path.name.startswith(".lock-"):
            reach("at the lock", path)
        return file

    def watched_fsync(descriptor: int) -> None:
        reach("before the sync of", descriptor)
        fsync(descriptor)

    def watched_replace(source: Any, target: Any, **kwargs: Any) -> None:
        reach("before the rename to", target)
        os_replace(source, target, **kwargs)
        reach("after the rename to", target)

    Path.open, os.fsync, os.replace = watched_open, watched_fsync, watched_replace


def _watch_s3(reach: Callable[[str, object], None]) -> None:
    from botocore.awsrequest import AWSConnection

    put, send = S3Bucket.put, AWSConnection.send
    writing = []

    def watched_put(bucket: S3Bucket, key: str, data: bytes, **kwargs: Any) -> str:
        reach("before", key)
        writing.append(key)
        etag = put(bucket, key, data, **kwargs)
        writing.pop()
        reach("after", key)
        return etag

    def watched_send(connection: AWSConnection, data: bytes) -> None:
        half = len(data) // 2 if writing else 0
        if half:
            send(connection, data[:half])
            reach("halfway through a request with", writing[-1])
        send(connection, data[half:])

    S3Bucket.put, AWSConnection.send = watched_put, watched_send


def play(*scripts: Script) -> list[Any]:
    """Run scripts to their end: the commands of each one after the other, those of different scripts side by side.

    Returns:
        What the scripts return.
    """
    results: list[Any] = [None] * len(scripts)
    running: dict[Any, tuple[int, _Process]] = {}

    def go_on(number: int, done: Done | None) -> None:
        try:
            process = _Process(scripts[number].send(done))
        except StopIteration as end:
            results[number] = end.value
        else:
            running[process.process.sentinel] = number, process

    try:
        for number in range(len(scripts)):
            go_on(number, None)
        while running:
            first = min(process.deadline for _, process in running.values())
            for sentinel in wait(list(running), max(first - time.monotonic(), 0)):
                number, process = running.pop(sentinel)
                go_on(number, process.done())
            for _, process in running.values():
                if process.deadline <= time.monotonic():
                    process.process.kill()
    finally:
        for _, process in running.values():
            process.process.kill()
    return results


def run(command: Command) -> Done:
    """Run one command."""

    def script() -> Script:
        return (yield command)

    [done] = play(script())
    return done


def steps(script: Script, carry_out: Callable[[Command], Generator[Command, Done, Done]]) -> Script:
    """A script of which each command is carried out in another way."""
    done = None
    while True:
        try:
            command = script.send(done)
        except StopIteration as end:
            return end.value
        done = yield from carry_out(command)


def killed_at_every_write(
    world: World, script: Script, tally: Counter[str], *, first: int = 1, every: int = 1
) -> Script:
    """A script of which each command is killed at its write points, one after the other.

    After each kill the same command runs again, killed at the next point, until it comes to an end; from the state
    before it, it is then killed at the points that it has not seen. Whenever it came to an end after kills the store
    must hold what it holds after an undisturbed run; with one of those stores the script goes on.

    Args:
        world: whose commands these are.
        script: the commands.
        tally: counts the kills.
        first: the point of the first kill.
        every: points from one kill to the next.
    """

    def carry_out(command: Command) -> Generator[Command, Done, Done]:
        before, point, fresh, ends = world.snapshot(), first, True, []
        while True:
            done = yield replace(command, point=point)
            if done.killed:
                tally[command.arguments[0]] += 1
                assert_whole(world)
                point, fresh = point + every, False
                continue
            done.result()
            if fresh:
                break
            ends.append((done, world.snapshot(), contents(world.store)))
            world.restore(before)
            fresh = True
        undisturbed = contents(world.store)
        for _, _, disturbed in ends:
            assert_same(disturbed, undisturbed)
        if ends:
            done, after, _ = ends[-1]
            world.restore(after)
        return done

    return steps(script, carry_out)


def killed_after(script: Script, seconds: float) -> Generator[Command, Done, bool]:
    """A script that is killed so many seconds after its start, with the command that runs then; whether it was."""
    done = None
    while True:
        try:
            command = script.send(done)
        except StopIteration:
            return False
        done = yield replace(command, after=max(seconds, 0))
        if done.killed:
            return True
        seconds -= done.seconds


def assert_whole(world: World) -> None:
    """Every object that a listing shows can be read to its end, and readers of the captions see each image once."""
    for item in world.store.list():
        if (item.key, item.etag) not in world.whole:
            _read(item.key, world.store.get(item.key))
            world.whole.add((item.key, item.etag))
    rows = caption_rows(world.store)
    identities = Counter((row["image_key"], row["image_etag"], row["model_version"]) for row in rows)
    assert [image for image, count in identities.items() if count > 1] == []
    assert {image[:2] for image in identities} <= {(item.key, item.etag) for item in world.inbox.list()}
    if _is_local(world.store) and rows:
        folder = world.store.root / "captions"
        seen = sorted((row["image_key"], row["caption"] or "", row["model_version"]) for row in rows)
        columns = ["image_key", "caption", "model"]
        found = duckdb.sql(f"from read_parquet('{folder}/**/*.parquet', hive_partitioning = true)")
        frames = (
            found.select(", ".join(columns)).df(),
            pd.read_parquet(folder)[columns],
            pyarrow.dataset.dataset(folder, partitioning="hive").to_table(columns=columns).to_pandas(),
        )
        for frame in frames:
            rows_read = (frame.astype({"model": str}).astype(object).where(frame.notna(), "")).to_numpy().tolist()
            assert sorted(map(tuple, rows_read)) == seen


def caption_rows(store: Bucket) -> list[dict[str, Any]]:
    """Every row of captions."""
    return [row for item in store.list(layout.CAPTIONS) for row in parquet.read(item.key, store).to_pylist()]


VOLATILE = {
    "captioned_at",
    "counter",  # of the pointer to the champion: the time
    "created_at",
    "drift",
    "evaluated_at",
    "finished_at",
    "images_per_second",
    "listed_at",
    "promoted_at",
    "seconds",
    "started_at",
    "warnings",
}
"""Fields of times and durations, and of statistics that a shard may not have recorded before it was killed."""

VARYING = re.compile(
    r"\d{8}T\d{6}-(?=[0-9a-f]{8})|\d{4}-\d\d-\d\d \d\d:\d\d UTC"  # a moment, in a version or in a report
    r"|\b[0-9a-f]{64}\b|-[0-9a-f]{12}(?=\.)"  # a checksum: archives hold the moment at which they were written
    r"|\b\d+\.\d(?= \| \d\.\d{3} \|\n)"  # the minutes of a training, before its CIDEr in a model card
)
"""Parts of keys and texts that differ between two stores of the same content."""


def contents(store: Bucket) -> dict[str, Any]:
    """The content of a store, to be compared with another: by key, the content of objects, less the times in it.

    Captions and features are taken row by row, whichever shard they are in. Planned shards, and the objects of runs
    that have not ended, are left out: only the run itself reads them.
    """
    found: dict[str, Any] = {"captions": [], "features": {}}
    for item in store.list():
        folder, _, rest = item.key.partition("/")
        value = _read(item.key, store.get(item.key)) if folder != "shards" else None
        if folder == "captions":
            found["captions"] += [_untimed({**row, "log_prob": _rounded(row["log_prob"])}) for row in value]
        elif folder == "features":
            for row in value:
                known = found["features"].setdefault((rest.partition("/")[0], row["image_key"], row["image_etag"]), row)
                assert known == row
        elif folder != "shards" and (folder != "runs" or "/" not in rest):
            found[VARYING.sub("", item.key)] = _untimed(value)
    found["captions"].sort(key=lambda row: (row["model_version"], row["image_key"], row["image_etag"]))
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two stores' ``contents`` are the same."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    for key, value in one.items():
        assert value == other[key], key


def _rounded(log_prob: float | None) -> float | None:
    # Captions are written in batches, and sums of floats depend on who else is in one.
    return None if log_prob is None else round(log_prob, 3)


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _untimed(one) for name, one in value.items() if name not in VOLATILE}
    if isinstance(value, list):
        return [_untimed(one) for one in value]
    return VARYING.sub("", value) if isinstance(value, str) else value


def _read(key: str, data: bytes) -> Any:  # noqa: PLR0911 - one for each kind of file
    """The content of an object, read to its end; fails where it is not whole."""
    match key.rpartition(".")[2]:
        case "parquet":
            return pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
        case "json":
            return json.loads(data)
        case "npz":
            archive = np.load(io.BytesIO(data), allow_pickle=False)
            arrays = {name: archive[name].tolist() for name in archive.files}
            # A checkpoint holds its epochs as JSON.
            return arrays | ({"epochs": json.loads(arrays["epochs"])} if "epochs" in arrays else {})
        case "keras":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                assert archive.testzip() is None
                weights: dict[str, Any] = {}
                with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
                    file.visititems(
                        lambda name, node: (
                            weights.update({name: node[()].tolist()}) if isinstance(node, h5py.Dataset) else None
                        )
                    )
                return weights
        case "html":
            assert data.rstrip().endswith(b"</html>")
            return data.decode()
        case "xml":
            assert data.rstrip().endswith(b"</net>")
            return data.decode()
        case _:
            assert data
            return data.decode(errors="replace")
