"""How a captioner is made and asked: the one place for defaults and bounds, read by library, command line and DAG."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import PipelineError


class Recipe(BaseModel):
    """How a captioner is built and trained; written into its metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding: str = Field(
        "glove", description="Word vectors: glove (packaged, 50-d), learned, or the path of a GloVe text file"
    )
    embedding_size: int = Field(50, ge=1, le=1024, description="Length of a word's vector; GloVe's must have this one")
    units: int = Field(256, ge=8, le=4096, description="Width of the image's projection, the LSTM and the merged layer")
    dropout: float = Field(0.3, ge=0, lt=1, description="Share of the units dropped while training")
    epochs: int = Field(10, ge=1, le=1000, description="Passes over the training captions, at most")
    patience: int = Field(
        3, ge=1, description="Epochs without a better CIDEr or a lower loss on dev after which training stops"
    )
    batch_size: int = Field(256, ge=1, le=65536, description="Captions in one step")
    learning_rate: float = Field(2e-3, gt=0, le=1, description="Adam's; decayed to zero over the epochs by a cosine")
    self_critical_epochs: int = Field(
        0,
        ge=0,
        le=1000,
        title="Self-critical epochs",
        description="Passes over the photographs that train for CIDEr itself, afterwards; 0 for none",
    )
    self_critical_learning_rate: float = Field(
        2e-4, gt=0, le=1, title="Self-critical learning rate", description="Adam's in these; decayed likewise"
    )
    members: int = Field(
        1, ge=1, le=32, description="Models trained from different seeds, whose predictions are averaged"
    )
    seed: int = Field(0, ge=0, description="Of the weights, the order of the captions, the dropout and the samples")

    @property
    def each(self) -> "list[Recipe]":
        """The recipes of its members, each of a single one. Other seeds have other members."""
        seeds = range(self.seed * self.members, (self.seed + 1) * self.members)
        return [self.model_copy(update={"members": 1, "seed": seed}) for seed in seeds]

    @classmethod
    def parse(cls, assignments: Sequence[str]) -> "Recipe":
        """The recipe with some of its fields set, each given as ``NAME=VALUE``.

        Raises:
            PipelineError: an unknown name, a value of the wrong kind or out of bounds; all of them are said at once.
        """
        fields = dict(assignment.partition("=")[::2] for assignment in assignments)
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise PipelineError(f"Not a recipe: {wrong}. The fields are {', '.join(cls.model_fields)}.") from error


class Search(BaseModel):
    """How captions are looked for; written beside the scores that they get."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beam_width: int = Field(
        5, ge=1, le=50, description="Captions that the search keeps of a picture; 1 is greedy search"
    )
    samples: int = Field(
        0,
        ge=0,
        le=1000,
        description="Captions drawn by chance, to choose that of the beam which is most like them; 0 for none",
    )

    def __str__(self) -> str:
        if self.samples:
            return f"beam {self.beam_width}, {self.samples} samples"
        return "greedy" if self.beam_width == 1 else f"beam {self.beam_width}"


GREEDY = Search(beam_width=1)
