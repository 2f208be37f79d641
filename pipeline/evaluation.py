"""Evaluation of a model: captions of a test split, their scores, and the report that shows both."""

import io
import logging
import random
from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline import dataset as datasets
from pipeline.captioner import load, load_metadata
from pipeline.errors import PipelineError
from pipeline.examples import Split, split_features
from pipeline.metrics import Diversity, Scores, diversity, score
from pipeline.report import Example, render
from pipeline.storage import Bucket, ObjectNotFoundError, open_bucket
from pipeline.vocabulary import SPECIAL_WORDS

log = logging.getLogger(__name__)
