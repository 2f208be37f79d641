"""The command line, ``captioning``. The log goes to standard error, the result, one line of JSON, to standard output.

Where the result is an object, its ``summary`` describes it in one line.

Exit status 0 is success; 2 is bad input or configuration or a missing package, where a retry changes nothing; others
can be retried. Each command imports its own modules, so that the help appears at once.
"""

import os
import shutil
import sys

import typer

from pipeline import logs
from pipeline.cli import captions, installation, night, operations, promotion, training
from pipeline.errors import PipelineError, exit_on_error
from pipeline.storage.bucket import is_utf8

PANELS = {
    "Data and training": training.app,
    "Evaluation and promotion": promotion.app,
    "Nightly captions": night.app,
    "Captions and corrections": captions.app,
    "Operations": operations.app,
    "Installation and demo": installation.app,
}
"""The commands by the titles under which the help lists them."""

app = typer.Typer(
    name="captioning",
    help="Caption photographs: train, evaluate and promote a captioner, and caption the new images in a bucket.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


for title, commands in PANELS.items():
    for command in commands.registered_commands:
        command.rich_help_panel = title
    app.add_typer(commands, rich_help_panel=title)


def main() -> None:
    """Run the command line; a ``PipelineError`` is printed without a traceback and exits with status 2."""
    _open_standard_streams()
    logs.configure(gpu=shutil.which("nvidia-smi") is not None)
    with exit_on_error():
        _check_encoding(sys.argv[1:])
        app(prog_name="captioning")


def _check_encoding(arguments: list[str]) -> None:
    """Raise ``PipelineError`` for an argument that is not UTF-8, because neither a URI nor a record can hold it.

    ``caption`` reports such a picture like any other that it can't read.
    """
    wrong = [argument for argument in arguments if not is_utf8(argument)]
    if wrong and arguments[0] != "caption":
        raise PipelineError(f"This argument is not UTF-8: {wrong[0]!r}. Rename the file or folder, or correct it.")


def _open_standard_streams() -> None:
    """Open those of the standard streams that the caller has closed, so that no file gets their descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it stays open
