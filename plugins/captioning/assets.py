"""The assets that the DAGs produce, for Airflow's lineage and schedules. An event's extra is its command's result.

The deployment's prefix is in their names and URIs, so that no deployment starts the runs of another.
"""

from airflow.sdk import Asset

from captioning.settings import read_settings

_PREFIX = read_settings().dag_prefix


def _asset(name: str, address: str) -> Asset:
    return Asset(f"{_PREFIX}{name}", uri=f"x-captioning://{_PREFIX}{address}")


DATASET = _asset("captioning_dataset", "dataset")
FEATURES = _asset("image_features", "features")
CANDIDATE = _asset("candidate_captioner", "candidate")
CHAMPION = _asset("champion_captioner", "champion")
CAPTIONS = _asset("image_captions", "captions")
RETRAINING_DUE = _asset("retraining_due", "retraining")
