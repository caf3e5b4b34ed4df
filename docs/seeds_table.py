"""Balanced accuracy in the worst case over several seeds, which draw the split and the trainings."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tasks.core.workspace import Workspace
from tasks.outcomes.attack_outputs import read_minimum_eps, read_operating_points, read_records
from tasks.outcomes.worst_case import worst_case_outcomes
from tasks.params import load_params
from tasks.statistics.balanced import balanced_intervals
from tasks.statistics.intervals import Estimate

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

    The mean recall of a class over seeds is a weighted mean over the images of all seeds. So the mean has the interval
    of a balanced accuracy, in which a group is left out for every seed.

    Args:
        outcomes: ``label``, ``group`` and ``robust_correct`` of each image, with the seed as a level of the index.
    """
    by_group = outcomes.groupby(["seed", "label", "group"])["robust_correct"].agg(["sum", "size"]).unstack(fill_value=0)
    correct, n_images = (pd.DataFrame(by_group[name]).sum(axis=1) for name in ("sum", "size"))
    values = (correct / n_images).groupby("seed").mean()
    # every seed has the same weight in its class, and the weights of a class add up to its mean number of images
    weights = n_images.groupby("label").transform("mean") / n_images / len(values)
    weighted = by_group.mul(weights, axis=0).groupby("label").sum()
    sums, sizes = (np.asarray(weighted[name])[:, None] for name in ("sum", "size"))
    low, high = balanced_intervals(list(zip(sums, sizes, strict=True)))
    return values, Estimate(float(values.mean()), float(low[0]), float(high[0])), sums.shape[2]
