"""Captions as rows of ids, without a vocabulary."""

from pipeline.data.vocabulary import END, START
from pipeline.training.scst import padded


def encoded(sentences, width=9):
    """Sentences of ids as padded rows that end in END."""
    return padded([[START, *sentence, END] for sentence in sentences], width)
