"""What there is: the champion, the models, the last runs, and captions, as tables for a terminal."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipeline import captions, marks, night, registry, runs
from pipeline.captioner import list_models
from pipeline.errors import PipelineError
from pipeline.evaluation import load_metrics, report_key
from pipeline.storage import Bucket, ObjectNotFoundError

WIDTH = 1000
"""Columns where the output is no terminal: enough that nothing is folded, for whoever searches it."""

RUNS = 5
"""Runs of each kind that are shown."""


def show(store: Bucket, *, inbox: str, limit: int, under: str) -> None:
    """Print the state of a store, what is pending in the inbox, and some of the champion's captions.

    Those are ``limit`` of the images whose key begins with ``under``.
    """
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    try:
        champion = registry.champion(store).version
    except PipelineError as error:
        champion = None
        console.print(str(error), markup=False, soft_wrap=True)
    _show_models(console, store, champion)
    if champion:
        _show_coverage(console, night.coverage(champion, inbox=inbox, store=store), inbox)
    _show_runs(console, store)
    if champion and limit:
        _show_captions(console, store, champion, limit, under)
    console.print(f"captions: {store.url('captions')}", markup=False, soft_wrap=True)
    if marked := marks.count(store):
        console.print(f"marks:    {marked} better captions in {store.url('marks')}", markup=False, soft_wrap=True)
    if champion:
        console.print(f"report:   {store.url(report_key(champion))}", markup=False, soft_wrap=True)


def _show_models(console: Console, store: Bucket, champion: str | None) -> None:
    columns = (Column("model", no_wrap=True), "", "encoder", "CIDEr", "BLEU-4")
    table = Table(*columns, title="Models (scores on the test split)")
    for model in list_models(store):
        try:
            scores = load_metrics(model.version, store).summary
            numbers = (f"{scores['CIDEr']:.3f}", f"{scores['BLEU-4']:.3f}")
        except ObjectNotFoundError:
            numbers = ("not evaluated", "")
        table.add_row(model.version, "champion" if model.version == champion else "", model.encoder_id, *numbers)
    if table.row_count:
        console.print(table)


def _show_coverage(console: Console, found: night.Coverage, inbox: str) -> None:
    console.print(
        f"{inbox}: {found.listed} images = {found.captioned} captioned by the champion + "
        f"{sum(found.errors.values())} failed + {found.pending} pending",
        markup=False,
        soft_wrap=True,
    )
    _show_errors(console, found.errors)


def _show_errors(console: Console, errors: Mapping[str, int]) -> None:
    for error, count in errors.items():
        console.print(f"    {count} × {error}", markup=False, soft_wrap=True)


def _show_runs(console: Console, store: Bucket) -> None:
    for record, _ in zip(runs.finished(registry.KIND, store), range(RUNS), strict=False):
        console.print(
            f"retraining {record['run']}: features of {record['extracted']} images extracted; "
            f"{record['version']}: {record['reason']}",
            markup=False,
        )
    for record, _ in zip(runs.finished(night.KIND, store), range(RUNS), strict=False):
        console.print(f"night {record['run']}: {night.summary(record)}", markup=False)
        spent = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in record["seconds"].items())
        if spent:
            console.print(f"    {record['images_per_second']} images a second; seconds: {spent}", markup=False)
        _show_errors(console, record["errors"])
        for warning in record["warnings"]:
            console.print(f"    warning: {warning}", markup=False, soft_wrap=True)


def _show_captions(console: Console, store: Bucket, version: str, limit: int, under: str) -> None:
    table = Table("image", "caption", title=f"Captions by {version}")
    rows = captions.read(version, store, columns=["image_key", "caption", "status", "error"]).to_pylist()
    shown = [row for row in rows if row["image_key"].startswith(under)]
    for row in sorted(shown, key=lambda row: row["image_key"])[:limit]:
        # As text: Rich would read square brackets in a key as markup.
        caption = row["caption"] if row["status"] == "ok" else f"failed: {row['error']}"
        table.add_row(Text(row["image_key"]), Text(caption))
    console.print(table)
