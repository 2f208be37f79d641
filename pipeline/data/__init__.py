"""Photographs and captions: images, annotations, datasets, vocabulary, corrections."""
