"""The gallery's review queue, and what people say about captions."""

from typing import Annotated, Literal, Self

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response, status
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field, model_validator

from captioning.gallery import access, limits
from captioning.gallery.pictures import read_picture
from captioning.gallery.rendering import Inbox, Store, page, parse_form
from captioning.internals import GetUserDep
from pipeline.data import corrections
from pipeline.data.corrections import Correction
from pipeline.errors import PipelineError
from pipeline.export import csv
from pipeline.ops import correction_use, review
from pipeline.settings import read_settings
from pipeline.storage import Bucket, ObjectChangedError

CORRECTIONS = 100
"""Maximum corrections that are listed."""

router = APIRouter()

queue = review.Queue()


@router.get("/review")
@limits.pages.run
def show_review(
    request: Request, store: Store, user: GetUserDep, after: Annotated[str, Query(max_length=1024)] = ""
) -> HTMLResponse:
    """The next caption that a person should look at; ``after`` is the key of the image that they saw last."""
    damaged: list[str] = []
    can_trigger = access.user_can_trigger(user)
    turn = queue.take(user.get_name(), store, after=after, damaged=damaged) if can_trigger else None
    return page(
        request,
        "review.html",
        turn=turn,
        left=turn.left if turn else queue.count(store, damaged=damaged),
        after=after,
        can_trigger=can_trigger,
        below=read_settings().review_below,
        damaged=damaged,
    )


@router.get("/review/count")
@limits.pages.run
def count_reviews(store: Store) -> JSONResponse:
    """How many captions wait for review, for the navigation of all pages."""
    return JSONResponse({"left": queue.count(store, damaged=[])})


class SkipForm(BaseModel):
    """A caption about which a person says nothing."""

    model_caption: str = Field(max_length=4096)
    image_key: str = Field(min_length=1, max_length=1024)
    image_etag: str = Field(max_length=200)


@router.post(
    "/review/skipped",
    dependencies=[access.can_trigger, Depends(access.require_same_origin)],
    status_code=status.HTTP_201_CREATED,
)
async def skip(body: Annotated[bytes, Depends(access.read_upload)], user: GetUserDep, store: Store) -> JSONResponse:
    """Take a caption out of the queue; the request's body is a ``SkipForm`` as JSON."""
    form = parse_form(SkipForm, body)
    subject = review.Subject(caption=form.model_caption, image_key=form.image_key, image_etag=form.image_etag)
    await limits.uploads.call(queue.skip, subject, by=user.get_name(), store=store)
    summary = "Skipped. It comes back if the caption or the photograph changes."
    return JSONResponse({**subject.model_dump(), "summary": summary}, status.HTTP_201_CREATED)


@router.get("/corrections")
@limits.pages.run
def show_corrections(request: Request, store: Store, user: GetUserDep) -> HTMLResponse:
    """What people said about captions, and what became of it; the newest first."""
    damaged: list[str] = []
    # One more than is shown tells whether there are others.
    uses = correction_use.list_corrections(store, limit=CORRECTIONS + 1, damaged=damaged)
    return page(
        request,
        "corrections.html",
        uses=uses[:CORRECTIONS],
        more=len(uses) > CORRECTIONS,
        damaged=damaged,
        can_trigger=access.user_can_trigger(user),
    )


@router.get("/corrections.csv")
@limits.pages.run
def download_corrections(store: Store) -> Response:
    """All corrections as CSV."""
    table = correction_use.tabulate(correction_use.list_corrections(store))
    headers = {"Content-Disposition": "attachment; filename=corrections.csv"}
    return Response(csv.render(table), media_type="text/csv", headers=headers)


class CorrectionForm(BaseModel):
    """What a person says about a caption of an image in the inbox, or of an uploaded picture."""

    action: Literal["corrected", "confirmed", "withdrawn"] = "corrected"
    caption: str = Field("", max_length=1000, description="the better caption, if it is corrected")
    model_caption: str = Field("", max_length=4096)
    model_version: str = Field("", max_length=200)
    image_key: str = Field("", max_length=1024, description="empty for an uploaded picture")
    image_etag: str = Field("", max_length=200, description="to withdraw what was said about an upload: its `picture`")
    seen: str | None = Field(
        None, max_length=200, description="what the person saw that was said; None: whatever it is"
    )

    @model_validator(mode="after")
    def _has_version(self) -> Self:
        if self.image_key and not self.image_etag:
            raise ValueError("expected the etag of the image")
        return self


@router.post(
    "/corrections",
    dependencies=[access.can_trigger, Depends(access.require_same_origin)],
    status_code=status.HTTP_201_CREATED,
)
async def correct(
    body: Annotated[bytes, Depends(access.read_upload)], user: GetUserDep, store: Store, inbox: Inbox
) -> JSONResponse:
    """Store what a person says about a caption.

    The first line of the request's body is a ``CorrectionForm`` as JSON. An uploaded picture follows it. The answer is
    the correction, and in ``summary`` what becomes of it.
    """
    line, _, upload = body.partition(b"\n")
    form = parse_form(CorrectionForm, line)

    def save() -> tuple[Correction, str]:
        key, etag = form.image_key or None, form.image_etag or None
        if form.action == "withdrawn":
            withdrawn = corrections.withdraw(form.image_key, form.image_etag, by=user.get_name(), store=store)
            return withdrawn, "Withdrawn. The caption of the model counts again."
        # A person who saves the model's caption unchanged confirms it.
        is_right = form.action == "confirmed" or form.caption.strip() == form.model_caption
        added = corrections.add(
            read_picture(inbox, key, etag) if key else upload,
            action="confirmed" if is_right else "corrected",
            caption=form.model_caption if is_right else form.caption,
            model_caption=form.model_caption,
            model_version=form.model_version,
            corrected_by=user.get_name(),
            store=store,
            image_key=key,
            image_etag=etag,
            seen=form.seen if key else None,
        )
        return added, _what_becomes_of(added, store)

    try:
        said, summary = await limits.uploads.call(save)
    except limits.OutOfTimeError:
        raise
    except corrections.AlreadySaidError as error:
        raise HTTPException(status.HTTP_409_CONFLICT, str(error)) from error
    except ObjectChangedError as error:
        message = (
            f"Nothing was saved: {form.image_key!r} was replaced or removed since the page was made. "
            "The next night captions the photograph that is there now."
        )
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, message) from error
    except PipelineError as error:
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, str(error)) from error
    return JSONResponse({**said.model_dump(mode="json"), "summary": summary}, status.HTTP_201_CREATED)


def _what_becomes_of(correction: Correction, store: Bucket) -> str:
    """A sentence or two about a correction that has been stored."""
    explain = correction_use.Explainer(store)
    clause = explain.next_training(correction)
    if correction.image_key and explain.is_held_out(correction):
        return f"Saved. Readers see it; {clause}."
    return f"Saved. {clause[0].upper()}{clause[1:]}."
