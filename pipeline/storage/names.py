"""The kinds of names that people give on the command line and that become part of a key of the store."""

import re
from dataclasses import dataclass

from pipeline.errors import PipelineError
from pipeline.storage import layout


@dataclass(frozen=True)
class NameKind:
    """A kind of name.

    Attributes:
        title: what it names.
        pattern: a regular expression that matches exactly the names of this kind.
        rule: the pattern in words.
        advice: where to find such a name.
    """

    title: str
    pattern: re.Pattern[str]
    rule: str
    advice: str

    def matches(self, name: str) -> bool:
        """Whether it can be a name of this kind."""
        return self.pattern.fullmatch(name) is not None

    def check(self, name: str) -> str:
        """Return the name. Raises ``PipelineError`` if it can't be one of this kind."""
        if not self.matches(name):
            raise PipelineError(f"Not {self.title}: expected {self.rule}. Received: {name!r}. {self.advice}")
        return name


MAX_NAME = 150
"""Characters of a name at most. With the suffixes of the layout, it stays below the 255 bytes of a file name."""

_NAME = rf"\w[\w.-]{{0,{MAX_NAME - 1}}}"
_NAME_RULE = f"1 to {MAX_NAME} letters, digits, '.', '_' and '-', with a letter, a digit or '_' at the beginning"
_DATASET_ID = rf"{_NAME}/[0-9a-f]{{16}}"

VERSION = NameKind(
    "the version of a model", re.compile(_NAME, re.ASCII), _NAME_RULE, "`captioning status` lists the models."
)

DATASET_NAME = NameKind("the name of a dataset", re.compile(_NAME, re.ASCII), _NAME_RULE, "Choose another with --name.")

LANGUAGE = NameKind(
    "the code of a language",
    re.compile("[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*"),
    "a BCP 47 code such as en, de, pt-BR or zh-Hans",
    "It is that of the captions; leave it out for English.",
)

DATASET_ID = NameKind(
    "the id of a dataset",
    re.compile(_DATASET_ID, re.ASCII),
    "name/fingerprint",
    "`captioning datasets` lists the datasets, and `captioning ingest` makes one.",
)
"""The name of a dataset and the fingerprint of its content."""

VOCABULARY = NameKind(
    "the key of a vocabulary",
    re.compile(rf"{layout.DATASETS}{_DATASET_ID}/vocabulary-[0-9]+(?:-neutral)?\.json", re.ASCII),
    f"{layout.DATASETS}name/fingerprint/vocabulary-N.json",
    "`captioning vocabulary` builds a vocabulary and prints its key.",
)

ENCODER_ID = NameKind(
    "the id of an encoder",
    re.compile(
        "(?P<exact>(?P<name>[a-z0-9-]{1,200}?)-[0-9a-f]{12}(?P<regions>-regions-[0-9a-f]{12})?)(?P<int8>-int8)?"
    ),
    "a name and 12 hexadecimal digits, such as resnet50-imagenet-0123456789ab",
    "`captioning register-encoder` prints it, and `captioning status` lists those of the models.",
)

SHARD = NameKind(
    "the name of a shard",
    re.compile("[0-9a-f]{16}"),
    "16 hexadecimal digits",
    "`plan-extraction`, `night plan-extraction` and `night plan-captions` print the names of their shards.",
)

RUN = NameKind(
    "the name of a run",
    re.compile(r"(?![. ])[^\x00-\x1f\x7f\ud800-\udfff]{1,250}"),
    "1 to 250 characters without control characters, with no dot or space at the beginning",
    "Each run id of Airflow is such a name.",
)
