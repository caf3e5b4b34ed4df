"""Comparison of a candidate with the champion on the same images, clean and under attack."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from tasks.records.vocabulary import CLEAN
from tasks.records.worst_case import worst_case_outcomes
from tasks.statistics.intervals import Estimate, bootstrap, bootstrap_counts, resampled_mean, wilson
from tasks.statistics.paired import mcnemar


@dataclass(frozen=True)
class Comparison:
    """Accuracy of a candidate and of the champion on the same images."""

    condition: str
    """``clean``, or ``adaptive``: the worst case over all adaptive attacks."""
    n: int
    """Images."""
    candidate: Estimate
    """Accuracy with Wilson's 95 % interval."""
    champion: Estimate
    """Accuracy with Wilson's 95 % interval."""
    difference: Estimate
    """Candidate minus champion, with a bootstrap interval over groups of images."""
    n_only_candidate_correct: int
    """Images that only the candidate classifies correctly."""
    n_only_champion_correct: int
    """Images that only the champion classifies correctly."""
    p_value: float
    """p-value of McNemar's exact two-sided test."""

    def is_worse(self, alpha: float) -> bool:
        """Return whether the candidate is significantly worse than the champion."""
        return self.n_only_champion_correct > self.n_only_candidate_correct and self.p_value < alpha


def outcomes_of(
    records: pd.DataFrame, minimum_eps: pd.DataFrame, target: str, eps: float
) -> dict[str, "pd.Series[bool]"]:
    """Return whether a target classifies each image correctly, by condition (``clean``, ``adaptive``) and image.

    Args:
        records: of the target, from the attack steps.
        minimum_eps: the smallest eps that breaks each image, from the same steps.
        target: name of the target.
        eps: one of ``attack.eps``.

    Raises:
        ValueError: the target was not attacked at this eps.
    """
    mine, found = records[records["target"] == target], minimum_eps[minimum_eps["target"] == target]
    clean = mine[mine["attack"] == CLEAN].set_index("image")["correct"].sort_index()
    held = worst_case_outcomes(mine, found)
    at = (held["threat_model"] == "adaptive") & (held["eps"] == eps)
    if not at.any():
        raise ValueError(
            f"{target} was not attacked at eps {eps:g}. Add the value to attack.eps and run the attack again."
        )
    return {"clean": clean, "adaptive": held[at].set_index("image")["robust_correct"].astype(bool).sort_index()}


def compare(
    condition: str,
    candidate: "pd.Series[bool]",
    champion: "pd.Series[bool]",
    groups: "pd.Series[int]",
    n_resamples: int,
    seed: int,
) -> Comparison:
    """Compare candidate and champion on the same images.

    Args:
        condition: ``clean`` or ``adaptive``.
        candidate: whether its prediction is correct, by image.
        champion: whether its prediction is correct, by image.
        groups: the group of each image, also of other images.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: the images differ.
    """
    if not candidate.index.equals(champion.index):
        raise ValueError(f"{condition}: candidate and champion were evaluated on different images. Audit both again.")
    first, second = candidate.to_numpy(dtype=bool), champion.to_numpy(dtype=bool)
    counts = bootstrap_counts(groups.loc[candidate.index].to_numpy(), n_resamples, seed)
    alone, other = int((first & ~second).sum()), int((second & ~first).sum())
    return Comparison(
        condition=condition,
        n=len(first),
        candidate=_accuracy(first),
        champion=_accuracy(second),
        difference=bootstrap(partial(resampled_mean, first.astype(np.float64) - second), counts),
        n_only_candidate_correct=alone,
        n_only_champion_correct=other,
        p_value=mcnemar(alone, other),
    )


def _accuracy(correct: np.ndarray) -> Estimate:
    low, high = wilson(correct.sum(), len(correct))
    return Estimate(float(correct.mean()), float(low), float(high))
