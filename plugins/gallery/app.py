"""The gallery's routes: pages of captions, pictures, nights and models, and captions on demand.

All are behind Airflow's login. Addresses in pages are relative, so that they hold behind any proxy.
"""

import logging
import math
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, Field, field_validator
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from pipeline import gallery, marks
from pipeline.caption_worker import BadPictureError, BusyError, CaptioningError, CaptionWorker, TimeLimitError
from pipeline.decoders import Thumbnails
from pipeline.errors import PipelineError
from pipeline.evaluation import report_key
from pipeline.gallery import Filters
from pipeline.images import MAX_BYTES, BadImageError
from pipeline.settings import Settings
from pipeline.storage import Bucket, ObjectNotFoundError
from plugins.gallery import access, places
from plugins.gallery.plots import plot

log = logging.getLogger(__name__)

HERE = Path(__file__).parent

PAGE = 24
"""Captions on a page."""

NIGHTS = 60
"""Nights that are listed and plotted."""


STATIC = {
    "gallery.css": "text/css",
    "gallery.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "icon-dark.svg": "image/svg+xml",
}

UNSURE = (0.2, 0.3, 0.4, 0.5, 0.6)
"""Limits of a word's mean probability to choose from."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

FIGURES = {
    "features": "How the pictures look",
    "failed": "Share that failed",
    "words": "Length of the captions",
    "log_prob": "Probability of the words",
}
"""What drift is measured in, in words for a page (see ``pipeline.drift``)."""

app = FastAPI(
    title="Captions",
    dependencies=[access.may_look],
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
)

worker = CaptionWorker(environment=places.environment)

small, large = Thumbnails(320, seconds=10), Thumbnails(1280, seconds=10)
"""For a page of many pictures, and for a picture's own page."""

pages = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)
pages.filters["probability"] = lambda log_prob: f"{math.exp(log_prob):.2f}"
pages.filters["query"] = lambda values: urlencode({name: value for name, value in values.items() if value})


Store = Annotated[Bucket, Depends(places.store)]
Inbox = Annotated[Bucket, Depends(places.inbox)]


@app.middleware("http")
async def with_headers(request: Request, call_next: Any) -> Response:
    """Let no page do more than it needs."""
    response: Response = await call_next(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


class Asked(Filters):
    """The filters as a form sends them, and from where the page goes on."""

    after: str = Field("", max_length=2000)

    @field_validator("unsure", mode="before")
    @classmethod
    def _not_chosen(cls, value: str) -> str | None:
        return value or None


@app.get("/")
def show_captions(request: Request, store: Store, asked: Annotated[Asked, Query()]) -> HTMLResponse:
    """A page of the newest captions that pass the filters."""
    shards = gallery.shards(store)
    found = gallery.page(shards, asked, store=store, size=PAGE, after=asked.after)
    return page(
        request,
        "captions.html",
        filters=asked,
        chosen=asked.model_dump(exclude_defaults=True, exclude={"after"}),
        found=found,
        empty=not shards,
        nights=list(dict.fromkeys(shard.night for shard in shards)),
        versions=list(dict.fromkeys(shard.version for shard in shards)),
        unsure=UNSURE,
    )


@app.get("/image")
def show_image(
    request: Request, store: Store, user: GetUserDep, key: Annotated[str, Query(min_length=1, max_length=1024)]
) -> HTMLResponse:
    """A picture with all that was said of it."""
    rows = gallery.pictures_captions(key, store=store)
    if not rows:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "No captions are known of this picture.")
    return page(request, "image.html", key=key, rows=rows, may_act=access.allows_acting(user))


@app.get("/nights")
def show_nights(request: Request, store: Store) -> HTMLResponse:
    """The last nights: what they counted, and how far each lay from the model's test and earlier nights."""
    records = gallery.nights(store, limit=NIGHTS)
    plots = {title: plot(figure, records[::-1], limit=Settings().drift_limit) for figure, title in FIGURES.items()}
    written = {shard.night for shard in gallery.shards(store)}
    return page(request, "nights.html", records=records, plots=plots, nights=written)


@app.get("/models")
def show_models(request: Request, store: Store) -> HTMLResponse:
    """All models, their scores, and which is the champion."""
    return page(request, "models.html", models=gallery.models(store))


@app.get("/models/{version}/report")
def show_report(version: str, store: Store) -> HTMLResponse:
    """A model's evaluation report, as it was written."""
    try:
        report = store.get(report_key(version))
    except ObjectNotFoundError:
        raise HTTPException(status.HTTP_404_NOT_FOUND, f"{version} was not evaluated: it has no report.") from None
    # It is a page of its own with its styles and pictures in it, and runs nothing.
    policy = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"
    return HTMLResponse(report, headers={"Content-Security-Policy": policy})


@app.get("/try")
def show_try(request: Request, user: GetUserDep) -> HTMLResponse:
    """The page where one tries a picture; the model loads while it is looked at."""
    may_act = access.allows_acting(user)
    if may_act:
        worker.warm()
    return page(request, "try.html", may_act=may_act, megabytes=MAX_BYTES // 1_000_000)


@app.get("/thumbnail")
def thumbnail(
    inbox: Inbox,
    key: Annotated[str, Query(min_length=1, max_length=1024)],
    etag: Annotated[str, Query(max_length=200)] = "",
    whole: bool = False,
) -> Response:
    """A picture of the inbox, shrunk, as a JPEG."""
    try:
        data = inbox.get(key, etag=etag or None, limit=MAX_BYTES)
        picture = (large if whole else small).thumbnail(data)
    except (PipelineError, BadImageError):
        raise HTTPException(status.HTTP_404_NOT_FOUND, "The picture is gone, or can't be shown.") from None
    # What has this etag never changes.
    age = {"Cache-Control": "private, max-age=604800, immutable"} if etag else {}
    return Response(picture, media_type="image/jpeg", headers=age)


@app.get("/static/{name}")
def static(name: str) -> FileResponse:
    """One of the pages' own files."""
    if name not in STATIC:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "There is no such file.")
    return FileResponse(HERE / "static" / name, media_type=STATIC[name], headers={"Cache-Control": "no-cache"})


@app.post("/caption", dependencies=[access.may_act, Depends(access.from_here)])
async def caption(picture: Annotated[bytes, Depends(access.uploaded)]) -> JSONResponse:
    """The champion's captions of the picture that is the request's body, the best first."""
    try:
        answer = await run_in_threadpool(worker.caption, picture)
    except CaptioningError as error:
        raise HTTPException(_STATUS.get(type(error), status.HTTP_503_SERVICE_UNAVAILABLE), str(error)) from error
    return JSONResponse(answer.model_dump())


_STATUS = {
    BadPictureError: status.HTTP_422_UNPROCESSABLE_CONTENT,
    BusyError: status.HTTP_503_SERVICE_UNAVAILABLE,
    TimeLimitError: status.HTTP_504_GATEWAY_TIMEOUT,
}


class Said(BaseModel):
    """What a model has said of a picture, and what a person would have said."""

    better: str = Field(max_length=1000)
    wrong: str = Field("", max_length=4096)
    version: str = Field("", max_length=200)
    key: str = Field("", max_length=1024, description="of the picture in the inbox; empty where it is the body")
    etag: str = Field("", max_length=200)


@app.post("/marks", dependencies=[access.may_act, Depends(access.from_here)], status_code=status.HTTP_201_CREATED)
async def mark(
    picture: Annotated[bytes, Depends(access.uploaded)],
    user: GetUserDep,
    store: Store,
    inbox: Inbox,
    said: Annotated[Said, Query()],
) -> JSONResponse:
    """Keep a better caption of a picture: of one of the inbox, or of that which is the request's body."""

    def keep() -> marks.Mark:
        return marks.mark(
            inbox.get(said.key, etag=said.etag or None, limit=MAX_BYTES) if said.key else picture,
            caption=said.better,
            wrong_caption=said.wrong,
            model_version=said.version,
            marked_by=user.get_name(),
            store=store,
            image_key=said.key or None,
            image_etag=said.etag or None,
        )

    try:
        made = await run_in_threadpool(keep)
    except PipelineError as error:
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, str(error)) from error
    return JSONResponse(made.model_dump(mode="json"), status_code=status.HTTP_201_CREATED)


@app.exception_handler(StarletteHTTPException)
async def refuse(request: Request, error: StarletteHTTPException) -> Response:
    """An error as a page for a person, as JSON for a program."""
    headers = dict(error.headers or {})
    if error.status_code == status.HTTP_503_SERVICE_UNAVAILABLE:
        headers.setdefault("Retry-After", "10")
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"detail": error.detail}, error.status_code, headers)
    found = page(request, "error.html", status=error.status_code, detail=error.detail, next=str(request.url))
    found.status_code = error.status_code
    found.headers.update(headers)
    return found


@app.exception_handler(RequestValidationError)
async def refuse_values(request: Request, error: RequestValidationError) -> Response:
    """The same for values out of their bounds."""
    wrong = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
    return await refuse(request, HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, wrong))


@app.exception_handler(PipelineError)
async def refuse_store(request: Request, error: PipelineError) -> Response:
    """The same for what a person has to mend in the store."""
    log.warning("%s: %s", request.url.path, error)
    return await refuse(request, HTTPException(status.HTTP_409_CONFLICT, str(error)))


@app.exception_handler(Exception)
async def fail(request: Request, error: Exception) -> Response:
    """The same for what nobody expected: a store that can't be reached, for one. The log has all of it."""
    detail = f"The store can't be read now, or something else went wrong ({type(error).__name__}): try again later."
    return await refuse(request, HTTPException(status.HTTP_500_INTERNAL_SERVER_ERROR, detail))


def page(request: Request, template: str, **values: Any) -> HTMLResponse:
    """A rendered page."""
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    here = "../" * max(0, path.count("/") - 1) or "./"
    return HTMLResponse(pages.get_template(template).render(root=here, path=path, **values))
