"""The state of a store: champion, models, last runs, and captions, as tables for a terminal."""

import math
from collections.abc import Mapping
from itertools import islice

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipeline.captioner.registry import read_champion
from pipeline.data import corrections
from pipeline.errors import PipelineError, printable
from pipeline.evaluation.promotion_gate import describe
from pipeline.evaluation.results import latest_metrics
from pipeline.nightly import current
from pipeline.nightly.current import PERSON
from pipeline.ops import acceptance, browse, overview
from pipeline.progress import counted
from pipeline.storage import Bucket, DamagedObjectError, layout
from pipeline.work import runs
from pipeline.work.runs import NightRecord, RetrainingRecord

WIDTH = 1000
"""Columns if the output is not a terminal: enough that no line is wrapped, for searching."""

RUNS = 5
"""Runs of each kind that are shown."""

MODELS = 8
"""Models that are shown."""


def show(store: Bucket, *, limit: int, under: str) -> None:
    """Print the state of a store, and some of the champion's newest captions.

    Args:
        store: the store.
        limit: number of captions to print.
        under: print only captions of images whose key begins with this.
    """
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    try:
        champion = read_champion(store).version
    except PipelineError as error:
        champion = None
        _print(console, str(error))
    damaged: list[str] = []
    report = _show_models(console, store, champion, damaged)
    _show_runs(console, store, damaged)
    if champion and limit:
        _show_captions(console, store, champion, limit=limit, under=under, damaged=damaged)
    try:
        covered = current.coverage(store)
    except DamagedObjectError as error:
        covered = None
        damaged.append(str(error))
    for message in damaged:
        _print(console, f"damaged:     {message}")
    if covered:
        _print(console, f"coverage:    {_sentence(covered)}")
    _print(console, f"captions:    {store.url(layout.CURRENT_CAPTIONS)}")
    if said := corrections.count(store):
        _print(console, f"corrections: {said} in {store.url(layout.CORRECTIONS)}")
    if report:
        _print(console, f"report:      {report}")
    if champion:
        _print(console, "pending:     `captioning night preview` counts the images that the next night will caption")


def _show_models(console: Console, store: Bucket, champion: str | None, damaged: list[str]) -> str | None:
    """Print the champion and the newest models; return the address of the champion's report, if there is one."""
    columns = (Column("model", no_wrap=True), "", "encoder", "CIDEr", "BLEU-4", "test split", "decoding", "accepted")
    title = "Models (scores of the newest evaluation; share of the captions that people judged and found right)"
    table = Table(*columns, title=title)
    accepted = acceptance.by_model(acceptance.by_week(corrections.read(store, damaged=damaged)))
    report = None
    for model in overview.newest_models(store, champion, limit=MODELS, damaged=damaged):
        metrics = latest_metrics(model, store)
        numbers = ["not evaluated", "", "", ""]
        if metrics:
            scores = [f"{metrics.summary[name]:.3f}" for name in ("CIDEr", "BLEU-4")]
            numbers = [*scores, metrics.dataset, str(metrics.decoding)]
            if model.version == champion:
                report = store.url(layout.evaluation(champion, metrics.dataset, metrics.decoding).report)
        judged = str(accepted.get(model.version, ""))
        table.add_row(
            model.version, "champion" if model.version == champion else "", model.encoder_id, *numbers, judged
        )
    if table.row_count:
        console.print(table)
    return report


def _sentence(covered: current.Coverage) -> str:
    return (
        f"{counted(covered.images, 'image')} = {covered.captioned:,} captioned ({covered.by_person:,} by a person) + "
        f"{covered.failed:,} failed + {covered.waiting:,} waiting, as of {covered.listed_at:%Y-%m-%d %H:%M} UTC"
    )


def _show_errors(console: Console, errors: Mapping[str, int]) -> None:
    for error, count in errors.items():
        _print(console, f"    {count} × {error}")


def _show_runs(console: Console, store: Bucket, damaged: list[str]) -> None:
    for kind in (runs.RETRAINING, runs.NIGHT):
        for record in islice(runs.list_records(kind, store, damaged=damaged), RUNS):
            _show_run(console, record)


def _show_run(console: Console, record: NightRecord | RetrainingRecord) -> None:
    name = f"{record.kind} {record.run}"
    if record.status == "running":
        _print(console, f"{name}: running since {record.started_at:%Y-%m-%d %H:%M} UTC")
        return
    if record.status == "failed":
        _print(console, f"{name}: failed: {record.message}")
    elif isinstance(record, RetrainingRecord):
        _print(console, f"{name}: features of {counted(record.extracted, 'image')} extracted; {describe(record)}")
    if isinstance(record, NightRecord) and record.listed:
        if record.status == "succeeded":
            _print(console, f"{name}: {record}")
        spent = ", ".join(f"{section} {seconds:.1f}" for section, seconds in record.seconds.items())
        if spent:
            _print(console, f"    {record.images_per_second} images a second; seconds: {spent}")
        _show_errors(console, record.errors)
        for warning in record.warnings:
            _print(console, f"    warning: {warning}")


def _show_captions(
    console: Console, store: Bucket, version: str, *, limit: int, under: str, damaged: list[str]
) -> None:
    table = Table("image", "caption", title=f"Captions by {version}")
    filters = browse.Filters(version=version, under=under)
    found = browse.page(browse.shards(store), filters, store=store, size=limit, seconds=math.inf)
    damaged += found.damaged
    for row in found.rows:
        # As text: Rich would interpret square brackets in a key as markup.
        caption = row["caption"] if row["status"] == "ok" else f"failed: {row['error']}"
        if row["source"] == PERSON:
            caption += f" ({row['action']} by {row['corrected_by']})"
        table.add_row(Text(printable(row["image_key"])), Text(printable(caption)))
    console.print(table)


def _print(console: Console, line: str) -> None:
    console.print(printable(line), markup=False, soft_wrap=True)
