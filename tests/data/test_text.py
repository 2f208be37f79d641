"""The words of captions, in any language."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.text import alt_text, clean, is_english, join


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


@pytest.mark.parametrize(
    ("language", "caption", "words"),
    [
        ("fr", "Un chien court dans l'herbe, s’assoit.", "un chien court dans l' herbe s' assoit"),
        ("fr", "aujourd'hui", "aujourd' hui"),
        ("it", "L'uomo e un'altra donna", "l' uomo e un' altra donna"),
        ("nl", "twee foto's, 's avonds", "twee foto' s s avonds"),
        ("de", "So geht's; Hans' Hund 'bellt'", "so geht' s hans hund bellt"),
        ("uk", "п'ять п’ять п\u02bcять \u02bcа 7'а", "п' ять п' ять п' ять а а"),
        ("ja", "犬'猫", "犬 猫"),
        ("en-GB", "the dog's l'herbe", "the dog l herbe"),
    ],
)
def test_apostrophes(language: str, caption: str, words: str) -> None:
    """English loses its possessive; elsewhere one between letters belongs to the word before it, and is written."""
    assert clean(caption, language) == words.split()
    assert join(words.split()) == (words if language == "en-GB" else words.replace("' ", "'").replace("犬 猫", "犬猫"))


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
    words = clean(caption, "fr")
    assert all(word[0].isalpha() for word in words)
    assert clean(join(words), "fr") == words


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
    ("caption", "expected"),
    [
        ("a dog runs", "A dog runs."),
        ("  A dog\nruns . ", "A dog runs."),
        ("a dog, a cat,", "A dog, a cat."),
        ("a dog and ...", "A dog and."),
        ("a dog – (", "A dog."),
        ("a sign (red)", "A sign (red)."),
        ('"stop" is on the sign', '"Stop" is on the sign.'),
        ("is it a dog?", "Is it a dog?"),
        ("100 % blue, 100 %", "100 % blue, 100 %."),
        ("2 dogs", "2 dogs."),
        ("ßa", "Ssa."),
        ("ein großer Hund läuft", "Ein großer Hund läuft."),
        ("большой пёс", "Большой пёс."),
        ("დიდი ძაღლი", "დიდი ძაღლი."),
        ("एक कुत्ता दौड़ रहा है।", "एक कुत्ता दौड़ रहा है।"),
        ("一只黑色的狗", "一只黑色的狗。"),
        ("一只狗，一只猫，", "一只狗，一只猫。"),
        ("犬が遊ぶ「公園」", "犬が遊ぶ「公園」。"),
        ("狗有2", "狗有2。"),
        ("두 마리의 개", "두 마리의 개."),
        ("น้ำ", "น้ำ."),
        ("🐕", "🐕."),
        ("", ""),
        (" ... ", ""),
        ("word " * 24 + "ends", "Word " + "word " * 23 + "ends."),  # 125 characters
        ("word " * 24 + "ended", "Word " + "word " * 22 + "word."),
        ("word " * 23 + "word, ended", "Word " + "word " * 22 + "word."),
        ("x" * 200, "X" + "x" * 123 + "."),
        ("狗" * 125, "狗" * 124 + "。"),
        ("x狗" * 100, "X狗" + "x狗" * 61 + "。"),
        ("がぎ" * 40 + "か\u3099" * 40, "がぎ" * 40 + "か\u3099" * 22 + "。"),
        ("e\u0301" * 100, "E\u0301" + "e\u0301" * 61 + "."),
        ("x" + "👩🏽\u200d🚀" * 40, "X" + "👩🏽\u200d🚀" * 30 + "."),
    ],
)
def test_alt_text(caption: str, expected: str) -> None:
    """A sentence with a capital and a full stop, cut at the end of a word."""
    assert alt_text(caption) == expected


@given(st.text() | st.text("aé狗がน\u0301\u0e49\u200d ,.。“(🐕", min_size=100))
def test_alt_text_of_any_text(caption: str) -> None:
    """It is short, on one line, has no dangling punctuation, and is its own alt text."""
    sentence = alt_text(caption)
    assert len(sentence) <= 125
    assert alt_text(sentence) == sentence
    assert " ".join(sentence.split()) == sentence
    if sentence:
        assert sentence[-1] in ".。" or sentence[-1] == caption.rstrip()[-1]
        assert unicodedata.category(sentence[-2]) not in ("Pd", "Ps", "Pi", "Zs")
        assert sentence[-2] not in ",;:、，；：.。"


@given(st.lists(st.text("abcdäß", min_size=1, max_size=20), min_size=1, max_size=40))
def test_alt_text_has_whole_words(words: list[str]) -> None:
    """As many words as there is room for, each complete."""
    sentence = alt_text(" ".join(words))
    count = len(sentence.split())
    capital = words[0][0].title() + words[0][1:]
    assert sentence == f"{' '.join([capital, *words[1:count]])}."
    assert count == len(words) or len(f"{sentence[:-1]} {words[count]}.") > 125


@given(st.text(st.characters(categories=["Lo", "Mn"], max_codepoint=0xFFFF), min_size=120, max_size=300))
def test_alt_text_keeps_marks_with_their_letters(caption: str) -> None:
    """What was cut off does not begin with a mark."""
    text = unicodedata.normalize("NFC", "a" + caption)
    sentence = alt_text(text)
    rest = text[len(sentence) - 1 :]
    assert not rest or unicodedata.category(rest[0])[0] != "M"


@pytest.mark.parametrize(
    ("language", "english"), [("en", True), ("en-GB", True), ("EN", True), ("de", False), ("enm", False)]
)
def test_english(language: str, english: bool) -> None:
    """The first part of the code counts."""
    assert is_english(language) == english
