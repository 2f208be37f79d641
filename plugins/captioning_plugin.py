"""Shows Airflow the plugins of the package `captioning` in its plugins folder, unless an installed package does so.

Where both do, Airflow reports the second one as an error.
"""

from importlib.metadata import entry_points

if not entry_points(group="airflow.plugins", name="captioning_gallery"):
    from captioning.plugin import GalleryPlugin, RunNotesPlugin

    __all__ = ["GalleryPlugin", "RunNotesPlugin"]
