"""The command line, ``captioning``. The log goes to standard error, the result, one line of JSON, to standard output.

Where the result is an object, its ``summary`` describes it in one line.

Exit status 0 is success; 2 is bad input or configuration or a missing package, where a retry changes nothing; others
can be retried. Each command imports its own modules, so that the help appears at once.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from pipeline import logs
from pipeline.config import DecodingConfig, TrainingConfig
from pipeline.errors import PipelineError, exit_on_error
from pipeline.progress import counted
from pipeline.settings import read_settings
from pipeline.storage import names
from pipeline.storage.bucket import is_utf8

if TYPE_CHECKING:
    from pipeline.nightly.night import NightOptions
    from pipeline.storage import Bucket

DEFAULT = DecodingConfig()
app = typer.Typer(
    name="captioning",
    help="Caption photographs: train, evaluate and promote a captioner, and caption the new images of a bucket.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
night = typer.Typer(help="The steps of the nightly run, in the order in which they run.", no_args_is_help=True)
app.add_typer(night, name="night")


def _check(kind: names.NameKind, *, empty: bool = False) -> Callable[[typer.CallbackParam, str | None], str | None]:
    """The callback of an argument that must be a name of this kind, or ``empty``. The error names the argument."""

    def check(parameter: typer.CallbackParam, value: str | None) -> str | None:
        try:
            return value if value is None or (empty and not value) else kind.check(value)
        except PipelineError as error:
            raise PipelineError(f"{parameter.opts[0]}: {error}") from None

    return check


def _path(value: str) -> Path:
    """The path of a folder; an empty one would be the working directory."""
    if not value:
        raise typer.BadParameter("Expected the path of a folder. Received: ''")
    return Path(value)


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


DatasetId = Annotated[
    str,
    typer.Argument(
        help="id of a dataset, as `ingest` prints and `datasets` lists it", callback=_check(names.DATASET_ID)
    ),
]
EncoderId = Annotated[
    str,
    typer.Argument(help="id of an encoder, as `register-encoder` prints it", callback=_check(names.ENCODER_ID)),
]
Version = Annotated[
    str, typer.Argument(help="version of a model, as `status` lists it", callback=_check(names.VERSION))
]
ShardName = Annotated[
    str, typer.Argument(help="name of a shard, as the planning command prints it", callback=_check(names.SHARD))
]
RunName = Annotated[
    str, typer.Argument(help="name of the run, such as the run id of Airflow", callback=_check(names.RUN))
]
RunOption = Annotated[
    str,
    typer.Option(
        "--run",
        callback=_check(names.RUN),
        help="name of the run to which this belongs; by default a new one",
        default_factory=lambda: f"manual-{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}",
        show_default=False,
    ),
]
PolicyName = Annotated[
    Literal["auto", "approve", "never"],
    typer.Option(help="auto: the gate decides; approve: a person has decided; never: the model is not promoted"),
]
Floor = Annotated[float, typer.Option(min=0, help="minimum CIDEr of a champion")]
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
        help="training photographs most similar to a picture whose captions have a vote on which caption of the beam "
        "is written; 0 for none",
    ),
]


def main() -> None:
    """Run the command line; a ``PipelineError`` is printed without a traceback and exits with status 2."""
    _open_standard_streams()
    logs.configure(gpu=shutil.which("nvidia-smi") is not None)
    with exit_on_error():
        _check_encoding(sys.argv[1:])
        app(prog_name="captioning")


@app.command()
def resolve_inputs(
    run: RunName,
    dataset: Annotated[
        str,
        typer.Option(
            help="captioned photographs, as for `ingest`, one source per line; by default the champion's dataset, or "
            "CAPTION_DATASET"
        ),
    ] = "",
    encoder: Annotated[
        str,
        typer.Option(help="encoder, as for `register-encoder`; by default the champion's, or CAPTION_ENCODER"),
    ] = "",
    cause: Annotated[str, typer.Option(help="why the retraining was started, if not by a person")] = "",
) -> None:
    """Begin a retraining: determine its dataset and its encoder."""
    from pipeline.training import inputs

    settings = read_settings()
    found = inputs.resolve(
        run,
        dataset=dataset,
        encoder=encoder,
        default_dataset=settings.dataset,
        default_encoder=settings.encoder,
        cause=cause,
        store=_store(),
    )
    _print({**found.model_dump(), "cause": cause, "summary": f"{found}; started by {cause}" if cause else str(found)})


@app.command()
def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="captioned photographs, by the path or URI of their folder or of the file of captions: Flickr8k, "
            "Flickr30k, Karpathy's JSON, COCO, a CSV, TSV or Parquet table, or .txt files beside the pictures; or the "
            "id of a dataset in the store. Several sources are merged: a picture that is in two of them is in one split"
        ),
    ],
    *,
    name: Annotated[
        str | None,
        typer.Option(help="name of the dataset; by default those of the sources", callback=_check(names.DATASET_NAME)),
    ] = None,
    language: Annotated[
        str,
        typer.Option(
            metavar="CODE",
            # The DAG passes an empty code where none was given.
            callback=_check(names.LANGUAGE, empty=True),
            help="language of the captions, such as en, de or zh; by default that of the datasets in the store, or en",
        ),
    ] = "",
    licence: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="licence of the captions and photographs, for the model card; by default that of the datasets in the "
            "store",
        ),
    ] = "",
    max_dropped_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="share of the captions of each source that may be dropped")
    ] = 0.05,
    corrections: Annotated[
        bool, typer.Option(help="add the corrected captions in the store to the training split")
    ] = False,
) -> None:
    """Read captioned photographs into a validated dataset in the store."""
    from pipeline.data import ingest as ingestion

    report = ingestion.ingest(
        sources,
        _store(),
        name=name,
        language=language,
        licence=licence,
        max_dropped_fraction=max_dropped_fraction,
        corrections=corrections,
    )
    _print({**report.model_dump(exclude={"dropped_rows"}), "summary": str(report)})


@app.command()
def datasets(limit: Annotated[int, typer.Option(min=1, help="maximum number of datasets")] = 20) -> None:
    """List the ids of the datasets in the store, the newest first."""
    from pipeline.data import dataset

    _print(dataset.list_datasets(_store(), limit=limit))


@app.command()
def vocabulary(
    dataset_id: DatasetId,
    min_count: Annotated[int, typer.Option(min=1, help="minimum count of a word in the training captions")] = 10,
    neutral_wording: Annotated[
        bool,
        typer.Option(
            help="person and child in place of man, woman, boy and girl, where the captions of a picture disagree "
            "about the gender; for English; a training with this vocabulary learns these captions"
        ),
    ] = False,
) -> None:
    """Build the vocabulary: number the words that occur often enough in the training captions."""
    from pipeline.data import dataset

    key, words = dataset.build_vocabulary(dataset_id, _store(), min_count=min_count, neutral_wording=neutral_wording)
    _print({"vocabulary": key, "words": len(words), "summary": f"{len(words):,} words"})


@app.command()
def register_encoder(
    spec: Annotated[
        str,
        typer.Argument(
            help="a network of keras.applications, such as resnet50 (docs/encoders.md lists them), NAME:FILE.h5 with "
            "weights for it, random, a .keras model, or the id of a registered encoder"
        ),
    ],
    crops: Annotated[
        bool, typer.Option(help="encode six crops of each picture: better captions, six times the extraction time")
    ] = False,
    regions: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET_ID",
            # The DAG passes an empty id where nothing is learnt from the dataset.
            callback=_check(names.DATASET_ID, empty=True),
            help="also encode the regions of each picture, if need be by a projection that is learnt from this "
            "dataset: better captions, up to 25 KB more a picture; an alternative to --crops",
        ),
    ] = None,
    int8: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET_ID",
            callback=_check(names.DATASET_ID, empty=True),
            help="quantize to 8-bit integers, calibrated on this dataset: three times as fast on CPUs with VNNI",
        ),
    ] = None,
) -> None:
    """Put an image encoder in the store."""
    from pipeline.features import encoder as encoders

    if crops and regions:
        raise PipelineError("Crops and regions are alternatives: leave out --crops or --regions.")
    encoder_id = encoders.register(spec, _store(), crops=crops)
    if regions:
        from pipeline.features.regions import add_regions

        encoder_id = add_regions(encoder_id, regions, _store())
    if int8:
        from pipeline.features import quantization

        encoder_id = quantization.quantize(encoder_id, int8, _store())
    _print({"encoder_id": encoder_id, "summary": encoder_id})


@app.command()
def plan_extraction(dataset_id: DatasetId, encoder_id: EncoderId, run: RunOption) -> None:
    """Cut the images of a dataset that have no features yet into shards, and print their names."""
    from pipeline.data import dataset
    from pipeline.features import extraction

    store = _store()
    names = [
        shard
        for source, images in dataset.listings_by_source(dataset.load(dataset_id, store).table).items()
        for shard in extraction.plan_extraction(
            images,
            run=run,
            source=source,
            encoder_id=encoder_id,
            store=store,
            shard_size=read_settings().shard_size,
        )
    ]
    _print(names)


@app.command()
def extract(shard: ShardName) -> None:
    """Extract the features of a shard."""
    from dataclasses import asdict

    from pipeline.features import extraction

    done = extraction.extract(shard, store=_store())
    _print({**asdict(done), "summary": str(done)})


@app.command()
def train(
    dataset_id: DatasetId,
    vocabulary: Annotated[
        str,
        typer.Argument(help="key of the vocabulary, as `vocabulary` prints it", callback=_check(names.VOCABULARY)),
    ],
    encoder_id: EncoderId,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help=f"set a field of the training configuration: {', '.join(TrainingConfig.model_fields)}",
        ),
    ] = None,
) -> None:
    """Train a captioner and put it in the store as a candidate."""
    from pipeline.training.train import train_captioner

    settings = read_settings()
    model = train_captioner(
        dataset_id,
        vocabulary,
        encoder_id=encoder_id,
        config=TrainingConfig.parse(assignments or []),
        store=_store(),
        max_failed_fraction=settings.max_failed_fraction,
        tracking_uri=settings.tracking_uri,
    )
    best = [member.best_epoch for member in model.ensemble]
    epochs = sum(len(member.epochs) for member in model.ensemble)
    summary = f"{model.version}: {epochs} epochs, best {', '.join(map(str, best))}"
    _print({"version": model.version, "best_epochs": best, "epochs": epochs, "summary": summary})


@app.command()
def evaluate(
    version: Version,
    beam_width: BeamWidth = DEFAULT.beam_width,
    mbr_samples: MbrSamples = DEFAULT.mbr_samples,
    neighbours: NeighbourCount = DEFAULT.neighbours,
) -> None:
    """Caption the test split of a model's dataset, score the captions, and write a report."""
    from pipeline.captioner.metadata import load_metadata
    from pipeline.evaluation.evaluate import evaluate_model
    from pipeline.evaluation.results import format_scores
    from pipeline.storage import layout
    from pipeline.training import mlflow as tracking

    settings, store = read_settings(), _store()
    metrics = evaluate_model(
        version,
        store=store,
        decoding=_decoding(beam_width, mbr_samples, neighbours),
        max_failed_fraction=settings.max_failed_fraction,
    )
    report = layout.evaluation(version, metrics.dataset, metrics.decoding).report
    if settings.tracking_uri:
        tracking.record_evaluation(
            load_metadata(version, store),
            metrics,
            report=store.get(report).decode(),
            card=store.get(layout.model_card(version)).decode(),
            uri=settings.tracking_uri,
        )
    _print(
        {
            "version": version,
            **metrics.summary,
            "report": store.url(report),
            "summary": f"{version}: {format_scores(metrics.summary)}",
        }
    )


@app.command()
def evaluate_champion(
    version: Version,
    *,
    beam_width: BeamWidth = DEFAULT.beam_width,
    mbr_samples: MbrSamples = DEFAULT.mbr_samples,
    neighbours: NeighbourCount = DEFAULT.neighbours,
    policy: PolicyName = "auto",
    floor: Floor = 0.1,
) -> None:
    """Evaluate the champion on the test split of a candidate's dataset, if the decision on the candidate needs it."""
    from pipeline.captioner.metadata import load_metadata
    from pipeline.captioner.registry import find_champion
    from pipeline.evaluation import card, promotion_gate
    from pipeline.evaluation.evaluate import evaluate_model
    from pipeline.evaluation.results import candidate_metrics, comparable_metrics, format_scores

    store, decoding = _store(), _decoding(beam_width, mbr_samples, neighbours)
    candidate = candidate_metrics(version, decoding, store)
    champion = find_champion(store)
    if champion is None:
        _print({"champion": None, "summary": "there is no champion yet"})
        return
    config = promotion_gate.GateConfig(policy=promotion_gate.Policy(policy), floor=floor)
    decision = promotion_gate.decide_alone(version, candidate.cider, champion.version, config)
    if decision is not None:
        _print({"champion": champion.version, "summary": f"not needed: {decision.reason}"})
        return
    metrics = comparable_metrics(champion.version, candidate, store)
    if metrics is not None:
        # The evaluation may have been interrupted before it wrote the card.
        card.write(load_metadata(champion.version, store), store)
    else:
        metrics = evaluate_model(
            champion.version,
            store=store,
            decoding=decoding,
            max_failed_fraction=read_settings().max_failed_fraction,
            dataset_id=candidate.dataset,
        )
    summary = f"{champion.version}: {format_scores(metrics.summary)}"
    _print({"champion": champion.version, **metrics.summary, "summary": summary})


@app.command()
def compare(
    version: Version,
    *,
    beam_width: BeamWidth = DEFAULT.beam_width,
    mbr_samples: MbrSamples = DEFAULT.mbr_samples,
    neighbours: NeighbourCount = DEFAULT.neighbours,
    picture_page: Annotated[
        str, typer.Option(metavar="URL", help="begins the address of a picture's page, which its key ends; for links")
    ] = "",
) -> None:
    """Compare a candidate's scores and captions with the champion's, in Markdown, for a person to decide.

    CAPTION_SHADOW photographs of the inbox are captioned by both. The Markdown is a field of the result:
    `captioning compare VERSION | jq -r .comparison` prints it.
    """
    from pipeline.evaluation import comparison
    from pipeline.nightly import shadow

    settings, store = read_settings(), _store()
    decoding = _decoding(beam_width, mbr_samples, neighbours)
    sections = [comparison.compare(version, decoding=decoding, store=store)]
    if settings.shadow:
        of_inbox = shadow.compare(
            version,
            size=settings.shadow,
            decoding=settings.decoding,
            picture_page=picture_page,
            inbox_uri=settings.inbox,
            store=store,
        )
        sections.append(of_inbox)
    summary = sections[-1].partition("\n")[0].removesuffix(":")
    _print({"version": version, "comparison": "\n\n".join(sections), "summary": summary})


@app.command()
def gate(
    version: Version,
    *,
    beam_width: BeamWidth = DEFAULT.beam_width,
    mbr_samples: MbrSamples = DEFAULT.mbr_samples,
    neighbours: NeighbourCount = DEFAULT.neighbours,
    policy: PolicyName = "auto",
    approved: Annotated[
        bool | None, typer.Option("--promote/--keep", help="the decision of a person, for the policy approve")
    ] = None,
    by: Annotated[str, typer.Option(help="name of that person")] = "somebody",
    tolerance: Annotated[float, typer.Option(min=0, help="how far its CIDEr may be below the champion's")] = 0.015,
    floor: Floor = 0.1,
    run: RunOption,
) -> None:
    """Decide whether a candidate becomes the champion, and write the record of the retraining."""
    from pipeline.evaluation import promotion_gate

    record = promotion_gate.run_gate(
        version,
        run=run,
        decoding=_decoding(beam_width, mbr_samples, neighbours),
        config=promotion_gate.GateConfig(policy=promotion_gate.Policy(policy), tolerance=tolerance, floor=floor),
        store=_store(),
        approval=None if approved is None else promotion_gate.Approval(promote=approved, by=by),
    )
    shown = record.model_dump(mode="json", include={"version", "promoted", "reason", "scores", "dataset"})
    _print({**shown, "summary": promotion_gate.describe(record)})


@app.command()
def end_run(
    kind: Annotated[Literal["night", "retraining"], typer.Argument(help="kind of the run")],
    run: RunName,
    error: Annotated[str | None, typer.Option(help="why it failed, whatever its record says")] = None,
) -> None:
    """Mark a run as failed. Without --error, a run that has ended stays as it is. Print the measures for monitoring."""
    from pipeline.ops import measures
    from pipeline.work import runs

    store = _store()
    changed = runs.end_run(kind, run, error, store)
    summary = error or ("marked as failed" if changed else "the run has ended")
    found = measures.of_run(runs.read_record(kind, run, store))
    if kind == runs.NIGHT:
        # Were a retraining to measure it too, its DAG's series would show an old state until the next retraining.
        found |= measures.of_store(store)
    _print({"failed": changed, "summary": summary, "measures": found})


@app.command()
def promote(version: Version) -> None:
    """Make a model the champion, whatever its scores."""
    from pipeline.captioner import registry

    _print({"champion": registry.promote(version, _store()).version})


@app.command()
def rollback() -> None:
    """Make the previous champion the champion again."""
    from pipeline.captioner import registry

    _print({"champion": registry.roll_back(_store()).version})


@app.command()
def prune(
    keep: Annotated[
        int, typer.Option(min=1, help="champions whose models and features are kept, the present one among them")
    ] = 3,
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", min=0, max=36_500, help="minimum age of removed objects")
    ] = 7.0,
    remove: Annotated[
        bool, typer.Option("--remove", help="remove the objects; by default they are only listed")
    ] = False,
) -> None:
    """Remove the objects that none of the last champions need, and the remains of interrupted runs."""
    from pipeline.ops import prune as pruning

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
            "details": [f"{each.kind}: {each.name}, {len(each.objects)} objects, {each.size} bytes" for each in found],
        }
    )


@app.command()
def forget(
    keys: Annotated[list[str] | None, typer.Argument(help="keys of photographs in the inbox")] = None,
    *,
    keys_from: Annotated[
        Path | None,
        typer.Option("--from", exists=True, dir_okay=False, help="text file of further keys, one on each line"),
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        typer.Option("--picture", exists=True, dir_okay=False, help="a picture whose copies are forgotten"),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="remove them for good; by default they are only looked for")
    ] = False,
) -> None:
    """Remove photographs, and all that was made of them, from the store and from MLflow, and never caption them again.

    Without any, those that were forgotten earlier are looked for again. The inbox itself stays as it is.
    """
    from pipeline.ops import forget as forgetting

    settings = read_settings()
    found = forgetting.forget(
        {*(keys or []), *(_lines(keys_from) if keys_from else [])},
        [picture.read_bytes() for picture in pictures or []],
        inbox=_inbox(),
        store=_store(),
        remove=remove,
        place=settings.sidecars,
        tracking_uri=settings.tracking_uri,
    )
    _print({**found.model_dump(), "summary": str(found)})


@app.command()
def backup(target: Annotated[str, typer.Argument(help="file:///folder or s3://bucket/prefix")]) -> None:
    """Copy the store while it is in use.

    To restore a backup, set CAPTION_STORE to the backup and run `captioning backup OLD_ADDRESS`.
    """
    from pipeline.ops import backup as backups
    from pipeline.storage import open_bucket

    _print(backups.back_up(_store(), open_bucket(target)).model_dump())


@app.command()
def import_model(
    source: Annotated[
        str, typer.Argument(help="the other store, which is only read: file:///folder or s3://bucket/prefix")
    ],
    version: Annotated[
        str | None,
        typer.Argument(help="version of a model; by default the champion there", callback=_check(names.VERSION)),
    ] = None,
    *,
    promote: Annotated[
        bool, typer.Option("--promote/--no-promote", help="make the model the champion, or only copy it")
    ] = True,
    profile: Annotated[str, typer.Option(help="AWS profile of the other store, if it needs other credentials")] = "",
    endpoint_url: Annotated[
        str, typer.Option(metavar="URL", help="S3 server of the other store, if it is another one")
    ] = "",
) -> None:
    """Copy a model from another store, such as that of staging, with all that it needs, and promote it."""
    from pipeline.ops import import_model as importing
    from pipeline.storage import open_bucket

    access = {"AWS_PROFILE": profile, "AWS_ENDPOINT_URL": endpoint_url}
    other = open_bucket(source, {name: value for name, value in access.items() if value})
    imported = importing.import_model(version, source=other, target=_store(), promote=promote)
    _print({**imported.model_dump(), "summary": str(imported)})


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
        typer.Option(min=0, help="further captions of each picture, the best first"),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object per line")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="version of a model; by default the champion", callback=_check(names.VERSION)),
    ] = None,
) -> None:
    """Caption pictures, and print the captions in the order of the pictures. Exit status 1: some failed."""
    from pipeline.serving import on_demand

    # The captions are the output; errors of pictures are printed beside them.
    with _no_log():
        captioned = on_demand.caption(
            pictures,
            version=model,
            decoding=_decoding(beam_width, mbr_samples, neighbours),
            alternatives=alternatives,
            store=_store(),
        )
    for found in captioned:
        if as_json:
            _write(found.to_json() + "\n", sys.stdout)
        else:
            _write(found.to_text() + "\n", sys.stdout if found.error is None else sys.stderr)
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
        typer.Option("--format", help="by default csv for .csv, jsonl for .jsonl and coco for .json"),
    ] = None,
    words: Annotated[
        str,
        typer.Option(
            help="words and phrases in quotation marks, which must occur in the caption, the key or the error"
        ),
    ] = "",
    under: Annotated[str, typer.Option(help="only images whose key begins with this")] = "",
    status: Annotated[
        Literal["ok", "failed", "waiting"] | None,
        typer.Option(help="only images with a caption (ok), or with none because they failed or were not tried yet"),
    ] = None,
    version: Annotated[str, typer.Option(help="only captions by this version of a model")] = "",
    source: Annotated[
        Literal["model", "person"] | None, typer.Option(help="only captions by a model, or by a person")
    ] = None,
    review: Annotated[bool, typer.Option("--review", help="only captions that a person should look at")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is at the destination")] = False,
    table: Annotated[str, typer.Option(metavar="NAMESPACE.NAME", help="the table of Iceberg")] = "captioning.captions",
    catalog: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="SQLAlchemy URL of the catalogue of Iceberg; by default a file of SQLite in a local warehouse",
        ),
    ] = "",
) -> None:
    """Write the current captions, one row an image, to a file or a table for other programs."""
    from pipeline import export as exports
    from pipeline.nightly import current
    from pipeline.ops.browse_current import Filters
    from pipeline.storage import layout

    store = _store()
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
        inbox=_inbox(),
        overwrite=overwrite,
        iceberg_table=table,
        iceberg_catalog=catalog,
    )
    _print(exported)


@app.command()
def status(
    captions: Annotated[int, typer.Option(min=0, help="number of captions to show")] = 0,
    under: Annotated[str, typer.Option(help="show only captions of images whose key begins with this")] = "",
) -> None:
    """Show the champion, the models, the last runs, and some captions."""
    from pipeline.ops import status as report

    report.show(_store(), limit=captions, under=under)


@app.command()
def install_dags(folder: Annotated[Path, typer.Argument(help="Airflow's DAG folder", parser=_path)]) -> None:
    """Write two files into Airflow's DAG folder that import the DAGs of the installed package."""
    from pipeline.ops import dag_files

    _print({"files": [str(file) for file in dag_files.write(folder)]})


@app.command()
def demo_data(
    directory: Annotated[Path, typer.Argument(help="folder for the pictures and captions", parser=_path)],
    images: Annotated[int, typer.Option(min=10, help="number of pictures")] = 600,
    new: Annotated[
        int, typer.Option(min=0, help="number of further pictures in the folder `new`, without captions, for the inbox")
    ] = 60,
    seed: Annotated[int, typer.Option(help="seed; other seeds give other pictures")] = 0,
    language: Annotated[Literal["en", "de", "zh"], typer.Option(help="language of the captions")] = "en",
) -> None:
    """Generate a data set with known captions, in the Flickr8k layout, to try the pipeline without a download."""
    from pipeline.data import synthetic

    count = synthetic.generate(directory, images=images, new=new, seed=seed, language=language)
    _print({"directory": str(directory), "images": count})


@app.command()
def demo_inbox(count: Annotated[int, typer.Option(min=1, help="maximum number of photographs")] = 60) -> None:
    """Copy photographs that are in no split of the newest model's dataset into the inbox, then those of its test."""
    from pipeline.ops import demo_inbox as demo

    _print(demo.fill(_store(), read_settings().inbox, count=count))


ArchiveName = Annotated[
    Literal["all", "new"],
    typer.Option(help="all: caption images that the champion has not captioned; new: only those that no model has"),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed/--no-retry-failed", help="try again images that failed in earlier nights")
]
Recaption = Annotated[
    str,
    typer.Option(
        metavar="PATTERNS",
        help="caption images again whose keys match one of these patterns, separated by commas, such as `2026/*,a.jpg`",
    ),
]
RecaptionKeys = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="caption images again whose keys are in this text file, one a line",
    ),
]


@night.command("preview")
def night_preview(
    *,
    archive: ArchiveName = "all",
    retry_failed: RetryFailed = False,
    recaption: Recaption = "",
    recaption_keys: RecaptionKeys = None,
) -> None:
    """Say what a night would do now: images, shards, hours. Nothing is written."""
    from dataclasses import asdict

    from pipeline.nightly import preview

    settings = read_settings()
    found = preview.preview(
        inbox=_inbox(),
        store=_store(),
        options=_night_options(archive, retry_failed=retry_failed, recaption=recaption, recaption_keys=recaption_keys),
        shard_size=settings.shard_size,
    )
    _print({**asdict(found), "summary": str(found)})


@night.command("list")
def night_list(
    run: RunName,
    *,
    archive: ArchiveName = "all",
    retry_failed: RetryFailed = False,
    accept_smaller_inbox: Annotated[
        bool,
        typer.Option(
            "--accept-smaller-inbox/--no-accept-smaller-inbox",
            help="go on, even if the inbox is empty or has lost more photographs than CAPTION_MAX_SHRINK_FRACTION",
        ),
    ] = False,
    recaption: Recaption = "",
    recaption_keys: RecaptionKeys = None,
) -> None:
    """List the inbox and fix the champion for the whole night."""
    from pipeline.nightly import night as nightly

    options = _night_options(
        archive,
        retry_failed=retry_failed,
        accept_smaller_inbox=accept_smaller_inbox,
        recaption=recaption,
        recaption_keys=recaption_keys,
    )
    listed = nightly.list_inbox(run, inbox=_inbox(), store=_store(), options=options)
    again = f"; {listed['requested']:,} of them again, on request" if listed["requested"] else ""
    summary = f"{counted(listed['listed'], 'image')}, to be captioned by {listed['version']}{again}"
    _print({**listed, "summary": summary})


@night.command("plan-extraction")
def night_plan_extraction(run: RunName) -> None:
    """Cut the images that have no features yet into shards, and print their names."""
    from pipeline.nightly import night as nightly

    _print(nightly.plan_extraction(run, store=_store(), shard_size=read_settings().shard_size))


@night.command("plan-captions")
def night_plan_captions(
    run: RunName,
    date: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="partition of the captions; by default today, UTC"
        ),
    ] = None,
) -> None:
    """Cut the images that have no caption yet into shards, and print their names."""
    from pipeline.nightly import night as nightly

    day = (date or datetime.now(UTC)).strftime("%Y-%m-%d")
    _print(nightly.plan_captions(run, store=_store(), date=day, shard_size=read_settings().shard_size))


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


@night.command("caption")
def night_caption(shard: ShardName, *, review_below: ReviewBelow) -> None:
    """Write the captions of a shard."""
    from pipeline.nightly import captions

    _print(captions.caption_shard(shard, store=_store(), decoding=read_settings().decoding, review_below=review_below))


@night.command("reconcile")
def night_reconcile(
    run: RunName,
    *,
    review_below: ReviewBelow,
    look_again: Annotated[
        bool,
        typer.Option(
            "--look-again/--no-look-again",
            help="list the inbox once more, and count the photographs that have arrived during the night",
        ),
    ] = False,
) -> None:
    """Count the images of the night; fail if one is unaccounted for, or too many failed. Say if a retraining is due."""
    from pipeline.nightly.arrivals import count_arrivals
    from pipeline.nightly.reconcile import reconcile
    from pipeline.nightly.retraining import retraining_due

    settings, store = read_settings(), _store()
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
    arrived = count_arrivals(run, inbox=_inbox(), store=store, options=_night_options()) if look_again else 0
    summary = f"{record}; a retraining is due: {due}" if due else str(record)
    if arrived:
        summary += f"; {arrived:,} arrived during the night"
    _print({**record.model_dump(mode="json"), "retraining_due": due, "arrived": arrived, "summary": summary})


@app.command()
def fold() -> None:
    """Put new corrections into the current captions now, as the next night will, and into the sidecars."""
    from pipeline.nightly import current

    damaged: list[str] = []
    count = current.fold(_store(), place=read_settings().sidecars, damaged=damaged)
    _print({"corrections": count, "damaged": damaged, "summary": counted(count, "correction")})


@app.command()
def corrections(
    limit: Annotated[int | None, typer.Option(min=1, help="maximum number of corrections; all by default")] = None,
    output_format: Annotated[Literal["json", "csv"], typer.Option("--format", help="format of the list")] = "json",
) -> None:
    """List what people said about captions, the newest first: who, when, and which models have learned from it."""
    from pipeline.export import csv
    from pipeline.ops import correction_use

    found = correction_use.list_corrections(_store(), limit=limit)
    if output_format == "csv":
        _write(csv.render(correction_use.tabulate(found)).decode(), sys.stdout)
    else:
        _print([each.model_dump(mode="json") for each in found])


@app.command()
def import_corrections(
    file: Annotated[
        str, typer.Argument(help="path or URI of Label Studio's JSON export of tasks that `export` has written")
    ],
) -> None:
    """Store what people said about captions in Label Studio as corrections."""
    from pipeline.export import label_studio
    from pipeline.storage import open_object

    bucket, key = open_object(file)
    imported = label_studio.import_annotations(bucket.get(key), bucket.url(key), inbox=_inbox(), store=_store())
    _print({**imported.model_dump(), "summary": str(imported)})


@app.command()
def withdraw(
    image_key: Annotated[
        str, typer.Argument(help="key of the image in the inbox; of an uploaded picture, its `picture`")
    ],
    by: Annotated[str, typer.Option(help="name of the person")] = "somebody",
) -> None:
    """Withdraw the correction of an image, so that the caption of the model counts again."""
    from pipeline.ops import correction_use

    withdrawn = correction_use.withdraw(image_key, by=by, store=_store())
    summary = f"{image_key}: the caption of the model counts again: {withdrawn.model_caption}"
    _print({**withdrawn.model_dump(mode="json"), "summary": summary})


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
        recaption_keys=_lines(recaption_keys) if recaption_keys else frozenset(),
    )


def _lines(file: Path) -> frozenset[str]:
    """The lines of a text file that are not empty."""
    try:
        return frozenset(file.read_text("utf-8").split("\n")) - {""}
    except UnicodeDecodeError:
        raise PipelineError(f"{file} is not a text file in UTF-8. Write one key on each line.") from None


def _inbox() -> "Bucket":
    from pipeline.storage import open_bucket

    return open_bucket(read_settings().inbox)


def _decoding(beam_width: int, mbr_samples: int, neighbours: int) -> DecodingConfig:
    """The decoding of these options, in the wording of the settings."""
    options = {"beam_width": beam_width, "mbr_samples": mbr_samples, "neighbours": neighbours}
    return DecodingConfig.model_validate(read_settings().decoding.model_dump() | options)


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
    _write(json.dumps(result) + "\n", sys.stdout)


def _write(text: str, stream: TextIO) -> None:
    """Write at once: the order of the two streams holds, and a reader that is gone is noticed here, not at the end."""
    stream.write(text)
    stream.flush()


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
