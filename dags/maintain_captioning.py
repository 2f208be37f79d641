"""
### Maintain the store

Runs at the times of `CAPTION_MAINTENANCE_SCHEDULE`, once a week by default, and when a person triggers it with the
form. It waits until no night and no retraining runs; then, one after the other:

* `forget` removes photographs for good, if the form names any. Unless *Remove them* is ticked, it only says what it
  would remove.
* `fold` puts new corrections into the current captions.
* `back_up` copies what is new to `CAPTION_BACKUP`, and reads it back: what was copied, the champion with its encoder,
  and the current captions. It is skipped if that setting names no place.
* `prune` lists what none of the last champions needs: models, features, finished shards, and records of runs that are
  two years old. Only with *Remove what is not needed* are they removed, and never before a backup that has failed.
* `report` sums it up in the note of the run.

With *Caption again*, a night follows that captions all photographs again, from stored features.

A night that begins while the maintenance runs is not harmed: what it works on is younger than a week, or the
champion's, and is never removed. The run fails if no model has been promoted: trigger a retraining first.
"""

from datetime import timedelta

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, CronTriggerTimetable, Param, task

from captioning.checkout import matching_plugin

with matching_plugin(__file__):
    from captioning import notifications
    from captioning.maintenance import AwaitRuns, Report
    from captioning.operators import DEFAULT_ARGS, PipelineOperator
    from captioning.settings import read_settings

settings = read_settings()

with DAG(
    dag_id=settings.maintenance_dag,
    description="Forget, fold corrections, back up, prune",
    doc_md=__doc__,
    schedule=CronTriggerTimetable(settings.maintenance_schedule, timezone=settings.timezone),
    catchup=False,
    max_active_runs=1,
    tags=["captioning"],
    default_args={**DEFAULT_ARGS, "owner": settings.owner},
    **notifications.run_callbacks(),
    params={
        "forget": Param(
            "",
            type=["string", "null"],
            format="multiline",
            title="Forget photographs",
            description="Keys of photographs in the inbox, one per line. All copies of the same bytes are forgotten, "
            "too. Also delete them in the inbox",
            section="Forget",
        ),
        "remove_forgotten": Param(
            False,
            type="boolean",
            title="Remove them",
            description="Remove these photographs, and all that was made of them, for good. Otherwise, the run only "
            "says what it would remove",
            section="Forget",
        ),
        "remove_pruned": Param(
            False,
            type="boolean",
            title="Remove what is not needed",
            description="Remove what none of the last champions needs. Otherwise, the run only says how much that is",
            section="Prune",
        ),
        "keep": Param(
            3,
            type="integer",
            minimum=1,
            title="Champions to keep",
            description="Champions whose models and features are kept, the present one among them (a whole number, "
            "at least 1)",
            section="Prune",
        ),
        "recaption": Param(
            False,
            type="boolean",
            title="Caption again",
            description="Afterwards, start a night in which the champion captions all photographs again, such as after "
            "a change of the beam width or of the wording",
            section="Caption again",
        ),
    },
) as dag:
    await_runs = AwaitRuns(
        task_id="await_runs",
        doc_md="Wait until no night and no retraining runs. A retraining that waits for an approval does not count.",
    )
    forget = PipelineOperator(
        task_id="forget",
        doc_md="Remove the photographs of the form, and all that was made of them. Skipped if there are none.",
        arguments=[
            "forget",
            "--keys={{ params.forget or '' }}",
            "{{ '--remove' if params.remove_forgotten else '--no-remove' }}",
        ],
        skip="{{ '' if (params.forget or '').strip() else 'the form names no photograph' }}",
    )
    fold = PipelineOperator(
        task_id="fold",
        doc_md="Put new corrections into the current captions.",
        arguments=["fold"],
        # Without photographs to forget, that task is skipped; likewise below.
        trigger_rule="none_failed",
    )
    back_up = PipelineOperator(
        task_id="back_up",
        doc_md="Copy what is new to `CAPTION_BACKUP`, and read it back. Skipped if that names no place.",
        arguments=["backup", settings.backup, "--check"],
        # A first backup copies everything; one that is interrupted continues.
        execution_timeout=timedelta(hours=12),
        skip="" if settings.backup else "CAPTION_BACKUP names no place for a backup",
    )
    prune = PipelineOperator(
        task_id="prune",
        doc_md="List what none of the last champions needs, or remove it, if the form says so.",
        arguments=[
            "prune",
            "--keep={{ params.keep }}",
            "{{ '--remove' if params.remove_pruned else '--no-remove' }}",
        ],
        # Nothing is removed after a backup that has failed.
        trigger_rule="none_failed",
    )
    report = Report(
        task_id="report",
        doc_md="Sum the run up in its note.",
        tasks=[forget.task_id, fold.task_id, back_up.task_id, prune.task_id],
        trigger_rule="none_failed",
    )

    @task.short_circuit
    def choose_recaption(wanted: str) -> bool:
        """Go on if the form asks for a night that captions all photographs again."""
        return wanted == "True"

    recaption = TriggerDagRunOperator(
        task_id="recaption",
        doc_md="Start a night that captions all photographs again.",
        trigger_dag_id=settings.night_dag,
        conf={"recaption": "*"},
    )

    await_runs >> forget >> fold >> back_up >> prune >> report
    report >> choose_recaption("{{ params.recaption }}") >> recaption
