"""The gallery's pictures: small and whole ones of the inbox, and copies of corrected ones."""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Query, Response, status
from fastapi import Path as PathParameter
from fastapi.responses import StreamingResponse

from captioning.gallery import limits
from captioning.gallery.rendering import Inbox, Store, send_file
from pipeline.data.decoders import Thumbnails
from pipeline.data.images import MAX_BYTES, TOO_LARGE, BadImageError, format_of
from pipeline.storage import (
    BadKeyError,
    Bucket,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    layout,
)
from pipeline.storage.bucket import hidden_part

UNCHANGING = {"Cache-Control": "private, max-age=604800, immutable"}
"""Headers of pictures whose address names their content."""

router = APIRouter()

small, large = (Thumbnails(side, seconds=5, wait=5) for side in (320, 1280))
"""For pages with many pictures, and for a picture's own page."""


@router.get("/thumbnail")
@limits.thumbnails.run
def show_thumbnail(
    inbox: Inbox,
    key: Annotated[str, Query(min_length=1, max_length=1024)],
    etag: Annotated[str, Query(max_length=200)] = "",
    whole: bool = False,
) -> Response:
    """A picture of the inbox as a small JPEG."""
    picture = read_thumbnail(large if whole else small, inbox, key, etag or None)
    # The content of an etag never changes.
    return Response(picture, media_type="image/jpeg", headers=UNCHANGING if etag else {})


@router.get("/corrections/pictures/{picture}")
@limits.thumbnails.run
def show_corrected_picture(
    store: Store, picture: Annotated[str, PathParameter(pattern=r"^[0-9a-f]{32}\.[a-z0-9]+$")]
) -> Response:
    """The copy of a corrected picture as a small JPEG."""
    key = f"{layout.CORRECTIONS}{layout.CORRECTION_PICTURES}{picture}"
    return Response(read_thumbnail(small, store, key), media_type="image/jpeg", headers=UNCHANGING)


@router.get("/original")
@limits.downloads.run
def show_original(
    inbox: Inbox,
    key: Annotated[str, Query(min_length=1, max_length=1024)],
    etag: Annotated[str, Query(max_length=200)] = "",
) -> StreamingResponse:
    """A picture of the inbox as it is; what is no picture is not shown."""
    with _explained():
        picture = read_picture(inbox, key, etag or None)
        if (form := format_of(picture)) is None:
            raise BadImageError("it is not a picture in a known format")
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed when it has been sent
    file.write(picture)
    name = quote(key.rpartition("/")[2], safe="")
    headers = {"Content-Disposition": f"inline; filename*=UTF-8''{name}", **(UNCHANGING if etag else {})}
    return send_file(file, f"image/{form.lower()}", headers)


def read_thumbnail(thumbnails: Thumbnails, bucket: Bucket, key: str, etag: str | None = None) -> bytes:
    """The thumbnail of a picture. Raises ``HTTPException`` (404) with the reason if there is none."""
    with _explained():
        return thumbnails.thumbnail(read_picture(bucket, key, etag))


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


def read_picture(bucket: Bucket, key: str, etag: str | None) -> bytes:
    """The bytes of a picture. No night captions a hidden one, so the gallery does not read any either.

    Raises:
        PipelineError: there is no such picture, or it is hidden or too large.
    """
    if hidden_part(key) is not None:
        raise ObjectNotFoundError(f"There is no picture {key!r}: hidden files are not captioned.")
    return bucket.get(key, etag=etag, limit=MAX_BYTES)
