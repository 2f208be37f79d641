"""
### Retrain the captioner

Reads captioned photographs, extracts the missing features, trains the merge model, evaluates it on the test split, and
lets the promotion gate decide whether it becomes the champion, the model that captions the nights.

Trigger it with the form. Without any change, it retrains on the champion's dataset with the champion's encoder.
Retraining on known photographs extracts nothing, and a model that was already trained from the same inputs is not
trained again: choose another seed to get another model.

* With the promotion *approve*, the run waits at `approval` until a person decides under Required Actions. So does a run
  that a night has started, because people have corrected many captions or because of drift: its first note says why.
  A run by the clock (`CAPTION_RETRAINING_SCHEDULE`) has the promotion `CAPTION_SCHEDULED_PROMOTION`, which is *approve*
  unless it is set.
* `gate` writes to its log and to the run's record why a candidate was promoted or not.
* `evaluate` logs the URL of the report and links to it.
* To promote a model by hand or to go back to the previous one: `captioning promote VERSION`, `captioning rollback`.
"""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param, TaskGroup, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException
from pydantic import BaseModel

from captioning.checkout import matching_plugin

with matching_plugin(__file__):
    from captioning import notifications
    from captioning.assets import CANDIDATE, CHAMPION, DATASET, FEATURES, RETRAINING_DUE
    from captioning.links import page_url
    from captioning.operators import DEFAULT_ARGS, PipelineOperator, end_run, extract_features
    from captioning.settings import read_settings
    from pipeline.config import WORDING, DecodingConfig, TrainingConfig, describe_bounds

PROMOTE, KEEP = "Promote", "Keep as a candidate"
"""The possible answers of a person."""

VERSION = "{{ ti.xcom_pull(task_ids='train', key='version') }}"

PAGES = {"Report": f"captions/models/{VERSION}/report", "Models": "captions/models"}
"""The pages that tasks link to once there is a candidate."""

COMPARISON = f"captions/compare?b={VERSION}"
"""The page that compares the candidate with the champion, photograph by photograph."""

PICTURE_PAGE = page_url("captions/image?key=")
"""The page of a picture; its key follows."""

ANSWER = "(ti.xcom_pull(task_ids='approval') or {})"
"""The answer in a template; empty if the run needs no approval."""

CAUSE = (
    "{% for events in triggering_asset_events.values() %}{{ events[-1].extra.get('reason') or 'an event' }}{% endfor %}"
)
"""Why a night has started the run; empty if a person has."""

STARTED_BY = (
    "{% set cause = ti.xcom_pull(task_ids='resolve_inputs', key='cause') %}"
    "{% if cause %}Started by {{ cause }}.\n\n{% endif %}"
)
"""The same as a sentence for the person who decides."""

settings = read_settings()

POLICIES = {"asset_triggered": "approve", "scheduled": settings.scheduled_promotion}
"""The promotion by the type of the run, where nobody has filled in the form."""

POLICY = f"{{{{ {POLICIES}.get(dag_run.run_type, params.promotion) }}}}"
"""The promotion: a person decides about a run that a night has started."""


def params_of(model: type[BaseModel], section: str) -> dict[str, Param]:
    """The fields of a configuration as fields of the form, with the names, defaults, bounds and descriptions there."""
    params = {}
    for name, schema in model.model_json_schema()["properties"].items():
        if name in WORDING:
            continue  # a setting of the deployment
        # The form takes fractions of every number, and what it shows of the server's refusal names no field.
        whole = ["a whole number"] if schema["type"] == "integer" else []
        bounds = ", ".join([*whole, describe_bounds(schema)])
        params[name] = Param(
            schema.pop("default"),
            section=section,
            description=schema.pop("description") + (f" ({bounds})" if bounds else ""),
            **{**schema, "title": model.model_fields[name].title or name.replace("_", " ").capitalize()},
        )
    return params


TRAINING_PARAMS = params_of(TrainingConfig, "Training")
DECODING_PARAMS = params_of(DecodingConfig, "Evaluation and promotion")

DECODING_OPTIONS = [f"--{name.replace('_', '-')}={{{{ params.{name} }}}}" for name in DECODING_PARAMS]

with DAG(
    dag_id=settings.retraining_dag,
    description="Ingest, extract, train, evaluate, promote",
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable(settings.retraining_schedule, timezone=settings.timezone),
        assets=[RETRAINING_DUE],
    )
    if settings.retraining_schedule
    else [RETRAINING_DUE],
    catchup=False,
    max_active_runs=1,
    tags=["captioning"],
    default_args={**DEFAULT_ARGS, "owner": settings.owner},
    **notifications.run_callbacks(),
    params={
        "dataset": Param(
            "",
            type=["string", "null"],
            format="multiline",
            title="Dataset",
            description="Captioned photographs, by the path or URI of their folder or of the file of captions: "
            "Flickr8k, Flickr30k, Karpathy's JSON, COCO, a CSV, TSV or Parquet table, or .txt files beside the "
            "pictures; or the id of a dataset in the store. Several sources, one per line, are merged. Empty: the "
            "champion's dataset, or CAPTION_DATASET if there is no champion",
            section="Data",
        ),
        "language": Param(
            "",
            type=["string", "null"],
            title="Language",
            description="Language of the captions, such as en, de, pt-BR or zh. Empty: that of the datasets in the "
            "store, or en. METEOR and the error analysis are computed for English only",
            section="Data",
        ),
        "licence": Param(
            "",
            type=["string", "null"],
            title="Licence",
            description="Licence of the captions and photographs, for the model card. Empty: that of the datasets in "
            "the store",
            section="Data",
        ),
        "corrections": Param(
            True,
            type="boolean",
            title="Corrections",
            description="Also train on the captions that people have corrected in the gallery",
            section="Data",
        ),
        "min_count": Param(
            10,
            type="integer",
            minimum=1,
            title="Minimum word count",
            description="How often a word must occur in the training captions to enter the vocabulary (a whole "
            "number, at least 1)",
            section="Data",
        ),
        "neutral_wording": Param(
            False,
            type="boolean",
            title="Neutral wording",
            description="Learn person and child in place of man, woman, boy and girl, where the captions of a "
            "photograph disagree about the gender; for English",
            section="Data",
        ),
        "encoder": Param(
            "",
            type=["string", "null"],
            title="Image encoder",
            description="A network of keras.applications by name, such as resnet50, convnext-base or efficientnetv2-s, "
            "whose weights are downloaded; NAME:FILE.h5 with weights for it; random (untrained, to try the pipeline); "
            "a .keras model; or the id of an encoder in the store. Files are named by path or URI. Empty: the "
            "champion's encoder, or CAPTION_ENCODER if there is no champion",
            section="Data",
        ),
        "crops": Param(
            False,
            type="boolean",
            title="Multi-crop features",
            description="Encode the whole image, its mirror image and its corners: better captions, but the "
            "extraction takes six times as long",
            section="Data",
        ),
        "regions": Param(
            False,
            type="boolean",
            title="Regions",
            description="Also encode the regions of each image, to which the captioner attends: better captions, but "
            "up to 25 KB more per image in the store, and up to three times the training. An alternative to crops",
            section="Data",
        ),
        "int8": Param(
            False,
            type="boolean",
            title="8-bit quantization",
            description="Encode in 8-bit integers, calibrated on this dataset: three times as fast on CPUs with VNNI, "
            "with equally good captions",
            section="Data",
        ),
        **TRAINING_PARAMS,
        **DECODING_PARAMS,
        "promotion": Param(
            "auto",
            type="string",
            enum=["auto", "approve", "never"],
            values_display={
                "auto": "auto: if the candidate passes the gate",
                "approve": "approve: if a person approves it",
                "never": "never: the model stays a candidate",
            },
            title="Promotion",
            description="The gate checks tolerance and floor, below. For an approval, a person sees scores and "
            "captions beside the champion's, under Required Actions",
            section="Evaluation and promotion",
        ),
        "tolerance": Param(
            0.015,
            type="number",
            minimum=0,
            title="Tolerance",
            description="How far a new champion's CIDEr may be below the current champion's (another seed makes a "
            "difference of 0.015)",
            section="Evaluation and promotion",
        ),
        "floor": Param(
            0.1,
            type="number",
            minimum=0,
            title="Floor",
            description="CIDEr that a champion must reach",
            section="Evaluation and promotion",
        ),
    },
) as dag:
    resolve_inputs = PipelineOperator(
        task_id="resolve_inputs",
        doc_md="Choose the dataset and the encoder: the form's, the champion's, or those of the settings.",
        arguments=[
            "resolve-inputs",
            "{{ run_id }}",
            "--dataset={{ params.dataset or '' }}",
            "--encoder={{ params.encoder or '' }}",
            f"--cause={CAUSE}",
        ],
    )
    ingest = PipelineOperator(
        task_id="ingest",
        doc_md="Read the captions and pictures of all sources, clean and split them, and store them as a dataset.",
        arguments=[
            "ingest",
            resolve_inputs.result("sources"),
            "--language={{ params.language or '' }}",
            "--licence={{ params.licence or '' }}",
            "{{ '--corrections' if params.corrections else '--no-corrections' }}",
        ],
        outlets=[DATASET],
    )
    vocabulary = PipelineOperator(
        task_id="vocabulary",
        doc_md="Collect the words of the training captions that occur often enough.",
        arguments=[
            "vocabulary",
            ingest.result("dataset"),
            "--min-count={{ params.min_count }}",
            "{{ '--neutral-wording' if params.neutral_wording else '--no-neutral-wording' }}",
        ],
    )
    register_encoder = PipelineOperator(
        task_id="register_encoder",
        doc_md="Store the image encoder, unless it is there, and calibrate it if 8-bit integers are chosen.",
        arguments=[
            "register-encoder",
            resolve_inputs.result("encoder"),
            "{{ '--crops' if params.crops else '--no-crops' }}",
            "--regions={{ ti.xcom_pull(task_ids='ingest', key='dataset') if params.regions else '' }}",
            "--int8={{ ti.xcom_pull(task_ids='ingest', key='dataset') if params.int8 else '' }}",
        ],
        **settings.accelerator,
    )
    features = extract_features(
        ["plan-extraction", ingest.result("dataset"), register_encoder.result("encoder_id"), "--run={{ run_id }}"]
    )
    train = PipelineOperator(
        task_id="train",
        doc_md="Train the merge model on the training split; the epoch that is best on the dev split is kept. "
        "A cleared task continues after its last epoch.",
        arguments=[
            "train",
            ingest.result("dataset"),
            vocabulary.result("vocabulary"),
            register_encoder.result("encoder_id"),
            *(f"--set={name}={{{{ params.{name} }}}}" for name in TRAINING_PARAMS),
        ],
        **settings.accelerator,
        # The extraction is skipped where no features are missing.
        trigger_rule="none_failed",
        execution_timeout=timedelta(hours=24),
        inlets=[DATASET, FEATURES],
        outlets=[CANDIDATE],
        pages={"Models": PAGES["Models"]},
    )
    evaluate = PipelineOperator(
        task_id="evaluate",
        doc_md="Score the candidate on the test split with the COCO metrics, and write its report.",
        arguments=["evaluate", train.result("version"), *DECODING_OPTIONS],
        **settings.accelerator,
        outlets=[CANDIDATE],
        pages=PAGES,
    )
    with TaskGroup(
        "promotion", prefix_group_id=False, tooltip="Decide whether the candidate becomes the champion"
    ) as promotion:
        evaluate_champion = PipelineOperator(
            task_id="evaluate_champion",
            doc_md="Score the champion on the candidate's test split, unless it has these scores.",
            arguments=[
                "evaluate-champion",
                train.result("version"),
                *DECODING_OPTIONS,
                f"--policy={POLICY}",
                "--floor={{ params.floor }}",
            ],
            **settings.accelerator,
            # On a dataset that is new to the champion, its features are extracted first.
            execution_timeout=timedelta(hours=12),
        )

        @task.branch
        def choose_approval(policy: str) -> str:
            """Go through the approval, or straight to the gate."""
            return "compare" if policy == "approve" else "gate"

        compare = PipelineOperator(
            task_id="compare",
            doc_md="Put scores and captions of the candidate beside those of the champion, for the approval.",
            arguments=["compare", train.result("version"), *DECODING_OPTIONS, f"--picture-page={PICTURE_PAGE}"],
            **settings.accelerator,
        )
        approval = HITLOperator(
            task_id="approval",
            doc_md="Wait until a person decides, under Required Actions.",
            subject=f"Promote {VERSION}?",
            body=f"{STARTED_BY}{{{{ ti.xcom_pull(task_ids='compare', key='comparison') }}}}\n\n"
            f"[Both models, photograph by photograph]({page_url(COMPARISON)}), "
            f"[report of the candidate]({page_url(PAGES['Report'])}), [all models]({page_url(PAGES['Models'])})",
            options=[PROMOTE, KEEP],
            execution_timeout=None,
        )
        gate = PipelineOperator(
            task_id="gate",
            doc_md="Promote the candidate if its scores, or the person's decision, allow it; record the decision.",
            arguments=[
                "gate",
                train.result("version"),
                *DECODING_OPTIONS,
                "--run={{ run_id }}",
                f"--policy={POLICY}",
                "--tolerance={{ params.tolerance }}",
                "--floor={{ params.floor }}",
                f"{{{{ '--promote' if {ANSWER}.get('chosen_options') == ['{PROMOTE}'] else '--keep' }}}}",
                f"--by={{{{ ({ANSWER}.get('responded_by_user') or {{}}).get('name') or 'nobody' }}}}",
            ],
            # Without the policy approve, compare and approval are skipped.
            trigger_rule="none_failed_min_one_success",
            inlets=[CANDIDATE],
            pages=PAGES,
        )

        @task(outlets=[CHAMPION])
        def emit_champion_event(decision: Any) -> None:
            """Emit the asset event of a new champion, with the gate's result; skipped if there is none."""
            if not decision["promoted"]:
                raise AirflowSkipException(decision["reason"])
            get_current_context()["outlet_events"][CHAMPION].extra = decision

        evaluate_champion >> choose_approval(POLICY) >> [compare, gate]
        compare >> approval >> gate
        emit_champion_event(gate.output)

    # The encoder is not downloaded for captions that cannot be read.
    ingest >> register_encoder
    features >> train
    evaluate >> promotion
    # Where one of two parallel tasks fails, the other may still run.
    [vocabulary, features, promotion] >> end_run("retraining")
