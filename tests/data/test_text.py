"""The words of captions, in any language."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.text import clean, is_english, join


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A Dog runs .", "a dog runs"),
        ("Two dogs' owner's T-shirt , no. 42 !", "two dogs owner t shirt no"),
        ("the man’s hat", "the man hat"),
        ("ﬁsh ½ １２ Ａ", "fish a"),
        ("a", "a"),
        (" \t 123 ... ", ""),
        ("un café déjà-vu", "un café déjà vu"),
        ("Ein großer Hund läuft über die Straße.", "ein großer hund läuft über die straße"),
        ("Большой пёс, Ёлка!", "большой пёс ёлка"),
        ("एक कुत्ता घास पर दौड़ रहा है।", "एक कुत्ता घास पर दौड़ रहा है"),
        ("كَلْبٌ كبير، ٤٢", "كَلْبٌ كبير"),
        ("می‌خواهم", "می‌خواهم"),
        ("두 마리의 개가 달린다.", "두 마리의 개가 달린다"),
        ("Η ΜΕΓΑΛΗ ΟΔΟΣ", "η μεγαλη οδος"),
        ("Một con chó chạy", "một con chó chạy"),
        ("一只黑色的狗，在草地上。", "一 只 黑 色 的 狗 在 草 地 上"),
        ("穿Ｔ恤的2个man和a dog", "穿 t 恤 的 个 man 和 a dog"),
        ("ボールで遊ぶ犬。ﾊﾟﾝ", "ボ ー ル で 遊 ぶ 犬 パ ン"),
        ("𠮷野家 々", "𠮷 野 家 々"),
        ("น้ำ หมา", "น้ ำ ห ม า"),
        ("a dog 🐕‍🦺 1️⃣ ❤️", "a dog"),
        ("葛\U000e0100 soft\N{SOFT HYPHEN}ly", "葛 softly"),
        ("\u0301 x", "x"),
    ],
)
def test_cleaning(caption: str, words: str) -> None:
    """Lower case, letters with their marks; a possessive goes, words of one letter stay."""
    assert clean(caption) == unicodedata.normalize("NFC", words).split()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_both_forms_of_a_letter_are_the_same_word(form: str) -> None:
    """It does not matter whether a mark is composed with its letter."""
    assert clean(unicodedata.normalize(form, "Größe パン")) == ["größe", "パ", "ン"]


@given(st.text())
def test_cleaning_gives_plain_words_and_is_idempotent(caption: str) -> None:
    """Any text gives words of letters and marks in lower case, which cleaning leaves alone, joined or not."""
    words = clean(caption)
    for word in words:
        assert word[0].isalpha()
        assert word == word.lower()
        assert not any(character.isspace() or character.isdigit() for character in word)
    assert clean(" ".join(words)) == words
    assert clean(join(words)) == words


@pytest.mark.parametrize(
    "text",
    [
        "a dog runs",
        "ein großer hund",
        "एक कुत्ता घास पर",
        "두 마리의 개가",
        "一只黑色的狗",
        "穿t恤的man and woman在草地上",
        "犬がボールで遊ぶ",
        "น้ำหมา",
    ],
)
def test_joining(text: str) -> None:
    """Words have spaces between them, characters have none."""
    assert join(clean(text)) == text


@pytest.mark.parametrize(
    ("language", "english"), [("en", True), ("en-GB", True), ("EN", True), ("de", False), ("enm", False)]
)
def test_english(language: str, english: bool) -> None:
    """The first part of the code counts."""
    assert is_english(language) == english
