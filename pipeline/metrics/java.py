"""The two Java programs inside ``pycocoevalcap``: Stanford's tokenizer and METEOR.

They are run directly and not through the package's own wrappers, which write into the package's folder and hang when
the program has died.
"""

import logging
import shutil
import subprocess
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import chain
from operator import itemgetter
from pathlib import Path
from types import TracebackType

from pipeline.progress import track

log = logging.getLogger(__name__)

TIME_LIMIT = 600.0
"""Seconds after which a program counts as hanging; METEOR scores ten thousand captions in about a minute."""

METEOR_OPTIONS = ("-Xmx2G", "-XX:+UseParallelGC", "-XX:TieredStopAtLevel=1")
"""It runs for seconds: Java's defaults take a quarter longer, to optimize code that soon ends, and to collect garbage
without pauses, of which the table of paraphrases is none."""


class JavaError(Exception):
    """There is no Java, or it failed; the message explains why."""


def available() -> bool:
    """Whether there is a ``java`` on the PATH. It may still fail."""
    return shutil.which("java") is not None


def tokenize(captions: Sequence[str]) -> list[list[str]]:
    """The tokens of each caption by Stanford's ``PTBTokenizer``, in lower case, including punctuation.

    Raises:
        JavaError: there is no Java, or it failed.
    """
    command = _command("-cp", _jar("tokenizer.ptbtokenizer", "stanford-corenlp-3.4.1.jar"))
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    text = "".join(f"{' '.join(caption.split())}\n" for caption in captions)
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=TIME_LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JavaError(f"PTBTokenizer: {error}") from error
    lines = done.stdout.decode(errors="replace").split("\n")[:-1]
    if done.returncode or len(lines) != len(captions):
        message = done.stderr.decode(errors="replace").strip()[-500:]
        raise JavaError(
            f"PTBTokenizer ended with status {done.returncode} after {len(lines)} of {len(captions)} lines: {message}"
        )
    # Not split(): a no-break space is part of its token.
    return [[token for token in line.split(" ") if token] for line in lines]


class Meteor:
    """METEOR 1.5 in English (Denkowski and Lavie 2014, https://aclanthology.org/W14-3348) as one child process.

    The process takes seconds to load, in the background, and then scores any number of corpora. It ends with the
    ``with`` block. Corpora that have captions and references in common share the comparisons of these.

    Raises:
        JavaError: there is no Java.
    """

    def __init__(self) -> None:
        self._compared: dict[tuple[str, str], tuple[float, str]] = {}
        command = _command(*METEOR_OPTIONS, "-jar", _jar("meteor.meteor", "meteor-1.5.jar"))
        command += ["-", "-", "-stdio", "-l", "en", "-norm"]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
            )
        except OSError as error:
            raise JavaError(f"METEOR: {error}") from error

    def __enter__(self) -> "Meteor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def score(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """METEOR of a whole corpus, between 0 and 1.

        Args:
            candidates: a tokenized caption of each image.
            references: the tokenized references of each image, in the same order.

        Raises:
            JavaError: the process failed or took longer than ``TIME_LIMIT``; it cannot be used again.
        """
        pairs = [
            [(candidate, reference) for reference in own] for candidate, own in zip(candidates, references, strict=True)
        ]
        watchdog = threading.Timer(TIME_LIMIT, self._process.kill)
        watchdog.start()
        try:
            if new := [pair for pair in dict.fromkeys(chain.from_iterable(pairs)) if pair not in self._compared]:
                self._compare(new)
            # The reference with the highest score counts, and among equals the first: so does METEOR choose by itself.
            best = [max((self._compared[pair] for pair in own), key=itemgetter(0)) for own in pairs]
            return self._evaluate([statistics for _, statistics in best])[-1]
        except (OSError, ValueError) as error:
            raise JavaError(f"METEOR stopped answering: {error}") from error
        finally:
            watchdog.cancel()

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Compare candidates with a reference each, and keep the score and the statistics of each pair."""
        # One line at a time: with more, the pipes could fill up in both directions.
        statistics = [
            self._ask(f"SCORE ||| {reference} ||| {candidate}")
            for candidate, reference in track(pairs, total=len(pairs), unit="comparisons by METEOR", log=log)
        ]
        scores = self._evaluate(statistics)[:-1]
        self._compared |= zip(pairs, zip(scores, statistics, strict=True), strict=True)

    def _evaluate(self, statistics: Sequence[str]) -> list[float]:
        """The score of each pair by its statistics, and last that of all of them as a corpus."""
        answers = [self._ask(f"EVAL ||| {' ||| '.join(statistics)}"), *(self._read() for _ in statistics)]
        return [float(answer) for answer in answers]

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None  # noqa: S101 - for mypy
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 - for mypy
        return self._process.stdout.readline().strip()


def _jar(module: str, name: str) -> str:
    spec = find_spec(f"pycocoevalcap.{module}")
    if spec is None or spec.origin is None:
        raise JavaError(f"pycocoevalcap.{module} is not installed")
    return str(Path(spec.origin).with_name(name))


def _command(*arguments: str) -> list[str]:
    return ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", *arguments]
