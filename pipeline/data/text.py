"""The words of captions, in any language."""

import re
import unicodedata
from collections.abc import Iterable

from pipeline.config import ENGLISH

_POSSESSIVE = re.compile(r"['’]s\b")

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3031-\u3035\u3040-\u30ff\u31f0-\u31ff\U0001b000-\U0001b16f"  # Japanese
    "\u3100-\u312f\u31a0-\u31bf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese
)
"""The characters of scripts without spaces between words, for a regular expression."""

# In a text of letters and marks: a mark is neither \w nor \s, and belongs to the letter before it.
_CHARACTER = rf"(?=\w)[{_UNSPACED}][^\w\s]*"
_WORD = re.compile(rf"{_CHARACTER}|(?:(?![{_UNSPACED}])\w[^\w\s]*)+")
_NO_SPACE = re.compile(rf"({_CHARACTER}) | (?={_CHARACTER})")


class _Characters(dict[int, str]):
    """A table for ``str.translate`` that keeps letters and their marks, and replaces everything else with spaces."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if character in "\N{SOFT HYPHEN}\N{WORD JOINER}" or "VARIATION SELECTOR" in unicodedata.name(character, ""):
            self[code] = ""  # invisible, and no part of the spelling
        elif (
            unicodedata.category(character)[0] in "LM" or character in "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"
        ):
            self[code] = character
        else:
            self[code] = " "
        return self[code]


_CHARACTERS = _Characters()


def clean(caption: str) -> list[str]:
    """The words of a caption: lower case, letters of any script with their combining marks.

    Punctuation and digits separate words and are removed ("t-shirt" becomes "t shirt"), and a possessive "'s" is
    removed with its apostrophe. Words of one letter stay: without "a" no caption reads like English, and BLEU-4 drops
    by half. Chinese, Japanese and other scripts without spaces between words are split into characters, which needs no
    dictionary.
    """
    # Lower case is normalized again: it may have letters that have a composed form.
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).lower())
    # The vowel "am" of Thai and Lao is one letter, which NFKC takes apart.
    text = text.replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3")
    return _WORD.findall(_POSSESSIVE.sub(" ", text).translate(_CHARACTERS))


def join(words: Iterable[str]) -> str:
    """The text of words that ``clean`` gave: with spaces, except beside characters of scripts that have none."""
    return _NO_SPACE.sub(r"\1", " ".join(words))


def is_english(language: str) -> bool:
    """Whether a BCP 47 code such as ``en`` or ``en-GB`` is one of English."""
    return language.lower().split("-")[0] == ENGLISH


def allows_repeats(language: str) -> bool:
    """Whether good captions repeat a word at once, or three words in a row, which in English only bad ones do.

    Other languages repeat words ("die Frau, die die Tür öffnet"; "anak anak", children), and more often characters.
    """
    return not is_english(language)
