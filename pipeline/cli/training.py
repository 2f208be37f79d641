"""Commands for data and training: the steps of a retraining up to the candidate, in their order."""

from typing import Annotated

import typer

from pipeline.cli.common import RunName, RunOption, ShardName, check_name, open_store, print_result
from pipeline.config import TrainingConfig
from pipeline.errors import PipelineError
from pipeline.settings import read_settings
from pipeline.storage import names

app = typer.Typer()

DatasetId = Annotated[
    str,
    typer.Argument(
        help="id of a dataset, as `ingest` prints and `datasets` lists it", callback=check_name(names.DATASET_ID)
    ),
]
EncoderId = Annotated[
    str,
    typer.Argument(help="id of an encoder, as `register-encoder` prints it", callback=check_name(names.ENCODER_ID)),
]


@app.command()
def resolve_inputs(
    run: RunName,
    dataset: Annotated[
        str,
        typer.Option(
            help="captioned photographs, as for `ingest`, one source per line; by default the champion's dataset, or "
            "CAPTION_DATASET if there is no champion"
        ),
    ] = "",
    encoder: Annotated[
        str,
        typer.Option(
            help="encoder, as for `register-encoder`; by default the champion's, or CAPTION_ENCODER if there is no "
            "champion"
        ),
    ] = "",
    cause: Annotated[str, typer.Option(help="why the retraining was started, if not by a person")] = "",
) -> None:
    """Begin a retraining: determine its dataset and encoder."""
    from pipeline.training import inputs

    settings = read_settings()
    found = inputs.resolve(
        run,
        dataset=dataset,
        encoder=encoder,
        default_dataset=settings.dataset,
        default_encoder=settings.encoder,
        cause=cause,
        store=open_store(),
    )
    print_result(
        {**found.model_dump(), "cause": cause, "summary": f"{found}; started by {cause}" if cause else str(found)}
    )


@app.command()
def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="captioned photographs: the path or URI of their folder or of the file of captions (Flickr8k, "
            "Flickr30k, Karpathy's JSON, COCO, a CSV, TSV or Parquet table, or .txt files beside the pictures), or the "
            "id of a dataset in the store. Several sources are merged, and copies of a picture are put in one split"
        ),
    ],
    *,
    name: Annotated[
        str | None,
        typer.Option(
            help="name of the dataset; by default those of the sources", callback=check_name(names.DATASET_NAME)
        ),
    ] = None,
    language: Annotated[
        str,
        typer.Option(
            metavar="CODE",
            # The DAG passes an empty code where none was given.
            callback=check_name(names.LANGUAGE, empty=True),
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
        float, typer.Option(min=0, max=1, help="maximum fraction of each source's captions that may be dropped")
    ] = 0.05,
    corrections: Annotated[
        bool, typer.Option(help="add the corrected captions in the store to the training split")
    ] = False,
) -> None:
    """Validate captioned photographs, and write them to the store as a dataset."""
    from pipeline.data import ingest as ingestion

    report = ingestion.ingest(
        sources,
        open_store(),
        name=name,
        language=language,
        licence=licence,
        max_dropped_fraction=max_dropped_fraction,
        corrections=corrections,
    )
    print_result({**report.model_dump(exclude={"dropped_rows"}), "summary": str(report)})


@app.command()
def datasets(limit: Annotated[int, typer.Option(min=1, help="maximum number of datasets")] = 20) -> None:
    """List the ids of the datasets in the store, newest first."""
    from pipeline.data import dataset

    print_result(dataset.list_datasets(open_store(), limit=limit))


@app.command()
def vocabulary(
    dataset_id: DatasetId,
    min_count: Annotated[
        int, typer.Option(min=1, help="minimum number of occurrences of a word in the training captions")
    ] = 10,
    neutral_wording: Annotated[
        bool,
        typer.Option(
            help="write person and child in place of man, woman, boy and girl where the captions of a picture disagree "
            "about the gender; for English; a model that is trained with this vocabulary learns these captions"
        ),
    ] = False,
) -> None:
    """Build the vocabulary of the words that occur often enough in the training captions."""
    from pipeline.data import dataset

    key, words = dataset.build_vocabulary(
        dataset_id, open_store(), min_count=min_count, neutral_wording=neutral_wording
    )
    print_result({"vocabulary": key, "words": len(words), "summary": f"{len(words):,} words"})


@app.command()
def register_encoder(
    spec: Annotated[
        str,
        typer.Argument(
            help="a network of keras.applications, such as resnet50 (docs/encoders.md lists them); NAME:FILE.h5 for "
            "such a network with the weights in a file; random for an untrained one; a .keras file; or the id of a "
            "registered encoder"
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
            callback=check_name(names.DATASET_ID, empty=True),
            help="also encode the regions of each picture, with a projection that is learned from this dataset if one "
            "is needed: better captions, up to 25 KB more per picture; not together with --crops",
        ),
    ] = None,
    int8: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET_ID",
            callback=check_name(names.DATASET_ID, empty=True),
            help="quantize to 8-bit integers, calibrated on this dataset: three times as fast on CPUs with VNNI",
        ),
    ] = None,
) -> None:
    """Add an image encoder to the store."""
    from pipeline.features import encoder as encoders

    if crops and regions:
        raise PipelineError("Crops and regions are alternatives: leave out --crops or --regions.")
    encoder_id = encoders.register(spec, open_store(), crops=crops)
    if regions:
        from pipeline.features.regions import add_regions

        encoder_id = add_regions(encoder_id, regions, open_store())
    if int8:
        from pipeline.features import quantization

        encoder_id = quantization.quantize(encoder_id, int8, open_store())
    print_result({"encoder_id": encoder_id, "summary": encoder_id})


@app.command()
def plan_extraction(dataset_id: DatasetId, encoder_id: EncoderId, run: RunOption) -> None:
    """Divide the images of a dataset that have no features yet into shards, and print the names of the shards."""
    from pipeline.data import dataset
    from pipeline.features import extraction

    store = open_store()
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
    print_result(names)


@app.command()
def extract(shard: ShardName) -> None:
    """Extract the features of the images of a shard."""
    from dataclasses import asdict

    from pipeline.features import extraction

    done = extraction.extract(shard, store=open_store())
    print_result({**asdict(done), "summary": str(done)})


@app.command()
def train(
    dataset_id: DatasetId,
    vocabulary: Annotated[
        str,
        typer.Argument(help="key of the vocabulary, as `vocabulary` prints it", callback=check_name(names.VOCABULARY)),
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
    """Train a captioner, and add it to the store as a candidate."""
    from pipeline.training.train import train_captioner

    settings = read_settings()
    model = train_captioner(
        dataset_id,
        vocabulary,
        encoder_id=encoder_id,
        config=TrainingConfig.parse(assignments or []),
        store=open_store(),
        max_failed_fraction=settings.max_failed_fraction,
        tracking_uri=settings.tracking_uri,
    )
    best = [member.best_epoch for member in model.ensemble]
    epochs = sum(len(member.epochs) for member in model.ensemble)
    summary = f"{model.version}: {epochs} epochs, best {', '.join(map(str, best))}"
    print_result({"version": model.version, "best_epochs": best, "epochs": epochs, "summary": summary})
