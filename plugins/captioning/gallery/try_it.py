"""The gallery's page that captions uploads."""

import contextlib
import random
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response, status
from fastapi.responses import HTMLResponse, JSONResponse

from captioning.gallery import access, dependencies, limits, models, pictures
from captioning.gallery.rendering import Inbox, Store, page
from captioning.internals import GetUserDep
from pipeline.captioner.registry import find_champion
from pipeline.captioner.spoken import spoken_name
from pipeline.data import synthetic
from pipeline.data.images import MAX_BYTES
from pipeline.ops import browse, overview
from pipeline.serving.client import BadPictureError, BusyError, CaptionClient, CaptioningError, TimeLimitError
from pipeline.serving.server import Answer

NEWEST = 24
"""Newest captions from whose photographs a sample is drawn."""

SAMPLES = 3
"""Captioned photographs, at most, that are tried before a sample is drawn."""

router = APIRouter()

worker = CaptionClient(dependencies.child)


@router.get("/try")
@limits.pages.run
def show_try(request: Request, store: Store, user: GetUserDep) -> HTMLResponse:
    """The page that captions uploads; the model starts to load when the page is opened."""
    can_trigger = access.user_can_trigger(user)
    damaged: list[str] = []
    champion = find_champion(store)
    present = champion.version if champion else None
    versions: list[str] = []
    if can_trigger:
        worker.warm()
        found = overview.newest_models(store, present, limit=models.MODELS, damaged=damaged)
        versions = [model.version for model in found if model.version != present]
    return page(
        request,
        "try.html",
        can_trigger=can_trigger,
        megabytes=MAX_BYTES // 1_000_000,
        champion=present,
        versions=versions,
        damaged=damaged,
    )


@router.get("/sample")
@limits.thumbnails.run
def show_sample(store: Store, inbox: Inbox) -> Response:
    """A picture to try, as a JPEG: a photograph that a night has captioned, or a drawn one."""
    rows = browse.page(browse.shards(store), browse.Filters(status="ok"), store=store, size=NEWEST).rows
    for row in random.sample(rows, min(len(rows), SAMPLES)):
        # It may have been replaced or removed since.
        with contextlib.suppress(HTTPException):
            picture = pictures.read_thumbnail(pictures.large, inbox, row["image_key"], row["image_etag"])
            return Response(picture, media_type="image/jpeg")
    return Response(synthetic.generate_one(random.randrange(1000)), media_type="image/jpeg")


@router.post("/caption", dependencies=[access.can_trigger, Depends(access.require_same_origin)])
async def caption(
    picture: Annotated[bytes, Depends(access.read_upload)],
    store: Store,
    version: Annotated[str, Query(max_length=200)] = "",
) -> JSONResponse:
    """A model's captions of the picture in the request's body, the best first; by default the champion's."""

    def captions() -> Answer:
        if version:
            models.find_metadata(version, store)
        return worker.caption(picture, version)

    try:
        answer = await limits.uploads.call(captions)
    except CaptioningError as error:
        raise HTTPException(_STATUS.get(type(error), status.HTTP_503_SERVICE_UNAVAILABLE), str(error)) from error
    return JSONResponse({"name": spoken_name(answer.version), **answer.model_dump()})


_STATUS = {
    BadPictureError: status.HTTP_422_UNPROCESSABLE_CONTENT,
    BusyError: status.HTTP_503_SERVICE_UNAVAILABLE,
    TimeLimitError: status.HTTP_504_GATEWAY_TIMEOUT,
}
