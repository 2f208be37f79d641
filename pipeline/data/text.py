"""The words of captions, in any language."""

import re
import unicodedata
from collections.abc import Iterable

from pipeline.config import ENGLISH

_POSSESSIVE = re.compile(r"['’]s\b")

_APOSTROPHE = "\N{MODIFIER LETTER APOSTROPHE}"
"""The apostrophe that Unicode counts among the letters, so that it stays in a word."""

_CHINESE_JAPANESE = (
    "\u3005-\u3007\u3031-\u3035\u3040-\u30ff\u31f0-\u31ff\U0001b000-\U0001b16f"  # Japanese
    "\u3100-\u312f\u31a0-\u31bf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese
)
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    f"{_CHINESE_JAPANESE}"
)
"""The characters of scripts without spaces between words, for a regular expression."""

# In a text of letters and marks: a mark is neither \w nor \s, and belongs to the letter before it.
_CHARACTER = rf"(?=\w)[{_UNSPACED}][^\w\s]*"
_WORD = re.compile(rf"{_CHARACTER}|(?:(?![{_UNSPACED}])\w[^\w\s]*)+")
_NO_SPACE = re.compile(rf"({_CHARACTER}) | (?={_CHARACTER})|(?<=') ")
_ELISION = re.compile(rf"(?<=[^\W\d_{_UNSPACED}])['’](?=[^\W\d_{_UNSPACED}])")

ALT_TEXT_CHARACTERS = 125
"""Maximum characters of an alt text, its full stop included: some screen readers stop there."""

_FULL_STOPS = "!?‼⁇⁈⁉！？｡。।॥۔؟։።។။"
"""Characters that end a sentence, besides the full stop that is written where there is none of them."""

_MAY_END = "\"'%‰′″*#@"
"""Punctuation with which a sentence may end in front of its full stop, as it may with a closing quote or bracket."""


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


def clean(caption: str, language: str = ENGLISH) -> list[str]:
    """The words of a caption: lower case, letters of any script with their combining marks.

    Punctuation and digits separate words and are removed ("t-shirt" becomes "t shirt"). Words of one letter stay:
    without "a" no caption reads like English, and BLEU-4 drops by half. Chinese, Japanese and other scripts without
    spaces between words are split into characters, which needs no dictionary.

    In English, a possessive "'s" is removed with its apostrophe. In other languages an apostrophe between letters is
    the end of a word ("l'herbe" becomes "l' herbe"), so that ``join`` can write it.

    Args:
        caption: any text.
        language: of the caption, as a BCP 47 code.
    """
    # Lower case is normalized again: it may have letters that have a composed form.
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).lower())
    # The vowel "am" of Thai and Lao is one letter, which NFKC takes apart.
    text = text.replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3")
    if is_english(language):
        return _WORD.findall(_POSSESSIVE.sub(" ", text).translate(_CHARACTERS))
    text = _ELISION.sub(f"{_APOSTROPHE} ", text.replace(_APOSTROPHE, "'"))
    return [word.replace(_APOSTROPHE, "'") for word in _WORD.findall(text.translate(_CHARACTERS))]


def has_letters(text: str) -> bool:
    """Whether there is a letter in a text; without one, ``clean`` finds no word in it."""
    return any(map(str.isalpha, text))


def join(words: Iterable[str]) -> str:
    """The text of words that ``clean`` gave: with spaces, except after apostrophes, and in scripts that have none."""
    return _NO_SPACE.sub(r"\1", " ".join(words))


def alt_text(caption: str) -> str:
    """The caption as alt text: a sentence of at most ``ALT_TEXT_CHARACTERS`` characters; empty if it has no words.

    The first letter becomes a capital, where the script has them. At the end is a full stop (``。`` after Chinese and
    Japanese), unless the caption ends with a question mark or the like. A longer caption is cut at the end of a word,
    or of a character with its marks where words have no spaces between them, or where the word alone is too long.
    """
    text = " ".join(caption.split())
    first = next((place for place, character in enumerate(text) if character.isalnum()), 0)
    # Title case, not upper case: "ß" and "ǆ" become "Ss" and "ǅ".
    text = text[:first] + text[first : first + 1].title() + text[first + 1 :]
    sentence = _without_dangling(text)
    stop = text[-1:]
    if len(sentence) >= ALT_TEXT_CHARACTERS:
        sentence, stop = _without_dangling(_cut(sentence, ALT_TEXT_CHARACTERS - 1)), ""
    if not sentence:
        return ""
    if stop not in _FULL_STOPS or not stop:
        last = next((character for character in reversed(sentence) if character.isalpha()), "")
        stop = "。" if re.match(f"[{_CHINESE_JAPANESE}]", last) else "."
    return sentence + stop


def _cut(text: str, length: int) -> str:
    """The longest beginning of a longer text with at most ``length`` characters that ends with a whole word."""
    whole = [end for end in range(1, length + 1) if not _belongs_before(text, end)]
    words = [end for end in whole if text[end].isspace() or re.search(rf"[{_UNSPACED}]", text[end] + _base(text[:end]))]
    return text[: max(words or whole or [length])]


def _belongs_before(text: str, place: int) -> bool:
    """Whether the character at a place is a part of the one before it: a mark, a skin tone, or joined with it."""
    joiners = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"
    return (
        unicodedata.category(text[place])[0] == "M"
        or "\N{EMOJI MODIFIER FITZPATRICK TYPE-1-2}" <= text[place] <= "\N{EMOJI MODIFIER FITZPATRICK TYPE-6}"
        or text[place] in joiners
        or text[place - 1] in joiners
    )


def _base(text: str) -> str:
    """The last character of a text that is no mark."""
    return next((character for character in reversed(text) if unicodedata.category(character)[0] != "M"), "")


def _without_dangling(text: str) -> str:
    """The text without punctuation at its end that leads nowhere (commas, dashes, opening brackets), or ends it."""
    while text and (
        text[-1].isspace()
        or unicodedata.category(text[-1]) in ("Pc", "Pd", "Ps", "Pi")
        or (unicodedata.category(text[-1]) == "Po" and text[-1] not in _MAY_END)
    ):
        text = text[:-1]
    return text


def is_english(language: str) -> bool:
    """Whether a BCP 47 code such as ``en`` or ``en-GB`` is one of English."""
    return language.lower().split("-")[0] == ENGLISH


def allows_repeats(language: str) -> bool:
    """Whether good captions repeat a word at once, or three words in a row, which in English only bad ones do.

    Other languages repeat words ("die Frau, die die Tür öffnet"; "anak anak", children), and more often characters.
    """
    return not is_english(language)
