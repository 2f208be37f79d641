"""Folders that look like a checkout of the project."""

from pathlib import Path

from pipeline import __version__


def checkout(folder: Path, *, name: str = "image-captioning-pipeline", version: str = __version__) -> Path:
    """A checkout with a project of this name and version, and nothing in it, in an empty folder; returns the folder."""
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\nversion = "{version}"\n')
    for package in ("dags", "pipeline"):
        (folder / package).mkdir()
    return folder
