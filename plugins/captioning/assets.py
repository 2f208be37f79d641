"""The assets that the DAGs produce, for Airflow's lineage and schedules. An event's extra is its command's result."""

from airflow.sdk import Asset

DATASET = Asset("captioning_dataset", uri="x-captioning://dataset")
FEATURES = Asset("image_features", uri="x-captioning://features")
CANDIDATE = Asset("candidate_captioner", uri="x-captioning://candidate")
CHAMPION = Asset("champion_captioner", uri="x-captioning://champion")
CAPTIONS = Asset("image_captions", uri="x-captioning://captions")
RETRAINING_DUE = Asset("retraining_due", uri="x-captioning://retraining")
