"""Our tokenizer against Stanford's, and against recorded output of Stanford's."""

import shutil
from pathlib import Path

import pytest

from pipeline.metrics import java
from pipeline.metrics.tokenizer import tokenize, tokenize_java

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no java on the PATH")

# Sentences written for these tests, with the output of the Java tokenizer.
EXPECTED = {
    "A man's dog can't run , and he's happy .": "a man 's dog ca n't run and he 's happy",
    "They don’t know it’s Tom’s.": "they do n't know it 's tom 's",
    "You'd say she'll go, I'm sure we've won; they're here": "you 'd say she 'll go i 'm sure we 've won they 're here",
    "The boys' dogs' leashes": "the boys dogs leashes",
    "A man cannot , Cannot , CANNOT": "a man can not can not can not",
    "He's gonna go, wanna bet? Lemme, gimme, gotta": "he 's gon na go wan na bet lem me gim me got ta",
    "'Tis the season, 'twas the night": "'t is the season 't was the night",
    "rock 'n' roll and fish'n'chips": "rock 'n' roll and fish 'n' chips",
    "Ma'am, it's 5 o'clock, y'all! S'mores, c'mon": "ma'am it 's 5 o'clock y' all s'mores c'mon",
    "Hold 'em 'till five in the '80s or the 1980's": "hold 'em 'till five in the '80s or the 1980 's",
    "A black-and-white T-shirt , t - shirt and 4-wheeler": "a black-and-white t-shirt t shirt and 4-wheeler",
    "The dog- and cat -- or — so - it – seems": "the dog and cat or so it seems",
    "A bird's-eye view": "a bird 's eye view",
    'A sign says "No Skiing!" here': "a sign says no skiing here",
    "A sign says “Stop” or ‘go’ or 'park' or ``x''": "a sign says stop or go or park or x",
    "Player #1 costs $5 or £3 or 50%": "player # 1 costs $ 5 or # 3 or 50 %",
    "At 8:30 with 1,000.50": "at 8:30 with 1,000.50",
    "3 people, 2nd, 4x4, 5ft, mp3": "3 people 2nd 4x4 5ft mp3",
    "1 1/2 dogs, 1/2 dog, ½ dog": "1\N{NO-BREAK SPACE}1/2 dogs 1/2 dog 1/2 dog",
    "It is -5 or +5": "it is -5 or +5",
    "Mr. Smith and mr. jones on Main St. with Dr. X": "mr. smith and mr. jones on main st. with dr. x",
    "The U.S. flag at 5 a.m. in D.C., etc.": "the u.s. flag at 5 a.m. in d.c. etc.",
    "Vitamin c. and no. 5 but no. one": "vitamin c. and no. 5 but no one",
    "Wash. is a state, wash. your dog.": "wash. is a state wash your dog",
    "Dogs & cats, AT&T, A&b": "dogs & cats at&t a & b",
    "black/white, and/or, w/o, he / she": "black/white and/or w/o he / she",
    "One... two ... three…four": "one two three four",
    "One.Two three.four": "one.two three.four",
    "What?! No!! Oh!": "what ?! no !! oh",
    "A man (left) [sic] {x}": "a man -lrb- left -rrb- -lsb- sic -rsb- -lcb- x -rcb-",
    "Smile :) <unk> @home #dog": "smile :-rrb- <unk> @home #dog",
    "See http://a.org/b. or me@a.org": "see http://a.org/b or me@a.org",
    "A café's naïve señor": "a café 's naïve señor",
    "A dog 🐶 ☃": "a dog ☃",
    "A * b_c _ = + ~ |": "a * b_c _ = + ~ |",
    "  spaces\tand\nlines  ": "spaces and lines",
    " . ": "",
    "": "",
}


@pytest.mark.parametrize("caption", EXPECTED)
def test_hard_sentences_are_tokenized_as_ptb_does(caption: str) -> None:
    """Contractions, hyphens, quotes, numbers, abbreviations and symbols give the recorded tokens."""
    assert tokenize(caption) == EXPECTED[caption]


@needs_java
def test_java_gives_the_recorded_tokens() -> None:
    """The recorded tokens of the hard sentences are the output of Stanford's tokenizer, not of ours."""
    assert dict(zip(EXPECTED, tokenize_java(list(EXPECTED)), strict=True)) == EXPECTED


@needs_java
def test_all_real_captions_are_tokenized_as_ptb_does(flickr8k: Path) -> None:
    """Our tokenizer and Stanford's agree on every caption of Flickr8k."""
    lines = (flickr8k / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    captions = [line.split("\t", 1)[1] for line in lines]
    theirs = tokenize_java(captions)
    different = [caption for caption, tokens in zip(captions, theirs, strict=True) if tokenize(caption) != tokens]
    assert len(captions) > 1000
    assert different == []


@needs_java
def test_java_writes_nothing_beside_its_archive() -> None:
    """Stanford's tokenizer runs without writing a file to its package's folder, which may be read-only."""
    pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    import pycocoevalcap.tokenizer.ptbtokenizer as module

    folder = Path(module.__file__).parent
    before = folder.stat().st_mtime_ns
    tokenize_java(["a dog"])
    assert folder.stat().st_mtime_ns == before


@pytest.mark.parametrize("script", ["exit 1", "echo one line", "exec /bin/sleep 60"])
def test_a_java_that_fails_is_an_error(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_java: None
) -> None:
    """Both programs raise JavaError when Java exits, answers too little or hangs."""
    (tmp_path / "java").write_text(f"#!/bin/sh\n{script}\n")
    monkeypatch.setattr(java, "TIME_LIMIT", 0.5)
    with pytest.raises(java.JavaError):
        java.tokenize(["a dog", "a cat"])
    with pytest.raises(java.JavaError):
        score_with_meteor()


def score_with_meteor() -> float:
    with java.Meteor() as meteor:
        return meteor.score(["a dog", "a cat"], [["a dog"], ["a cat"]])


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the executable ``java`` in the temporary folder the only one."""
    (tmp_path / "java").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_no_java_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both programs raise JavaError without a ``java`` on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not java.available()
    with pytest.raises(java.JavaError):
        java.tokenize(["a dog"])
    with pytest.raises(java.JavaError):
        score_with_meteor()
