"""Length-prefixed messages over pipes between two processes."""

import struct
from typing import IO

_LENGTH = struct.Struct(">Q")


def send(data: bytes, pipe: IO[bytes] | None) -> None:
    """Send a message. Raises ``BrokenPipeError`` if the other process has ended."""
    assert pipe is not None  # noqa: S101 - for type checkers
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def receive(pipe: IO[bytes] | None) -> bytes | None:
    """The next message; ``None`` if the other process has ended."""
    assert pipe is not None  # noqa: S101 - for type checkers
    length = pipe.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        return None
    data = pipe.read(_LENGTH.unpack(length)[0])
    return data if len(data) == _LENGTH.unpack(length)[0] else None
