"""Comparison of a candidate with the champion on the same images, clean and in the worst case."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tasks.outcomes.worst_case import worst_case_outcomes
from tasks.records.operating_points import OperatingPoint
from tasks.records.vocabulary import AS_TRAINED
from tasks.statistics.balanced import balanced_accuracies, compare_balanced
from tasks.statistics.intervals import Estimate


@dataclass(frozen=True)
class Comparison:
    """Balanced accuracy of a candidate and of the champion on the same images."""

    condition: str
    """``clean``, or ``adaptive``: the worst case of each image."""
    n: int
    """Images."""
    n_groups: int
    """Their groups."""
    candidate: Estimate
    """Balanced accuracy with its 95 % interval by group."""
    champion: Estimate
    """Balanced accuracy with its 95 % interval by group."""
    difference: Estimate
    """Candidate minus champion, with its 95 % interval by group."""
    n_only_candidate_correct: int
    """Images that only the candidate classifies correctly."""
    n_only_champion_correct: int
    """Images that only the champion classifies correctly."""
    p_value: float
    """p-value of the two-sided sign-flip test by group."""
    detectable_difference: float
    """Smallest difference that these images can show with a probability of 80 %; NaN for too few groups."""

    def is_non_inferior(self, margin: float) -> bool:
        """Return whether the candidate is shown to be at most ``margin`` worse, at the one-sided 2.5 % level.

        Too few groups show nothing.
        """
        return self.difference.low > -margin


def outcomes_of(
    records: pd.DataFrame, minimum_eps: pd.DataFrame, points: Sequence[OperatingPoint], target: str, eps: float
) -> dict[str, pd.DataFrame]:
    """Return the outcome of each image, by condition (``clean``, ``adaptive``): label, group, robust_correct, by image.

    Args:
        records: of the target, from the attack steps.
        minimum_eps: results of the searches, from the same steps.
        points: operating points of the target; it is compared as trained.
        target: name of the target.
        eps: one of ``attack.eps``.

    Raises:
        ValueError: the target was not attacked at this eps.
    """
    records, minimum_eps = records[records["target"] == target], minimum_eps[minimum_eps["target"] == target]
    if eps not in set(records["eps"]):
        raise ValueError(
            f"{target} was not attacked at eps {eps:g}. Add the value to attack.eps and run the attack again."
        )
    worst = worst_case_outcomes(records, minimum_eps, {target: points})
    is_compared = (worst["operating_point"] == AS_TRAINED) & (worst["threat_model"] == "adaptive")
    outcomes = worst[is_compared].set_index("image").sort_index()
    columns = ["label", "group", "robust_correct"]
    return {
        condition: outcomes.loc[outcomes["eps"] == value, columns]
        for condition, value in (("clean", 0.0), ("adaptive", eps))
    }


def compare(condition: str, candidate: pd.DataFrame, champion: pd.DataFrame) -> Comparison:
    """Compare candidate and champion on the same images.

    Args:
        condition: ``clean`` or ``adaptive``.
        candidate: outcomes of :func:`outcomes_of`.
        champion: outcomes of :func:`outcomes_of`.

    Raises:
        ValueError: the images differ.
    """
    if not candidate.index.equals(champion.index):
        raise ValueError(f"{condition}: candidate and champion were evaluated on different images. Audit both again.")
    first, second = (of["robust_correct"].to_numpy() for of in (candidate, champion))
    labels, groups = candidate["label"].to_numpy(), candidate["group"].to_numpy()
    found = compare_balanced(first, second, labels, groups)
    of_both = balanced_accuracies(np.stack([first, second]), labels, groups)
    return Comparison(
        condition=condition,
        n=len(first),
        n_groups=len(set(groups)),
        candidate=of_both[0],
        champion=of_both[1],
        difference=found.difference,
        n_only_candidate_correct=found.n_only_first,
        n_only_champion_correct=found.n_only_second,
        p_value=found.p_value,
        detectable_difference=found.detectable_difference,
    )
