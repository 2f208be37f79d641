"""Names that the DAGs, the listeners, the notifications and the gallery share."""

RETRAINING_DAG = "retrain_captioner"

NIGHT_DAG = "caption_new_images"

GPU = "gpu"
"""Pool and queue of the tasks that use the accelerator, or all CPU cores where there is none."""

RECONCILE = "reconcile"
"""The last task of a night; the notification of warnings lists its XCom `warnings`."""

END_RUN = "end_run"
"""The teardown task of both DAGs."""

SUMMARY = "summary"
"""XCom key of the line that summarizes the work of a task."""

ERROR = "error"
"""XCom key of the error message of a task that failed."""
