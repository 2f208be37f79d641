"""The two Java programs that come inside ``pycocoevalcap``: Stanford's tokenizer and METEOR."""

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

TIME_LIMIT = 600
"""Seconds after which a program is taken to hang; tens of thousands of captions take it a minute."""


class JavaError(Exception):
    """There is no Java, or it failed; the message says how."""


def available() -> bool:
    """Whether there is a ``java`` on the PATH. It may still fail."""
    return shutil.which("java") is not None


def jar(module: str, name: str) -> Path:
    """The path of the archive ``name`` beside a module of ``pycocoevalcap``."""
    spec = find_spec(f"pycocoevalcap.{module}")
    if spec is None or spec.origin is None:
        raise JavaError(f"pycocoevalcap.{module} is not installed")
    return Path(spec.origin).with_name(name)


def run(arguments: Sequence[str], lines: Sequence[str], *, expected: int) -> list[str]:
    """Run ``java`` with ``lines`` on its standard input, and return the ``expected`` lines of its standard output.

    Raises:
        JavaError: it could not be started, failed, hung, or answered another number of lines.
    """
    command = ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", *arguments]
    text = "".join(f"{line}\n" for line in lines)
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=TIME_LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JavaError(str(error)) from error
    answer = done.stdout.decode(errors="replace").split("\n")[:-1]
    if done.returncode or len(answer) != expected:
        raise JavaError(
            f"`{' '.join(command)}` ended with status {done.returncode} after {len(answer)} of {expected} lines: "
            f"{done.stderr.decode(errors='replace').strip()[-500:]}"
        )
    return answer
