"""Names for what is written about an image: whatever its key, any bucket takes them, and none stands for two."""

import hashlib
import re

NAME_BYTES = 900
"""Of a safe name, at most; with a bucket's prefix and a suffix it stays below the 1,024 bytes of an S3 key."""

PART_BYTES = 240
"""Of what lies between two slashes, at most; with a suffix it stays below the 255 bytes of a file's name."""

_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f]"  # what no file may be called, and what breaks lines
    r"|(?<![^/])\."  # hidden files, and the way out of a folder
    r"|(?<![^/])/|/\Z"  # parts without a name
    r"|%(?=[0-9A-Fa-f]{2})"  # what would be taken for an escape
    r"|\.(?=json/)"  # a folder called as a file that is written beside it
)


def safe_name(key: str) -> str:
    """The key, with what some bucket would not take percent-encoded: ``unquote`` gives the key back.

    One too long for that becomes its SHA-256 behind ``%23``, which is not made of any other key. ``f"{name}.json"`` is
    not a folder in any other such name.
    """
    name = _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", key)
    if len(name.encode()) > NAME_BYTES or any(len(part.encode()) > PART_BYTES for part in name.split("/")):
        return f"%23{hashlib.sha256(key.encode()).hexdigest()}"
    return name
