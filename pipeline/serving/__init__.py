"""Captions on demand."""
