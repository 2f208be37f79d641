"""The gallery's routes of models: their list, reports and cards, comparisons, promotion and rollback."""

import contextlib
from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request, status
from fastapi.responses import HTMLResponse, JSONResponse
from markdown_it import MarkdownIt
from markupsafe import Markup
from pydantic import BaseModel, Field, field_validator

from captioning.gallery import access, limits
from captioning.gallery.plots import plot_acceptance
from captioning.gallery.rendering import POLICY, Store, page, parse_form
from captioning.internals import GetUserDep
from pipeline.captioner import registry
from pipeline.captioner.metadata import ModelMetadata, load_metadata
from pipeline.captioner.registry import find_champion
from pipeline.captioner.spoken import spoken_name
from pipeline.data import corrections
from pipeline.errors import PipelineError
from pipeline.evaluation.results import latest_metrics
from pipeline.ops import acceptance, overview, side_by_side
from pipeline.storage import Bucket

MODELS = 15
"""Maximum models that are listed."""

PAIRS = 24
"""Photographs per page of a comparison."""

SANDBOX = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"
"""The policy of a report, which contains its styles and pictures, and needs no scripts."""

router = APIRouter()

# Only what a card is made of: no HTML, no links, no pictures.
markdown = MarkdownIt("zero").enable(["escape", "heading", "list", "table"])


@router.get("/models")
@limits.pages.run
def show_models(request: Request, store: Store, user: GetUserDep) -> HTMLResponse:
    """The newest models, their scores, which is the champion, and what people accepted of their captions."""
    damaged: list[str] = []
    champion = find_champion(store)
    models = overview.models(store, champion, limit=MODELS, damaged=damaged)
    weeks = acceptance.by_week(corrections.read(store, damaged=damaged))
    plot, accepted = plot_acceptance(weeks), acceptance.by_model(weeks)
    return page(
        request,
        "models.html",
        models=models,
        plot=plot,
        accepted=accepted,
        can_promote=access.user_can_promote(user),
        has_earlier=champion is not None and len(champion.history) > 1,
        damaged=damaged,
    )


@router.get("/models/{version}/report")
@limits.pages.run
def show_report(request: Request, version: str, store: Store) -> HTMLResponse:
    """The report of a model's newest evaluation, in a frame below the gallery's navigation."""
    _report(version, store)
    response = page(request, "report.html", version=version, champion=_champion(store))
    response.headers["Content-Security-Policy"] = f"{POLICY}; frame-src 'self'"
    return response


@router.get("/models/{version}/report/page")
@limits.pages.run
def show_report_page(version: str, store: Store) -> HTMLResponse:
    """The report itself."""
    return HTMLResponse(_report(version, store), headers={"Content-Security-Policy": SANDBOX})


def _report(version: str, store: Bucket) -> bytes:
    with _not_found():
        return overview.report(load_metadata(version, store), store)


@router.get("/models/{version}/card")
@limits.pages.run
def show_card(request: Request, version: str, store: Store) -> HTMLResponse:
    """The card of a model."""
    with _not_found():
        model = load_metadata(version, store)
        card = overview.card(model, store)
    return page(
        request,
        "card.html",
        version=version,
        champion=_champion(store),
        evaluated=_is_evaluated(model, store),
        card=Markup(markdown.render(card)),  # noqa: S704 - escaped
    )


class CompareQuery(BaseModel):
    """The models of a comparison, and which photographs are shown."""

    a: str = Field("", max_length=200, description="version of the first model; empty for the champion")
    b: str = Field(max_length=200, description="version of the second one, the candidate")
    of: Literal["inbox", "test"] | None = Field(
        None, description="where the photographs are; None: where there are any"
    )
    start: int = Field(0, ge=0, le=1_000_000, description="photographs before the first one that is shown")


@router.get("/compare")
@limits.pages.run
def show_comparison(
    request: Request, store: Store, user: GetUserDep, query: Annotated[CompareQuery, Query()]
) -> HTMLResponse:
    """Two models: their scores on the same test photographs, and their captions of the same photographs."""
    present = _champion(store)
    first, second = query.a or present, query.b
    if not first:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "There is no champion yet to compare a model with.")
    if first == second:
        raise HTTPException(
            status.HTTP_422_UNPROCESSABLE_CONTENT, "This is one model twice: choose two different ones."
        )
    damaged: list[str] = []
    metadata = find_metadata(first, store), find_metadata(second, store)
    tested = side_by_side.compare_tests(first, second, store)
    inbox = side_by_side.compare_inbox(first, second, store, damaged=damaged)
    of = query.of or ("test" if tested and not inbox.pairs else "inbox")
    pairs = inbox.pairs if of == "inbox" else tested.pairs if tested else []
    return page(
        request,
        "compare.html",
        first=first,
        second=second,
        evaluated=[model.version for model in metadata if _is_evaluated(model, store)],
        champion=present,
        tested=tested,
        inbox=inbox,
        of=of,
        pairs=pairs[query.start : query.start + PAIRS],
        start=query.start,
        following=query.start + PAIRS if len(pairs) > query.start + PAIRS else None,
        before=max(0, query.start - PAIRS) if query.start else None,
        can_promote=access.user_can_promote(user),
        damaged=damaged,
    )


def _champion(store: Bucket) -> str:
    """The version of the champion; empty if there is none."""
    champion = find_champion(store)
    return champion.version if champion else ""


def _is_evaluated(model: ModelMetadata, store: Bucket) -> bool:
    """Whether a model has a report."""
    return latest_metrics(model, store) is not None


def find_metadata(version: str, store: Bucket) -> ModelMetadata:
    """The metadata of a model. Raises ``HTTPException`` (404) if there is no such model."""
    with _not_found():
        return load_metadata(version, store)


@contextlib.contextmanager
def _not_found() -> Iterator[None]:
    """Turn an error of the pipeline, whose message says what is missing, into an answer with status 404."""
    try:
        yield
    except PipelineError as error:
        raise HTTPException(status.HTTP_404_NOT_FOUND, str(error)) from error


@router.get("/models/{version}/promote")
@limits.pages.run
def show_promotion(request: Request, version: str, store: Store, user: GetUserDep) -> HTMLResponse:
    """What a promotion changes, and the button for it."""
    metadata, present = find_metadata(version, store), _champion(store)
    tested = side_by_side.compare_tests(present, version, store) if present not in ("", version) else None
    return page(
        request,
        "promote.html",
        version=version,
        champion=present,
        tested=tested,
        evaluated=_is_evaluated(metadata, store),
        new_encoder=present not in ("", version) and find_metadata(present, store).encoder_id != metadata.encoder_id,
        can_promote=access.user_can_promote(user),
    )


@router.get("/rollback")
@limits.pages.run
def show_rollback(request: Request, store: Store, user: GetUserDep) -> HTMLResponse:
    """What a rollback changes, and the button for it."""
    champion = find_champion(store)
    return page(
        request,
        "rollback.html",
        champion=champion,
        previous=champion.history[-2] if champion and len(champion.history) > 1 else None,
        can_promote=access.user_can_promote(user),
    )


class ChampionForm(BaseModel):
    """Why a person changes the champion, and which one they saw."""

    reason: str = Field(min_length=1, max_length=200)
    seen: str = Field(max_length=200, description="version of the champion on the page; empty if there was none")

    @field_validator("reason", mode="before")
    @classmethod
    def _is_a_line(cls, value: str) -> str:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise ValueError("expected a line of text that says why")
        return value.strip()


@router.post(
    "/models/{version}/promote",
    dependencies=[*access.can_promote, Depends(access.require_same_origin)],
    status_code=status.HTTP_201_CREATED,
)
@limits.pages.run
def promote(
    version: str, body: Annotated[bytes, Depends(access.read_upload)], user: GetUserDep, store: Store
) -> JSONResponse:
    """Make a model the champion, as `captioning promote` does; the request's body is a ``ChampionForm`` as JSON."""
    form = parse_form(ChampionForm, body)
    find_metadata(version, store)
    reason = f"{user.get_name()} promoted it: {form.reason}"
    return _changed(registry.promote(version, store, reason=reason, seen=form.seen))


@router.post(
    "/rollback",
    dependencies=[*access.can_promote, Depends(access.require_same_origin)],
    status_code=status.HTTP_201_CREATED,
)
@limits.pages.run
def roll_back(body: Annotated[bytes, Depends(access.read_upload)], user: GetUserDep, store: Store) -> JSONResponse:
    """Make the previous champion the champion again, as `captioning rollback` does; the body is a ``ChampionForm``."""
    form = parse_form(ChampionForm, body)
    reason = f"{user.get_name()} rolled it back: {form.reason}"
    return _changed(registry.roll_back(store, reason=reason, seen=form.seen))


def _changed(champion: registry.Champion) -> JSONResponse:
    version = champion.version
    summary = f"{spoken_name(version)} ({version}) is the champion. The next night captions with it."
    return JSONResponse({"champion": version, "summary": summary}, status.HTTP_201_CREATED)
