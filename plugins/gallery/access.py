"""Who gets in, and with what: Airflow's login and permissions, posts from the gallery itself only, bounded uploads."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import BaseUser, get_auth_manager, requires_access_dag
from fastapi import Depends, HTTPException, Request, status

from pipeline.images import MAX_BYTES, TOO_LARGE

DAG_ID = "caption_new_images"
"""Who may see this DAG may see its captions, and who may trigger it may try a picture and mark captions."""

UPLOADS = 8
"""That are received, captioned or kept at a time."""

UPLOAD_SECONDS = 60
"""In which an upload must have come."""

may_look = Depends(requires_access_dag("GET", param_dag_id=DAG_ID))

may_act = Depends(requires_access_dag("POST", DagAccessEntity.RUN, DAG_ID))


def allows_acting(user: BaseUser) -> bool:
    """Whether ``may_act`` lets the user in."""
    return get_auth_manager().is_authorized_dag(
        method="POST", access_entity=DagAccessEntity.RUN, details=DagDetails(id=DAG_ID), user=user
    )


_places = asyncio.Semaphore(UPLOADS)


def from_here(request: Request) -> None:
    """Refuse what another site makes a browser send: the login's cookie would go with it.

    A browser says from where a request comes, and no page can change that. A program that sends a token of its own
    says nothing, and needs not.
    """
    if "authorization" in request.headers:
        return
    site = request.headers.get("sec-fetch-site")
    # Browsers leave it out where the connection is neither encrypted nor local.
    origin = urlsplit(request.headers.get("origin", "")).netloc
    if site != "same-origin" and (site or origin != request.headers.get("host")):
        raise HTTPException(status.HTTP_403_FORBIDDEN, "This was sent from another site: post from the page itself.")


async def uploaded(request: Request) -> AsyncIterator[bytes]:
    """The body of a request: a picture, bounded in size and time. Its place is kept until the request is answered.

    Raises:
        HTTPException: it is too large (413), came too slowly (408), or there are too many at once (503).
    """
    if _places.locked():
        raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, "Too many pictures at once: try again in a moment.")
    async with _places:
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                data = await _bounded(request)
        except TimeoutError:
            raise HTTPException(
                status.HTTP_408_REQUEST_TIMEOUT, f"The picture did not come within {UPLOAD_SECONDS} seconds."
            ) from None
        yield data


async def _bounded(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BYTES:
            raise HTTPException(
                status.HTTP_413_CONTENT_TOO_LARGE, f"The picture can't be captioned: it is {TOO_LARGE}."
            )
    return bytes(data)
