"""The flow ``seeds``: the whole way once for each seed, and how much its numbers depend on it.

``python -m flows.seeds 0 1 2`` runs each seed as an experiment of DVC; the workspace keeps its own results.
"""

import argparse
import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from flows.command import run_flow
from flows.dvc_pipeline import metrics_of
from tasks.core.files import write_table
from tasks.core.workspace import Workspace
from tasks.params import Params, load_params
from tasks.statistics.intervals import over_seeds
from tasks.tracking import experiment_id, masked, open_run, tracking_uri

FOLDER = Path("seeds")

log = logging.getLogger(__name__)


@flow(name="seeds")
def seeds(
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=2, max_length=100)] = [0, 1, 2],  # noqa: B006  not changed
) -> str:
    """Run the pipeline for each seed, and write mean and spread of every headline metric.

    Args:
        seeds: of everything that is drawn at random, different ones; each is a whole run, with params.yaml otherwise as
            it is.

    Returns:
        The table's file.

    Raises:
        ValueError: a seed that is there twice.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ, not {seeds}")
    params = load_params()
    # made here, so that artifacts of the runs elsewhere are kept here
    experiment_id()
    experiments = {seed: run_seed(seed, params) for seed in seeds}
    table = seeds_table({seed: metrics_of(experiment) for seed, experiment in experiments.items()})
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / "seeds.csv"
    write_table(table, file)
    with open_run(Workspace(), "seeds", FOLDER, params, "prefect") as tracker:
        tracker.tags({f"experiment.{seed}": experiment for seed, experiment in experiments.items()})
        for statistic in ("value", "low", "high", "sd"):
            told = table.dropna(subset=[statistic])
            name = "mean" if statistic == "value" else statistic
            tracker.metrics({f"{m}.{name}": v for m, v in zip(told["metric"], told[statistic], strict=True)})
        tracker.artifact(file)
    # pandas' own JSON has nothing where a number is missing
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records"))
    create_table_artifact(key="seeds", table=rows, description=f"Mean and spread over the seeds {seeds}")
    return str(file)


@task(name="seed", cache_policy=NO_CACHE)
def run_seed(seed: int, params: Params) -> str:
    """Run the pipeline with this seed as an experiment of DVC, unless there is one; its name.

    Raises:
        RuntimeError: DVC failed.
    """
    words = json.dumps(params.model_dump(mode="json") | {"seed": seed}, sort_keys=True)
    name = f"seed-{seed}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
    if name in run_dvc("exp", "list", "--name-only").split():
        log.info("%s is there already", name)
    else:
        run_dvc("exp", "run", "--temp", "--name", name, "--set-param", f"seed={seed}")
    return name


def seeds_table(metrics: dict[int, dict[str, float]]) -> pd.DataFrame:
    """A row for each metric: ``value`` (mean), ``low`` and ``high`` (Student's 95 %), ``sd``, then each seed's own.

    Args:
        metrics: by seed and name; the same names for all. Ends of intervals (``_low``, ``_high``), which are of the
            images of one run, are left out.
    """
    rows = []
    for metric in metrics[next(iter(metrics))]:
        if metric.endswith(("_low", "_high")):
            continue
        values = {seed: of_seed[metric] for seed, of_seed in metrics.items()}
        own = {f"seed {seed}": value for seed, value in values.items()}
        rows.append({"metric": metric, **over_seeds(np.array(list(values.values()))), **own})
    return pd.DataFrame(rows)


def run_dvc(*arguments: str) -> str:
    """DVC's own command line, of this environment; what it printed.

    Raises:
        RuntimeError: it failed; with the last lines that it printed.
    """
    dvc = Path(sys.executable).parent / "dvc"
    # a run elsewhere keeps its runs here
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracking_uri()}
    done = subprocess.run(  # noqa: S603  arguments are ours, seeds whole numbers  # nosec B603
        [dvc, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        lines = "\n".join(done.stdout.splitlines()[-15:])
        raise RuntimeError(masked(f"dvc {' '.join(arguments)} failed:\n{lines}"))
    return done.stdout


def main() -> None:
    """Run the pipeline for each seed, and print mean and spread of its numbers."""
    parser = argparse.ArgumentParser(prog="python -m flows.seeds", description=main.__doc__)
    parser.add_argument("seeds", nargs="*", default=[0, 1, 2], type=int, help="different ones (0 1 2)")
    table = run_flow(seeds, **vars(parser.parse_args()))
    print(Path(table).read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
