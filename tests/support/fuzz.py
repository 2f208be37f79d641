"""Damage pictures at random and decode them: each must end as a picture or as an error that says what to do.

    python -m tests.support.fuzz [--minutes 10] [--seed 0] [--keep FOLDER]

Finds are kept in a folder. Those of the past are in ``tests/support/damaged_images.py``.
"""

import argparse
import hashlib
import random
import re
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.data.decoders import Decoders
from pipeline.data.images import BadImageError
from tests.support import damaged_images

SIZE = (32, 32)
SLOW = 2.0
"""Seconds beyond which a small file is worth a look."""

LARGEST = 200_000
"""Bytes of a picture that is damaged: larger ones only take longer."""


def main() -> int:
    """Fuzz for some minutes; the exit status is 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("data/fuzz"))
    options = parser.parse_args()
    rng = random.Random(options.seed)
    originals = [kind.data for kind in damaged_images.kinds() if 0 < len(kind.data) < LARGEST]
    deadline = time.monotonic() + 60 * options.minutes
    outcomes: Counter[str] = Counter()
    with Decoders(SIZE) as decoders, ThreadPoolExecutor(4) as threads:
        while time.monotonic() < deadline:
            batch = [damaged(rng, originals) for _ in range(200)]
            for data, outcome in zip(batch, threads.map(lambda data: tried(decoders, data), batch), strict=True):
                outcomes[outcome] += 1
                if outcome.startswith("!"):
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    for outcome, count in outcomes.most_common():
        sys.stdout.write(f"{count:9} {outcome}\n")
    return int(any(outcome.startswith("!") for outcome in outcomes))


def tried(decoders: Decoders, data: bytes) -> str:
    """The outcome of decoding a file; one that must not be begins with an exclamation mark."""
    start = time.monotonic()
    try:
        shape = decoders.decode(data).pixels.shape
        outcome = "a picture" if shape == (*SIZE, 3) else f"! shape {shape}"
    except BadImageError as error:
        message = str(error)
        helpful = re.search(damaged_images.ADVICE, message) and not re.search("crashes|takes longer", message)
        outcome = message if helpful else f"! {message}"
    except Exception as error:
        outcome = f"! {error!r}"
    return f"! slow: {outcome}" if time.monotonic() - start > SLOW else outcome


def damaged(rng: random.Random, originals: list[bytes]) -> bytes:
    """A file, damaged once or several times."""
    data = bytearray(rng.choice(originals))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0:
                data[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                data[place : place + 1] = bytes([(data[place : place + 1] or b"\0")[0] ^ 1 << rng.randrange(8)])
            case 2:
                data[place : place + 4] = rng.choice(
                    (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0")
                )
            case 3:
                del data[place : place + rng.randrange(1, 64)]
            case 4:
                data[place:place] = data[place : place + rng.randrange(1, 256)]
            case 5:
                other = rng.choice(originals)
                start = rng.randrange(len(other))
                data[place : place + 64] = other[start : start + 64]
            case 6:
                del data[place:]
        if not data:
            return b"\0"
    return bytes(data)


if __name__ == "__main__":
    sys.exit(main())
