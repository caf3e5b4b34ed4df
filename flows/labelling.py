"""The flow ``labelling``: a person labels images that an acquisition function selects, in rounds.

``python -m flows.labelling POOL`` prints the CSV file in which the person writes the classes. The same command then
starts the next round. A deployment with ``answers: form`` requests the classes in a form of Prefect's UI instead.
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
from flows.server import NOTIFY
from tasks.core.locks import locked
from tasks.core.workspace import Workspace
from tasks.labelling.human import next_round
from tasks.labelling.rounds import COLLECTED, SKIPPED, LabellingRound, collect_labelled, read_rounds, write_classes
from tasks.params import Acquisition, load_params

FORM_TIMEOUT = 31 * 24 * 3600
"""Seconds after which a run without an answer to its form fails."""


# Prefect's default serializer is pickle
@flow(name="labelling", persist_result=True, result_serializer="json", **NOTIFY)
def labelling(
    pool: str,
    folder: str = "labels",
    acquisition: Acquisition = "entropy",
    n_images: Annotated[int, Field(ge=1)] = 20,
    n_rounds: Annotated[int, Field(ge=1, le=99)] = 5,
    answers: Literal["csv", "form"] = "csv",
) -> str:
    """Label images with a person: each round trains the classifier and selects the images to label next.

    Args:
        pool: folder of images without labels.
        folder: folder of the rounds and of the labelled images.
        acquisition: acquisition function that selects the images.
        n_images: maximum number of images in a round.
        n_rounds: maximum number of rounds.
        answers: ``csv``: the run ends with a CSV file to fill in, and the next run continues; ``form``: the run waits
            for a form in Prefect's UI; the run of a deployment is suspended until the form is submitted.

    Returns:
        The state of the labelling and the next task of the person.
    """
    workspace, params = Workspace(), load_params()
    classes, labelled = params.acquire.classes, Path(folder) / COLLECTED
    with locked(Path(folder) / ".locks", ["labelling"]):
        while current := next_round(workspace, params, Path(pool), Path(folder), acquisition, n_images, n_rounds):
            publish_round(current)
            if answers == "csv":
                break
            write_classes(current, request_classes(current, classes), classes)
        n = collect_labelled(read_rounds(Path(folder), classes), Path(pool), labelled)
    progress = f"Labelled images in {labelled}: {n}."
    if current is None:
        return f"{progress} The labelling is complete. Copy the labelled images to the images of acquire.folder."
    n_left = sum(not name for name in current.classes)
    return (
        f"{progress} Images without a class in {current.table}: {n_left} of {len(current.files)}. Look at the images "
        f"in {current.folder / 'images'}, write {', '.join(classes)} or {SKIPPED} (cannot be labelled) into the column "
        "class, and run the same command again."
    )


def request_classes(current: LabellingRound, classes: tuple[str, ...]) -> list[str]:
    """Return the classes that a person chooses in a form; the run is paused, or suspended if it has a deployment.

    Args:
        current: the round to label.
        classes: choices beside ``SKIPPED``.
    """
    fields: dict[str, Any] = {
        f"image_{i + 1:03d}": (Literal[*classes, SKIPPED], Field(title=f"{i + 1:03d}: {file}"))
        for i, file in enumerate(current.files)
    }
    form = create_model("Labels", __base__=RunInput, **fields)
    wait: Any = suspend_flow_run if runtime.deployment.id else pause_flow_run
    given = wait(wait_for_input=form, timeout=FORM_TIMEOUT, key=current.folder.name)
    return [getattr(given, name) for name in fields]


def publish_round(current: LabellingRound) -> None:
    """Publish the images of a round as a table artifact of Prefect."""
    rows = [{"number": i + 1, "file": file, "image": str(current.image(i))} for i, file in enumerate(current.files)]
    key = f"labels-{current.folder.name}"
    create_table_artifact(key=key, table=rows, description=f"Images to label in {current.table}")


def main() -> None:
    """Label images with a person, who writes the classes into CSV files."""
    parser = argparse.ArgumentParser(prog="python -m flows.labelling", description=main.__doc__)
    parser.add_argument("pool", help="folder of images without labels")
    parser.add_argument("--folder", default="labels", help="folder of the rounds (default: %(default)s)")
    parser.add_argument(
        "--acquisition",
        default="entropy",
        choices=get_args(Acquisition),
        help="selects the images (default: %(default)s)",
    )
    parser.add_argument("--n-images", default=20, type=int, help="maximum number in a round (default: %(default)s)")
    parser.add_argument("--n-rounds", default=5, type=int, help="maximum number of rounds (default: %(default)s)")
    print(run_flow(labelling, **vars(parser.parse_args())))


if __name__ == "__main__":
    main()
