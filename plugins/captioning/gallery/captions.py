"""The gallery's pages of captions: the current ones, also as CSV, those by models, and a picture with its own."""

import shlex
import tempfile
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from fastapi import APIRouter, HTTPException, Query, Request, Response, status
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse
from pydantic import BaseModel, Field, ValidationInfo, field_validator

from captioning.gallery import access, limits
from captioning.gallery.rendering import Inbox, Store, page, root, send_file
from captioning.internals import BaseUser, GetUserDep
from pipeline.captioner.registry import find_champion
from pipeline.errors import PipelineError
from pipeline.export import csv
from pipeline.ops import browse, browse_current
from pipeline.ops.image_captions import image_captions
from pipeline.ops.similar import find_similar
from pipeline.settings import read_settings
from pipeline.storage import Bucket, DamagedObjectError
from pipeline.storage.bucket import hidden_part

PAGE_SIZE = 24
"""Captions per page: rows of two, three, four and six columns are full."""

SIMILAR = 12
"""Photographs like one that are shown."""

UNSURE = (0.2, 0.4, 0.6, 0.8)
"""Thresholds for the confidence, to choose from, besides that of the review queue."""

router = APIRouter()

current_captions = browse_current.CurrentCaptions()


class FormFilters(BaseModel):
    """Filters as the form sends them: one that is left empty has its default."""

    @field_validator("unsure", "review", mode="before", check_fields=False)
    @classmethod
    def _empty_is_default(cls, value: str, info: ValidationInfo) -> str | None:
        return value or cls.model_fields[str(info.field_name)].default


class CaptionFilters(FormFilters, browse_current.Filters):
    """The filters of the current captions."""


class CaptionQuery(CaptionFilters):
    """These filters, the order, and the number of the page."""

    order: browse_current.Order = "newest"
    page: int = Field(1, ge=1, le=10**9)
    night: str = Field("", pattern=browse.NIGHT, description="of a link to captions by models, which alone have one")


class HistoryQuery(FormFilters, browse.Filters):
    """The filters of captions by models, and where the page starts."""

    after: str = Field("", max_length=2000)


@router.get("/")
@limits.pages.run
def show_captions(
    request: Request, store: Store, inbox: Inbox, user: GetUserDep, query: Annotated[CaptionQuery, Query()]
) -> Response:
    """A page of the current captions that pass the filters, one an image."""
    if query.night:
        return RedirectResponse(f"{root(request)}by-model?{request.url.query}", status.HTTP_307_TEMPORARY_REDIRECT)
    damaged: list[str] = []
    try:
        found = current_captions.page(
            query, store=store, order=query.order, number=query.page, size=PAGE_SIZE, damaged=damaged
        )
    except DamagedObjectError as error:
        damaged.append(str(error))
        found = None
    empty = found is not None and not found.images
    return page(
        request,
        "captions.html",
        by_model=False,
        filters=query,
        chosen=query.model_dump(exclude_defaults=True, exclude={"order", "page", "night"}),
        order="" if query.order == "newest" else query.order,
        found=found,
        empty=_why_empty(store, inbox, user) if empty else None,
        versions=found.versions if found else (),
        **_limits_of_confidence(),
        damaged=damaged,
    )


@router.get("/by-model")
@limits.pages.run
def show_history(
    request: Request, store: Store, inbox: Inbox, user: GetUserDep, query: Annotated[HistoryQuery, Query()]
) -> HTMLResponse:
    """A page of the newest captions by models that pass the filters."""
    shards = browse.shards(store)
    found = browse.page(shards, query, store=store, size=PAGE_SIZE, after=query.after)
    return page(
        request,
        "captions.html",
        by_model=True,
        filters=query,
        chosen=query.model_dump(exclude_defaults=True, exclude={"after"}),
        found=found,
        empty=None if shards else _why_empty(store, inbox, user),
        nights=list(dict.fromkeys(shard.night for shard in shards)),
        versions=list(dict.fromkeys(shard.version for shard in shards)),
        **_limits_of_confidence(),
        damaged=found.damaged,
    )


def _limits_of_confidence() -> dict[str, Any]:
    """The limits of the confidence to choose from, and the one below which a caption waits for review."""
    below = read_settings().review_below
    return {"unsure": sorted({*UNSURE, below}), "below": below}


def _why_empty(store: Bucket, inbox: Bucket, user: BaseUser) -> dict[str, Any]:
    """What an empty page says: whether there is a champion and, to those who may know it, how the inbox is filled."""
    if not access.user_can_trigger(user):
        return {"champion": find_champion(store), "inbox": "", "command": ""}
    address = urlsplit(inbox.uri)
    to = f"{inbox.uri}/" if address.scheme == "s3" else f"{unquote(address.path)}/"
    program = "aws s3 sync photographs/" if address.scheme == "s3" else "cp -r photographs/."
    return {"champion": find_champion(store), "inbox": inbox.uri, "command": f"{program} {shlex.quote(to)}"}


@router.get("/captions.csv")
@limits.downloads.run
def download_captions(store: Store, filters: Annotated[CaptionFilters, Query()]) -> StreamingResponse:
    """The current captions that pass the filters as CSV."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed when it has been sent
    damaged: list[str] = []
    for number, table in enumerate(current_captions.tables(filters, store=store, damaged=damaged)):
        file.write(csv.render(table, header=not number))
    if damaged:
        raise DamagedObjectError(damaged[0])
    return send_file(file, "text/csv", {"Content-Disposition": "attachment; filename=captions.csv"})


class ImageQuery(BaseModel):
    """A picture, and a night in which it was captioned, if one is known."""

    key: str = Field(min_length=1, max_length=1024)
    night: str = Field("", pattern=browse.NIGHT)


@router.get("/image")
@limits.pages.run
def show_image(
    request: Request, store: Store, inbox: Inbox, user: GetUserDep, query: Annotated[ImageQuery, Query()]
) -> HTMLResponse:
    """A picture, its captions, and what people said about them."""
    found = image_captions(query.key, store=store, night=query.night)
    if found.counting is None:
        where = f" back to {found.searched_to}" if found.searched_to else ""
        raise HTTPException(status.HTTP_404_NOT_FOUND, f"There are no captions of this picture{where}.")
    can_trigger = access.user_can_trigger(user)
    champion = find_champion(store)
    return page(
        request,
        "image.html",
        key=query.key,
        found=found,
        modified=_modified(inbox, query.key),
        champion=champion and champion.version,
        damaged=found.damaged,
        can_trigger=can_trigger,
    )


@router.get("/similar")
@limits.searches.run
def show_similar(
    request: Request,
    store: Store,
    key: Annotated[str, Query(min_length=1, max_length=1024)],
    etag: Annotated[str, Query(min_length=1, max_length=200)],
) -> HTMLResponse:
    """The photographs of the inbox that are most like one."""
    found = find_similar(key, etag, store=store, count=SIMILAR)
    return page(request, "similar.html", key=key, found=found)


def _modified(inbox: Bucket, key: str) -> datetime | None:
    """When a picture of the inbox was written; None if it is not there any more."""
    try:
        return None if hidden_part(key) is not None else inbox.modified(key)
    except limits.OutOfTimeError:
        raise
    except PipelineError:
        return None
