"""
### Retrain the captioner

Reads captioned photographs, extracts the features that are missing, trains the merge model, evaluates it on the test
split, and lets the gate decide whether it becomes the champion that captions the nights.

Trigger it with the form. Retraining on photographs that are known extracts nothing, and a model that was trained from
the very same inputs before is not trained again: choose another seed to get another.

* With the promotion *approve* the run waits at `approval` until a person has decided, under Required Actions.
* `consider` says in its log, and in the run's record, why a candidate was promoted or not.
* The report is `models/<version>/report.html` in the store; `evaluate` logs its address.
* To promote by hand, or to go back: `python -m pipeline promote VERSION`, `python -m pipeline rollback`.
"""

from datetime import timedelta

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import DAG, Param, task
from airflow.sdk.exceptions import AirflowSkipException
from pydantic import BaseModel

from dags import notices, suggestions
from dags.assets import CANDIDATE, CHAMPION, DATASET, FEATURES
from dags.tasks import DEFAULT_ARGS, GPU, PipelineOperator, extract_features
from pipeline.recipe import Recipe, Search
from pipeline.settings import Settings

settings = Settings()

PROMOTE, KEEP = "Promote", "Keep as a candidate"
"""What a person may answer."""

VERSION = "{{ ti.xcom_pull(task_ids='train', key='version') }}"

PAGES = {"Report": f"captions/models/{VERSION}/report", "Models": "captions/models"}
"""What tasks link to, once there is a candidate."""

ANSWER = "(ti.xcom_pull(task_ids='approval') or {})"
"""The answer in a template; empty where nobody was asked."""

BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def params_of(model: type[BaseModel], section: str) -> dict[str, Param]:
    """A model's fields for the form: their names, defaults, bounds and descriptions stand in one place, there."""
    params = {}
    for name, field in model.model_json_schema()["properties"].items():
        bounds = ", ".join(f"{words} {field[bound]:g}" for bound, words in BOUNDS.items() if bound in field)
        params[name] = Param(
            field.pop("default"),
            section=section,
            title=field.pop("title").capitalize(),
            description=field.pop("description") + (f" ({bounds})" if bounds else ""),
            **field,
        )
    return params


recipe_params, search_params = params_of(Recipe, "Recipe"), params_of(Search, "Evaluation and promotion")

with DAG(
    dag_id="retrain_captioner",
    description="Ingest, extract, train, evaluate, promote",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    max_active_runs=1,
    tags=["captioning"],
    default_args=DEFAULT_ARGS,
    **notices.about_runs(),
    params={
        "dataset": Param(
            settings.dataset,
            type="string",
            minLength=1,
            title="Captioned photographs",
            examples=list(dict.fromkeys([settings.dataset, *suggestions.datasets()])),
            description="Folder in the Flickr8k layout, or CSV or Parquet table (image, caption[, split]); path or "
            "URI. Empty the field to choose a dataset that is in the store",
            section="Data",
        ),
        "marks": Param(
            True,
            type="boolean",
            title="Better captions",
            description="Learn also from what people have written beside wrong captions in the gallery",
            section="Data",
        ),
        "min_count": Param(
            10,
            type="integer",
            minimum=1,
            title="Minimum word count",
            description="How often a word must be seen in the training captions to enter the vocabulary",
            section="Data",
        ),
        "encoder": Param(
            settings.encoder,
            type="string",
            minLength=1,
            examples=list(dict.fromkeys([settings.encoder, "imagenet", "random"])),
            title="Image encoder",
            description="imagenet (ResNet50, weights downloaded), random (untrained, to try the pipeline), "
            "a .h5 file of ResNet50 weights, or a .keras model; path or URI",
            section="Data",
        ),
        "views": Param(
            False,
            type="boolean",
            title="Several views of a picture",
            description="Encode the whole, its mirror image and its corners: better captions, six times the extraction",
            section="Data",
        ),
        "int8": Param(
            False,
            type="boolean",
            title="8-bit integers",
            description="Encode in 8-bit integers, calibrated on these photographs: three times as fast on CPUs with "
            "VNNI, for captions as good",
            section="Data",
        ),
        **recipe_params,
        **search_params,
        "promotion": Param(
            "auto",
            type="string",
            enum=["auto", "approve", "never"],
            values_display={
                "auto": "auto: through the gate",
                "approve": "approve: when a person has said so",
                "never": "never: the model stays a candidate",
            },
            title="Promotion",
            description="The gate is tolerance and floor, below. A person sees scores and captions beside the "
            "champion's, under Required Actions",
            section="Evaluation and promotion",
        ),
        "tolerance": Param(
            0.015,
            type="number",
            minimum=0,
            title="Tolerance",
            description="CIDEr by which a new champion may lie below the present one (.015 is a seed's noise)",
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
    ingest = PipelineOperator(
        task_id="ingest",
        arguments=["ingest", "{{ params.dataset }}", "{{ '--marks' if params.marks else '--no-marks' }}"],
        outlets=[DATASET],
    )
    vocabulary = PipelineOperator(
        task_id="vocabulary",
        arguments=["vocabulary", ingest.output["dataset"], "--min-count", "{{ params.min_count }}"],
    )
    encoder = PipelineOperator(
        task_id="encoder",
        arguments=[
            "encoder",
            "{{ params.encoder }}",
            "{{ '--views' if params.views else '--no-views' }}",
            "--int8={{ ti.xcom_pull(task_ids='ingest', key='dataset') if params.int8 else '' }}",
        ],
        pool=GPU,
        queue=GPU,
    )
    plan = PipelineOperator(
        task_id="plan_extraction",
        arguments=["plan", ingest.output["dataset"], encoder.output["encoder_id"], "--run", "{{ run_id }}"],
    )
    extract = extract_features(plan.output)
    train = PipelineOperator(
        task_id="train",
        arguments=[
            "train",
            ingest.output["dataset"],
            vocabulary.output["vocabulary"],
            encoder.output["encoder_id"],
            *(f"--set={name}={{{{ params.{name} }}}}" for name in recipe_params),
        ],
        pool=GPU,
        queue=GPU,
        # Where nothing is pending, no extraction runs.
        trigger_rule="none_failed",
        execution_timeout=timedelta(hours=24),
        inlets=[DATASET, FEATURES],
        outlets=[CANDIDATE],
        pages={"Models": PAGES["Models"]},
    )
    evaluate = PipelineOperator(
        task_id="evaluate",
        arguments=[
            "evaluate",
            train.output["version"],
            "--beam={{ params.beam_width }}",
            "--samples={{ params.samples }}",
        ],
        pool=GPU,
        queue=GPU,
        outlets=[CANDIDATE],
        pages=PAGES,
    )

    @task.branch
    def ask(*, params) -> str:
        """Whether a person is asked."""
        return "compare" if params["promotion"] == "approve" else "consider"

    compare = PipelineOperator(task_id="compare", arguments=["compare", train.output["version"]], pool=GPU, queue=GPU)
    approval = HITLOperator(
        task_id="approval",
        subject=f"Promote {VERSION}?",
        body="{{ ti.xcom_pull(task_ids='compare', key='comparison') }}",
        options=[PROMOTE, KEEP],
        execution_timeout=None,
    )
    consider = PipelineOperator(
        task_id="consider",
        arguments=[
            "consider",
            train.output["version"],
            "--run={{ run_id }}",
            "--policy={{ params.promotion }}",
            "--tolerance={{ params.tolerance }}",
            "--floor={{ params.floor }}",
            f"{{{{ '--promote' if {ANSWER}.get('chosen_options') == ['{PROMOTE}'] else '--keep' }}}}",
            f"--by={{{{ ({ANSWER}.get('responded_by_user') or {{}}).get('name') or 'nobody' }}}}",
        ],
        pool=GPU,
        queue=GPU,
        # Where nobody is asked, there is no answer.
        trigger_rule="none_failed_min_one_success",
        inlets=[CANDIDATE],
        pages=PAGES,
    )

    @task(outlets=[CHAMPION])
    def announce(decision: dict, *, outlet_events) -> None:
        """Tell those who wait for a champion; skipped where the candidate did not become one."""
        if not decision["promoted"]:
            raise AirflowSkipException(decision["reason"])
        outlet_events[CHAMPION].extra = decision

    ingest >> encoder
    extract >> train
    evaluate >> ask() >> [compare, consider]
    compare >> approval >> consider
    announce(consider.output)
