"""The first task of a night that uploads can start: it says what has started it, and waits for more of an upload."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import BaseOperator, Context

from captioning.assets import CHAMPION, INBOX
from captioning.names import SUMMARY
from pipeline.progress import counted

TRIGGERER_SECONDS = 600
"""Seconds after the end of the wait after which the task is tried again, and does not wait: no triggerer is running."""


class AwaitUploads(BaseOperator):
    """Wait until so many seconds have passed since the last report of new photographs, without a slot of a worker.

    One upload brings many reports. Those that come until the night lists the inbox are for this night. A night that
    something else has started does not wait.

    :param delay: the seconds
    """

    def __init__(self, *, delay: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.delay = delay

    def execute(self, context: Context) -> None:
        """Leave the cause as the task's summary, and hand the waiting to the triggerer."""
        events = context["triggering_asset_events"]
        reports: Sequence[Any] = events.get(INBOX, ())
        context["ti"].xcom_push(SUMMARY, f"started {_cause(context, reports)}")
        if not reports:
            return
        now, delay = datetime.now(UTC), timedelta(seconds=self.delay)
        # The clock of the database may be ahead.
        end = min(max(report.timestamp for report in reports), now) + delay
        if end > now:
            trigger = DateTimeTrigger(end, end_from_trigger=True)
            self.defer(trigger=trigger, method_name="execute", timeout=delay + timedelta(seconds=TRIGGERER_SECONDS))


def _cause(context: Context, reports: Sequence[Any]) -> str:
    """What has started the run of a context, as the end of a sentence."""
    run_type = context["dag_run"].run_type
    if run_type != "asset_triggered":
        return "by the clock" if run_type == "scheduled" else "by hand"
    causes = [counted(len(reports), "report") + " of new photographs"] if reports else []
    if context["triggering_asset_events"].get(CHAMPION):
        causes.append("a new champion")
    return f"by {' and '.join(causes) or 'an event'}"
