"""The flow ``seeds``: run the pipeline for each seed, and compute mean and spread of the headline metrics.

``python -m flows.seeds 0 1 2`` runs each seed as a DVC experiment. The results in the workspace do not change.
"""

import argparse
import hashlib
import json
import logging
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from flows.command import log_progress, run_flow
from flows.dvc_pipeline import metrics_of, run_dvc
from tasks.core.files import write_table
from tasks.core.workspace import Workspace
from tasks.params import Params, load_params
from tasks.statistics.intervals import estimate_over_seeds
from tasks.tracking import experiment_id, open_run

FOLDER = Path("seeds")

log = logging.getLogger(__name__)


@flow(name="seeds")
def seeds(
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=2, max_length=100)] = [0, 1, 2],  # noqa: B006  not changed
) -> str:
    """Run the pipeline for each seed, and write mean and spread of every headline metric.

    Args:
        seeds: values of the parameter seed, all different. The other parameters are those of params.yaml.

    Returns:
        The file of the table.

    Raises:
        ValueError: a seed occurs twice.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: {seeds} has a repeated value. All seeds must differ. Remove the repeated ones.")
    log_progress()
    params = load_params()
    # created here, so that the artifacts of the experiments, which run in temporary folders, are stored here
    experiment_id()
    experiments = {seed: run_seed(seed, params) for seed in seeds}
    table = seeds_table({seed: metrics_of(experiment) for seed, experiment in experiments.items()})
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / "seeds.csv"
    write_table(table, file)
    with open_run(Workspace(), "seeds", FOLDER, params, "prefect") as tracker:
        tracker.tags({f"experiment.{seed}": experiment for seed, experiment in experiments.items()})
        for statistic in ("value", "low", "high", "std"):
            known = table.dropna(subset=[statistic])
            name = "mean" if statistic == "value" else statistic
            tracker.metrics({f"{m}.{name}": v for m, v in zip(known["metric"], known[statistic], strict=True)})
        tracker.artifact(file)
    # NaN is no JSON; pandas writes null
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records"))
    create_table_artifact(key="seeds", table=rows, description=f"Mean and spread over the seeds {seeds}")
    return str(file)


@task(name="seed", task_run_name="seed {seed}", tags=["seed"], cache_policy=NO_CACHE)
def run_seed(seed: int, params: Params) -> str:
    """Run the pipeline with this seed as a DVC experiment, unless the experiment exists, and return its name.

    Raises:
        RuntimeError: DVC failed.
    """
    values = json.dumps(params.model_dump(mode="json") | {"seed": seed}, sort_keys=True)
    name = f"seed-{seed}-{hashlib.sha256(values.encode()).hexdigest()[:8]}"
    if name in run_dvc("exp", "list", "--name-only").split():
        log.info("The experiment %s exists already", name)
        return name
    run_dvc("exp", "run", "--temp", "--name", name, "--set-param", f"seed={seed}")
    return name


def seeds_table(metrics: dict[int, dict[str, float]]) -> pd.DataFrame:
    """Mean and spread of each metric over seeds.

    Args:
        metrics: by seed and name, with the same names for all seeds. Ends of intervals (``_low``, ``_high``) are left
            out: they describe the images of one run.

    Returns:
        A row for each metric: ``value`` (mean), ``low`` and ``high`` (Student's 95 % interval), ``std``, and one column
        for each seed.
    """
    rows = []
    for metric in metrics[next(iter(metrics))]:
        if metric.endswith(("_low", "_high")):
            continue
        values = {seed: of_seed[metric] for seed, of_seed in metrics.items()}
        own = {f"seed {seed}": value for seed, value in values.items()}
        rows.append({"metric": metric, **estimate_over_seeds(np.array(list(values.values()))), **own})
    return pd.DataFrame(rows)


def main() -> None:
    """Run the pipeline for each seed, and print mean and spread of the headline metrics."""
    parser = argparse.ArgumentParser(prog="python -m flows.seeds", description=main.__doc__)
    parser.add_argument("seeds", nargs="*", default=[0, 1, 2], type=int, help="different seeds (default: 0 1 2)")
    table = run_flow(seeds, **vars(parser.parse_args()))
    print(Path(table).read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
