"""The gallery's application: its login, the headers of all its answers, its static files and its errors as pages.

Every route requires Airflow's login. URLs in pages are relative, so that they work behind any proxy.
"""

import logging
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, HTTPException, Request, Response, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Message, Receive, Scope, Send

from captioning.gallery import (
    access,
    captions,
    corrections,
    datasets,
    dependencies,
    limits,
    models,
    nights,
    pictures,
    try_it,
)
from captioning.gallery.rendering import FOLDER, POLICY, page, root
from pipeline.data.decoders import DecodersBusyError, DecoderStartError
from pipeline.errors import PipelineError, printable

log = logging.getLogger(__name__)

STATIC = {
    "gallery.css": "text/css",
    "gallery.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "icon-dark.svg": "image/svg+xml",
}

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


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

for module in (captions, pictures, corrections, nights, models, datasets, try_it):
    app.include_router(module.router)


@app.get("/static/{name}")
async def static(name: str) -> FileResponse:
    """A static file of the pages."""
    if name not in STATIC:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "There is no file of this name.")
    return FileResponse(FOLDER / "static" / name, media_type=STATIC[name], headers={"Cache-Control": "no-cache"})


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
    wrong = "; ".join(
        ": ".join([*map(str, each["loc"][-1:]), each["msg"].removeprefix("Value error, ")]) for each in error.errors()
    )
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
