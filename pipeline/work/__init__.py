"""Shards of work, records of runs, and the outcomes of images."""
