"""The one kind of error that a person has to mend."""


class PipelineError(Exception):
    """Bad input or configuration: trying again changes nothing until somebody acts.

    The message says what was wrong, where, and what to do. The command line prints it without a traceback and exits
    with status 2, and the DAGs then fail the task without a retry. Everything else (a network down, a disk full) is
    left to its own exception, which they do retry.
    """
