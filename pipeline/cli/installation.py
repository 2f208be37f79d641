"""Commands for the installation in Airflow, and for a demo."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli.common import folder_path, open_store, print_result
from pipeline.settings import read_settings

app = typer.Typer()


@app.command()
def install_dags(folder: Annotated[Path, typer.Argument(help="Airflow's DAG folder", parser=folder_path)]) -> None:
    """Write files to Airflow's DAG folder that import the DAGs of the installed package."""
    from pipeline.ops import dag_files

    print_result({"files": [str(file) for file in dag_files.write(folder)]})


@app.command()
def demo_data(
    directory: Annotated[Path, typer.Argument(help="folder for the pictures and captions", parser=folder_path)],
    images: Annotated[int, typer.Option(min=10, help="number of pictures")] = 600,
    new: Annotated[
        int,
        typer.Option(min=0, help="number of further pictures, without captions, in the folder `new`, for the inbox"),
    ] = 60,
    seed: Annotated[int, typer.Option(help="random seed; another seed gives other pictures")] = 0,
    language: Annotated[Literal["en", "de", "zh"], typer.Option(help="language of the captions")] = "en",
) -> None:
    """Generate pictures with captions, in the layout of Flickr8k, to try the pipeline without a download."""
    from pipeline.data import synthetic

    count = synthetic.generate(directory, images=images, new=new, seed=seed, language=language)
    print_result({"directory": str(directory), "images": count})


@app.command()
def demo_inbox(count: Annotated[int, typer.Option(min=1, help="maximum number of photographs")] = 60) -> None:
    """Copy photographs of the newest model's dataset into the inbox: first those in no split, then test photographs."""
    from pipeline.ops import demo_inbox as demo

    print_result(demo.fill(open_store(), read_settings().inbox, count=count))
