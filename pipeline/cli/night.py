"""Commands for the nightly captions: the group ``captioning night``."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli.common import RunName, ShardName, open_inbox, open_store, print_result, read_lines
from pipeline.progress import counted
from pipeline.settings import read_settings

if TYPE_CHECKING:
    from pipeline.nightly.night import NightOptions

app = typer.Typer(
    name="night",
    help="The nightly run: a preview, and its steps in the order in which they run.",
    no_args_is_help=True,
)


def _review_below(value: str) -> float:
    """A confidence, by default that of the settings."""
    if not value:
        return read_settings().review_below
    try:
        confidence = float(value)
    except ValueError:
        confidence = -1
    if not 0 <= confidence <= 1:
        raise typer.BadParameter(f"Expected a number from 0 to 1. Received: {value!r}")
    return confidence


ArchiveName = Annotated[
    Literal["all", "new"],
    typer.Option(
        help="all: caption the images that the champion has not captioned; new: only those that no model has captioned"
    ),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed/--no-retry-failed", help="try the images that failed in earlier nights again")
]
Recaption = Annotated[
    str,
    typer.Option(
        metavar="PATTERNS",
        help="patterns, separated by commas, such as `2026/*,a.jpg`: images whose keys match one are captioned again",
    ),
]
RecaptionKeys = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="text file of keys, one per line: these images are captioned again",
    ),
]
ReviewBelow = Annotated[
    float,
    typer.Option(
        metavar="CONFIDENCE",
        parser=_review_below,
        default_factory=lambda: "",
        help="confidence below which a caption is marked for review; by default CAPTION_REVIEW_BELOW",
        show_default=False,
    ),
]


@app.command("preview")
def night_preview(
    *,
    archive: ArchiveName = "all",
    retry_failed: RetryFailed = False,
    recaption: Recaption = "",
    recaption_keys: RecaptionKeys = None,
) -> None:
    """Show how many images a night would caption now, in how many shards and hours. Nothing is written."""
    from dataclasses import asdict

    from pipeline.nightly import preview

    settings = read_settings()
    found = preview.preview(
        inbox=open_inbox(),
        store=open_store(),
        options=_night_options(archive, retry_failed=retry_failed, recaption=recaption, recaption_keys=recaption_keys),
        shard_size=settings.shard_size,
    )
    print_result({**asdict(found), "summary": str(found)})


@app.command("list")
def night_list(
    run: RunName,
    *,
    archive: ArchiveName = "all",
    retry_failed: RetryFailed = False,
    accept_smaller_inbox: Annotated[
        bool,
        typer.Option(
            "--accept-smaller-inbox/--no-accept-smaller-inbox",
            help="continue even if the inbox is empty or has lost more photographs than CAPTION_MAX_SHRINK_FRACTION "
            "allows",
        ),
    ] = False,
    recaption: Recaption = "",
    recaption_keys: RecaptionKeys = None,
) -> None:
    """List the images in the inbox, and choose the present champion for the whole night."""
    from pipeline.nightly import night as nightly

    options = _night_options(
        archive,
        retry_failed=retry_failed,
        accept_smaller_inbox=accept_smaller_inbox,
        recaption=recaption,
        recaption_keys=recaption_keys,
    )
    listed = nightly.list_inbox(run, inbox=open_inbox(), store=open_store(), options=options)
    again = f"; {listed['requested']:,} of them again, on request" if listed["requested"] else ""
    summary = f"{counted(listed['listed'], 'image')}, to be captioned by {listed['version']}{again}"
    print_result({**listed, "summary": summary})


@app.command("plan-extraction")
def night_plan_extraction(run: RunName) -> None:
    """Divide the images that have no features yet into shards, and print the names of the shards."""
    from pipeline.nightly import night as nightly

    print_result(nightly.plan_extraction(run, store=open_store(), shard_size=read_settings().shard_size))


@app.command("plan-captions")
def night_plan_captions(
    run: RunName,
    date: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            metavar="YYYY-MM-DD",
            help="date under which the captions are stored; by default today, in UTC",
        ),
    ] = None,
) -> None:
    """Divide the images that have no caption yet into shards, and print the names of the shards."""
    from pipeline.nightly import night as nightly

    day = (date or datetime.now(UTC)).strftime("%Y-%m-%d")
    print_result(nightly.plan_captions(run, store=open_store(), date=day, shard_size=read_settings().shard_size))


@app.command("caption")
def night_caption(shard: ShardName, *, review_below: ReviewBelow) -> None:
    """Caption the images of a shard."""
    from pipeline.nightly import captions

    print_result(
        captions.caption_shard(shard, store=open_store(), decoding=read_settings().decoding, review_below=review_below)
    )


@app.command("reconcile")
def night_reconcile(
    run: RunName,
    *,
    review_below: ReviewBelow,
    look_again: Annotated[
        bool,
        typer.Option(
            "--look-again/--no-look-again",
            help="list the inbox once more, and count the photographs that arrived during the night",
        ),
    ] = False,
) -> None:
    """Finish the night: update the current captions, write the record, and say whether a retraining is due.

    The command fails if an image of the night is unaccounted for, or if too many failed.
    """
    from pipeline.nightly.arrivals import count_arrivals
    from pipeline.nightly.reconcile import reconcile
    from pipeline.nightly.retraining import retraining_due

    settings, store = read_settings(), open_store()
    record = reconcile(
        run,
        store=store,
        max_failed_fraction=settings.max_failed_fraction,
        max_shrink_fraction=settings.max_shrink_fraction,
        drift_limit=settings.drift_limit,
        review_below=review_below,
        sidecars=settings.sidecars,
    )
    due = retraining_due(
        record,
        after_corrections=settings.retrain_after_corrections,
        after_drift=settings.retrain_after_drift,
        store=store,
    )
    arrived = count_arrivals(run, inbox=open_inbox(), store=store, options=_night_options()) if look_again else 0
    summary = f"{record}; a retraining is due: {due}" if due else str(record)
    if arrived:
        summary += f"; {arrived:,} arrived during the night"
    print_result({**record.model_dump(mode="json"), "retraining_due": due, "arrived": arrived, "summary": summary})


def _night_options(
    archive: str = "all",
    *,
    retry_failed: bool = False,
    accept_smaller_inbox: bool = False,
    recaption: str = "",
    recaption_keys: Path | None = None,
) -> "NightOptions":
    from pipeline.nightly.inbox import Patterns
    from pipeline.nightly.night import Archive, NightOptions

    settings = read_settings()
    return NightOptions(
        archive=Archive(archive),
        retry_failed=retry_failed,
        patterns=Patterns(settings.inbox_include, settings.inbox_exclude),
        limit=settings.night_limit,
        max_shrink_fraction=settings.max_shrink_fraction,
        has_sidecars=settings.sidecars == "inbox",
        accept_smaller_inbox=accept_smaller_inbox,
        recaption=recaption,
        recaption_keys=read_lines(recaption_keys) if recaption_keys else frozenset(),
    )
