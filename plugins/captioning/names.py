"""Names that the DAGs, the listener of run notes, the notifications and the gallery share."""

RETRAINING_DAG = "retrain_captioner"

NIGHT_DAG = "caption_new_images"

RECONCILE = "reconcile"
"""The last task of a night; its XCom `warnings` is what the warning notification lists."""

END_RUN = "end_run"
"""The teardown task of both DAGs."""

SUMMARY = "summary"
"""XCom key of the line that says what a task did."""

ERROR = "error"
"""XCom key of the error message of a task that failed."""
