"""
### Caption new images

Runs at the times of `CAPTION_NIGHT_SCHEDULE`, whenever there is a new champion and, with `CAPTION_ARRIVAL_DELAY`, after
new photographs were reported: it lists the inbox, extracts the missing features, writes the captions that the champion
has not written yet, and counts the result. Every listed image ends up in exactly one row, captioned or failed with the
reason. The run fails if an image is unaccounted for, or if too many failed.

The captions are Parquet files under `captions/` in the store. `reconcile` returns the counts, and the run's record is
under `runs/`. A run can be repeated, or interrupted and cleared: finished work is not done twice.

The trigger form selects what a night captions: the whole archive or only new images, with or without the images that
failed before, some images again, and the confidence below which a person should look at a caption.

If people have corrected enough captions, or drift has been noticed in enough nights in a row, the last task starts a
retraining: the settings `CAPTION_RETRAIN_AFTER_CORRECTIONS` and `CAPTION_RETRAIN_AFTER_DRIFT` say how many.

The run fails at once if no model has been promoted: trigger a retraining first.
"""

from typing import Any

import pendulum
from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param, TaskGroup, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from captioning.checkout import matching_plugin

with matching_plugin(__file__):
    from captioning import notifications
    from captioning.arrivals import AwaitUploads
    from captioning.assets import CAPTIONS, CHAMPION, FEATURES, INBOX, RETRAINING_DUE
    from captioning.names import RECONCILE
    from captioning.operators import (
        DEFAULT_ARGS,
        MAP_INDEX_TEMPLATE,
        PipelineOperator,
        end_run,
        extract_features,
    )
    from captioning.settings import read_settings

settings = read_settings()

REVIEW_BELOW = "--review-below={{ '' if params.review_below is none else params.review_below }}"

with DAG(
    dag_id=settings.night_dag,
    description="Caption the new images in the inbox",
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable(settings.night_schedule, timezone=settings.timezone),
        assets=CHAMPION | INBOX if settings.arrival_delay else [CHAMPION],
    ),
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    tags=["captioning"],
    default_args={**DEFAULT_ARGS, "owner": settings.owner},
    params={
        "archive": Param(
            "all",
            type="string",
            enum=["all", "new"],
            values_display={
                "all": "all: images that the champion has not captioned",
                "new": "new: only images that no model has captioned",
            },
            title="Archive",
            description="With all, a new champion captions every listed image again, from stored features",
        ),
        "retry_failed": Param(
            False,
            type="boolean",
            title="Retry failed images",
            description="Also retry the images that failed in earlier nights",
        ),
        "recaption": Param(
            "",
            type=["string", "null"],
            title="Caption again",
            description="Keys of images that are captioned again, captioned or failed, separated by commas; or "
            "patterns, such as 2026/* for a folder",
        ),
        "review_below": Param(
            None,
            type=["number", "null"],
            minimum=0,
            maximum=1,
            title="Review below",
            description="Captions with a lower confidence are marked for review, like those of novel photographs. "
            "Empty: CAPTION_REVIEW_BELOW (at least 0, at most 1)",
        ),
        "accept_smaller_inbox": Param(
            False,
            type="boolean",
            title="Accept a smaller inbox",
            description="Go on, even if the inbox is empty or has lost many photographs since the last night",
        ),
    },
    **notifications.night_callbacks(),
) as dag:
    list_inbox = PipelineOperator(
        task_id="list_inbox",
        doc_md="List the inbox, fix the night's champion, and find the photographs that it has not captioned.",
        arguments=[
            "night",
            "list",
            "{{ run_id }}",
            "--archive={{ params.archive }}",
            "{{ '--retry-failed' if params.retry_failed else '--no-retry-failed' }}",
            "--recaption={{ params.recaption or '' }}",
            "{{ '--accept-smaller-inbox' if params.accept_smaller_inbox else '--no-accept-smaller-inbox' }}",
        ],
    )
    features = extract_features(["night", "plan-extraction", "{{ run_id }}"])
    with TaskGroup("captions", prefix_group_id=False, tooltip="Caption the pending photographs") as captions:
        plan_captions = PipelineOperator(
            task_id="plan_captions",
            doc_md="Divide the pending photographs into shards. An unfinished shard of an earlier run is taken over.",
            # A run that is cleared on another day continues in the partition in which it began.
            arguments=["night", "plan-captions", "{{ run_id }}", "--date", "{{ dag_run.run_after | ds }}"],
            # The extraction is skipped where no features are missing.
            trigger_rule="none_failed",
        )
        PipelineOperator.partial(
            task_id="caption",
            doc_md="Caption the photographs of a shard from their features, into one Parquet file.",
            arguments=["night", "caption", REVIEW_BELOW],
            map_index_template=MAP_INDEX_TEMPLATE,
            **settings.accelerator,
        ).expand(shard=plan_captions.output)
    reconcile = PipelineOperator(
        task_id=RECONCILE,
        doc_md="Count the photographs: each is captioned, or failed with the reason. Write the night's record and the "
        "table of current captions, and check for drift. Fails if a photograph is unaccounted for.",
        # Where no report can start a night, what has arrived since the listing waits for the clock.
        arguments=[
            "night",
            "reconcile",
            "{{ run_id }}",
            REVIEW_BELOW,
            *(["--look-again"] if settings.arrival_delay else []),
        ],
        trigger_rule="none_failed",
        inlets=[CHAMPION, FEATURES],
        outlets=[CAPTIONS],
        pages={"Captions": "captions/by-model?night={{ dag_run.run_after | ds }}"},
    )

    @task(outlets=[RETRAINING_DUE])
    def emit_retraining_event(reason: Any) -> None:
        """Emit the asset event that starts a retraining, with the reason; skipped if none is due."""
        if not reason:
            raise AirflowSkipException("no retraining is due")
        get_current_context()["outlet_events"][RETRAINING_DUE].extra = {"reason": reason}

    list_inbox >> features >> captions >> reconcile
    ending = end_run("night")
    # Where one shard fails, its siblings may still run.
    [features, captions, emit_retraining_event(reconcile.result("retraining_due"))] >> ending

    if settings.arrival_delay:

        @task(outlets=[INBOX])
        def emit_inbox_event(arrived: Any) -> None:
            """Report the photographs that arrived during this night, so that one more follows; skipped if none did."""
            if not arrived:
                raise AirflowSkipException("no photograph has arrived during this night")
            get_current_context()["outlet_events"][INBOX].extra = {"photographs": arrived}

        await_uploads = AwaitUploads(
            task_id="await_uploads",
            doc_md="Say what has started the night. After a report, wait `CAPTION_ARRIVAL_DELAY` seconds for more.",
            delay=settings.arrival_delay,
        )
        await_uploads >> list_inbox
        emit_inbox_event(reconcile.result("arrived")) >> ending
