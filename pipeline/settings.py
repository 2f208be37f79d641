"""Where things are: read from the environment (prefix ``CAPTION_``) and from ``.env`` in the working directory."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Deployment settings. What belongs to one run (epochs, beam width, …) is an option of its command instead."""

    model_config = SettingsConfigDict(env_prefix="CAPTION_", env_file=".env", extra="ignore")

    store: str = Field(
        default_factory=lambda: (Path.cwd() / "data" / "store").as_uri(),
        description="URI of the store: datasets, features, models and captions (file:// or s3://)",
    )
    inbox: str = Field(
        default_factory=lambda: (Path.cwd() / "data" / "inbox").as_uri(),
        description="URI of the bucket or folder of new photographs; it is only ever read",
    )
    shard_size: int = Field(500, ge=1, description="images in one unit of work (a mapped task, a Parquet object)")
    batch_size: int = Field(32, ge=1, description="images in one pass of the encoder")
    max_failed_fraction: float = Field(
        0.05, ge=0, le=1, description="share of a run's images that may fail before the run fails"
    )
    sidecars: bool = Field(False, description="also write each caption as JSON beside the Parquet shards")
