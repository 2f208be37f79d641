"""The assets of the DAGs, for Airflow's lineage and schedules. An event's extra is the result of its command.

The deployment's prefix is in their names and URIs, so that no deployment starts the runs of another.
"""

from airflow.sdk import Asset, AssetWatcher

from captioning.settings import read_settings
from pipeline.settings import read_settings as pipeline_settings

_SETTINGS = read_settings()
_PREFIX = _SETTINGS.dag_prefix


def _asset(name: str, address: str, *watchers: AssetWatcher) -> Asset:
    return Asset(f"{_PREFIX}{name}", uri=f"x-captioning://{_PREFIX}{address}", watchers=list(watchers))


def _queue_watchers() -> list[AssetWatcher]:
    """The watcher of the inbox's queue, if there is one; it opens the queue as this deployment's tasks open the inbox.

    The triggerer serves all deployments of an Airflow, and knows only the variables of one.
    """
    if not _SETTINGS.inbox_queue:
        return []
    from captioning.inbox_queue import InboxQueueTrigger  # which needs Airflow 3.3

    trigger = InboxQueueTrigger(
        queue=_SETTINGS.inbox_queue,
        connection_id=_SETTINGS.inbox_connection,
        profile=pipeline_settings().inbox_profile,
    )
    return [AssetWatcher(name=f"{_PREFIX}inbox_queue", trigger=trigger)]


DATASET = _asset("captioning_dataset", "dataset")
FEATURES = _asset("image_features", "features")
CANDIDATE = _asset("candidate_captioner", "candidate")
CHAMPION = _asset("champion_captioner", "champion")
CAPTIONS = _asset("image_captions", "captions")
RETRAINING_DUE = _asset("retraining_due", "retraining")
INBOX = _asset("captioning_inbox", "inbox", *_queue_watchers())
"""Its events report new photographs. Whoever uploads them emits it, or the queue's watcher."""
