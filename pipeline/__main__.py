"""The process of the command line, ``python -m pipeline`` or ``captioning``."""

import atexit
import contextlib
import os
import sys

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def run() -> None:
    """Run the command line, and end the process before the interpreter is finalized.

    A thread of Arrow can drop the last reference to a Python object after the work is done. During the finalization,
    the wait for the interpreter's lock would abort the process (apache/arrow#34314).
    """
    status = 1  # that of an exception, whose traceback the interpreter prints

    def end() -> None:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)

    # Functions registered later, by other modules, are called before it.
    atexit.register(end)
    try:
        from pipeline.cli import main

        main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status == INTERRUPTED:
        sys.stderr.write("interrupted\n")


if __name__ == "__main__":
    run()
