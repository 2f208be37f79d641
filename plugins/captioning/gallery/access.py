"""Access to the gallery: Airflow's login and permissions, posts from its own pages only, and bounded uploads."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import Depends, HTTPException, Request, status

from captioning.names import NIGHT_DAG
from pipeline.data.images import MAX_BYTES, TOO_LARGE

UPLOADS = 8
"""Uploads that are received and processed at a time."""

UPLOAD_SECONDS = 60
"""Time limit for receiving an upload."""

can_view = Depends(requires_access_dag("GET", param_dag_id=NIGHT_DAG))
"""Users who can see the DAG of nights can see its captions."""

can_trigger = Depends(requires_access_dag("POST", DagAccessEntity.RUN, NIGHT_DAG))
"""Users who can trigger the DAG of nights can caption uploads and save corrections."""


def user_can_trigger(user: BaseUser) -> bool:
    """Whether ``can_trigger`` admits the user."""
    return get_auth_manager().is_authorized_dag(
        method="POST", access_entity=DagAccessEntity.RUN, details=DagDetails(id=NIGHT_DAG), user=user
    )


_upload_slots = asyncio.Semaphore(UPLOADS)


def require_same_origin(request: Request) -> None:
    """Refuse requests that another site makes a browser send, because the login's cookie is sent with them.

    A browser states the origin of a request, and no page can change that. A program that authenticates with a token
    states no origin, and needs none.

    Raises:
        HTTPException: the request comes from another site (403).
    """
    if "authorization" in request.headers:
        return
    site = request.headers.get("sec-fetch-site")
    # Browsers omit this header where the connection is neither encrypted nor local.
    origin = urlsplit(request.headers.get("origin", "")).netloc
    if site != "same-origin" and (site or origin != request.headers.get("host")):
        raise HTTPException(status.HTTP_403_FORBIDDEN, "This request came from another site: use the page itself.")


async def read_upload(request: Request) -> AsyncIterator[bytes]:
    """The body of a request, an image, bounded in size and time. Its slot is held until the request is answered.

    Raises:
        HTTPException: it is too large (413), arrives too slowly (408), or there are too many at a time (503).
    """
    if _upload_slots.locked():
        raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, "Too many uploads at a time: try again in a moment.")
    async with _upload_slots:
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                data = await _read_bounded(request)
        except TimeoutError:
            raise HTTPException(
                status.HTTP_408_REQUEST_TIMEOUT, f"The picture did not arrive within {UPLOAD_SECONDS} seconds."
            ) from None
        yield data


async def _read_bounded(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BYTES:
            raise HTTPException(
                status.HTTP_413_CONTENT_TOO_LARGE, f"The picture can't be captioned: it is {TOO_LARGE}."
            )
    return bytes(data)
