"""Commands for operations: the state of the store, failed runs, backups, removal, and signatures."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli.common import (
    RunName,
    folder_path,
    open_inbox,
    open_store,
    print_result,
    read_lines,
    split_lines,
)
from pipeline.progress import counted
from pipeline.settings import read_settings
from pipeline.storage import names

app = typer.Typer()


@app.command()
def status(
    captions: Annotated[int, typer.Option(min=0, help="number of captions to show")] = 0,
    under: Annotated[str, typer.Option(help="show only captions of images whose key begins with this")] = "",
) -> None:
    """Show the champion, the models, the latest runs, and some captions."""
    from pipeline.ops import status as report

    report.show(open_store(), limit=captions, under=under)


@app.command()
def end_run(
    kind: Annotated[Literal["night", "retraining"], typer.Argument(help="kind of the run")],
    run: RunName,
    error: Annotated[
        str | None,
        typer.Option(help="why the run failed; the run is then marked even if its record says that it has ended"),
    ] = None,
) -> None:
    """Mark a run as failed if it stopped before its last step, and print its measures for monitoring.

    Without --error, only a run whose record says that it is still running, or that has no record, is marked.
    """
    from pipeline.ops import measures
    from pipeline.work import runs

    store = open_store()
    changed = runs.end_run(kind, run, error, store)
    summary = error or ("marked as failed" if changed else "the run has ended")
    found = measures.of_run(runs.read_record(kind, run, store))
    if kind == runs.NIGHT:
        # Were a retraining to measure it too, its DAG's series would show an old state until the next retraining.
        found |= measures.of_store(store)
    print_result({"failed": changed, "summary": summary, "measures": found})


@app.command()
def backup(
    target: Annotated[str, typer.Argument(help="address of the backup: file:///folder or s3://bucket/prefix")],
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="read back what was copied, the champion with its encoder, and the current captions; fail if anything "
            "is missing from the backup, or differs from what was copied",
        ),
    ] = False,
) -> None:
    """Copy the store while it is in use.

    To restore a backup, set CAPTION_STORE to the backup and run `captioning backup OLD_ADDRESS`.
    """
    from pipeline.ops import backup as backups
    from pipeline.storage import open_bucket

    copied = backups.back_up(open_store(), open_bucket(target), check=check)
    print_result({**copied.model_dump(), "summary": str(copied)})


@app.command()
def prune(
    keep: Annotated[
        int,
        typer.Option(min=1, help="number of champions whose models and features are kept, including the present one"),
    ] = 3,
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", min=0, max=36_500, help="minimum age of the objects that are removed")
    ] = 7.0,
    records_older_than: Annotated[
        float,
        typer.Option(
            metavar="DAYS",
            min=0,
            max=36_500,
            help="minimum age of the records and profiles of runs that are removed; the newest hundred of each kind "
            "are kept",
        ),
    ] = 730.0,
    remove: Annotated[
        bool, typer.Option("--remove/--no-remove", help="remove the objects; by default they are only listed")
    ] = False,
) -> None:
    """Remove the objects that none of the last champions needs, the remains of interrupted runs, and old records."""
    from pipeline.ops import prune as pruning

    store, now = open_store(), datetime.now(UTC)
    before = now - timedelta(days=older_than)
    found = pruning.find(store, keep=keep, before=before, records_before=now - timedelta(days=records_older_than))
    if remove:
        pruning.remove(found, before=before, store=store)
    objects, size = sum(len(each.objects) for each in found), sum(each.size for each in found)
    done = "removed" if remove else "can be removed, nothing is without --remove"
    print_result(
        {
            "removed": remove,
            "objects": objects,
            "bytes": size,
            "details": [f"{each.kind}: {each.name}, {len(each.objects)} objects, {each.size} bytes" for each in found],
            "summary": f"{counted(objects, 'object')} ({size / 1e6:,.1f} MB) {done}",
        }
    )


@app.command()
def forget(
    keys: Annotated[list[str] | None, typer.Argument(help="keys of photographs in the inbox")] = None,
    *,
    keys_from: Annotated[
        Path | None,
        typer.Option("--from", exists=True, dir_okay=False, help="text file of further keys, one per line"),
    ] = None,
    lines: Annotated[
        str, typer.Option("--keys", metavar="LINES", help="further keys, one per line, such as from a form")
    ] = "",
    pictures: Annotated[
        list[Path] | None,
        typer.Option(
            "--picture", exists=True, dir_okay=False, help="path of a picture; all copies of it are forgotten"
        ),
    ] = None,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove/--no-remove", help="remove them for good; by default the command only says what it would remove"
        ),
    ] = False,
) -> None:
    """Remove photographs, and all that was made from them, from the store and MLflow, and never caption them again.

    Without keys or pictures, the command searches again for what was forgotten earlier. Photographs in the inbox stay.
    """
    from pipeline.ops import forget as forgetting

    settings = read_settings()
    found = forgetting.forget(
        {*(keys or []), *(read_lines(keys_from) if keys_from else []), *split_lines(lines)},
        [picture.read_bytes() for picture in pictures or []],
        inbox=open_inbox(),
        store=open_store(),
        remove=remove,
        place=settings.sidecars,
        tracking_uri=settings.tracking_uri,
    )
    print_result({**found.model_dump(), "summary": str(found)})


@app.command()
def make_keys(
    folder: Annotated[Path, typer.Argument(help="folder for the two files", parser=folder_path)],
) -> None:
    """Make a pair of keys: signing.pem for CAPTION_SIGNING_KEY, and verify.pem for CAPTION_VERIFY_KEY."""
    from pipeline.storage import signatures

    private, public = signatures.make_keys(folder)
    print_result({"signing_key": str(private), "verify_key": str(public)})


@app.command()
def sign(
    versions: Annotated[
        list[str] | None,
        typer.Argument(help="versions of models; by default all models, all encoders and the champion's pointer"),
    ] = None,
) -> None:
    """Sign models that are already in the store, and their encoders, with CAPTION_SIGNING_KEY."""
    from pipeline.ops import sign as signing

    signed = signing.sign([names.VERSION.check(version) for version in versions or []], open_store())
    print_result({**signed.model_dump(), "summary": str(signed)})
