"""Convergence of the reported attack: the worst case with and without a stage of twice the steps and restarts."""

from collections.abc import Mapping, Sequence

import pandas as pd

from tasks.outcomes.worst_case import worst_case_outcomes
from tasks.records.operating_points import OperatingPoint
from tasks.records.vocabulary import SUITE_DOUBLED

MAX_CHANGE = 0.01
"""An attack counts as converged if twice the effort changes the accuracy by less than this; with 100 images or fewer,
one image is a point or more."""


def convergence_table(
    records: pd.DataFrame,
    minimum_eps: pd.DataFrame,
    operating_points: Mapping[str, Sequence[OperatingPoint]],
    outcomes: pd.DataFrame,
) -> pd.DataFrame:
    """Return the outcome of each image in the worst case of adaptive attacks, before and after the doubled stage.

    One row for each target, image and eps at the operating point at which targets are compared, where the doubled stage
    runs: target, operating_point, image, group, eps, ``before`` and ``after`` (as ``robust_correct`` of the outcomes).

    Args:
        records: of the attack steps.
        minimum_eps: results of the searches.
        operating_points: of each target.
        outcomes: of :func:`tasks.outcomes.worst_case.worst_case_outcomes` for the same arguments.
    """
    is_doubled = minimum_eps["attack"] == SUITE_DOUBLED
    without = worst_case_outcomes(records, minimum_eps[~is_doubled], operating_points)
    keys = ["target", "operating_point", "threat_model", "image", "eps"]
    both = outcomes.merge(without[[*keys, "robust_correct"]], on=keys, suffixes=("", "_before"))
    compared = minimum_eps.loc[is_doubled, keys[:2]].drop_duplicates()
    both = both[(both["threat_model"] == "adaptive") & (both["eps"] > 0)].merge(compared, on=keys[:2])
    named = both.rename(columns={"robust_correct_before": "before", "robust_correct": "after"})
    return named[["target", "operating_point", "image", "group", "eps", "before", "after"]].reset_index(drop=True)


def has_converged(of_point: pd.DataFrame) -> bool:
    """Return whether the doubled stage changes the accuracy by less than one point, and breaks no image of up to 100.

    Args:
        of_point: rows of :func:`convergence_table` of one target at one eps.
    """
    n_broken = float((of_point["before"] - of_point["after"]).sum())
    return n_broken < max(1.0, MAX_CHANGE * len(of_point))


def unconverged_eps(table: pd.DataFrame) -> dict[str, list[float]]:
    """Return the eps at which the attack on each target has not converged; no entry without a doubled stage.

    Args:
        table: of :func:`convergence_table`.
    """
    return {
        str(target): [float(str(eps)) for eps, rows in of_target.groupby("eps") if not has_converged(rows)]
        for target, of_target in table.groupby("target", sort=False)
    }
