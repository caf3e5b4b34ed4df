"""Correction of p-values for the number of comparisons."""

import numpy as np

SIGNIFICANCE_LEVEL = 0.05
"""Significance level of p-values after the correction for their family of comparisons."""


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values adjusted by Holm's method, float64 of the same shape.

    Rejecting the hypotheses with an adjusted p-value of at most alpha keeps the probability of one or more false
    rejections in the family at most alpha (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    Args:
        p_values: of one family of comparisons, ``(n,)``; NaN for comparisons that were not made, which do not count.
    """
    adjusted = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.maximum.accumulate(np.minimum(factors * p_values[order], 1.0))
    return adjusted
