"""Where things are: read from the environment, prefix ``CAPTION_``."""

from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.errors import PipelineError
from pipeline.recipe import Search

PROJECT = Path(__file__).resolve().parents[1]
"""The checkout: by default everything lies under its ``data/``."""

DATA = PROJECT / "data"


class Settings(BaseSettings):
    """Deployment settings. What belongs to one run (epochs, beam width, …) is an option of its command instead."""

    # A wrong value may be an address with a password in it.
    model_config = SettingsConfigDict(env_prefix="CAPTION_", hide_input_in_errors=True)

    store: str = Field(
        (DATA / "store").as_uri(), description="URI of the store: datasets, features, models and captions"
    )
    inbox: str = Field(
        (DATA / "inbox").as_uri(), description="URI of the bucket of new photographs; it is only ever read"
    )
    dataset: str = Field(
        (DATA / "demo").as_uri(), description="captioned photographs that a retraining learns from by default"
    )
    encoder: str = Field("imagenet", description="encoder of a retraining by default")
    tracking_uri: str = Field(
        f"sqlite:///{DATA / 'mlflow.db'}",
        pattern=r"^(sqlite:///.+\.db|https?://.+)?$",
        description="where MLflow records trainings: an SQLite file or a server; empty for nowhere",
    )
    shard_size: int = Field(
        2000, ge=1, description="images in one task of extraction; five times as many in one of captioning"
    )
    devices: int = Field(1, ge=1, description="GPUs that a training splits each batch over")
    beam_width: int = Field(5, ge=1, le=50, description="captions that the nightly search keeps of each picture")
    samples: int = Field(0, ge=0, le=1000, description="captions drawn to choose the nightly caption by; 0 for none")
    max_failed_fraction: float = Field(
        0.05, ge=0, le=1, description="share of a run's images that may fail before the run fails"
    )
    drift_limit: float = Field(
        0.5, gt=0, description="standard deviations that a night may lie from earlier ones before it warns"
    )
    sidecars: bool = Field(False, description="also write each nightly caption as JSON under sidecars/")
    notify_email: str = Field(
        "",
        description="who is mailed of failures, late nights and warnings, with commas between; the server is Airflow's "
        "connection smtp_default",
    )
    notify_webhook: str = Field(
        "",
        description="Airflow connection of a webhook that is told the same; its password is the address's secret end",
    )
    night_deadline: float = Field(5, gt=0, description="hours from being queued after which a night is late")

    @property
    def search(self) -> Search:
        """How the nightly captions are looked for."""
        return Search(beam_width=self.beam_width, samples=self.samples)


def read_settings() -> Settings:
    """The settings of this process. Raises ``PipelineError`` where its environment holds wrong ones."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(f"CAPTION_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise PipelineError(f"The environment holds wrong settings: {wrong}.") from error
