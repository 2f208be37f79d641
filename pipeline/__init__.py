"""Image captioning, from photographs in a bucket to captions in a bucket.

The package is a plain library with a command line (``python -m pipeline``). It never imports Airflow, and importing it
loads nothing heavy: each module imports what it needs.
"""

__version__ = "0.1.0"
