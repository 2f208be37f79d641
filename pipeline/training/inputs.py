"""The inputs of a retraining: its dataset and its encoder, by default those of the champion."""

import logging
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field

from pipeline.captioner.metadata import load_metadata
from pipeline.captioner.registry import find_champion
from pipeline.errors import PipelineError
from pipeline.storage import Bucket
from pipeline.work import runs

log = logging.getLogger(__name__)


class Inputs(BaseModel):
    """The dataset and the encoder of a retraining."""

    model_config = ConfigDict(frozen=True)

    sources: tuple[str, ...] = Field(description="sources of the captioned photographs, or ids of datasets")
    encoder: str = Field(description="the encoder, as ``encoder.register`` takes it")
    origin: str = Field(description="where the defaults came from; empty if both were given")

    def __str__(self) -> str:
        return f"dataset {self.dataset}, encoder {self.encoder}{self.origin and f' ({self.origin})'}"

    @property
    def dataset(self) -> str:
        """The sources in one line, for people to read."""
        return ", ".join(self.sources)


def resolve(
    run: str,
    *,
    dataset: str,
    encoder: str,
    default_dataset: str,
    default_encoder: str,
    cause: str = "",
    store: Bucket,
) -> Inputs:
    """Determine the inputs of a retraining and begin its record.

    Args:
        run: the run.
        dataset: sources or ids of datasets, one per line; empty for that of the champion.
        encoder: the encoder; empty for that of the champion.
        default_dataset: used if there is no champion, in the same form.
        default_encoder: used if there is no champion.
        cause: why the retraining was started, if not by a person; it is recorded.
        store: the store.

    Raises:
        PipelineError: no source is given.
    """
    dataset = dataset.strip()
    origin = ""
    if not dataset or not encoder:
        champion = find_champion(store)
        if champion is None:
            origin = "from the settings, because there is no champion yet"
        else:
            model = load_metadata(champion.version, store)
            default_dataset, default_encoder = model.dataset, model.encoder_id
            origin = f"as the champion {champion.version}"
    lines = map(str.strip, (dataset or default_dataset).split("\n"))
    inputs = Inputs(sources=tuple(filter(None, lines)), encoder=encoder or default_encoder, origin=origin)
    if not inputs.sources:
        raise PipelineError("No captioned photographs are given: fill in the field Dataset, or set CAPTION_DATASET.")
    record = runs.RetrainingRecord(
        run=run, started_at=datetime.now(UTC), dataset=inputs.dataset, encoder=inputs.encoder, cause=cause
    )
    runs.write_record(record, store)
    log.info("%s", inputs)
    return inputs
