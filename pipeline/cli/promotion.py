"""Commands for evaluation and promotion: from a candidate to a champion."""

from typing import Annotated, Literal

import typer

from pipeline.cli.common import (
    DEFAULT,
    BeamWidth,
    MbrSamples,
    NeighbourCount,
    RunOption,
    check_name,
    decoding_config,
    open_store,
    print_result,
)
from pipeline.settings import read_settings
from pipeline.storage import names

app = typer.Typer()

Version = Annotated[
    str, typer.Argument(help="version of a model, as `status` lists it", callback=check_name(names.VERSION))
]
PolicyName = Annotated[
    Literal["auto", "approve", "never"],
    typer.Option(help="auto: the gate decides; approve: a person has decided; never: the model is not promoted"),
]
Floor = Annotated[float, typer.Option(min=0, help="minimum CIDEr of a champion")]


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

    settings, store = read_settings(), open_store()
    metrics = evaluate_model(
        version,
        store=store,
        decoding=decoding_config(beam_width, mbr_samples, neighbours),
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
    print_result(
        {
            "version": version,
            "dataset": metrics.dataset,
            "images": metrics.images,
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
    """Evaluate the champion on a candidate's test split, if the decision about the candidate needs it."""
    from pipeline.captioner.metadata import load_metadata
    from pipeline.captioner.registry import find_champion
    from pipeline.evaluation import card, promotion_gate
    from pipeline.evaluation.evaluate import evaluate_model
    from pipeline.evaluation.results import candidate_metrics, comparable_metrics, format_scores

    store, decoding = open_store(), decoding_config(beam_width, mbr_samples, neighbours)
    candidate = candidate_metrics(version, decoding, store)
    champion = find_champion(store)
    if champion is None:
        print_result({"champion": None, "summary": "there is no champion yet"})
        return
    config = promotion_gate.GateConfig(policy=promotion_gate.Policy(policy), floor=floor)
    decision = promotion_gate.decide_alone(version, candidate.cider, champion.version, config)
    if decision is not None:
        print_result({"champion": champion.version, "summary": f"not needed: {decision.reason}"})
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
    print_result({"champion": champion.version, **metrics.summary, "summary": summary})


@app.command()
def compare(
    version: Version,
    *,
    beam_width: BeamWidth = DEFAULT.beam_width,
    mbr_samples: MbrSamples = DEFAULT.mbr_samples,
    neighbours: NeighbourCount = DEFAULT.neighbours,
    picture_page: Annotated[
        str, typer.Option(metavar="URL", help="link each photograph to the page at this URL followed by its key")
    ] = "",
) -> None:
    """Compare a candidate's scores and captions with the champion's, in Markdown, for the person who decides.

    Both models caption up to CAPTION_SHADOW photographs from the inbox. The Markdown is a field of the result:
    `captioning compare VERSION | jq -r .comparison` prints it.
    """
    from pipeline.evaluation import comparison
    from pipeline.nightly import shadow

    settings, store = read_settings(), open_store()
    decoding = decoding_config(beam_width, mbr_samples, neighbours)
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
    print_result({"version": version, "comparison": "\n\n".join(sections), "summary": summary})


@app.command()
def gate(
    version: Version,
    *,
    beam_width: BeamWidth = DEFAULT.beam_width,
    mbr_samples: MbrSamples = DEFAULT.mbr_samples,
    neighbours: NeighbourCount = DEFAULT.neighbours,
    policy: PolicyName = "auto",
    approved: Annotated[
        bool | None, typer.Option("--promote/--keep", help="the person's decision, if the policy is approve")
    ] = None,
    by: Annotated[str, typer.Option(help="name of that person")] = "somebody",
    tolerance: Annotated[
        float, typer.Option(min=0, help="how far the candidate's CIDEr may be below the champion's")
    ] = 0.015,
    floor: Floor = 0.1,
    run: RunOption,
) -> None:
    """Decide whether a candidate becomes the champion, promote it if so, and write the record of the retraining."""
    from pipeline.evaluation import promotion_gate

    record = promotion_gate.run_gate(
        version,
        run=run,
        decoding=decoding_config(beam_width, mbr_samples, neighbours),
        config=promotion_gate.GateConfig(policy=promotion_gate.Policy(policy), tolerance=tolerance, floor=floor),
        store=open_store(),
        approval=None if approved is None else promotion_gate.Approval(promote=approved, by=by),
    )
    shown = record.model_dump(mode="json", include={"version", "promoted", "reason", "scores", "dataset"})
    print_result({**shown, "summary": promotion_gate.describe(record)})


@app.command()
def promote(version: Version) -> None:
    """Make a model the champion, regardless of its scores."""
    from pipeline.captioner import registry

    print_result({"champion": registry.promote(version, open_store()).version})


@app.command()
def rollback() -> None:
    """Make the previous champion the champion again."""
    from pipeline.captioner import registry

    print_result({"champion": registry.roll_back(open_store()).version})


@app.command()
def import_model(
    source: Annotated[
        str, typer.Argument(help="address of the other store, which is only read: file:///folder or s3://bucket/prefix")
    ],
    version: Annotated[
        str | None,
        typer.Argument(help="version of a model; by default the champion there", callback=check_name(names.VERSION)),
    ] = None,
    *,
    promote: Annotated[
        bool, typer.Option("--promote/--no-promote", help="make the model the champion, or only copy it")
    ] = True,
    profile: Annotated[str, typer.Option(help="AWS profile for the other store, if it needs other credentials")] = "",
    endpoint_url: Annotated[
        str, typer.Option(metavar="URL", help="S3 server of the other store, if it is on a different one")
    ] = "",
) -> None:
    """Copy a model, and everything it needs, from another store, such as that of staging, and promote it."""
    from pipeline.ops import import_model as importing
    from pipeline.storage import open_bucket

    access = {"AWS_PROFILE": profile, "AWS_ENDPOINT_URL": endpoint_url}
    other = open_bucket(source, {name: value for name, value in access.items() if value})
    imported = importing.import_model(version, source=other, target=open_store(), promote=promote)
    print_result({**imported.model_dump(), "summary": str(imported)})
