"""The inputs of a retraining: its dataset and its encoder, by default those of the champion."""

import logging
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field

from pipeline.captioner.metadata import load_metadata
from pipeline.captioner.registry import find_champion
from pipeline.storage import Bucket
from pipeline.work import runs

log = logging.getLogger(__name__)


class Inputs(BaseModel):
    """The dataset and the encoder of a retraining."""

    model_config = ConfigDict(frozen=True)

    dataset: str = Field(description="source of the captioned photographs, or the id of a dataset")
    encoder: str = Field(description="the encoder, as ``encoder.register`` takes it")
    origin: str = Field(description="where the defaults came from; empty if both were given")

    def __str__(self) -> str:
        return f"dataset {self.dataset}, encoder {self.encoder}{self.origin and f' ({self.origin})'}"


def resolve(
    run: str, *, dataset: str, encoder: str, default_dataset: str, default_encoder: str, store: Bucket
) -> Inputs:
    """Determine the inputs of a retraining and begin its record.

    Args:
        run: the run.
        dataset: source or id of a dataset; empty for that of the champion.
        encoder: the encoder; empty for that of the champion.
        default_dataset: used if there is no champion.
        default_encoder: used if there is no champion.
        store: the store.
    """
    origin = ""
    if not dataset or not encoder:
        champion = find_champion(store)
        if champion is None:
            origin = "from the settings, because there is no champion yet"
        else:
            model = load_metadata(champion.version, store)
            default_dataset, default_encoder = model.dataset, model.encoder_id
            origin = f"as the champion {champion.version}"
    inputs = Inputs(dataset=dataset or default_dataset, encoder=encoder or default_encoder, origin=origin)
    record = runs.RetrainingRecord(
        run=run, started_at=datetime.now(UTC), dataset=inputs.dataset, encoder=inputs.encoder
    )
    runs.write_record(record, store)
    log.info("%s", inputs)
    return inputs
