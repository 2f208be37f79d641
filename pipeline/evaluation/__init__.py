"""Evaluation of captioners, the promotion gate, and drift."""
