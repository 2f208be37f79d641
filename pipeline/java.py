"""The two Java programs that come inside ``pycocoevalcap``: Stanford's tokenizer and METEOR.

They are run from here and not through the package's own wrappers: those write into the package's folder, and hang
where the program has died.
"""

import shutil
import subprocess
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

TIME_LIMIT = 600.0
"""Seconds after which a program is taken to hang; ten thousand captions take METEOR about a minute."""


class JavaError(Exception):
    """There is no Java, or it failed; the message says how."""


def available() -> bool:
    """Whether there is a ``java`` on the PATH. It may still fail."""
    return shutil.which("java") is not None


def tokenize(captions: Sequence[str]) -> list[list[str]]:
    """The tokens of each caption by Stanford's ``PTBTokenizer``, lower case, punctuation included.

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


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR 1.5 of the whole corpus, in English (Denkowski and Lavie 2014, https://aclanthology.org/W14-3348).

    Args:
        candidates: a tokenised caption of each image.
        references: the tokenised references of each image, in the same order.

    Raises:
        JavaError: there is no Java, or it failed.
    """
    command = _command("-Xmx2G", "-jar", _jar("meteor.meteor", "meteor-1.5.jar"))
    command += ["-", "-", "-stdio", "-l", "en", "-norm"]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
        )
    except OSError as error:
        raise JavaError(f"METEOR: {error}") from error
    watchdog = threading.Timer(TIME_LIMIT, process.kill)
    watchdog.start()
    assert process.stdin is not None and process.stdout is not None  # noqa: S101 - for mypy
    try:
        # One line at a time: with more the pipes could fill up both ways.
        statistics = []
        for candidate, own in zip(candidates, references, strict=True):
            process.stdin.write(f"SCORE ||| {' ||| '.join(own)} ||| {candidate}\n")
            process.stdin.flush()
            statistics.append(process.stdout.readline().strip())
        process.stdin.write(f"EVAL ||| {' ||| '.join(statistics)}\n")
        process.stdin.flush()
        answer = [float(process.stdout.readline()) for _ in range(len(statistics) + 1)]
    except (OSError, ValueError) as error:
        raise JavaError(f"METEOR stopped answering: {error}") from error
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()
    return answer[-1]  # the others are of each image


def _jar(module: str, name: str) -> str:
    spec = find_spec(f"pycocoevalcap.{module}")
    if spec is None or spec.origin is None:
        raise JavaError(f"pycocoevalcap.{module} is not installed")
    return str(Path(spec.origin).with_name(name))


def _command(*arguments: str) -> list[str]:
    return ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", *arguments]
