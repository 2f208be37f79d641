"""The gallery's routes: pages of captions, images, reviews, corrections, nights and datasets, and uploads.

Those of models are in ``models``.

Every route requires Airflow's login. URLs in pages are relative, so that they work behind any proxy.
"""

import contextlib
import logging
import random
import shlex
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import IO, Annotated, Any, Literal, Self
from urllib.parse import quote, unquote, urlencode, urlsplit

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response, status
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, StreamingResponse
from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Message, Receive, Scope, Send

from captioning.gallery import access, dependencies, limits, models
from captioning.gallery.plots import plot_drift
from captioning.gallery.rendering import FOLDER, POLICY, Inbox, Store, page, parse_form, root
from captioning.internals import BaseUser, GetUserDep
from pipeline.captioner.registry import find_champion
from pipeline.captioner.spoken import spoken_name
from pipeline.data import corrections, synthetic
from pipeline.data.corrections import Correction
from pipeline.data.decoders import DecodersBusyError, DecoderStartError, Thumbnails
from pipeline.data.images import MAX_BYTES, TOO_LARGE, BadImageError, format_of
from pipeline.errors import PipelineError, printable
from pipeline.export import csv
from pipeline.ops import browse, browse_current, correction_use, overview, review
from pipeline.ops.image_captions import image_captions
from pipeline.ops.side_by_side import HeldOutPhotographs
from pipeline.ops.similar import find_similar
from pipeline.serving.client import BadPictureError, BusyError, CaptionClient, CaptioningError, TimeLimitError
from pipeline.serving.server import Answer
from pipeline.settings import read_settings
from pipeline.storage import (
    BadKeyError,
    Bucket,
    DamagedObjectError,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    layout,
    names,
)
from pipeline.storage.bucket import hidden_part

log = logging.getLogger(__name__)

PAGE_SIZE = 24
"""Captions per page: rows of two, three, four and six columns are full."""

SIMILAR = 12
"""Photographs like one that are shown."""

SAMPLES = 3
"""Captioned photographs, at most, that are tried before a sample is drawn."""

NIGHTS = 40
"""Maximum nights that are listed and plotted."""

DATASETS = 20
"""Maximum datasets that are listed."""

CORRECTIONS = 100
"""Maximum corrections that are listed."""

STATIC = {
    "gallery.css": "text/css",
    "gallery.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "icon-dark.svg": "image/svg+xml",
}

UNSURE = (0.2, 0.4, 0.6, 0.8)
"""Thresholds for the confidence, to choose from, besides that of the review queue."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

UNCHANGING = {"Cache-Control": "private, max-age=604800, immutable"}
"""Headers of pictures whose address names their content."""

DRIFT_TITLES = {
    "features": "Image features",
    "failed": "Share of failed images",
    "novel": "Share unlike the training photographs",
    "words": "Caption length",
    "log_prob": "Log probability of a word",
}
"""Titles of the drift measures (see ``pipeline.evaluation.drift``)."""


class Gallery(FastAPI):
    """The application. All its answers, also those to errors that nobody expected, restrict what a page may do."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await super().__call__(scope, receive, send_with_headers)


app = Gallery(
    title="Captions",
    dependencies=[Depends(access.require_login), access.can_view],
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
)

app.include_router(models.router)

worker = CaptionClient(dependencies.child)

queue = review.Queue()

current_captions = browse_current.CurrentCaptions()

small, large = (Thumbnails(side, seconds=5, wait=5) for side in (320, 1280))
"""For pages with many pictures, and for a picture's own page."""

held_out = HeldOutPhotographs()


class CaptionFilters(browse_current.Filters):
    """The filters of the current captions as the form sends them."""

    @field_validator("unsure", "review", mode="before")
    @classmethod
    def _empty_is_default(cls, value: str, info: ValidationInfo) -> str | None:
        return value or cls.model_fields[str(info.field_name)].default


class CaptionQuery(CaptionFilters):
    """These filters, the order, and the number of the page."""

    order: browse_current.Order = "newest"
    page: int = Field(1, ge=1, le=10**9)
    night: str = Field("", pattern=browse.NIGHT, description="of a link to captions by models, which alone have one")


class HistoryQuery(browse.Filters):
    """The filters of captions by models as the form sends them, and where the page starts."""

    after: str = Field("", max_length=2000)

    @field_validator("unsure", mode="before")
    @classmethod
    def _empty_is_none(cls, value: str) -> str | None:
        return value or None


@app.get("/")
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


@app.get("/by-model")
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


@app.get("/captions.csv")
@limits.downloads.run
def download_captions(store: Store, filters: Annotated[CaptionFilters, Query()]) -> StreamingResponse:
    """The current captions that pass the filters as CSV."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed when it has been sent
    damaged: list[str] = []
    for number, table in enumerate(current_captions.tables(filters, store=store, damaged=damaged)):
        file.write(csv.render(table, header=not number))
    if damaged:
        raise DamagedObjectError(damaged[0])
    return _sent(file, "text/csv", {"Content-Disposition": "attachment; filename=captions.csv"})


def _sent(file: IO[bytes], media_type: str, headers: dict[str, str]) -> StreamingResponse:
    """The content of a temporary file, which is closed when it has been sent: a slow connection takes no memory."""
    length = str(file.tell())
    file.seek(0)

    async def parts() -> AsyncIterator[bytes]:
        with file:
            while part := file.read(1 << 18):
                yield part

    return StreamingResponse(parts(), media_type=media_type, headers={**headers, "Content-Length": length})


class ImageQuery(BaseModel):
    """A picture, and a night in which it was captioned, if one is known."""

    key: str = Field(min_length=1, max_length=1024)
    night: str = Field("", pattern=browse.NIGHT)


@app.get("/image")
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


@app.get("/similar")
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


@app.get("/review")
@limits.pages.run
def show_review(
    request: Request, store: Store, user: GetUserDep, after: Annotated[str, Query(max_length=1024)] = ""
) -> HTMLResponse:
    """The next caption that a person should look at; ``after`` is the key of the image that they saw last."""
    damaged: list[str] = []
    can_trigger = access.user_can_trigger(user)
    turn = queue.take(user.get_name(), store, after=after, damaged=damaged) if can_trigger else None
    return page(
        request,
        "review.html",
        turn=turn,
        left=turn.left if turn else queue.count(store, damaged=damaged),
        can_trigger=can_trigger,
        below=read_settings().review_below,
        damaged=damaged,
    )


@app.get("/review/count")
@limits.pages.run
def count_reviews(store: Store) -> JSONResponse:
    """How many captions wait for review, for the navigation of all pages."""
    return JSONResponse({"left": queue.count(store, damaged=[])})


@app.get("/corrections")
@limits.pages.run
def show_corrections(request: Request, store: Store, user: GetUserDep) -> HTMLResponse:
    """What people said about captions, and what became of it; the newest first."""
    damaged: list[str] = []
    # One more than is shown tells whether there are others.
    uses = correction_use.list_corrections(store, limit=CORRECTIONS + 1, damaged=damaged)
    return page(
        request,
        "corrections.html",
        uses=uses[:CORRECTIONS],
        more=len(uses) > CORRECTIONS,
        damaged=damaged,
        can_trigger=access.user_can_trigger(user),
    )


@app.get("/corrections.csv")
@limits.pages.run
def download_corrections(store: Store) -> Response:
    """All corrections as CSV."""
    table = correction_use.tabulate(correction_use.list_corrections(store))
    headers = {"Content-Disposition": "attachment; filename=corrections.csv"}
    return Response(csv.render(table), media_type="text/csv", headers=headers)


@app.get("/corrections/pictures/{picture}")
@limits.thumbnails.run
def show_corrected_picture(
    store: Store, picture: Annotated[str, PathParameter(pattern=r"^[0-9a-f]{32}\.[a-z0-9]+$")]
) -> Response:
    """The copy of a corrected picture as a small JPEG."""
    key = f"{layout.CORRECTIONS}{layout.CORRECTION_PICTURES}{picture}"
    return Response(_thumbnail(small, store, key), media_type="image/jpeg", headers=UNCHANGING)


@app.get("/nights")
@limits.pages.run
def show_nights(request: Request, store: Store) -> HTMLResponse:
    """The last nights: how they ended, their counts, and their drift."""
    damaged: list[str] = []
    records = overview.nights(store, limit=NIGHTS, damaged=damaged)
    limit = read_settings().drift_limit
    plots = {title: plot_drift(measure, records[::-1], limit=limit) for measure, title in DRIFT_TITLES.items()}
    written = {shard.night for shard in browse.shards(store)}
    return page(request, "nights.html", records=records, plots=plots, nights=written, damaged=damaged)


@app.get("/datasets")
@limits.pages.run
def show_datasets(request: Request, store: Store, user: GetUserDep) -> HTMLResponse:
    """The newest datasets, and what people who may train from them write into the form."""
    damaged: list[str] = []
    reports = overview.ingest_reports(store, limit=DATASETS, damaged=damaged)
    can_trigger = access.user_can_trigger(user)
    return page(request, "datasets.html", reports=reports, can_trigger=can_trigger, damaged=damaged)


@app.get("/try")
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


@app.get("/sample")
@limits.thumbnails.run
def show_sample(store: Store, inbox: Inbox) -> Response:
    """A picture to try, as a JPEG: a photograph that a night has captioned, or a drawn one."""
    rows = browse.page(browse.shards(store), browse.Filters(status="ok"), store=store, size=PAGE_SIZE).rows
    for row in random.sample(rows, min(len(rows), SAMPLES)):
        # It may have been replaced or removed since.
        with contextlib.suppress(HTTPException):
            picture = _thumbnail(large, inbox, row["image_key"], row["image_etag"])
            return Response(picture, media_type="image/jpeg")
    return Response(synthetic.generate_one(random.randrange(1000)), media_type="image/jpeg")


@app.get("/thumbnail")
@limits.thumbnails.run
def thumbnail(
    inbox: Inbox,
    key: Annotated[str, Query(min_length=1, max_length=1024)],
    etag: Annotated[str, Query(max_length=200)] = "",
    whole: bool = False,
) -> Response:
    """A picture of the inbox as a small JPEG."""
    picture = _thumbnail(large if whole else small, inbox, key, etag or None)
    # The content of an etag never changes.
    return Response(picture, media_type="image/jpeg", headers=UNCHANGING if etag else {})


@app.get("/datasets/picture")
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
        return Response(_thumbnail(small, source, place.key, place.etag), media_type="image/jpeg", headers=UNCHANGING)
    except limits.OutOfTimeError:
        raise
    except PipelineError as error:
        # Its message may name the address of a source.
        log.warning("no test photograph of %s is shown: %s", printable(dataset), printable(str(error)))
        message = "The picture can't be shown: its dataset is not there, or can't be read."
        raise HTTPException(status.HTTP_404_NOT_FOUND, message) from error


@app.get("/original")
@limits.downloads.run
def show_original(
    inbox: Inbox,
    key: Annotated[str, Query(min_length=1, max_length=1024)],
    etag: Annotated[str, Query(max_length=200)] = "",
) -> StreamingResponse:
    """A picture of the inbox as it is; what is no picture is not shown."""
    with _explained():
        picture = _read_picture(inbox, key, etag or None)
        if (form := format_of(picture)) is None:
            raise BadImageError("it is not a picture in a known format")
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed when it has been sent
    file.write(picture)
    name = quote(key.rpartition("/")[2], safe="")
    headers = {"Content-Disposition": f"inline; filename*=UTF-8''{name}", **(UNCHANGING if etag else {})}
    return _sent(file, f"image/{form.lower()}", headers)


def _thumbnail(thumbnails: Thumbnails, bucket: Bucket, key: str, etag: str | None = None) -> bytes:
    """The thumbnail of a picture. Raises ``HTTPException`` (404) with the reason if there is none."""
    with _explained():
        return thumbnails.thumbnail(_read_picture(bucket, key, etag))


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Errors of a picture as ``HTTPException`` (404) with the reason."""
    try:
        yield
        return
    except (ObjectNotFoundError, ObjectChangedError, BadKeyError):
        why = "it was replaced or removed"
    except ObjectDeniedError as error:
        why = error.reason
    except ObjectTooLargeError:
        why = TOO_LARGE
    except BadImageError as error:
        why = str(error)
    raise HTTPException(status.HTTP_404_NOT_FOUND, f"The picture can't be shown: {why}.")


def _read_picture(bucket: Bucket, key: str, etag: str | None) -> bytes:
    """The bytes of a picture. No night captions a hidden one, so the gallery does not read any either.

    Raises:
        PipelineError: there is no such picture, or it is hidden or too large.
    """
    if hidden_part(key) is not None:
        raise ObjectNotFoundError(f"There is no picture {key!r}: hidden files are not captioned.")
    return bucket.get(key, etag=etag, limit=MAX_BYTES)


@app.get("/static/{name}")
async def static(name: str) -> FileResponse:
    """A static file of the pages."""
    if name not in STATIC:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "There is no file of this name.")
    return FileResponse(FOLDER / "static" / name, media_type=STATIC[name], headers={"Cache-Control": "no-cache"})


@app.post("/caption", dependencies=[access.can_trigger, Depends(access.require_same_origin)])
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


class SkipForm(BaseModel):
    """A caption about which a person says nothing."""

    model_caption: str = Field(max_length=4096)
    image_key: str = Field(min_length=1, max_length=1024)
    image_etag: str = Field(max_length=200)


@app.post(
    "/review/skipped",
    dependencies=[access.can_trigger, Depends(access.require_same_origin)],
    status_code=status.HTTP_201_CREATED,
)
async def skip(body: Annotated[bytes, Depends(access.read_upload)], user: GetUserDep, store: Store) -> JSONResponse:
    """Take a caption out of the queue; the request's body is a ``SkipForm`` as JSON."""
    form = parse_form(SkipForm, body)
    subject = review.Subject(caption=form.model_caption, image_key=form.image_key, image_etag=form.image_etag)
    await limits.uploads.call(queue.skip, subject, by=user.get_name(), store=store)
    summary = "Skipped. It comes back if the caption or the photograph changes."
    return JSONResponse({**subject.model_dump(), "summary": summary}, status.HTTP_201_CREATED)


class CorrectionForm(BaseModel):
    """What a person says about a caption of an image in the inbox, or of an uploaded picture."""

    action: Literal["corrected", "confirmed", "withdrawn"] = "corrected"
    caption: str = Field("", max_length=1000, description="the better caption, if it is corrected")
    model_caption: str = Field("", max_length=4096)
    model_version: str = Field("", max_length=200)
    image_key: str = Field("", max_length=1024, description="empty for an uploaded picture")
    image_etag: str = Field("", max_length=200, description="to withdraw what was said about an upload: its `picture`")
    seen: str | None = Field(
        None, max_length=200, description="what the person saw that was said; None: whatever it is"
    )

    @model_validator(mode="after")
    def _has_version(self) -> Self:
        if self.image_key and not self.image_etag:
            raise ValueError("expected the etag of the image")
        return self


@app.post(
    "/corrections",
    dependencies=[access.can_trigger, Depends(access.require_same_origin)],
    status_code=status.HTTP_201_CREATED,
)
async def correct(
    body: Annotated[bytes, Depends(access.read_upload)], user: GetUserDep, store: Store, inbox: Inbox
) -> JSONResponse:
    """Store what a person says about a caption.

    The first line of the request's body is a ``CorrectionForm`` as JSON. An uploaded picture follows it. The answer is
    the correction, and in ``summary`` what becomes of it.
    """
    line, _, upload = body.partition(b"\n")
    form = parse_form(CorrectionForm, line)

    def save() -> tuple[Correction, str]:
        key, etag = form.image_key or None, form.image_etag or None
        if form.action == "withdrawn":
            withdrawn = corrections.withdraw(form.image_key, form.image_etag, by=user.get_name(), store=store)
            return withdrawn, "Withdrawn. The caption of the model counts again."
        # A person who saves the model's caption unchanged confirms it.
        is_right = form.action == "confirmed" or form.caption.strip() == form.model_caption
        added = corrections.add(
            _read_picture(inbox, key, etag) if key else upload,
            action="confirmed" if is_right else "corrected",
            caption=form.model_caption if is_right else form.caption,
            model_caption=form.model_caption,
            model_version=form.model_version,
            corrected_by=user.get_name(),
            store=store,
            image_key=key,
            image_etag=etag,
            seen=form.seen if key else None,
        )
        return added, _what_becomes_of(added, store)

    try:
        said, summary = await limits.uploads.call(save)
    except limits.OutOfTimeError:
        raise
    except corrections.AlreadySaidError as error:
        raise HTTPException(status.HTTP_409_CONFLICT, str(error)) from error
    except ObjectChangedError as error:
        message = (
            f"Nothing was saved: {form.image_key!r} was replaced or removed since the page was made. "
            "The next night captions the photograph that is there now."
        )
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, message) from error
    except PipelineError as error:
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, str(error)) from error
    return JSONResponse({**said.model_dump(mode="json"), "summary": summary}, status.HTTP_201_CREATED)


def _what_becomes_of(correction: Correction, store: Bucket) -> str:
    """A sentence or two about a correction that has been stored."""
    explain = correction_use.Explainer(store)
    clause = explain.next_training(correction)
    if correction.image_key and explain.is_held_out(correction):
        return f"Saved. Readers see it; {clause}."
    return f"Saved. {clause[0].upper()}{clause[1:]}."


@app.exception_handler(StarletteHTTPException)
async def show_error(request: Request, error: StarletteHTTPException) -> Response:
    """An error as a page for a person, or the login if that is what is missing, and as JSON for a program."""
    headers = dict(error.headers or {})
    if error.status_code == status.HTTP_503_SERVICE_UNAVAILABLE:
        headers.setdefault("Retry-After", "10")
    detail = dependencies.concealer()(error.detail)
    if detail != error.detail:
        log.warning("%s: %s", printable(request.url.path), printable(error.detail))
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"detail": detail}, error.status_code, headers)
    if error.status_code == status.HTTP_401_UNAUTHORIZED:
        return RedirectResponse(_login(request), status.HTTP_303_SEE_OTHER)
    response = page(request, "error.html", status=error.status_code, detail=detail)
    response.status_code = error.status_code
    response.headers.update(headers)
    return response


@app.exception_handler(RequestValidationError)
async def show_invalid_values(request: Request, error: RequestValidationError) -> Response:
    """The same for invalid parameters."""
    # An error of a whole document has no place in it.
    wrong = "; ".join(": ".join([*map(str, each["loc"][-1:]), each["msg"]]) for each in error.errors())
    return await show_error(request, HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, wrong))


@app.exception_handler(PipelineError)
async def show_pipeline_error(request: Request, error: PipelineError) -> Response:
    """The same for errors in the store or the settings that a person has to fix."""
    return await show_error(request, HTTPException(status.HTTP_409_CONFLICT, str(error)))


@app.exception_handler(limits.OutOfTimeError)
async def show_out_of_time(request: Request, error: limits.OutOfTimeError) -> Response:
    """The same where the storage is too slow."""
    return await show_error(request, HTTPException(status.HTTP_504_GATEWAY_TIMEOUT, str(error)))


@app.exception_handler(DecodersBusyError)
async def show_busy_decoders(request: Request, error: DecodersBusyError) -> Response:
    """The same where too many pictures are being decoded."""
    return await show_error(request, HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, str(error)))


@app.exception_handler(DecoderStartError)
async def show_start_error(request: Request, error: DecoderStartError) -> Response:
    """The same where no picture can be decoded at the moment."""
    log.error("%s: %s", request.url.path, error)
    return await show_error(request, HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, str(error)))


@app.exception_handler(Exception)
async def show_unexpected_error(request: Request, error: Exception) -> Response:
    """The same for unexpected errors, such as a store that is down; the log has the details."""
    detail = f"The store is not readable at the moment, or an unexpected error occurred ({type(error).__name__})."
    return await show_error(request, HTTPException(status.HTTP_500_INTERNAL_SERVER_ERROR, f"{detail} Try again later."))


def _login(request: Request) -> str:
    """The relative URL of Airflow's login, which leads back to the page that is requested."""
    # Without the host, which a proxy may have changed.
    page_url = request.url.replace(scheme="", netloc="")
    return f"{root(request)}../api/v2/auth/login?{urlencode({'next': str(page_url)})}"
