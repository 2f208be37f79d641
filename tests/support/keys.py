"""Difficult keys of objects."""

NASTY_KEYS = [
    "a b.txt",
    " a ",
    "plus+plus.txt",
    "100%.txt",
    "%41.txt",
    "%2F",
    "%00",
    "question?.txt",
    "?versionId=1",
    "hash#0.txt",
    "semicolon;&=.txt",
    "apostrophe's.txt",
    '"quoted"',
    "<b>&amp;`$()!*~@:,|\\",
    "tab\t\r.txt",
    "\x01\x7f",
    "Übermut/Łódź/猫 🐈.txt",
    "é",
    "e\u0301",
    "a..b/c...txt",
    "k" * 200 + ("/" + "猫" * 60) * 4,
]
"""Keys that every kind of bucket takes, with characters that mean something to URLs, shells or file systems."""

DOTTED_KEYS = ["../x", "a/../b", "../../other/x", "./a", "a/./b", "a/..", "..", ".", "a//b", "/a", "//a"]
"""Keys that S3 takes and a folder does not: its names may be neither empty nor made of dots."""
