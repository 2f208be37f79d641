"""Captions as rows of ids, without a vocabulary."""

from pipeline.captioner.sentences import padded
from pipeline.data.vocabulary import END, START


def encoded(sentences, width=9):
    """Sentences of ids as padded rows that end in END."""
    return padded([[START, *sentence, END] for sentence in sentences], width)
