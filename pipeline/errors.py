"""The one exception for errors that a person has to fix."""


class PipelineError(Exception):
    """Bad input or configuration: a retry changes nothing until a person acts.

    The message says what was wrong, where, and what to do. The command line prints it without a traceback and exits
    with status 2, and the DAGs then fail the task without a retry. All other errors (a network failure, a full disk)
    keep their own exception, and the DAGs retry them.
    """
