"""The command line. A command's log goes to standard error, its result, as one line of JSON, to standard output.

Where the result is an object, ``summary`` says in a line what a person wants to know of it.

Exit status 0 is success; 2 is bad input or configuration, which no retry mends; anything else may be tried again.
Each command imports what it needs, so that the help answers at once.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.errors import PipelineError
from pipeline.recipe import Recipe, Search
from pipeline.settings import read_settings

if TYPE_CHECKING:
    from pipeline.storage import Bucket

DEFAULT = Search()

app = typer.Typer(
    name="pipeline",
    help="Caption photographs: train, evaluate and promote a captioner, and caption what is new in a bucket.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
night = typer.Typer(help="The steps of the nightly job, in the order in which they run.", no_args_is_help=True)
app.add_typer(night, name="night")

DatasetUri = Annotated[str, typer.Argument(help="URI of a dataset.parquet, as `ingest` prints it")]
EncoderId = Annotated[str, typer.Argument(help="id of a published encoder, as `encoder` prints it")]
Version = Annotated[str, typer.Argument(help="version of a model, as `status` lists it")]
Shard = Annotated[str, typer.Argument(help="name of a planned shard")]
Run = Annotated[str, typer.Argument(help="name of the run; Airflow's run id, for example")]
RunOption = Annotated[str, typer.Option("--run", help="name of the run that asks")]
Beam = Annotated[
    int, typer.Option(min=1, max=50, help="captions that the search keeps of a picture; 1 is greedy search")
]
Samples = Annotated[
    int,
    typer.Option(min=0, max=1000, help="captions drawn by chance, to choose that of the beam which is most like them"),
]


def main() -> None:
    """Run the command line; a ``PipelineError`` is printed without a traceback and exits with 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        app(prog_name="python -m pipeline")
    except PipelineError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


@app.command()
def ingest(
    source: Annotated[
        str,
        typer.Argument(
            help="folder in the Flickr8k layout, a CSV or Parquet table, or a dataset.parquet that `ingest` has "
            "written; path or URI"
        ),
    ],
    name: Annotated[str | None, typer.Option(help="name of the dataset; by default that of the source")] = None,
    max_dropped_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="share of captions that may be dropped")
    ] = 0.05,
    marks: Annotated[
        bool, typer.Option(help="add the pictures whose captions people have marked as wrong, with their better ones")
    ] = False,
) -> None:
    """Read captioned photographs into a validated dataset table."""
    from pipeline import dataset

    report = dataset.ingest(source, _store(), name=name, max_dropped_fraction=max_dropped_fraction, marks=marks)
    _print({**report.model_dump(exclude={"dropped_rows"}), "summary": str(report)})


@app.command()
def datasets(
    limit: Annotated[int, typer.Option(min=1, help="how many, at most")] = 20,
) -> None:
    """List the URIs of the datasets in the store, the newest first."""
    from pipeline import dataset

    _print(dataset.newest(_store(), limit=limit))


@app.command()
def vocabulary(
    dataset_uri: DatasetUri,
    min_count: Annotated[int, typer.Option(min=1, help="how often a word must be seen in the training captions")] = 10,
) -> None:
    """Count the words of the training captions and number those seen often enough."""
    from pipeline import examples

    uri, words = examples.count_words(dataset_uri, min_count=min_count)
    _print({"vocabulary": uri, "words": len(words), "summary": f"{len(words):,} words"})


@app.command()
def encoder(
    spec: Annotated[str, typer.Argument(help="imagenet, random, a .h5 file of ResNet50 weights, or a .keras model")],
    views: Annotated[
        bool, typer.Option(help="encode six views of each picture: better captions, six times the extraction")
    ] = False,
    int8: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET_URI",
            help="compute in 8-bit integers, calibrated on this dataset: three times as fast on CPUs with VNNI",
        ),
    ] = None,
) -> None:
    """Put an image encoder in the store."""
    from pipeline import encoder as encoders

    encoder_id = encoders.publish(spec, _store(), views=views)
    if int8:
        from pipeline import calibration

        encoder_id = calibration.quantise(encoder_id, int8, _store())
    _print({"encoder_id": encoder_id})


@app.command()
def plan(dataset_uri: DatasetUri, encoder_id: EncoderId, run: RunOption = "manual") -> None:
    """Cut a dataset's images that have no features yet into shards, and print their names."""
    from pipeline import dataset, features

    data = dataset.load(dataset_uri)
    shards = [
        shard
        for source, images in dataset.images_by_source(data.table).items()
        for shard in features.plan(
            images,
            run=run,
            source=source,
            encoder_id=encoder_id,
            store=_store(),
            shard_size=read_settings().shard_size,
        )
    ]
    _print(shards)


@app.command()
def extract(shard: Shard) -> None:
    """Extract the features of a planned shard."""
    from dataclasses import asdict

    from pipeline import features

    done = features.extract(shard, store=_store())
    _print({**asdict(done), "summary": str(done)})


@app.command()
def train(
    dataset_uri: DatasetUri,
    vocabulary_uri: Annotated[str, typer.Argument(help="URI of the vocabulary, as `vocabulary` prints it")],
    encoder_id: EncoderId,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help=f"set a field of the recipe: {', '.join(Recipe.model_fields)}",
        ),
    ] = None,
) -> None:
    """Train a captioner and put it in the store as a candidate."""
    from pipeline import training

    settings = read_settings()
    model = training.train(
        dataset_uri,
        vocabulary_uri,
        encoder_id=encoder_id,
        recipe=Recipe.parse(assignments or []),
        store=_store(),
        max_failed_fraction=settings.max_failed_fraction,
        devices=settings.devices,
        tracking_uri=settings.tracking_uri,
    )
    best = [member.best_epoch for member in model.members]
    epochs = sum(len(member.epochs) for member in model.members)
    summary = f"{model.version}: {epochs} epochs, the best {', '.join(map(str, best))}"
    _print({"version": model.version, "best_epochs": best, "epochs": epochs, "summary": summary})


@app.command()
def evaluate(
    version: Version,
    beam: Beam = DEFAULT.beam_width,
    samples: Samples = DEFAULT.samples,
) -> None:
    """Caption the test split, greedily and as asked; score the captions, and write metrics.json and report.html."""
    from pipeline import evaluation

    settings = read_settings()
    metrics = evaluation.evaluate(
        version,
        store=_store(),
        search=Search(beam_width=beam, samples=samples),
        max_failed_fraction=settings.max_failed_fraction,
        tracking_uri=settings.tracking_uri,
    )
    _print(
        {
            "version": version,
            **metrics.summary,
            "report": _store().url(evaluation.report_key(version)),
            "summary": f"{version}: {evaluation.in_words(metrics.summary)}",
        }
    )


@app.command()
def consider(
    version: Version,
    *,
    policy: Annotated[
        Literal["auto", "approve", "never"],
        typer.Option(help="auto: promote through the gate; approve: as a person has decided; never: leave it"),
    ] = "auto",
    answer: Annotated[
        bool | None, typer.Option("--promote/--keep", help="what a person has decided, for the policy approve")
    ] = None,
    by: Annotated[str, typer.Option(help="who has decided")] = "somebody",
    tolerance: Annotated[float, typer.Option(min=0, help="CIDEr by which it may lie below the champion")] = 0.015,
    floor: Annotated[float, typer.Option(min=0, help="CIDEr that it must reach")] = 0.1,
    run: RunOption = "manual",
) -> None:
    """Decide whether a candidate becomes champion, and write the retraining's record."""
    from pipeline import registry

    settings = read_settings()
    decision = registry.consider(
        version,
        run=run,
        policy=registry.Policy(policy),
        tolerance=tolerance,
        floor=floor,
        store=_store(),
        max_failed_fraction=settings.max_failed_fraction,
        answer=None if answer is None else registry.Answer(promote=answer, by=by),
    )
    _print({**decision.model_dump(), "summary": str(decision)})


@app.command()
def compare(version: Version) -> None:
    """Show a candidate's scores and captions beside the champion's, in Markdown, for a person to decide by."""
    from pipeline import comparison

    text = comparison.compare(version, store=_store(), max_failed_fraction=read_settings().max_failed_fraction)
    _print({"version": version, "comparison": text})


@app.command()
def promote(version: Version) -> None:
    """Make a model the champion, whatever its scores."""
    from pipeline import registry

    _print({"champion": registry.promote(version, _store()).version})


@app.command()
def rollback() -> None:
    """Give the place back to the champion before."""
    from pipeline import registry

    _print({"champion": registry.roll_back(_store()).version})


@app.command()
def prune(
    keep: Annotated[int, typer.Option(min=1, help="champions whose models and features stay, the present one too")] = 3,
    older_than: Annotated[float, typer.Option(metavar="DAYS", min=0, help="leave alone what is younger")] = 7.0,
    remove: Annotated[bool, typer.Option("--remove", help="do it; otherwise it is only said what would go")] = False,
) -> None:
    """Remove what none of the last champions needs, and what interrupted runs have left."""
    from pipeline import prune as pruning

    store = _store()
    before = datetime.now(UTC) - timedelta(days=older_than)
    found = pruning.find(store, keep=keep, before=before)
    if remove:
        pruning.remove(found, before=before, store=store)
    _print(
        {
            "removed": remove,
            "objects": sum(len(each.objects) for each in found),
            "bytes": sum(each.size for each in found),
            "what": [f"{each.kind}: {each.name}, {len(each.objects)} objects, {each.size} bytes" for each in found],
        }
    )


@app.command()
def copy(target: Annotated[str, typer.Argument(help="where to: file:///folder or s3://bucket/prefix")]) -> None:
    """Copy the store, while it is worked on, as a backup; from the backup, set as the store, it restores one."""
    from pipeline import backup
    from pipeline.storage import open_bucket

    _print(backup.copy(_store(), open_bucket(target)).model_dump())


@app.command()
def caption(
    pictures: Annotated[
        list[str], typer.Argument(help="paths or URIs of pictures, or of folders; an S3 folder ends in /")
    ],
    *,
    beam: Beam = DEFAULT.beam_width,
    samples: Samples = DEFAULT.samples,
    alternatives: Annotated[int, typer.Option(min=0, help="further captions of each picture, with probabilities")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print an object of JSON a line")] = False,
    model: Annotated[str | None, typer.Option(help="version of a model; by default the champion")] = None,
) -> None:
    """Caption pictures at once, and print the captions in the pictures' order. Exit status 1: some can't be read."""
    from pipeline import on_demand

    # The captions are the news; what can't be read is said beside them.
    with _no_log():
        captioned = on_demand.caption(
            pictures,
            version=model,
            search=Search(beam_width=beam, samples=samples),
            alternatives=alternatives,
            store=_store(),
        )
    for found in captioned:
        if as_json:
            sys.stdout.write(found.to_json() + "\n")
        else:
            (sys.stdout if found.error is None else sys.stderr).write(found.to_text() + "\n")
    if any(found.error is not None for found in captioned):
        raise typer.Exit(1)


@app.command()
def status(
    captions: Annotated[int, typer.Option(min=0, help="how many captions to show")] = 0,
    under: Annotated[str, typer.Option(help="show only captions of images whose key begins so")] = "",
) -> None:
    """Show the champion, the models, what is pending, the last runs, and some captions."""
    from pipeline import status as report

    report.show(_store(), inbox=read_settings().inbox, limit=captions, under=under)


@app.command()
def demo_data(
    directory: Annotated[Path, typer.Argument(help="folder to draw them into")],
    images: Annotated[int, typer.Option(min=10, help="how many pictures")] = 600,
    seed: Annotated[int, typer.Option(help="other seeds draw other pictures")] = 0,
) -> None:
    """Draw a data set whose truth is known, in the Flickr8k layout, to try the pipeline without a download."""
    from pipeline import demo_data as demo

    _print({"directory": str(directory), "images": demo.draw(directory, images=images, seed=seed)})


@app.command()
def demo_inbox(
    count: Annotated[int, typer.Option(min=1, help="how many photographs, at most")] = 60,
) -> None:
    """Copy test photographs of the newest model's dataset into the inbox, as if they had just arrived."""
    from pipeline import demo_inbox as demo

    _print(demo.fill(_store(), read_settings().inbox, count=count))


@night.command("list")
def night_list(
    run: Run,
    archive: Annotated[
        Literal["all", "new"],
        typer.Option(help="all: caption what the champion has not captioned; new: only what no model has"),
    ] = "all",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed/--no-retry-failed", help="try again what failed in earlier nights")
    ] = False,
) -> None:
    """List the inbox and fix the champion for the whole night."""
    from pipeline import night as nightly

    listed = nightly.list_inbox(
        run,
        inbox=read_settings().inbox,
        store=_store(),
        archive=nightly.Archive(archive),
        retry_failed=retry_failed,
    )
    _print({**listed, "summary": f"{listed['listed']:,} images, to be captioned by {listed['version']}"})


@night.command("plan-extraction")
def night_plan_extraction(run: Run) -> None:
    """Plan the shards of images without features, and print their names."""
    from pipeline import night as nightly

    _print(nightly.plan_extraction(run, store=_store(), shard_size=read_settings().shard_size))


@night.command("plan-captions")
def night_plan_captions(
    run: Run,
    date: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="partition of the captions; by default today's, UTC"
        ),
    ] = None,
) -> None:
    """Plan the shards of images without a caption of the champion, and print their names."""
    from pipeline import night as nightly

    day = (date or datetime.now(UTC)).strftime("%Y-%m-%d")
    _print(nightly.plan_captions(run, store=_store(), date=day, shard_size=read_settings().shard_size))


@night.command("caption")
def night_caption(shard: Shard) -> None:
    """Write the captions of a planned shard."""
    from pipeline import captions

    settings = read_settings()
    _print(captions.caption(shard, store=_store(), search=settings.search, sidecars=settings.sidecars))


@night.command("publish")
def night_publish(run: Run) -> None:
    """Count the night, and fail where an image is unaccounted for or too many failed."""
    from pipeline import night as nightly

    settings = read_settings()
    record = nightly.publish(
        run, store=_store(), max_failed_fraction=settings.max_failed_fraction, drift_limit=settings.drift_limit
    )
    _print({**record, "summary": nightly.summary(record)})


def _store() -> "Bucket":
    from pipeline.storage import open_bucket

    return open_bucket(read_settings().store)


@contextlib.contextmanager
def _no_log() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _print(result: Any) -> None:
    sys.stderr.flush()
    sys.stdout.write(json.dumps(result) + "\n")
