"""Settings of the deployment, read from environment variables with the prefix ``CAPTION_``."""

import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.config import DecodingConfig, SidecarPlace
from pipeline.errors import PipelineError

PROJECT = Path(__file__).resolve().parents[1]
"""The folder that holds this package: the root of the checkout, or site-packages."""


def data_folder(project: Path) -> Path:
    """The folder of all data by default: ``data/`` in a checkout, for an installed package the user's own."""
    if (project / "pyproject.toml").is_file():
        return project / "data"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "captioning"


DATA = data_folder(PROJECT)

PREFIX = "CAPTION_"
"""Begins the name of every setting's environment variable."""

DATA_SETTINGS = ("store", "inbox", "dataset", "tracking_uri")
"""The settings that are below ``DATA`` by default."""

SIMILAR = 0.8
"""How alike a misspelled name is to that of a setting, by ``difflib``. The names of all settings are less alike."""

T = TypeVar("T", bound=BaseSettings)


class Settings(BaseSettings):
    """Settings of a deployment. Options of a single run (epochs, beam width, …) belong to its command instead."""

    # A wrong value may be a URI with a password in it.
    model_config = SettingsConfigDict(env_prefix=PREFIX, hide_input_in_errors=True)

    store: str = Field(
        (DATA / "store").as_uri(), description="URI of the store, for datasets, features, models and captions"
    )
    inbox: str = Field(
        (DATA / "inbox").as_uri(),
        description="URI of the bucket of new photographs; the pipeline only reads it, unless it writes sidecars there",
    )
    inbox_profile: str = Field(
        "", description="AWS profile of the inbox, if it needs other credentials than the other buckets"
    )
    dataset: str = Field(
        (DATA / "demo").as_uri(),
        description="captioned photographs for the first retraining, one source per line; later ones default to the "
        "champion's dataset",
    )
    encoder: str = Field(
        "resnet50", description="encoder for the first retraining; later ones default to the champion's encoder"
    )
    tracking_uri: str = Field(
        f"sqlite:///{DATA / 'mlflow.db'}",
        pattern=r"^(sqlite:///.+\.db|https?://.+)?$",
        description="where MLflow records trainings: an SQLite file or a server; empty for no tracking",
    )
    signing_key: str = Field(
        "",
        description="path of the private key, in PEM, with which models, encoders and the champion's pointer are "
        "signed; only where models are made and promoted; empty for no signatures",
    )
    verify_key: str = Field(
        "",
        description="path of the public key, in PEM, without whose signature no model, encoder or champion is used; "
        "several, separated by commas, while the key is being replaced; empty if nothing is verified",
    )
    verify_state: str = Field(
        "",
        description="path or URI of a file outside the store, such as `/var/lib/captioning/verified.json`, which "
        "remembers how new the verified champion's pointer is, so that no older one is accepted; required with "
        "`CAPTION_VERIFY_KEY`",
    )
    requester_pays: bool = Field(
        False, description="pay for the requests to S3 buckets whose owner does not (Requester Pays)"
    )
    shard_size: int = Field(
        2000,
        ge=1,
        description="images per extraction task; an interrupted task starts again from its first image; a captioning "
        "task takes five times as many",
    )
    beam_width: int = Field(5, ge=1, le=50, description="beam width of the nightly captions")
    mbr_samples: int = Field(
        0,
        ge=0,
        le=1000,
        description="sampled captions for minimum Bayes risk decoding of the nightly captions; 0 for none",
    )
    neighbours: int = Field(
        20,
        ge=0,
        le=200,
        description="training photographs most similar to a new one whose captions have a vote on which caption of the "
        "beam is written; 0 for none",
    )
    forbidden_words: str = Field(
        "",
        description="words that no caption is written with, separated by commas, such as `fat,ugly`; each form of a "
        "word is a word of its own; see [wording](tuning.md#wording)",
    )
    neutral_wording: bool = Field(
        False,
        description="say nobody's gender in an English caption where the captions of the beam disagree about it",
    )
    max_failed_fraction: float = Field(
        0.05, ge=0, le=1, description="share of the images of a run that may fail before the run fails"
    )
    inbox_include: str = Field(
        "",
        description="patterns of the keys that are captioned, separated by commas, such as `2026/*,*.jpg`; `*` matches "
        "slashes, too; empty for all",
    )
    inbox_exclude: str = Field(
        "", description="patterns of keys that are not captioned, in the same form, such as `*/thumbnails/*`"
    )
    max_shrink_fraction: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of the photographs that may be missing from the inbox since the last night; if more are, or "
        "none is left, the run fails until a person confirms it; 1 for no check",
    )
    night_limit: int = Field(
        0, ge=0, description="maximum images that a night captions, the newest first; 0 for no maximum"
    )
    review_below: float = Field(
        0.5,
        ge=0,
        le=1,
        description="confidence below which a night marks a caption for review by a person; see "
        "[confidence](confidence.md)",
    )
    drift_limit: float = Field(
        0.5,
        gt=0,
        description="a night that differs from earlier ones by more standard deviations than this raises a warning",
    )
    retrain_after_corrections: int = Field(
        0,
        ge=0,
        description="corrections since the last retraining after which a night starts another, which waits for an "
        "approval; 0 for never",
    )
    retrain_after_drift: int = Field(
        0,
        ge=0,
        description="nights in a row with warnings of drift after which a night starts a retraining, which waits for "
        "an approval; 0 for never",
    )
    shadow: int = Field(
        100,
        ge=0,
        le=10_000,
        description="photographs of the inbox, at most, whose captions by candidate and champion a person sees side by "
        "side before an approval; 0 for none",
    )
    sidecars: SidecarPlace = Field(
        "none",
        description="where the captions are also written as XMP sidecars, for photo tools: `store` (under `sidecars/` "
        "of the store), `inbox` (beside the photographs), or `none`",
    )

    @property
    def decoding(self) -> DecodingConfig:
        """How the nightly captions are decoded."""
        words = {word.strip() for word in self.forbidden_words.split(",")} - {""}
        return DecodingConfig(
            beam_width=self.beam_width,
            mbr_samples=self.mbr_samples,
            neighbours=self.neighbours,
            forbidden_words=tuple(sorted(words)),
            neutral_wording=self.neutral_wording,
        )


def read_settings() -> Settings:
    """The settings of this process. Raises ``PipelineError`` if the environment holds invalid ones."""
    return load_settings(Settings)


def data_variables() -> dict[str, str]:
    """The variables of the settings that are below ``DATA`` by default, for a child whose code may be elsewhere.

    Raises:
        PipelineError: the environment holds invalid settings.
    """
    settings = read_settings()
    return {f"{PREFIX}{name.upper()}": getattr(settings, name) for name in DATA_SETTINGS}


def load_settings(kind: type[T]) -> T:
    """Settings of a class, from the environment.

    Raises:
        PipelineError: a value is invalid, or the name of a setting is misspelled; the message names the variables.
    """
    if wrong := list(_misspelled(kind)):
        raise _invalid(wrong)
    try:
        return kind()
    except ValidationError as error:
        raise _invalid([f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors()]) from error


def _misspelled(kind: type[BaseSettings]) -> Iterator[str]:
    """An error for each variable that is no setting, but is almost named like one: it would be ignored."""
    names = [name.upper() for name in kind.model_fields]
    for variable in os.environ:
        name = variable.upper().removeprefix(PREFIX)
        if variable.upper().startswith(PREFIX) and name not in names:
            for meant in get_close_matches(name, names, n=1, cutoff=SIMILAR):
                yield f"{variable}: there is no such setting (did you mean {PREFIX}{meant}?)"


def _invalid(wrong: list[str]) -> PipelineError:
    return PipelineError(f"Invalid settings in the environment: {'; '.join(wrong)}. Correct these variables.")
