"""Answers of the routes: pages from templates, with relative URLs that work behind any proxy, and files."""

import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, StreamingResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from pydantic import BaseModel, ValidationError

from captioning.gallery import dependencies
from captioning.settings import read_settings as read_airflow_settings
from pipeline.captioner.spoken import spoken_name
from pipeline.storage import Bucket

Form = TypeVar("Form", bound=BaseModel)

Store = Annotated[Bucket, Depends(dependencies.store)]
Inbox = Annotated[Bucket, Depends(dependencies.inbox)]

POLICY = (
    "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)
"""What a page may do: nothing but load the gallery's own files, and be framed by Airflow's pages."""

FOLDER = Path(__file__).parent

pages = Environment(loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined)
pages.globals["airflow"] = read_airflow_settings
pages.filters["percent"] = lambda share: f"{round(100 * share)} %"
pages.filters["query"] = lambda values: urlencode(
    {name: value for name, value in values.items() if value not in (None, "")}
)
pages.filters["spoken"] = spoken_name
pages.filters["code"] = lambda text: Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704


def page(request: Request, template: str, *, damaged: Sequence[str] = (), **values: Any) -> HTMLResponse:
    """A rendered page; ``root`` is the relative URL of the gallery, ``damaged`` says which objects it left out."""
    values |= {"root": root(request), "path": path(request), "damaged": damaged, "conceal": dependencies.concealer()}
    return HTMLResponse(pages.get_template(template).render(values))


def path(request: Request) -> str:
    """The path of a request inside the gallery."""
    return request.url.path.removeprefix(request.scope.get("root_path", ""))


def root(request: Request) -> str:
    """The relative URL of the gallery, as seen from the page that is requested."""
    return "../" * max(0, path(request).count("/") - 1) or "./"


def send_file(file: IO[bytes], media_type: str, headers: dict[str, str]) -> StreamingResponse:
    """The content of a temporary file, which is closed when it has been sent: a slow connection takes no memory."""
    length = str(file.tell())
    file.seek(0)

    async def parts() -> AsyncIterator[bytes]:
        with file:
            while part := file.read(1 << 18):
                yield part

    return StreamingResponse(parts(), media_type=media_type, headers={**headers, "Content-Length": length})


def parse_form(kind: type[Form], content: bytes) -> Form:
    """A form as JSON. Raises ``RequestValidationError``."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
