"""Queries of the gallery about models, nights and datasets."""

from dataclasses import dataclass
from itertools import islice

from pipeline.captioner.metadata import ModelMetadata, list_models, load_metadata
from pipeline.captioner.registry import Champion, Promotion, Rollback
from pipeline.data.dataset import list_datasets
from pipeline.data.ingest import IngestReport
from pipeline.errors import PipelineError
from pipeline.evaluation.results import Metrics, latest_metrics
from pipeline.ops.browse import readers
from pipeline.progress import counted
from pipeline.storage import Bucket, ObjectNotFoundError, json, layout
from pipeline.storage.bucket import read_each
from pipeline.work import runs
from pipeline.work.runs import NightRecord


@dataclass(frozen=True)
class Model:
    """A model in the store: its scores, if it was evaluated, and its last promotion and rollback, if there were any."""

    metadata: ModelMetadata
    metrics: Metrics | None
    promoted: Promotion | None
    rolled_back: Rollback | None
    is_champion: bool

    @property
    def configuration(self) -> list[str]:
        """How the model is built and was trained, in a few words each; what it does not have is left out."""
        config = self.metadata.config
        facts = {
            f"encoder {self.metadata.encoder_id}": True,
            f"attention, {counted(config.attention_heads, 'head')}": config.attention_heads,
            "last stage of the encoder tuned": config.fine_tuning,
            f"ensemble of {config.ensemble_size}": config.ensemble_size > 1,
            f"self-critical training, {counted(config.scst_epochs, 'epoch')}": config.scst_epochs,
            f"seed {config.seed}": True,
        }
        return [fact for fact, is_so in facts.items() if is_so]


def newest_models(
    store: Bucket, champion: str | None, *, limit: int, damaged: list[str] | None = None
) -> list[ModelMetadata]:
    """The champion and the newest models, the newest first; ``damaged`` as for ``list_models``."""
    found = list_models(store, limit=limit, damaged=damaged)
    if champion and champion not in [model.version for model in found]:
        found.append(load_metadata(champion, store))
    return found


def models(store: Bucket, champion: Champion | None, *, limit: int, damaged: list[str]) -> list[Model]:
    """The champion and the newest models, the newest first; ``damaged`` as for ``list_models``."""
    history = {promotion.version: promotion for promotion in champion.history} if champion else {}
    rollbacks = {rollback.version: rollback for rollback in champion.rollbacks} if champion else {}

    def describe(metadata: ModelMetadata) -> Model:
        version = metadata.version
        is_champion = champion is not None and version == champion.version
        metrics = latest_metrics(metadata, store)
        return Model(metadata, metrics, history.get(version), rollbacks.get(version), is_champion)

    found = newest_models(store, champion.version if champion else None, limit=limit, damaged=damaged)
    return list(readers.map(describe, found))


def report(model: ModelMetadata, store: Bucket) -> bytes:
    """The HTML report of the newest evaluation of a model. Raises ``PipelineError`` if there is none."""
    metrics = latest_metrics(model, store)
    if metrics is None:
        raise PipelineError(f"Model {model.version} was not evaluated: run `captioning evaluate {model.version}`.")
    return store.get(layout.evaluation(model.version, metrics.dataset, metrics.decoding).report)


def card(model: ModelMetadata, store: Bucket) -> str:
    """The card of a model in Markdown. Raises ``PipelineError`` if it has none."""
    try:
        return store.get(layout.model_card(model.version)).decode(errors="replace")
    except ObjectNotFoundError:
        raise PipelineError(
            f"Model {model.version} has no card: `captioning evaluate {model.version}` writes it."
        ) from None


def ingest_reports(store: Bucket, *, limit: int, damaged: list[str]) -> list[IngestReport]:
    """What the newest datasets hold, the newest first; a damaged report is left out, and named in ``damaged``."""

    def read(dataset_id: str) -> IngestReport:
        return json.read(IngestReport, layout.ingest_report(dataset_id), store)

    return [report for _, report in read_each(read, list_datasets(store, limit=limit), damaged=damaged)]


def nights(store: Bucket, *, limit: int, damaged: list[str]) -> list[NightRecord]:
    """The records of the last nights, the newest first; ``damaged`` as for ``list_records``."""
    records = islice(runs.list_records(runs.NIGHT, store, damaged=damaged), limit)
    return [record for record in records if isinstance(record, NightRecord)]
