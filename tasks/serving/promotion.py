"""Whether one model may take another's place: both on the same images, clean and under attack."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from tasks.evaluation.comparison import mcnemar, withstood
from tasks.records.vocabulary import CLEAN
from tasks.statistics.intervals import Estimate, bootstrap, bootstrap_counts, resampled_mean, wilson


@dataclass(frozen=True)
class Comparison:
    """Accuracy of a candidate and of the champion on the same images."""

    what: str
    """``clean``, or ``adaptive``: in the worst case of all adaptive attacks."""
    n: int
    """Images."""
    candidate: Estimate
    """With Wilson's 95 % interval."""
    champion: Estimate
    difference: Estimate
    """Candidate minus champion, with a bootstrap interval over groups of images."""
    n_right_alone: int
    """Images that the candidate gets right and the champion wrong."""
    n_wrong_alone: int
    """The other way round."""
    p_value: float
    """McNemar's exact, two-sided."""

    def is_worse(self, alpha: float) -> bool:
        """Whether the candidate is worse than the champion by more than chance makes likely."""
        return self.n_wrong_alone > self.n_right_alone and self.p_value < alpha


def outcomes_of(records: pd.DataFrame, smallest: pd.DataFrame, target: str, eps: float) -> dict[str, "pd.Series[bool]"]:
    """Which images a target gets right: ``clean`` and ``adaptive``, each by image, rising.

    Args:
        records: as written by the steps that attack.
        smallest: the smallest eps that breaks each image, as written by the same.
        target: its name in them.
        eps: one of those that were attacked with.

    Raises:
        ValueError: the target was not attacked at this eps.
    """
    mine, found = records[records["target"] == target], smallest[smallest["target"] == target]
    clean = mine[mine["attack"] == CLEAN].set_index("image")["correct"].sort_index()
    held = withstood(mine, found)
    at = (held["threat_model"] == "adaptive") & (held["eps"] == eps)
    if not at.any():
        raise ValueError(f"{target} was not attacked at eps {eps:g}")
    return {"clean": clean, "adaptive": held[at].set_index("image")["withstood"].astype(bool).sort_index()}


def compare(
    what: str,
    candidate: "pd.Series[bool]",
    champion: "pd.Series[bool]",
    groups: "pd.Series[int]",
    n_resamples: int,
    seed: int,
) -> Comparison:
    """Compare outcomes of the same images.

    Args:
        what: ``clean`` or ``adaptive``.
        candidate: whether it is right, by image.
        champion: the same.
        groups: the group of each image, by image; of more images, too.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: the images are not the same.
    """
    if not candidate.index.equals(champion.index):
        raise ValueError(f"{what}: candidate and champion were asked about different images")
    first, second = candidate.to_numpy(dtype=bool), champion.to_numpy(dtype=bool)
    counts = bootstrap_counts(groups.loc[candidate.index].to_numpy(), n_resamples, seed)
    alone, other = int((first & ~second).sum()), int((second & ~first).sum())
    return Comparison(
        what=what,
        n=len(first),
        candidate=_share(first),
        champion=_share(second),
        difference=bootstrap(partial(resampled_mean, first.astype(np.float64) - second), counts),
        n_right_alone=alone,
        n_wrong_alone=other,
        p_value=mcnemar(alone, other),
    )


def _share(right: np.ndarray) -> Estimate:
    low, high = wilson(right.sum(), len(right))
    return Estimate(float(right.mean()), float(low), float(high))
