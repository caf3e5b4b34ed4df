"""Paired tests of two classifiers on the same images."""

from scipy.special import bdtr


def mcnemar(n_only_first: int, n_only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947, Psychometrika 12, 153-157).

    Under the null hypothesis both classifiers have the same accuracy, and an image that only one of them classifies
    correctly is equally likely to be either's. The p-value is 1 if there is no such image.

    Args:
        n_only_first: images that only the first classifier classifies correctly.
        n_only_second: images that only the second classifier classifies correctly.
    """
    n = n_only_first + n_only_second
    return min(1.0, 2 * float(bdtr(min(n_only_first, n_only_second), n, 0.5)))
