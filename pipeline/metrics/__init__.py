"""Scores of captions by the COCO toolkit."""
