"""The flow ``seeds``: run the pipeline for each seed, and compute mean and spread of the headline metrics.

``python -m flows.seeds 0 1 2`` runs each seed as a DVC experiment; with ``prepare.split.n_folds``, each fold of each
seed. The results in the workspace do not change.
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
from flows.dvc_pipeline import DvcPipeline, metrics_of, run_dvc
from flows.server import NOTIFY
from tasks.core.files import write_table
from tasks.core.source import AT_START
from tasks.core.workspace import Workspace
from tasks.params import Params, load_params
from tasks.statistics.intervals import estimate_over_seeds
from tasks.step_inputs import deps_of, given_files
from tasks.tracking import digest_of, experiment_id, open_run

FOLDER = Path("seeds")

log = logging.getLogger(__name__)


@flow(name="seeds", **NOTIFY)
def seeds(
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, max_length=100)] = [0, 1, 2],  # noqa: B006  not changed
) -> str:
    """Run the pipeline for each seed, and each fold if there are folds; write mean and spread of the headline metrics.

    Args:
        seeds: values of the parameter seed, all different. The other parameters are those of params.yaml. With
            prepare.split.n_folds, one seed is enough, and each seed draws folds of its own.

    Returns:
        The file of the table.

    Raises:
        ValueError: a seed occurs twice, or there is only one run.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: {seeds} has a repeated value. All seeds must differ. Remove the repeated ones.")
    log_progress()
    params = load_params()
    n_folds = params.prepare.split.n_folds
    if len(seeds) == 1 and not n_folds:
        raise ValueError(f"seeds: {seeds} is a single run. Give at least 2 seeds, or set prepare.split.n_folds.")
    # created here, so that the artifacts of the experiments, which run in temporary folders, are stored here
    experiment_id()
    experiments, runs, sources = {}, runs_of(seeds, n_folds), sources_of(Workspace(), params)
    for number, (run, changes) in enumerate(runs.items(), start=1):
        log.info("%s: run %d of %d", run, number, len(runs))
        experiments[run] = run_seed(run, changes, params, sources)
    # of the images of one fold to all others
    test_to_train = 1 / (n_folds - 1) if n_folds else 0.0
    table = seeds_table({run: metrics_of(experiment) for run, experiment in experiments.items()}, test_to_train)
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / "seeds.csv"
    write_table(table, file)
    with open_run(Workspace(), "seeds", FOLDER, params, "prefect") as tracker:
        tracker.tags({f"experiment.{run.removeprefix('seed ')}": each for run, each in experiments.items()})
        for statistic in ("value", "low", "high", "std"):
            known = table.dropna(subset=[statistic])
            name = "mean" if statistic == "value" else statistic
            tracker.metrics({f"{m}.{name}": v for m, v in zip(known["metric"], known[statistic], strict=True)})
        tracker.artifact(file)
    # NaN is no JSON; pandas writes null
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records"))
    folds = f" and {n_folds} folds" if n_folds else ""
    create_table_artifact(key="seeds", table=rows, description=f"Mean and spread over the seeds {seeds}{folds}")
    return str(file)


def runs_of(seeds: list[int], n_folds: int) -> dict[str, dict[str, int]]:
    """Changed parameters of each run, by its name: ``seed 1``, or ``seed 1 fold 0``."""
    if not n_folds:
        return {f"seed {seed}": {"seed": seed} for seed in seeds}
    return {
        f"seed {seed} fold {fold}": {"seed": seed, "prepare.split.fold": fold}
        for seed in seeds
        for fold in range(n_folds)
    }


def sources_of(workspace: Workspace, params: Params) -> dict[str, str]:
    """Digest of each file that the steps read and no step makes: code, images, models and plug-ins, by path."""
    deps = {dep for step in DvcPipeline().steps() for dep in deps_of(workspace, step, params)}
    return AT_START | {file.as_posix(): digest_of(file) for file in sorted(given_files(workspace, deps))}


@task(name="seed", task_run_name="{run}", tags=["seed"], cache_policy=NO_CACHE)
def run_seed(run: str, changes: dict[str, int], params: Params, sources: dict[str, str]) -> str:
    """Run the pipeline with this seed and fold as a DVC experiment, unless it exists, and return its name.

    Args:
        run: its name.
        changes: changed parameters.
        params: the other parameters.
        sources: digests of code and data, which are part of the name of the experiment.

    Raises:
        RuntimeError: DVC failed.
    """
    values = json.dumps([params.model_dump(mode="json") | changes, sources], sort_keys=True)
    name = f"{run.replace(' ', '-')}-{hashlib.sha256(values.encode()).hexdigest()[:8]}"
    if name in run_dvc("exp", "list", "--name-only").split():
        log.info("The experiment %s exists already", name)
        return name
    settings = [argument for change in changes.items() for argument in ("--set-param", "{}={}".format(*change))]
    run_dvc("exp", "run", "--temp", "--name", name, *settings)
    return name


def seeds_table(metrics: dict[str, dict[str, float]], test_to_train: float = 0.0) -> pd.DataFrame:
    """Mean and spread of each metric over seeds and folds.

    Args:
        metrics: by run and name. Ends of intervals (``_low``, ``_high``) are left out: they describe the images of one
            run. A metric that a run lacks, such as an accuracy after rounding at an operating point with a bias, is NaN
            in all columns but those of the runs that have it.
        test_to_train: see :func:`tasks.statistics.intervals.estimate_over_seeds`.

    Returns:
        A row for each metric: ``value`` (mean), ``low`` and ``high`` (Student's 95 % interval; NaN with few runs),
        ``std``, ``lowest``, ``highest``, and one column for each run.
    """
    rows = []
    names = dict.fromkeys(metric for of_run in metrics.values() for metric in of_run)
    for metric in names:
        # a class can be named "low"
        if metric.endswith(("_low", "_high")) and ".recall_" not in metric:
            continue
        values = {run: of_run.get(metric, float("nan")) for run, of_run in metrics.items()}
        of_runs = np.array(list(values.values()))
        estimate = estimate_over_seeds(of_runs, test_to_train)
        rows.append({"metric": metric, **estimate, "lowest": of_runs.min(), "highest": of_runs.max(), **values})
    return pd.DataFrame(rows)


def main() -> None:
    """Run the pipeline for each seed and each fold, and print mean and spread of the headline metrics."""
    parser = argparse.ArgumentParser(prog="python -m flows.seeds", description=main.__doc__)
    parser.add_argument("seeds", nargs="*", default=[0, 1, 2], type=int, help="different seeds (default: 0 1 2)")
    table = run_flow(seeds, **vars(parser.parse_args()))
    print(Path(table).read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
