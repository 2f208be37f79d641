"""Names that the DAGs, the listeners, the notifications and the gallery share."""

RETRAINING_DAG = "retrain_captioner"
"""Id of the DAG, after the deployment's prefix (``AirflowSettings.retraining_dag``)."""

NIGHT_DAG = "caption_new_images"
"""Id of the DAG, after the deployment's prefix (``AirflowSettings.night_dag``)."""

MAINTENANCE_DAG = "maintain_captioning"
"""Id of the DAG, after the deployment's prefix (``AirflowSettings.maintenance_dag``)."""

RECONCILE = "reconcile"
"""The last task of a night; the notification of warnings lists its XCom `warnings`."""

END_RUN = "end_run"
"""The teardown task of nights and retrainings."""

APPROVAL = "approval"
"""The task of a retraining that waits for a person's decision."""

SUMMARY = "summary"
"""XCom key of the line that summarizes the work of a task."""

ERROR = "error"
"""XCom key of the error message of a task that failed."""


def is_ours(dag_id: str) -> bool:
    """Whether a DAG is one of ours. The scheduler serves all deployments, and knows only the variables of one."""
    return dag_id.endswith((NIGHT_DAG, RETRAINING_DAG, MAINTENANCE_DAG))
