"""
### Caption new images

Every night, and whenever there is a new champion: lists the inbox, extracts the features that are missing, writes the
captions that the champion has not written, and counts. Every image listed ends in exactly one row, captioned or failed
with the reason; a run in which one is unaccounted for, or too many failed, fails.

The captions are Parquet under `captions/` in the store; `publish` returns the counts, and the run's record lies under
`runs/`. A run can be repeated, or interrupted and cleared: what is done stays done and is not done twice.

Trigger it with the form to choose what a night takes up: the whole archive or what is new, and what failed before.

It fails at once where no model has been promoted: trigger `retrain_captioner` first.
"""

import pendulum
from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param

from dags import notices
from dags.assets import CAPTIONS, CHAMPION, FEATURES
from dags.tasks import DEFAULT_ARGS, GPU, SHARD_NAME, PipelineOperator, extract_features

with DAG(
    dag_id="caption_new_images",
    description="Caption what is new in the inbox",
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable("0 2 * * *", timezone="UTC"), assets=[CHAMPION]),
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    tags=["captioning"],
    default_args=DEFAULT_ARGS,
    params={
        "archive": Param(
            "all",
            type="string",
            enum=["all", "new"],
            values_display={
                "all": "all: what the champion has not captioned",
                "new": "new: only what no model has captioned",
            },
            title="Archive",
            description="With all, a new champion captions everything listed again, from stored features",
        ),
        "retry_failed": Param(
            False,
            type="boolean",
            title="Failed pictures",
            description="Try again what failed in earlier nights",
        ),
    },
    **notices.about_nights(),
) as dag:
    list_inbox = PipelineOperator(
        task_id="list_inbox",
        arguments=[
            "night",
            "list",
            "{{ run_id }}",
            "--archive={{ params.archive }}",
            "{{ '--retry-failed' if params.retry_failed else '--no-retry-failed' }}",
        ],
    )
    plan_extraction = PipelineOperator(
        task_id="plan_extraction", arguments=["night", "plan-extraction", "{{ run_id }}"]
    )
    extract = extract_features(plan_extraction.output)
    plan_captions = PipelineOperator(
        task_id="plan_captions",
        # A run that is cleared on another day goes on in the partition that it began.
        arguments=["night", "plan-captions", "{{ run_id }}", "--date", "{{ dag_run.run_after | ds }}"],
        # Where nothing is pending, no extraction runs.
        trigger_rule="none_failed",
    )
    caption = PipelineOperator.partial(
        task_id="caption",
        arguments=["night", "caption"],
        pool=GPU,
        queue=GPU,
        map_index_template=SHARD_NAME,
    ).expand(shard=plan_captions.output)
    publish = PipelineOperator(
        task_id="publish",
        arguments=["night", "publish", "{{ run_id }}"],
        trigger_rule="none_failed",
        inlets=[CHAMPION, FEATURES],
        outlets=[CAPTIONS],
        pages={"Captions": "captions/?night={{ dag_run.run_after | ds }}"},
    )
    list_inbox >> plan_extraction >> extract >> plan_captions >> caption >> publish
