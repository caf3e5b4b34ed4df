"""Balanced accuracy in the worst case over several seeds, which draw the split and the trainings."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tasks.core.workspace import Workspace
from tasks.params import load_params
from tasks.records.operating_points import read_operating_points
from tasks.records.tables import read_minimum_eps, read_records
from tasks.records.worst_case import worst_case_outcomes
from tasks.statistics.groups import rate_deviations, too_few_groups
from tasks.statistics.intervals import UNDEFINED, Estimate, jackknife_interval

POINT = ["target", "operating_point", "eps"]


def seeds_table(workspaces: Mapping[str, Workspace]) -> pd.DataFrame:
    """Balanced accuracy in the worst case of adaptive attacks, of each seed and on average.

    Args:
        workspaces: of the runs, by the name of the seed; with the same data, targets and eps.

    Returns:
        A row for each target, operating point and eps (0: clean images) with the mean over the seeds (``value``), its
        95 % interval by group (``low``, ``high``), the lowest and the highest value, ``n_groups``, and one column for
        each seed. The interval is for new groups and for the networks of these seeds: so few seeds give no interval
        over seeds.
    """
    outcomes = pd.concat({seed: outcomes_of(workspace) for seed, workspace in workspaces.items()}, names=["seed"])
    rows = []
    for names, of_point in outcomes.groupby(POINT, sort=False):
        values, estimate, n_groups = balanced_over_seeds(of_point)
        rows.append(
            dict(zip(POINT, names, strict=True))
            | estimate._asdict()
            | {"lowest": values.min(), "highest": values.max(), "n_groups": n_groups}
            | {f"seed_{seed}": value for seed, value in values.items()}
        )
    return pd.DataFrame(rows)


def outcomes_of(workspace: Workspace) -> pd.DataFrame:
    """Outcome of each image in the worst case of adaptive attacks."""
    defences = load_params(workspace.params_file).selected_defences
    records, minimum_eps = read_records(workspace, defences), read_minimum_eps(workspace, defences)
    outcomes = worst_case_outcomes(records, minimum_eps, read_operating_points(workspace, defences))
    return outcomes[outcomes["threat_model"] == "adaptive"]


def balanced_over_seeds(outcomes: pd.DataFrame) -> tuple["pd.Series[float]", Estimate, int]:
    """Return the balanced accuracy of each seed, their mean with its interval by group, and the number of groups.

    A group that is left out is left out of the test images of every seed.

    Args:
        outcomes: ``label``, ``group`` and ``robust_correct`` of each image, with the seed as a level of the index.
    """
    by_group = outcomes.groupby(["seed", "label", "group"])["robust_correct"].agg(["sum", "size"]).unstack(fill_value=0)
    sums, sizes = (np.asarray(by_group[name], dtype=np.float64) for name in ("sum", "size"))
    recalls = pd.Series(sums.sum(axis=1) / sizes.sum(axis=1), by_group.index)
    values, n_groups = recalls.groupby("seed").mean(), sums.shape[1]
    if too_few_groups(sizes.sum(axis=0)):
        return values, UNDEFINED._replace(value=float(values.mean())), n_groups
    deviations = rate_deviations(sums, sizes).mean(axis=0)
    low, high = jackknife_interval(np.array(values.mean()), deviations, (0.0, 1.0), n_groups)
    return values, Estimate(float(values.mean()), float(low), float(high)), n_groups
