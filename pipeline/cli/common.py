"""What the commands share: types of their arguments and options, and functions that open, decode and print."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from pipeline.config import DecodingConfig
from pipeline.errors import PipelineError
from pipeline.settings import read_settings
from pipeline.storage import names

if TYPE_CHECKING:
    from pipeline.storage import Bucket

DEFAULT = DecodingConfig()
"""The decoding of commands whose options do not say otherwise."""


def check_name(kind: names.NameKind, *, empty: bool = False) -> Callable[[typer.CallbackParam, str | None], str | None]:
    """The callback of an argument that must be a name of this kind, or may be ``empty`` as well.

    The callback raises ``PipelineError``, which names the argument.
    """

    def check(parameter: typer.CallbackParam, value: str | None) -> str | None:
        try:
            return value if value is None or (empty and not value) else kind.check(value)
        except PipelineError as error:
            raise PipelineError(f"{parameter.opts[0]}: {error}") from None

    return check


def folder_path(value: str) -> Path:
    """The path of a folder, for ``typer.Argument(parser=…)``.

    Raises:
        BadParameter: it is empty, which would be the working directory.
    """
    if not value:
        raise typer.BadParameter("Expected the path of a folder. Received: ''")
    return Path(value)


RunName = Annotated[
    str, typer.Argument(help="name of the run, such as Airflow's run id", callback=check_name(names.RUN))
]
RunOption = Annotated[
    str,
    typer.Option(
        "--run",
        callback=check_name(names.RUN),
        help="name of the run that this belongs to; by default a new one",
        default_factory=lambda: f"manual-{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}",
        show_default=False,
    ),
]
ShardName = Annotated[
    str, typer.Argument(help="name of a shard, as the planning command prints it", callback=check_name(names.SHARD))
]
BeamWidth = Annotated[
    int, typer.Option(min=1, max=50, help="captions that beam search keeps for each image; 1 is greedy search")
]
MbrSamples = Annotated[
    int,
    typer.Option(
        min=0,
        max=1000,
        help="sampled captions for minimum Bayes risk (MBR) decoding, which reranks the beam; 0 for none",
    ),
]
NeighbourCount = Annotated[
    int,
    typer.Option(
        "--neighbours",
        min=0,
        max=200,
        help="number of similar training photographs whose captions vote on which caption of the beam is written; "
        "0 for none",
    ),
]


def open_store() -> "Bucket":
    """The store of the settings."""
    from pipeline.storage import open_bucket

    return open_bucket(read_settings().store)


def open_inbox() -> "Bucket":
    """The inbox of the settings."""
    from pipeline.storage import open_bucket

    return open_bucket(read_settings().inbox)


def decoding_config(beam_width: int, mbr_samples: int, neighbours: int) -> DecodingConfig:
    """The decoding of these options, in the wording of the settings."""
    options = {"beam_width": beam_width, "mbr_samples": mbr_samples, "neighbours": neighbours}
    return DecodingConfig.model_validate(read_settings().decoding.model_dump() | options)


def read_lines(file: Path) -> frozenset[str]:
    """The lines of a text file, as ``split_lines`` finds them.

    Raises:
        PipelineError: the file is not in UTF-8.
    """
    try:
        return split_lines(file.read_text("utf-8"))
    except UnicodeDecodeError:
        raise PipelineError(f"{file} is not a text file in UTF-8. Write one key on each line.") from None


def split_lines(text: str) -> frozenset[str]:
    """The lines of a text that are not empty. Spaces and other separators are parts of keys."""
    return frozenset(text.split("\n")) - {""}


def print_result(result: Any) -> None:
    """Print the result of a command to standard output, as one line of JSON."""
    write_text(json.dumps(result) + "\n", sys.stdout)


def write_text(text: str, stream: TextIO) -> None:
    """Write at once: the order of the two streams holds, and a reader that is gone is noticed here, not at the end."""
    stream.write(text)
    stream.flush()
