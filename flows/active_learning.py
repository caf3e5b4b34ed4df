"""The flow ``active_learning``: a person labels what the classifier asks about, and it asks again.

``python -m flows.active_learning POOL`` prints which CSV file waits to be filled in; run again once it is. As a
deployment of Prefect, with ``answers: form``, the run is suspended instead, and resumed by a form in Prefect's UI.
"""

import argparse
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from prefect import flow, runtime
from prefect.artifacts import create_table_artifact
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput
from pydantic import Field, create_model

from flows.command import run_flow
from tasks.core.workspace import Workspace
from tasks.labelling.human import SKIPPED, Query, collect, fill_in, read_rounds
from tasks.labelling.queries import next_query
from tasks.params import Acquisition, load_params

A_MONTH = 31 * 24 * 3600
"""Seconds that a run waits for its form."""


# Prefect's own choice is a pickle
@flow(name="active_learning", persist_result=True, result_serializer="json")
def active_learning(
    pool: str,
    folder: str = "labels",
    acquisition: Acquisition = "entropy",
    n_images: Annotated[int, Field(ge=1)] = 20,
    n_rounds: Annotated[int, Field(ge=1, le=99)] = 5,
    answers: Literal["csv", "form"] = "csv",
) -> str:
    """Ask a person for the labels that teach the classifier most, round by round.

    Args:
        pool: folder of images without labels.
        folder: where rounds are kept, and labelled images collected.
        acquisition: how images are chosen.
        n_images: images of each round, at most.
        n_rounds: rounds, at most.
        answers: ``csv``: the run ends with a file to fill in, and the next run goes on; ``form``: this run waits for a
            form in Prefect's UI, suspended if it belongs to a deployment.

    Returns:
        What is to be done next, in a sentence.
    """
    workspace, params = Workspace(), load_params()
    classes = params.acquire.classes
    while query := next_query(workspace, params, Path(pool), Path(folder), acquisition, n_images, n_rounds):
        publish(query)
        if answers == "csv":
            break
        fill_in(query, ask(query, classes), classes)
    labelled = Path(folder) / "labelled"
    n = collect(read_rounds(Path(folder), classes), Path(pool), labelled)
    so_far = f"{n} images are labelled, in {labelled}"
    if query is None:
        return f"{so_far}: add them to the images of acquire.folder"
    n_left = sum(not name for name in query.told)
    return (
        f"{so_far}. {query.table} waits for {n_left} of {len(query.files)} images (see {query.folder / 'images'}): "
        f"write one of {', '.join(classes)} into the column class, {SKIPPED} where none can be told, and run again"
    )


def ask(query: Query, classes: tuple[str, ...]) -> list[str]:
    """Classes that a person gives in a form with a choice for each image; the run waits, or is suspended.

    Args:
        query: images.
        classes: to choose from.
    """
    fields: dict[str, Any] = {
        f"image_{i + 1:03d}": (Literal[*classes, SKIPPED], Field(title=f"{i + 1:03d}: {file}"))
        for i, file in enumerate(query.files)
    }
    form = create_model("Labels", __base__=RunInput, **fields)
    wait: Any = suspend_flow_run if runtime.deployment.id else pause_flow_run
    given = wait(wait_for_input=form, timeout=A_MONTH, key=query.folder.name)
    return [getattr(given, name) for name in fields]


def publish(query: Query) -> None:
    """The round as a table in Prefect's UI."""
    rows = [
        {"number": i + 1, "file": file, "image": str(query.folder / "images" / f"{i + 1:03d}{Path(file).suffix}")}
        for i, file in enumerate(query.files)
    ]
    key = f"labels-{query.folder.name}"
    create_table_artifact(key=key, table=rows, description=f"Images that wait for their class in {query.table}")


def main() -> None:
    """Command line of the flow, with answers by CSV file."""
    parser = argparse.ArgumentParser(prog="python -m flows.active_learning", description=main.__doc__)
    parser.add_argument("pool", help="folder of images without labels")
    parser.add_argument("--folder", default="labels", help="where rounds are kept (%(default)s)")
    parser.add_argument("--acquisition", default="entropy", choices=get_args(Acquisition), help="(%(default)s)")
    parser.add_argument("--n-images", default=20, type=int, help="of each round, at most (%(default)s)")
    parser.add_argument("--n-rounds", default=5, type=int, help="at most (%(default)s)")
    print(run_flow(active_learning, **vars(parser.parse_args())))


if __name__ == "__main__":
    main()
