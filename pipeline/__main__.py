"""``python -m pipeline``, the command line for child processes."""

from pipeline.cli import main

main()
