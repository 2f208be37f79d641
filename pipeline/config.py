"""Training and decoding configuration: the one place for defaults and bounds, read by library, command line and DAG."""

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

ENGLISH = "en"
"""The language of captions unless another is given, a BCP 47 code."""

SidecarPlace = Literal["none", "store", "inbox"]
"""Where captions are written as XMP sidecars: nowhere, under ``sidecars/`` of the store, or beside the photographs."""


class TrainingConfig(BaseModel):
    """How a captioner is built and trained; written into its metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding: str = Field(
        "glove",
        description="Word vectors: glove (packaged, 50-d, for English; learned for other languages), learned, or the "
        "path of a text file in the format of GloVe or word2vec, which may be compressed by gzip",
    )
    embedding_size: int = Field(50, ge=1, le=1024, description="Length of a word vector; GloVe's must have this length")
    units: int = Field(256, ge=8, le=4096, description="Width of the image projection, the LSTM and the merged layer")
    attention_heads: int = Field(
        4,
        ge=0,
        le=8,
        description="Heads of the attention to regions, if the encoder yields them; 0 for a model of the vectors alone",
    )
    dropout: float = Field(0.3, ge=0, le=0.95, description="Share of the units dropped in training")
    epochs: int = Field(10, ge=1, le=1000, description="Maximum passes over the training captions")
    patience: int = Field(
        3,
        ge=1,
        description="Training stops after this many epochs in which neither CIDEr nor loss on dev improved",
    )
    batch_size: int = Field(256, ge=1, le=65536, description="Captions per step")
    learning_rate: float = Field(
        2e-3, ge=1e-6, le=1, description="Initial learning rate of Adam; a cosine decays it to zero over the epochs"
    )
    fine_tuning: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Learning rate of the encoder's last stage, relative to that of the captioner; 0 leaves the stage "
        "as it is. For encoders whose regions are what their last stage reads",
    )
    scst_epochs: int = Field(
        0,
        ge=0,
        le=1000,
        title="SCST epochs",
        description="Epochs of self-critical training (SCST), which optimizes CIDEr, after the others; 0 for none",
    )
    scst_learning_rate: float = Field(
        2e-4,
        ge=1e-6,
        le=1,
        title="SCST learning rate",
        description="Initial learning rate of Adam in the SCST epochs; decays in the same way",
    )
    ensemble_size: int = Field(
        1, ge=1, le=32, description="Models trained from different seeds, whose predictions are averaged"
    )
    seed: int = Field(0, ge=0, description="Seed of the weights, the order of the captions, dropout and sampling")

    @property
    def single_models(self) -> "list[TrainingConfig]":
        """The configurations of the models of the ensemble. Ensembles of different seeds share no model."""
        seeds = range(self.seed * self.ensemble_size, (self.seed + 1) * self.ensemble_size)
        return [self.model_copy(update={"ensemble_size": 1, "seed": seed}) for seed in seeds]

    @classmethod
    def parse(cls, assignments: Sequence[str]) -> "TrainingConfig":
        """The configuration with some fields set, each given as ``NAME=VALUE``.

        Raises:
            PipelineError: not an assignment, an unknown name, or a value of the wrong type or out of bounds; the
                message lists all.
        """
        wrong = [f"{assignment!r} is not NAME=VALUE" for assignment in assignments if "=" not in assignment]
        try:
            parsed = cls.model_validate(dict(each.split("=", 1) for each in assignments if "=" in each))
        except ValidationError as error:
            wrong += [cls._describe(each) for each in error.errors()]
        if wrong:
            raise PipelineError(
                f"Invalid training configuration: {'; '.join(wrong)}. The fields are {', '.join(cls.model_fields)}."
            )
        return parsed

    @classmethod
    def _describe(cls, error: "ErrorDetails") -> str:
        """The error of a field; for an unknown field, the known one with the most similar name."""
        name = str(error["loc"][0])
        if error["type"] != "extra_forbidden":
            return f"{name}: {error['msg']}"
        similar = difflib.get_close_matches(name, cls.model_fields, n=1)
        return f"there is no field {name!r}" + (f", but {similar[0]}" if similar else "")


class DecodingConfig(BaseModel):
    """How captions are decoded; written beside their scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beam_width: int = Field(
        5, ge=1, le=50, description="Captions that beam search keeps for each image; 1 is greedy search"
    )
    mbr_samples: int = Field(
        0,
        ge=0,
        le=1000,
        title="MBR samples",
        description="Sampled captions by which minimum Bayes risk (MBR) decoding reranks the beam; 0 for none",
    )
    neighbours: int = Field(
        20,
        ge=0,
        le=200,
        validate_default=True,
        description="Training photographs most similar to a picture whose captions rerank the beam, as MBR samples do; "
        "0 for none",
    )
    forbidden_words: tuple[str, ...] = Field((), description="Words that are never written, in any order")
    neutral_wording: bool = Field(
        False, description="Whether captions say no gender where those of the beam disagree about it; for English"
    )

    @field_validator("neighbours")
    @classmethod
    def _rank_only_a_beam(cls, neighbours: int, info: ValidationInfo) -> int:
        """Greedy search finds one caption, so that there is nothing to rerank."""
        return 0 if info.data.get("beam_width") == 1 else neighbours

    def __str__(self) -> str:
        parts = ["greedy" if self == self.greedy else f"beam {self.beam_width}"]
        if self.mbr_samples:
            parts.append(f"{self.mbr_samples} MBR samples")
        if self.neighbours:
            parts.append(f"{self.neighbours} neighbours")
        if self.forbidden_words:
            parts.append(f"without {', '.join(self.forbidden_words)}")
        if self.neutral_wording:
            parts.append("neutral wording")
        return ", ".join(parts)

    @property
    def greedy(self) -> "DecodingConfig":
        """Greedy search with the same wording."""
        return self.model_copy(update={"beam_width": 1, "mbr_samples": 0, "neighbours": 0})

    @property
    def options(self) -> str:
        """The options of the command line for this decoding."""
        return f"--beam-width {self.beam_width} --mbr-samples {self.mbr_samples} --neighbours {self.neighbours}"

    @property
    def slug(self) -> str:
        """A short name for keys in the store: ``greedy``, ``beam5``, ``beam5-mbr100-near20-not-1a2b3c4d-neutral``."""
        parts = ["greedy" if self.beam_width == 1 else f"beam{self.beam_width}"]
        if self.mbr_samples:
            parts.append(f"mbr{self.mbr_samples}")
        if self.neighbours:
            parts.append(f"near{self.neighbours}")
        if self.forbidden_words:
            words = hashlib.sha256(",".join(self.forbidden_words).encode()).hexdigest()
            parts.append(f"not-{words[:8]}")
        if self.neutral_wording:
            parts.append("neutral")
        return "-".join(parts)


GREEDY = DecodingConfig(beam_width=1)

WORDING = ("forbidden_words", "neutral_wording")
"""The fields of ``DecodingConfig`` that are settings of the deployment, so that they hold for all captions alike; the
others are options of a run."""

BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
"""The bounds of a JSON schema, in words."""


def describe_bounds(schema: Mapping[str, Any]) -> str:
    """The bounds of a field in words, from its JSON schema: ``at least 1, at most 50``. Empty if it has none."""
    return ", ".join(f"{words} {schema[bound]:g}" for bound, words in BOUNDS.items() if bound in schema)
