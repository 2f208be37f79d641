"""Label Studio: captions as tasks with predictions, and what people said there as corrections.

The labelling configuration of the project is in docs/captions.md; ``IMAGE`` and ``CAPTION`` are the names in it. A task
carries the key and the version of its photograph, so that an annotation finds its way back.
"""

import json
import logging
from collections import Counter
from datetime import datetime
from typing import Any, Literal, get_args
from urllib.parse import quote

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.data import corrections
from pipeline.data.images import MAX_BYTES
from pipeline.errors import PipelineError
from pipeline.export.rows import json_rows
from pipeline.progress import counted, track
from pipeline.storage import Bucket, LocalBucket, ObjectChangedError

log = logging.getLogger(__name__)

IMAGE, CAPTION = "image", "caption"
"""The names of the photograph and of the field for its caption in the labelling configuration."""

LOCAL_FILES = "/data/local-files/?d="
"""How Label Studio addresses a file below its document root."""


def render(table: pa.Table, inbox: Bucket) -> bytes:
    """The file of tasks: each captioned photograph is one, with its caption as a prediction.

    Args:
        table: rows of the current captions, all of which have a caption.
        inbox: the bucket of the photographs. Label Studio fetches them from S3, or from the folder; its document root
            is then the folder that contains the inbox.
    """
    tasks = []
    for number, row in enumerate(json_rows(table, log), 1):
        confidence = None if row["confidence"] is None else round(row["confidence"], 4)
        value = {"text": [row["caption"]]}
        result = {
            "id": f"{CAPTION}-{number}",
            "from_name": CAPTION,
            "to_name": IMAGE,
            "type": "textarea",
            "value": value,
        }
        prediction = {"model_version": row["model_version"] or row["source"], "result": [result]}
        if confidence is not None:
            prediction["score"] = confidence
        known = {name: row[name] for name in ("image_key", "image_etag", "caption", "model_version", "novel")}
        data = {IMAGE: _address(row["image_key"], inbox), **known, "confidence": confidence}
        tasks.append({"data": data, "predictions": [prediction]})
    return json.dumps(tasks, ensure_ascii=False).encode()


def _address(key: str, inbox: Bucket) -> str:
    """The address of a photograph for Label Studio."""
    return LOCAL_FILES + quote(f"{inbox.root.name}/{key}") if isinstance(inbox, LocalBucket) else inbox.url(key)


Outcome = Literal["corrected", "confirmed", "unanswered", "known", "changed"]
"""What becomes of a task."""


class _Data(BaseModel):
    image_key: str
    image_etag: str
    caption: str
    model_version: str | None


class _Person(BaseModel):
    email: str


class _Result(BaseModel):
    from_name: str = ""
    value: dict[str, Any]


class _Annotation(BaseModel):
    result: list[_Result]
    was_cancelled: bool = False
    completed_by: _Person | int
    updated_at: AwareDatetime

    @property
    def author(self) -> str:
        by = self.completed_by
        return by.email if isinstance(by, _Person) else f"user {by} of Label Studio"

    @property
    def caption(self) -> str:
        """The text that the person left in the field; empty if there is none."""
        texts = [result.value.get("text") for result in self.result if result.from_name == CAPTION]
        return " ".join(str(line) for text in texts for line in (text if isinstance(text, list) else [text])).strip()


class _Task(BaseModel):
    data: _Data
    annotations: list[_Annotation]


class Imported(BaseModel):
    """What became of the tasks of a file."""

    model_config = ConfigDict(frozen=True)

    tasks: int = Field(description="in the file")
    corrected: int = Field(description="captions that were corrected")
    confirmed: int = Field(description="captions that were left as they were")
    unanswered: int = Field(description="tasks that nobody has finished, or without a caption")
    known: int = Field(description="captions about which something was said later, or that were imported before")
    changed: int = Field(description="photographs that were replaced or removed since the export")
    refused: tuple[str, ...] = Field(description="why others can't be stored")

    def __str__(self) -> str:
        parts = [f"{getattr(self, name):,} {name}" for name in get_args(Outcome)]
        return f"{counted(self.tasks, 'task')} = {' + '.join(parts)} + {len(self.refused):,} refused"


def import_annotations(content: bytes, name: str, *, inbox: Bucket, store: Bucket) -> Imported:
    """Store the captions of Label Studio's JSON export as corrections. A second import of a file changes nothing.

    A caption that was left as it is confirms it. The newest annotation of a task counts, and nothing that was said
    later, in the gallery or by an earlier import, is replaced.

    Args:
        content: of the file.
        name: of the file, for messages.
        inbox: the bucket of the photographs.
        store: the store.

    Raises:
        PipelineError: the file is not Label Studio's JSON export of tasks that ``render`` made.
    """
    try:
        tasks = TypeAdapter(list[_Task]).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise PipelineError(
            f"{name} is not an export of tasks that `captioning export --format label-studio` wrote ({place}: "
            f"{first['msg']}). In Label Studio, choose Export and then JSON, which is neither JSON-MIN nor CSV."
        ) from error
    said: dict[tuple[str, str], datetime] = {}
    for row in corrections.read(store).select(["image_key", "image_etag", "corrected_at"]).to_pylist():
        said[row["image_key"], row["image_etag"]] = row["corrected_at"]
    counts, refused = Counter[str](), []
    for task in track(tasks, total=len(tasks), unit="tasks", log=log):
        try:
            counts[_store(task, said, inbox=inbox, store=store)] += 1
        except PipelineError as error:
            refused.append(f"{task.data.image_key}: {error}")
    return Imported(tasks=len(tasks), refused=tuple(refused), **{name: counts[name] for name in get_args(Outcome)})


def _store(task: _Task, said: dict[tuple[str, str], datetime], *, inbox: Bucket, store: Bucket) -> Outcome:
    """Store what was said about a task, if it is new; ``said`` has the time of the last word about each image."""
    finished = [each for each in task.annotations if each.caption and not each.was_cancelled]
    if not finished:
        return "unanswered"
    newest = max(finished, key=lambda each: each.updated_at)
    identity = task.data.image_key, task.data.image_etag
    if identity in said and said[identity] >= newest.updated_at:
        return "known"
    try:
        picture = inbox.get(task.data.image_key, etag=task.data.image_etag, limit=MAX_BYTES)
    except ObjectChangedError:
        return "changed"
    is_right = newest.caption == task.data.caption.strip()
    corrections.add(
        picture,
        action="confirmed" if is_right else "corrected",
        caption=newest.caption,
        model_caption=task.data.caption,
        model_version=task.data.model_version or "",
        corrected_by=newest.author,
        corrected_at=newest.updated_at,
        store=store,
        image_key=task.data.image_key,
        image_etag=task.data.image_etag,
    )
    said[identity] = newest.updated_at
    return "confirmed" if is_right else "corrected"
