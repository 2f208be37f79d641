"""The plugin of the gallery: captions in Airflow's navigation, and the page where one tries a picture."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin


async def gallery(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[Any]],
    send: Callable[[Any], Awaitable[None]],
) -> None:
    """The application, imported when it is first asked: every part of Airflow, each task too, loads the plugins."""
    from plugins.gallery.app import app

    await app(scope, receive, send)


class CaptionsPlugin(AirflowPlugin):
    """Mounts the gallery at ``captions/`` and shows it in the navigation."""

    name = "captions"
    fastapi_apps: ClassVar[list[Any]] = [{"app": gallery, "url_prefix": "/captions", "name": "Captions"}]
    external_views: ClassVar[list[Any]] = [
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
