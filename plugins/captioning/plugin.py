"""The plugins of Airflow: the gallery in the navigation, and the listeners of runs.

Airflow imports this module in each of its parts, in every task's process too, so it imports as little as it can.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from captioning import pools, run_notes


async def gallery(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[Any]],
    send: Callable[[Any], Awaitable[None]],
) -> None:
    """The gallery as an ASGI application, imported on the first request."""
    from captioning.gallery.routes import app

    await app(scope, receive, send)


class GalleryPlugin(AirflowPlugin):
    """Mounts the gallery at ``captions/`` and adds it to the navigation."""

    name = "captioning_gallery"
    fastapi_apps: list[Any] = [{"app": gallery, "url_prefix": "/captions", "name": "Captions"}]  # noqa: RUF012 - as Airflow declares it
    external_views: list[Any] = [  # noqa: RUF012 - as Airflow declares it
        {
            "name": "Captions",
            "href": "captions/",
            "destination": "nav",
            "url_route": "captions",
            "icon": "captions/static/icon.svg",
            "icon_dark_mode": "captions/static/icon-dark.svg",
            "nav_top_level": True,
        }
    ]


class RunNotesPlugin(AirflowPlugin):
    """Registers the listeners: of runs that start, for the pool, and of runs that have ended, for their notes."""

    name = "captioning_run_notes"
    listeners: list[Any] = [pools, run_notes]  # noqa: RUF012 - as Airflow declares it
