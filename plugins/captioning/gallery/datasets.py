"""The gallery's page of datasets, and their test photographs."""

import logging
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request, Response, status
from fastapi.responses import HTMLResponse

from captioning.gallery import access, dependencies, limits, pictures
from captioning.gallery.rendering import Store, page
from captioning.internals import GetUserDep
from pipeline.errors import PipelineError, printable
from pipeline.ops import overview
from pipeline.ops.side_by_side import HeldOutPhotographs
from pipeline.storage import ObjectNotFoundError, names

log = logging.getLogger(__name__)

DATASETS = 20
"""Maximum datasets that are listed."""

router = APIRouter()

held_out = HeldOutPhotographs()


@router.get("/datasets")
@limits.pages.run
def show_datasets(request: Request, store: Store, user: GetUserDep) -> HTMLResponse:
    """The newest datasets, and what people who may train from them write into the form."""
    damaged: list[str] = []
    reports = overview.ingest_reports(store, limit=DATASETS, damaged=damaged)
    can_trigger = access.user_can_trigger(user)
    return page(request, "datasets.html", reports=reports, can_trigger=can_trigger, damaged=damaged)


@router.get("/datasets/picture")
@limits.thumbnails.run
def show_test_photograph(
    store: Store,
    dataset: Annotated[str, Query(max_length=200)],
    image: Annotated[str, Query(min_length=1, max_length=2000)],
) -> Response:
    """A test photograph of a dataset as a small JPEG."""
    try:
        if (place := held_out.find(names.DATASET_ID.check(dataset), image, store)) is None:
            raise ObjectNotFoundError("no such test photograph")
        source = dependencies.open_source(place.source, store)
        picture = pictures.read_thumbnail(pictures.small, source, place.key, place.etag)
        return Response(picture, media_type="image/jpeg", headers=pictures.UNCHANGING)
    except limits.OutOfTimeError:
        raise
    except PipelineError as error:
        # Its message may name the address of a source.
        log.warning("no test photograph of %s is shown: %s", printable(dataset), printable(str(error)))
        message = "The picture can't be shown: its dataset is not there, or can't be read."
        raise HTTPException(status.HTTP_404_NOT_FOUND, message) from error
