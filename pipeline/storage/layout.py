"""The layout of the store: the only module that knows the key of any object in it.

Keys are relative to the store. No object in the store refers to the address of the store itself, so a copy of the store
works wherever it is.

The names of the files inside a model or an encoder belong to the modules that save them. ``docs/store.md`` is written
from ``FOLDERS`` and from the docstrings of the functions that return keys.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.config import DecodingConfig

DATASETS = "datasets/"
ENCODERS = "encoders/"
FEATURES = "features/"
SHARDS = "shards/"
OPEN_SHARDS = "shards/open/"
CAPTIONS = "captions/"
SIDECARS = "sidecars/"
CURRENT = "current/"
CORRECTIONS = "corrections/"
REVIEW = "review/"
MODELS = "models/"
RUNS = "runs/"
PROFILES = "runs/profiles/"
STEPS = "runs/steps/"
TRAINING = "training/"
FORGOTTEN = "forgotten/"

SIDECAR_SUFFIX = ".xmp"
"""Ends the key of a sidecar, after the whole key of the photograph."""

CHAMPION = "models/champion.json"
"""The pointer to the model that captions the nights, and its history."""

CURRENT_CAPTIONS = "current/captions.parquet"
"""The captions that count: one row for each image in the inbox."""

CORRECTION_PICTURES = "pictures/"
"""Copies of corrected pictures, relative to ``CORRECTIONS``."""

CORRECTION_LOG = "corrections/log.parquet"
"""All corrections in one table, as of the last fold."""

REVIEW_STATE = "review/state.json"
"""Who reviews which caption at the moment, and which captions were skipped."""

TOMBSTONES = "forgotten/tombstones.json"
"""Salted hashes of the photographs that were forgotten."""

FOLDERS = {
    DATASETS: (
        "Captioned photographs to learn from. The id of a dataset is its name and a hash of its content, so ingesting "
        "the same photographs and captions again gives the same id."
    ),
    ENCODERS: (
        "The image encoders with which features are extracted: each is a Keras model for GPUs and an OpenVINO network "
        "for CPUs. Encoders in 8-bit integers have only the latter."
    ),
    FEATURES: (
        "The features of every image, one Parquet file per shard. An image is encoded once by each encoder; every "
        "later run reads its features from here, so the picture itself is no longer needed."
    ),
    SHARDS: (
        "The shards of work. A shard is a list of images, and its name is a hash of its content. Its result is one "
        f"object in `{FEATURES}` or `{CAPTIONS}`, which has the name of the shard and is written in one step. "
        "Interrupted work can therefore be repeated, and finished work is not done twice."
    ),
    MODELS: (
        "The trained captioners: the models of the ensemble, each as a Keras model for GPUs and as OpenVINO networks "
        "for CPUs, the vocabulary, the training photographs in a short form with their captions (`neighbours.npz`), "
        "the regression that gives captions their confidence (`confidence.json`), "
        "and the metadata of each captioner, its evaluations, and a card that sums them up. "
        f"`{CHAMPION}` names the champion, which is the model that captions the nights, and holds the "
        "history of promotions and rollbacks."
    ),
    CURRENT: (
        "The captions that count, one row for each image that the last night listed in the inbox. A caption that a "
        "person wrote or confirmed replaces that of any model. A night replaces the table in one step when it ends, "
        "and `captioning fold` puts new corrections into it."
    ),
    TRAINING: (
        "The checkpoints of trainings. An interrupted training continues from its last checkpoint, and trainings that "
        "begin in the same way share theirs."
    ),
    CAPTIONS: (
        "The history: the captions of all nights, partitioned by model and date, one Parquet file per shard. A new "
        f"champion captions known images again, so an image can have captions by several models; `{CURRENT}` has the "
        "one that counts."
    ),
    SIDECARS: (
        "The current caption of each photograph as an XMP file of its own, which photo tools read, if the setting "
        "`CAPTION_SIDECARS` is `store`. The folders are those of the inbox."
    ),
    CORRECTIONS: (
        "What people said about captions in the gallery: better captions, and that a caption is right. Each correction "
        f"is a Parquet file with one row, and never changes; `{CORRECTION_LOG}` holds them all, up to the last night. "
        f"Copies of the pictures are in `{CORRECTIONS}{CORRECTION_PICTURES}`."
    ),
    REVIEW: (
        "The state of the gallery's review queue: which reviewer has which caption, and which captions were skipped. "
        "What reviewers say about captions is stored as corrections."
    ),
    RUNS: (
        "The records of nights and retrainings, the profiles of nights, and which files of unknown suffixes are "
        f"photographs. The objects in `{STEPS}` are needed only until their run ends; `captioning prune` removes them, "
        "and the records and profiles of runs that are two years old, but never the newest hundred."
    ),
    FORGOTTEN: (
        "What `captioning forget` has removed from the store, as salted hashes: nights and datasets pass over these "
        "photographs, and the next backup removes them there."
    ),
}
"""The folders at the top of the store, and what they hold."""

NAME_BYTES = 900
"""Maximum bytes of a safe name; with a bucket's prefix and a suffix it stays below the 1,024 bytes of an S3 key."""

PART_BYTES = 240
"""Maximum bytes between two slashes of a safe name; with a suffix it stays below the 255 bytes of a file name."""

_MODEL_METADATA = "metadata.json"
_MODEL_CARD = "card.md"
_SHADOW = "shadow.parquet"
_ENCODER_FILES = "files.json"
_DATASET_TABLE = "dataset.parquet"
_METRICS = "metrics.json"
_MARKERS = {_DATASET_TABLE, _MODEL_METADATA, _METRICS, _ENCODER_FILES}
_SHARD = r"(?P<shard>[0-9a-f]{16})"
_CAPTION_SHARD = re.compile(rf"captions/model=(?P<version>[^/]+)/date=(?P<date>\d{{4}}-\d\d-\d\d)/{_SHARD}\.parquet")
_CORRECTION = re.compile(r"corrections/(\d{4}-\d\d-\d\d|replies)/(?P<name>[^/]+)\.parquet")
_FEATURE_SHARD = re.compile(rf"features/[^/]+/{_SHARD}\.parquet")
_SHARD_OBJECT = re.compile(rf"shards/{_SHARD}\.(parquet|stats\.json|slow\.json)")

_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f]"  # control characters, which file names or log lines can't hold
    r"|(?<![^/])\."  # hidden files, and the way out of a folder
    r"|(?<![^/])/|/\Z"  # empty parts
    r"|%(?=[0-9A-Fa-f]{2})"  # what would be read as an escape
    r"|\.(?=xmp/)"  # a folder with the name of a file beside it
)
_UNSAFE_OR_DOT = re.compile(rf"{_UNSAFE.pattern}|\.")


def signature(key: str, checksum: str) -> str:
    """The signature of the document with this key and this SHA-256, beside the document."""
    path = PurePosixPath(key)
    return str(path.with_name(f"{path.stem}-{checksum[:12]}.sig"))


def dataset_folder(dataset_id: str) -> str:
    """Folder of a dataset."""
    return f"{DATASETS}{dataset_id}"


def dataset_table(dataset_id: str) -> str:
    """The dataset itself, one row per image; written last."""
    return f"{dataset_folder(dataset_id)}/{_DATASET_TABLE}"


def dataset_of_table(key: str) -> str | None:
    """The id of the dataset whose table has this key; ``None`` for other keys."""
    dataset_id, _, name = key.removeprefix(DATASETS).rpartition("/")
    return dataset_id if name == _DATASET_TABLE else None


def ingest_report(dataset_id: str) -> str:
    """The report of the ingest that wrote the dataset, with the rows that it dropped and the reasons."""
    return f"{dataset_folder(dataset_id)}/ingest.json"


def vocabulary(dataset_id: str, min_count: int, *, neutral_wording: bool = False) -> str:
    """The words seen at least ``min_count`` times in the training captions of a dataset; ``-neutral`` is added for
    captions in neutral wording."""
    return f"{dataset_folder(dataset_id)}/vocabulary-{min_count}{'-neutral' if neutral_wording else ''}.json"


def human_baseline(dataset_id: str, tokenizer: str) -> str:
    """The scores of the human captions of the test split against each other, with one of the tokenizers."""
    return f"{dataset_folder(dataset_id)}/human-baseline-{tokenizer}.json"


def encoder_folder(encoder_id: str) -> str:
    """Folder of a registered encoder."""
    return f"{ENCODERS}{encoder_id}"


def encoder_files(encoder_id: str) -> str:
    """The checksums of an encoder's files; written last, which registers it."""
    return f"{encoder_folder(encoder_id)}/{_ENCODER_FILES}"


def encoder_of_files(key: str) -> str | None:
    """The id of the encoder the checksums of whose files have this key; ``None`` for other keys."""
    encoder_id, _, name = key.removeprefix(ENCODERS).rpartition("/")
    return encoder_id if name == _ENCODER_FILES else None


def features_folder(encoder_id: str) -> str:
    """Folder of the features of an encoder, one Parquet file per shard."""
    return f"{FEATURES}{encoder_id}"


def shard(name: str) -> str:
    """The images of a shard of work."""
    return f"{SHARDS}{name}.parquet"


def shard_stats(name: str) -> str:
    """The time and statistics of a finished shard."""
    return f"{SHARDS}{name}.stats.json"


def shard_slow_images(name: str) -> str:
    """The images of a shard that take long to decode, so that a repeated shard need not find out again."""
    return f"{SHARDS}{name}.slow.json"


def shard_of_key(key: str) -> str | None:
    """The shard to which an object in ``SHARDS`` belongs; ``None`` for other objects."""
    match = _SHARD_OBJECT.fullmatch(key)
    return match and match["shard"]


def open_shards(product: str) -> str:
    """The claimed shards of a product, such as the features of an encoder, that may have no result yet."""
    return f"{OPEN_SHARDS}{product}.json"


def shard_result(folder: str, name: str) -> str:
    """The result of a shard in the folder of its product."""
    return f"{folder}/{name}.parquet"


def shard_of_result(key: str) -> str | None:
    """The shard whose result has this key; ``None`` for other objects, which other programs may have put there."""
    match = _CAPTION_SHARD.fullmatch(key) or _FEATURE_SHARD.fullmatch(key)
    return match and match["shard"]


def captions_of_model(version: str) -> str:
    """Prefix of all captions by a model."""
    return f"{CAPTIONS}model={version}/"


def captions_folder(version: str, date: str) -> str:
    """Folder of the captions by a model of one night, one Parquet file per shard; ``date`` as YYYY-MM-DD."""
    return f"{captions_of_model(version)}date={date}"


def parse_caption_shard(key: str) -> tuple[str, str] | None:
    """Model version and date of a shard of captions; ``None`` for other keys."""
    match = _CAPTION_SHARD.fullmatch(key)
    return None if match is None else (match["version"], match["date"])


def sidecar(image_key: str) -> str:
    """The current caption of one image; characters of its key that some bucket refuses are percent-encoded."""
    return f"{SIDECARS}{beside(safe_name(image_key))}"


def beside(image_key: str) -> str:
    """The key of a photograph's XMP sidecar beside it, as in an inbox."""
    return f"{image_key}{SIDECAR_SUFFIX}"


def photograph_of(sidecar_key: str) -> str | None:
    """The key of the photograph beside which a sidecar has this key; ``None`` for the keys of other objects."""
    key = sidecar_key.removesuffix(SIDECAR_SUFFIX)
    return key if key != sidecar_key else None


def correction(date: str, name: str) -> str:
    """One correction, ``date`` as YYYY-MM-DD."""
    return f"{CORRECTIONS}{date}/{name}.parquet"


def reply(digest: str) -> str:
    """The only correction by a person who saw what was said before, by a hash of the image's version and of that."""
    return f"{CORRECTIONS}replies/{digest}.parquet"


def correction_of_key(key: str) -> str | None:
    """The name of the correction with this key; ``None`` for other keys."""
    match = _CORRECTION.fullmatch(key)
    return match and match["name"]


def correction_picture(content_hash: str, suffix: str) -> str:
    """The copy of a corrected picture, relative to ``CORRECTIONS``."""
    return f"{CORRECTION_PICTURES}{content_hash}{suffix}"


def model_folder(version: str) -> str:
    """Folder of a model's files."""
    return f"{MODELS}{version}"


def model_metadata(version: str) -> str:
    """The metadata of a model; written last, which makes it a model."""
    return f"{model_folder(version)}/{_MODEL_METADATA}"


def model_of_metadata(key: str) -> str | None:
    """The version of the model whose metadata has this key; ``None`` for other keys."""
    version, _, name = key.removeprefix(MODELS).rpartition("/")
    return version if name == _MODEL_METADATA else None


def model_card(version: str) -> str:
    """The model card in Markdown: what the model learned from, its scores, errors and limits, on a page."""
    return f"{model_folder(version)}/{_MODEL_CARD}"


def shadow(version: str) -> str:
    """The captions of photographs in the inbox by a candidate, beside those of the champion, before its approval."""
    return f"{model_folder(version)}/{_SHADOW}"


def is_shadow(key: str) -> bool:
    """Whether the object is one that ``shadow`` names."""
    return key.startswith(MODELS) and key.rpartition("/")[2] == _SHADOW


@dataclass(frozen=True)
class EvaluationKeys:
    """The objects of one evaluation; ``metrics`` is written last."""

    folder: str

    @property
    def captions(self) -> str:
        """The captions of the test split, beside the references."""
        return f"{self.folder}/captions.parquet"

    @property
    def report(self) -> str:
        """The HTML report."""
        return f"{self.folder}/report.html"

    @property
    def profile(self) -> str:
        """Statistics of the captions and features, for the detection of drift."""
        return f"{self.folder}/profile.json"

    @property
    def metrics(self) -> str:
        """The scores."""
        return f"{self.folder}/{_METRICS}"


def evaluations(version: str) -> str:
    """Prefix of all evaluations of a model."""
    return f"{model_folder(version)}/evaluations/"


def evaluations_on(version: str, dataset_id: str) -> str:
    """Prefix of the evaluations of a model on the test split of a dataset."""
    return f"{evaluations(version)}{dataset_id.replace('/', '-')}-"


def evaluation(version: str, dataset_id: str, decoding: DecodingConfig) -> EvaluationKeys:
    """The evaluation of a model on the test split of a dataset."""
    return EvaluationKeys(f"{evaluations_on(version, dataset_id)}{decoding.slug}")


def evaluation_of_metrics(key: str) -> EvaluationKeys | None:
    """The evaluation whose metrics have this key; ``None`` for other keys."""
    keys = EvaluationKeys(key.rpartition("/")[0])
    return keys if keys.metrics == key else None


def run_records(kind: str) -> str:
    """Prefix of the records of all runs of a kind."""
    return f"{RUNS}{kind}/"


def run_record(kind: str, run: str) -> str:
    """The record of a run of a kind, night or retraining: status, counts, errors, scores, seconds by section, drift."""
    return f"{run_records(kind)}{_run_name(run)}.json"


def run_profile(run: str) -> str:
    """Statistics of a night's captions and features, for the detection of drift."""
    return f"{PROFILES}{_run_name(run)}.json"


def profile_of_record(key: str) -> str:
    """The key of the profile of the night whose record has this key."""
    return f"{PROFILES}{key.rpartition('/')[2]}"


def run_listing(run: str) -> str:
    """The listing of the inbox that a night works on."""
    return f"{STEPS}{_run_name(run)}/listing.parquet"


def looked_at(inbox_digest: str) -> str:
    """The files of an inbox whose suffix says nothing, and whether they are photographs: no night reads one again."""
    return f"{RUNS}looked-at/{inbox_digest}.parquet"


def run_shards(run: str, stage: str) -> str:
    """The shards that a stage of a run works on."""
    return f"{STEPS}{_run_name(run)}/{stage}.json"


def _run_name(run: str) -> str:
    """The name of a run without the colons and pluses of Airflow's run ids, which some tools reject in names."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", run)


def checkpoint(digest: str) -> str:
    """The checkpoint of a training phase, by a hash of all that its result depends on."""
    return f"{TRAINING}{digest}.npz"


def training_version(digest: str) -> str:
    """The version reserved for the model of a training, by a hash of its inputs."""
    return f"{TRAINING}{digest}.version"


MARKED_PREFIXES = (DATASETS, MODELS, ENCODERS)
"""Listing these prefixes finds all completion markers."""


def is_completion_marker(key: str) -> bool:
    """Whether the object was written last and makes a dataset, a model, an evaluation or an encoder complete."""
    return key.startswith(MARKED_PREFIXES) and key.rpartition("/")[2] in _MARKERS


def is_mutable(key: str) -> bool:
    """Whether the object is written again under its old key, and points to other objects."""
    return (
        key in (CHAMPION, CURRENT_CAPTIONS, CORRECTION_LOG, TOMBSTONES)
        or key.startswith(OPEN_SHARDS)
        or (key.startswith(ENCODERS) and key.rpartition("/")[2] == _ENCODER_FILES)
        or (key.startswith(MODELS) and key.rpartition("/")[2] == _MODEL_CARD)
    )


MUTABLE_PREFIXES = (MODELS, CURRENT_CAPTIONS, CORRECTION_LOG, TOMBSTONES, OPEN_SHARDS, ENCODERS)
"""Listing these prefixes finds all mutable objects."""


def safe_name(key: str, *, dotless: bool = False) -> str:
    """The key of an image as part of another key, with everything that some bucket would refuse percent-encoded.

    With ``dotless`` dots are, too, so that the first dot of a file name ends the key. ``unquote`` gives the key back,
    and no two keys share a name. A key that is too long becomes its SHA-256 after ``%23``, which no other key does.
    ``f"{name}.xmp"`` is not a folder in any other such name.
    """
    name = (_UNSAFE_OR_DOT if dotless else _UNSAFE).sub(lambda match: f"%{ord(match[0]):02X}", key)
    if len(name.encode()) > NAME_BYTES or any(len(part.encode()) > PART_BYTES for part in name.split("/")):
        return f"%23{hashlib.sha256(key.encode()).hexdigest()}"
    return name
