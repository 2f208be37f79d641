"""Signing: the models and encoders that are in a store already are signed, and its champion."""

import contextlib
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from pipeline.captioner import bundle, registry
from pipeline.captioner.metadata import load_metadata
from pipeline.features import encoder as encoders
from pipeline.progress import counted
from pipeline.storage import Bucket, ObjectNotFoundError, layout, signatures


class Signed(BaseModel):
    """What was signed."""

    model_config = ConfigDict(frozen=True)

    models: list[str] = Field(description="versions")
    encoders: list[str] = Field(description="ids")
    champion: str | None = Field(description="version of the champion, if its pointer was signed, too")

    def __str__(self) -> str:
        pointer = f", and {self.champion} as the champion" if self.champion else ""
        return f"{counted(len(self.models), 'model')} and {counted(len(self.encoders), 'encoder')} signed{pointer}"


def sign(versions: Sequence[str], store: Bucket) -> Signed:
    """Sign models with their encoders, as they are, whoever wrote them.

    Args:
        versions: of the models. Without any, all models and encoders are signed, and the champion's pointer as the
            newest.
        store: the store.

    Raises:
        PipelineError: no private key can be read, there is no such model, or one of its files or of its encoder's is
            missing or damaged.
        ObjectChangedError: a promotion happened at the same moment.
    """
    chosen = sorted(versions or _find(layout.MODELS, layout.model_of_metadata, store))
    used = set() if versions else _find(layout.ENCODERS, layout.encoder_of_files, store)
    for version in chosen:
        _sign(layout.model_metadata(version), store)
        metadata = load_metadata(version, store)
        bundle.check(metadata, store)
        used.add(metadata.encoder_id)
    for encoder_id in used:
        _sign(layout.encoder_files(encoder_id), store)
        encoders.check(encoder_id, store)
    champion = None if versions else registry.sign_champion(store)
    return Signed(models=chosen, encoders=sorted(used), champion=champion.version if champion else None)


def _find(prefix: str, name: Callable[[str], str | None], store: Bucket) -> set[str]:
    """The names of all models or encoders that are complete."""
    return set(filter(None, (name(item.key) for item in store.list(prefix))))


def _sign(key: str, store: Bucket) -> None:
    # A document that is missing is reported by its reader.
    with contextlib.suppress(ObjectNotFoundError):
        signatures.sign(key, store)
