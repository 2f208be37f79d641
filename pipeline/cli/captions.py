"""Commands for captions and corrections: captions on demand, exports, and what people said about captions."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Annotated, Literal

import typer

from pipeline.cli.common import (
    DEFAULT,
    BeamWidth,
    MbrSamples,
    NeighbourCount,
    check_name,
    decoding_config,
    open_inbox,
    open_store,
    print_result,
    write_text,
)
from pipeline.errors import PipelineError
from pipeline.progress import counted
from pipeline.settings import read_settings
from pipeline.storage import names

app = typer.Typer()


@app.command()
def caption(
    pictures: Annotated[
        list[str], typer.Argument(help="paths or URIs of pictures, or of folders; an S3 folder ends in /")
    ],
    *,
    beam_width: BeamWidth = DEFAULT.beam_width,
    mbr_samples: MbrSamples = DEFAULT.mbr_samples,
    neighbours: NeighbourCount = DEFAULT.neighbours,
    alternatives: Annotated[
        int,
        typer.Option(min=0, help="number of further captions to print for each picture, best first"),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object per line")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="version of a model; by default the champion", callback=check_name(names.VERSION)),
    ] = None,
) -> None:
    """Caption pictures, and print the captions in the order of the pictures. The exit status is 1 if some failed."""
    from pipeline.serving import on_demand

    # The captions are the output; errors of pictures are printed beside them.
    with _no_log():
        captioned = on_demand.caption(
            pictures,
            version=model,
            decoding=decoding_config(beam_width, mbr_samples, neighbours),
            alternatives=alternatives,
            store=open_store(),
        )
    for found in captioned:
        if as_json:
            write_text(found.to_json() + "\n", sys.stdout)
        else:
            write_text(found.to_text() + "\n", sys.stdout if found.error is None else sys.stderr)
    if any(found.error is not None for found in captioned):
        raise typer.Exit(1)


@app.command()
def export(
    destination: Annotated[
        str,
        typer.Argument(
            help="path or URI of a file (csv, jsonl, coco, label-studio), of a folder for shards (webdataset), or of a "
            "warehouse (iceberg), outside the store"
        ),
    ],
    *,
    form: Annotated[
        Literal["csv", "jsonl", "coco", "label-studio", "webdataset", "iceberg"] | None,
        typer.Option("--format", help="format; by default csv for .csv, jsonl for .jsonl and coco for .json"),
    ] = None,
    words: Annotated[
        str,
        typer.Option(
            help="only images whose caption, file name or error contains each of these words and quoted phrases; a "
            "word also matches longer words that begin with it"
        ),
    ] = "",
    under: Annotated[str, typer.Option(help="only images whose key begins with this")] = "",
    status: Annotated[
        Literal["ok", "failed", "waiting"] | None,
        typer.Option(
            help="only images with a caption (ok), with an error (failed), or that were not tried yet (waiting)"
        ),
    ] = None,
    version: Annotated[str, typer.Option(help="only captions by the model with this version")] = "",
    source: Annotated[
        Literal["model", "person"] | None, typer.Option(help="only captions by a model, or by a person")
    ] = None,
    review: Annotated[bool, typer.Option("--review", help="only captions that are marked for review")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is at the destination")] = False,
    table: Annotated[
        str, typer.Option(metavar="NAMESPACE.NAME", help="name of the Iceberg table")
    ] = "captioning.captions",
    catalog: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="SQLAlchemy URL of the Iceberg catalogue; by default an SQLite file in a local warehouse",
        ),
    ] = "",
) -> None:
    """Write the current captions, one row per image, to a file or a table for other programs."""
    from pipeline import export as exports
    from pipeline.nightly import current
    from pipeline.ops.browse_current import Filters
    from pipeline.storage import layout

    store = open_store()
    if not store.exists(layout.CURRENT_CAPTIONS):
        raise PipelineError(
            f"{store.uri} has no current captions to export: a night writes them. Check CAPTION_STORE, and run one."
        )
    filters = Filters(
        words=words, under=under, status=status or "", version=version, source=source or "", review=review
    )
    exported = exports.export(
        exports.select(current.read(store), filters),
        destination,
        form=exports.choose_format(destination, form),
        store=store,
        inbox=open_inbox(),
        overwrite=overwrite,
        iceberg_table=table,
        iceberg_catalog=catalog,
    )
    print_result(exported)


@app.command()
def corrections(
    limit: Annotated[int | None, typer.Option(min=1, help="maximum number of corrections; all by default")] = None,
    output_format: Annotated[Literal["json", "csv"], typer.Option("--format", help="format of the list")] = "json",
) -> None:
    """List the corrections of captions, newest first: who made them, when, and which models have learned from them."""
    from pipeline.export import csv
    from pipeline.ops import correction_use

    found = correction_use.list_corrections(open_store(), limit=limit)
    if output_format == "csv":
        write_text(csv.render(correction_use.tabulate(found)).decode(), sys.stdout)
    else:
        print_result([each.model_dump(mode="json") for each in found])


@app.command()
def withdraw(
    image_key: Annotated[
        str,
        typer.Argument(
            help="key of the image in the inbox; for an uploaded picture, its `picture` in the list of `corrections`"
        ),
    ],
    by: Annotated[str, typer.Option(help="name of the person who withdraws it")] = "somebody",
) -> None:
    """Withdraw the correction of an image, so that the model's caption counts again."""
    from pipeline.ops import correction_use

    withdrawn = correction_use.withdraw(image_key, by=by, store=open_store())
    summary = f"{image_key}: the caption of the model counts again: {withdrawn.model_caption}"
    print_result({**withdrawn.model_dump(mode="json"), "summary": summary})


@app.command()
def import_corrections(
    file: Annotated[
        str, typer.Argument(help="path or URI of a JSON export from Label Studio, of tasks that `export` has written")
    ],
) -> None:
    """Import what people said about captions in Label Studio as corrections."""
    from pipeline.export import label_studio
    from pipeline.storage import open_object

    bucket, key = open_object(file)
    imported = label_studio.import_annotations(bucket.get(key), bucket.url(key), inbox=open_inbox(), store=open_store())
    print_result({**imported.model_dump(), "summary": str(imported)})


@app.command()
def fold() -> None:
    """Put new corrections into the current captions and the sidecars now, without waiting for the next night."""
    from pipeline.nightly import current

    damaged: list[str] = []
    count = current.fold(open_store(), place=read_settings().sidecars, damaged=damaged)
    print_result({"corrections": count, "damaged": damaged, "summary": counted(count, "correction")})


@contextlib.contextmanager
def _no_log() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
