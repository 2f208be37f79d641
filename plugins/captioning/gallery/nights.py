"""The gallery's page of nights."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from captioning.gallery import limits
from captioning.gallery.plots import plot_drift
from captioning.gallery.rendering import Store, page
from pipeline.ops import browse, overview
from pipeline.settings import read_settings

NIGHTS = 40
"""Maximum nights that are listed and plotted."""

DRIFT_TITLES = {
    "features": "Image features",
    "failed": "Share of failed images",
    "novel": "Share unlike the training photographs",
    "words": "Caption length",
    "log_prob": "Log probability of a word",
}
"""Titles of the drift measures (see ``pipeline.evaluation.drift``)."""

router = APIRouter()


@router.get("/nights")
@limits.pages.run
def show_nights(request: Request, store: Store) -> HTMLResponse:
    """The last nights: how they ended, their counts, and their drift."""
    damaged: list[str] = []
    records = overview.nights(store, limit=NIGHTS, damaged=damaged)
    limit = read_settings().drift_limit
    plots = {title: plot_drift(measure, records[::-1], limit=limit) for measure, title in DRIFT_TITLES.items()}
    written = {shard.night for shard in browse.shards(store)}
    return page(request, "nights.html", records=records, plots=plots, nights=written, damaged=damaged)
