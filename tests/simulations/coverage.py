"""Simulated coverage of 95 % intervals and error rates of tests, by group.

``python -m tests.simulations.coverage`` simulates data sets with known accuracies, applies the functions of
``tasks/statistics`` to each, and writes the tables of ``docs/evidence/statistics.md`` and, as CSV, those of
``docs/evidence/statistics/``. Every cell of a table has the same number of repetitions and a seed of its own, so the
tables are the same on every run.

    python -m tests.simulations.coverage [--repetitions 5000] [--only rates,auroc]
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.special import ndtri
from scipy.stats import mannwhitneyu

import tasks.statistics.groups
from tasks.analysis.best_detector import best_auroc, choose_on_other_folds, rate_of_chosen
from tasks.analysis.feature_overlap import count_neighbours, group_folds, overlap, probe
from tasks.statistics.auroc import auroc_without_blocks
from tasks.statistics.balanced import balanced_intervals, difference_intervals, ratio_estimates
from tasks.statistics.groups import GroupJackknife, effective_groups, rate_deviations, too_few_groups
from tasks.statistics.intervals import POSITIVE, RATE, jackknife_interval
from tasks.statistics.paired import detectable_differences, paired_intervals, random_sign_p_values, sign_flip_p_value
from tasks.statistics.rates import rate_intervals
from tests.simulations.candidates import METHODS, Interval
from tests.simulations.draws import (
    LARGE_GROUP,
    PATIENT_SIZES,
    SIZES,
    draw_asymmetric_pairs,
    draw_pairs,
    draw_restored,
    draw_scores,
    draw_sizes,
    draw_successes,
)

ROOT = Path(__file__).resolve().parents[2]
EVIDENCE = ROOT / "docs" / "evidence"

N_GROUPS = (12, 24, 25, 50, 100, 200)
"""12, 25, 50 and 100 groups of one class; 24, 50, 100 and 200 groups of two classes."""
N_GROUPS_OF_CLASS = (12, 25, 50, 100)
ICCS = (0.0, 0.3, 0.6)
RATES = (0.02, 0.05, 0.2, 0.5, 0.8, 0.95, 0.98)
AUROCS = (0.5, 0.7, 0.9)
HIGH_AUROCS = (0.98, 0.995)
SPREADS = (0.5, 1.0, 2.0)
"""Standard deviations of the logarithm of a loss; with 2 the mean is seven times the median."""
CHUNK = 250
"""Data sets that are drawn at once."""
PAIRS = ((0.5, 0.5), (0.9, 0.9), (0.98, 0.98), (0.5, 0.35), (0.9, 0.8), (0.98, 0.93))
POWER_ACCURACIES = (0.7, 0.98)
"""Mean accuracies of the two classifiers in the table of power; with the second one few images differ."""
COMPARED_RATES = (0.02, 0.05, 0.2, 0.5)
MAX_REPETITIONS_OF_METHODS = 2000
RECALLS = (
    ((0.9, 0.9), (0.9, 0.9)),
    ((0.95, 0.7), (0.7, 0.95)),
    ((0.9, 0.9), (0.8, 0.8)),
    ((0.98, 0.98), (0.93, 0.93)),
    ((0.95, 0.4), (0.9, 0.8)),
)
"""Recalls of the two classes, of the first and of the second classifier."""
RESTORED = ((0.9, 0.1, 0.2), (0.9, 0.5, 0.5), (0.9, 0.3, 0.7), (0.9, 0.6, 0.65), (0.9, 0.1, 0.85))
"""Balanced accuracy without attack, under attack, and under attack with a defence."""
N_DRAWS_OF_BALANCED = 2000
"""Random signs of the sign-flip tests of balanced accuracies; the project uses 20,000."""
EQUAL_DETECTORS = tuple((rate, rate) for rate in (0.05, 0.2, 0.5, 0.8))
UNEQUAL_DETECTORS = ((0.5, 0.4), (0.8, 0.5), (0.95, 0.5), (0.99, 0.5), (0.99, 0.95))
"""Rate of the best detector and of the three others."""
AUROCS_OF_DETECTORS = ((0.7, 0.7), (0.9, 0.9), (0.9, 0.7), (0.98, 0.7), (0.995, 0.7), (0.995, 0.98), (1.0, 0.5))
"""AUROC of the best detector and of the three others."""
MAX_REPETITIONS_OF_DETECTORS = 1000
N_DETECTORS = 4
N_FEATURES = 8
SHIFTS = (0.0, 0.5, 1.0, 2.0)
"""Mean shift of the features by an attack along one direction, in standard deviations."""
MAX_REPETITIONS_OF_OVERLAP = 500
N_NEW_IMAGES = 3000
"""New images on which the true AUROC of a fitted classifier is measured; its standard error is below 1 point."""

COVERAGE_GOAL = (93.0, 97.0)
"""Per cent; for rates below 0.2 or above 0.8 there is no upper limit."""
TYPE_I_ERROR_GOAL = 6.0
"""Per cent."""

Row = dict[str, Any]
Cell = tuple[Row, Callable[[np.random.Generator, int], Row]]
"""Condition, and the function that simulates it with a number of repetitions."""


@dataclass(frozen=True)
class Table:
    """Cells of one table and its text."""

    cells: Callable[[], Iterator[Cell]]
    to_markdown: Callable[[pd.DataFrame], str]


def coverage_of(low: np.ndarray, high: np.ndarray, truth: float | np.ndarray) -> Row:
    """Coverage, misses on each side and mean width of intervals ``(R,)``, in per cent, and how many are undefined.

    The truth is one value, or the value of each data set.
    """
    defined = ~np.isnan(low)
    low, high, truth = low[defined], high[defined], np.broadcast_to(truth, low.shape)[defined]
    percentages = {
        "coverage": ((low <= truth) & (truth <= high)).mean() if defined.any() else np.nan,
        "interval_above": (low > truth).mean() if defined.any() else np.nan,
        "interval_below": (high < truth).mean() if defined.any() else np.nan,
        "too_few_groups": 1 - defined.mean(),
        "width": (high - low).mean() if defined.any() else np.nan,
    }
    return {name: round(100 * float(value), 2) for name, value in percentages.items()}


def rate_cell(
    rng: np.random.Generator,
    repetitions: int,
    n_groups: int,
    icc: float,
    rate: float,
    method: Callable[[np.ndarray, np.ndarray], Interval] = rate_intervals,
) -> Row:
    """Coverage of the interval of a rate."""
    sizes = draw_sizes(rng, (repetitions, n_groups))
    successes = draw_successes(rng, sizes, rate, icc)
    return coverage_of(*method(successes.astype(float), sizes), rate)


def patient_cell(rng: np.random.Generator, repetitions: int, n_groups: int, icc: float, rate: float) -> Row:
    """Coverage of the interval of a rate with the sizes of the COVID-CT data set."""
    sizes = draw_sizes(rng, (repetitions, n_groups), PATIENT_SIZES)
    return coverage_of(*rate_intervals(draw_successes(rng, sizes, rate, icc).astype(float), sizes), rate)


def informative_cell(rng: np.random.Generator, repetitions: int, n_groups: int, icc: float, rate: float) -> Row:
    """Coverage of the interval of a rate that is smaller in large groups: the rate of all images of the population."""
    sizes = draw_sizes(rng, (repetitions, n_groups))
    in_large = sum(size * n for size, n in SIZES.items() if size >= LARGE_GROUP) / sum(
        size * n for size, n in SIZES.items()
    )
    in_small_group = min(0.98, rate + 0.3)
    in_large_group = (rate - (1 - in_large) * in_small_group) / in_large
    rates = np.where(sizes >= LARGE_GROUP, in_large_group, in_small_group)
    return coverage_of(*rate_intervals(draw_successes(rng, sizes, rates, icc).astype(float), sizes), rate)


def single_cell(rng: np.random.Generator, repetitions: int, n_groups: int, icc: float, rate: float) -> Row:
    """Coverage of Wilson's interval, where every image is a group of its own."""
    sizes = np.ones((repetitions, n_groups), dtype=int)
    return coverage_of(*rate_intervals(draw_successes(rng, sizes, rate, icc).astype(float), sizes), rate)


def large_cell(rng: np.random.Generator, repetitions: int, n_large: int, n_single: int, icc: float, rate: float) -> Row:
    """Coverage with a few groups of 89 images among single images, without the limit on the number of groups."""
    sizes = np.tile([89] * n_large + [1] * n_single, (repetitions, 1))
    with patch.object(tasks.statistics.groups, "MIN_EFFECTIVE_GROUPS", 0):
        bounds = rate_intervals(draw_successes(rng, sizes, rate, icc).astype(float), sizes)
    effective = float(effective_groups(sizes[0]))
    return {"effective_groups": round(effective, 1), **coverage_of(*bounds, rate)}


def auroc_cell(rng: np.random.Generator, repetitions: int, n_groups: int, icc: float, auroc: float) -> Row:
    """Coverage of the interval of an AUROC; ``n_groups`` are those of each class."""
    bounds = np.empty((repetitions, 2))
    for repetition in range(repetitions):
        groups = np.repeat(np.arange(2 * n_groups), draw_sizes(rng, (2 * n_groups,)))
        positive = groups < n_groups
        jackknife = GroupJackknife(groups)
        values = auroc_without_blocks(draw_scores(rng, groups, positive, auroc, icc), positive, jackknife)
        bounds[repetition] = jackknife.interval(values, RATE, [positive, ~positive])
    return coverage_of(bounds[:, 0], bounds[:, 1], auroc)


def mean_cell(rng: np.random.Generator, repetitions: int, n_groups: int, icc: float, spread: float) -> Row:
    """Coverage of the interval of the mean of a positive value, such as a loss; its logarithm is normal."""
    bounds = []
    for _ in range(0, repetitions, CHUNK):
        sizes = draw_sizes(rng, (CHUNK, n_groups))
        group = np.repeat(np.arange(sizes.size), sizes.ravel())
        of_images = np.sqrt(icc) * rng.normal(size=sizes.size)[group] + np.sqrt(1 - icc) * rng.normal(size=len(group))
        sums = np.bincount(group, np.exp(spread * of_images), sizes.size).reshape(sizes.shape)
        deviations, mean = rate_deviations(sums, sizes), sums.sum(axis=1) / sizes.sum(axis=1)
        interval = np.array(jackknife_interval(mean, deviations.T, POSITIVE, n_groups))
        bounds.append(np.where(too_few_groups(sizes), np.nan, interval))
    low, high = np.concatenate(bounds, axis=1)
    return coverage_of(low, high, float(np.exp(spread**2 / 2)))


def pair_cell(
    rng: np.random.Generator, repetitions: int, n_groups: int, icc: float, first: float, second: float
) -> Row:
    """Coverage of the interval of a difference, rejections of the sign-flip test, and errors of non-inferiority."""
    sizes = draw_sizes(rng, (repetitions, n_groups))
    return _pair_row(*draw_pairs(rng, sizes, first, second, icc), sizes, first - second)


def asymmetric_cell(rng: np.random.Generator, repetitions: int, n_groups: int, icc: float) -> Row:
    """The same as :func:`pair_cell` for equal accuracies and an asymmetric difference."""
    sizes = draw_sizes(rng, (repetitions, n_groups))
    return _pair_row(*draw_asymmetric_pairs(rng, sizes), sizes, 0.0)


def balanced_cell(
    rng: np.random.Generator,
    repetitions: int,
    n_groups: int,
    icc: float,
    first: tuple[float, float],
    second: tuple[float, float],
) -> Row:
    """Coverage of a balanced accuracy and of a difference of two, and rejections; ``n_groups`` are those of a class."""
    sizes = [draw_sizes(rng, (repetitions, n_groups)) for _ in first]
    correct = [draw_successes(rng, *each, icc) for each in zip(sizes, first, strict=True)]
    pairs = [np.stack(draw_pairs(rng, *each, icc)) for each in zip(sizes, first, second, strict=True)]
    low, high = difference_intervals(_by_class(pairs, sizes))
    # every class has half of the weight
    n_images = sum(of_class.sum(axis=1, keepdims=True) for of_class in sizes)
    weights = [n_images / 2 / of_class.sum(axis=1, keepdims=True) for of_class in sizes]
    differences = [(gains - losses) * weight for (gains, losses), weight in zip(pairs, weights, strict=True)]
    p_values = random_sign_p_values(np.concatenate(differences, axis=1), N_DRAWS_OF_BALANCED)
    row = coverage_of(low, high, float(np.mean(first) - np.mean(second)))
    of_accuracy = coverage_of(*balanced_intervals(_by_class(correct, sizes)), float(np.mean(first)))
    return {
        "coverage_of_accuracy": of_accuracy["coverage"],
        "coverage_of_difference": row["coverage"],
        "too_few_groups": row["too_few_groups"],
        "rejected": round(100 * float((p_values < 0.05).mean()), 2),
        "interval_above": row["interval_above"],
    }


def ratio_cell(
    rng: np.random.Generator,
    repetitions: int,
    n_groups: int,
    icc: float,
    clean: float,
    attacked: float,
    defended: float,
) -> Row:
    """Coverage of the restored fraction of a lost balanced accuracy; ``n_groups`` are those of a class.

    The recalls of the two classes are 5 points above and below the given ones. Images that are correct under attack are
    correct without it.
    """
    sizes, parts = [draw_sizes(rng, (repetitions, n_groups)) for _ in range(2)], []
    for of_class, shift in zip(sizes, (-0.05, 0.05), strict=True):
        restored = draw_restored(rng, of_class, clean + shift, attacked + shift, defended + shift, icc)
        # no image is correct with the defence alone
        parts.append(np.stack([*restored, np.zeros_like(of_class)]))
    _, low, high = ratio_estimates(_by_class(parts, sizes))
    return coverage_of(low, high, (defended - attacked) / (clean - attacked))


def _by_class(sums: Sequence[np.ndarray], sizes: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sums ``(..., R, G)`` and sizes ``(R, G)`` of classes without common groups, with a place for all groups."""
    n_classes, by_class = len(sizes), []
    for number, of_both in enumerate(zip(sums, sizes, strict=True)):
        parts = [[np.zeros_like(each)] * n_classes for each in of_both]
        for part, each in zip(parts, of_both, strict=True):
            part[number] = each
        of_sums, of_sizes = (np.concatenate(part, axis=-1).astype(np.float64) for part in parts)
        by_class.append((of_sums, of_sizes))
    return by_class


def power_cell(rng: np.random.Generator, repetitions: int, n_groups: int, icc: float, accuracy: float) -> Row:
    """Power of the sign-flip test for the smallest detectable difference that half of the null data sets report."""
    sizes = draw_sizes(rng, (repetitions, n_groups))
    gains, losses = draw_pairs(rng, sizes, accuracy, accuracy, icc)
    difference = float(np.nanmedian(detectable_differences((gains - losses).astype(float), sizes)))
    first = min(accuracy + difference / 2, 1 - 1e-9)
    gains, losses = draw_pairs(rng, sizes, first, first - difference, icc)
    return {"difference": round(100 * difference, 2), "rejected": _rejected(gains - losses)}


def best_detector_cell(
    rng: np.random.Generator, repetitions: int, n_groups: int, icc: float, rate: float, others: float | None = None
) -> Row:
    """Coverage of the detection rate of the best of four detectors, chosen on other folds and on the same images.

    The detectors are independent, which is the worst case for the choice. ``others`` is the rate of the other three, by
    default the same. The bias is in points.
    """
    repetitions = min(repetitions, MAX_REPETITIONS_OF_DETECTORS)
    bounds, values = np.empty((2, 2, repetitions)), np.empty((2, repetitions))
    rates_of_detectors = np.array([[rate]] + [[rate if others is None else others]] * (N_DETECTORS - 1))
    for repetition in range(repetitions):
        sizes = np.tile(draw_sizes(rng, (n_groups,)), (N_DETECTORS, 1))
        flagged = draw_successes(rng, sizes, rates_of_detectors, icc).astype(float)
        folds = group_folds(np.zeros(n_groups, dtype=int), np.arange(n_groups), repetition)
        in_fold = folds == np.arange(folds.max() + 1)[:, None]
        # all groups, then without each of them
        counts = 1 - np.eye(n_groups + 1, n_groups, -1)
        parts = [
            np.einsum("rg,dg,fg->rdf", counts, of_groups, in_fold, optimize=True) for of_groups in (flagged, sizes)
        ]
        rates = rate_of_chosen(*parts, choose_on_other_folds(*parts))
        bounds[0, :, repetition] = np.ravel(jackknife_interval(rates[:1], rates[1:, None] - rates[0], RATE, n_groups))
        bounds[0, :, repetition] = np.where(too_few_groups(sizes[0]), np.nan, bounds[0, :, repetition])
        best = flagged[[flagged.sum(axis=1).argmax()]]
        bounds[1, :, repetition] = np.ravel(rate_intervals(best, sizes[:1].astype(float)))
        values[:, repetition] = rates[0], best.sum() / sizes[0].sum()
    bias = 100 * (values.mean(axis=1) - rate)
    return coverage_of(*bounds[0], rate) | {
        "coverage_same_images": coverage_of(*bounds[1], rate)["coverage"],
        "bias": round(float(bias[0]), 2),
        "bias_same_images": round(float(bias[1]), 2),
    }


def detector_auroc_cell(
    rng: np.random.Generator, repetitions: int, n_groups: int, icc: float, auroc: float, others: float
) -> Row:
    """Coverage of the AUROC of the best of four independent detectors; ``others`` is the AUROC of the other three.

    The groups have the sizes of the COVID-CT data set.
    """
    repetitions = min(repetitions, MAX_REPETITIONS_OF_DETECTORS)
    bounds, values = np.empty((2, repetitions)), np.empty(repetitions)
    # a large shift in place of that of a perfect detector, which is infinite
    shift = np.minimum(np.sqrt(2) * ndtri([[auroc]] + [[others]] * (N_DETECTORS - 1)), 20.0)
    for repetition in range(repetitions):
        groups = np.repeat(np.arange(n_groups), draw_sizes(rng, (n_groups,), PATIENT_SIZES))
        of_groups = rng.normal(size=(2, N_DETECTORS, n_groups))[:, :, groups]
        noise = np.sqrt(icc) * of_groups + np.sqrt(1 - icc) * rng.normal(size=of_groups.shape)
        folds = group_folds(np.zeros(len(groups), dtype=int), groups, repetition)
        in_fold, jackknife = folds == np.arange(folds.max() + 1)[:, None], GroupJackknife(groups)
        success = np.ones(noise.shape[1:], dtype=bool)
        found = best_auroc(noise[0], noise[1] + shift, success, in_fold, jackknife, with_low_scores=True)
        bounds[:, repetition] = np.ravel(jackknife.interval(found, RATE))
        values[repetition] = found[0]
    return coverage_of(*bounds, auroc) | {"bias": round(100 * (float(values.mean()) - auroc), 2)}


def overlap_cell(rng: np.random.Generator, repetitions: int, n_groups: int, icc: float, shift: float) -> Row:
    """Coverage of the AUROCs of the linear probe and of k-NN that classify features as clean or adversarial.

    The groups have the sizes of the COVID-CT data set. Features are normal with a normal effect of the group. An attack
    shifts them along one direction and adds normal noise with an effect of the group. The truth of a data set is the
    AUROC of its fitted classifiers on about ``N_NEW_IMAGES`` images of new groups.
    """
    repetitions = min(repetitions, MAX_REPETITIONS_OF_OVERLAP)
    found = {name: np.empty((4, repetitions)) for name in ("linear_probe", "knn")}
    for repetition in range(repetitions):
        groups = np.repeat(np.arange(n_groups), draw_sizes(rng, (n_groups,), PATIENT_SIZES))
        features, n = draw_features(rng, groups, icc, shift), len(groups)
        labels, clean, adversarial = np.zeros(n, dtype=int), features[:n], features[n:]
        new = [draw_features(rng, np.arange(n), icc, shift) for _ in range(-(-N_NEW_IMAGES // n))]
        estimates = overlap(clean, adversarial, labels, groups, repetition)
        folds, centre = group_folds(labels, groups, repetition), features.mean(axis=0)
        centred, of_new = features - centre, [each - centre for each in new]
        intercept = np.square(centred).sum(axis=1).mean()
        scores = {
            "linear_probe": probe(
                centred @ centred.T + intercept,
                np.repeat([-1.0, 1.0], n)[:, None],
                np.tile(folds, 2),
                [each @ centred.T + intercept for each in of_new],
            ),
            "knn": count_neighbours(
                cdist(features, features, "sqeuclidean"),
                np.tile(folds, 2),
                repetition,
                [cdist(each, features, "sqeuclidean") for each in new],
            ),
        }
        for name, values in found.items():
            values[:, repetition] = *estimates[f"{name}_auroc"][:3], auroc_in_folds(np.hstack(scores[name]), folds)
    row: Row = {}
    for name, (values, low, high, truth) in found.items():
        measured = {"auroc": round(float(np.nanmean(values)), 3)} | coverage_of(low, high, truth)
        row |= measured if not row else {f"{name}_{key}": measured[key] for key in ("auroc", "coverage", "width")}
    return row


def draw_features(rng: np.random.Generator, groups: np.ndarray, icc: float, shift: float) -> np.ndarray:
    """Clean features, then their adversarial versions, float64 ``(2N, N_FEATURES)``."""
    of_groups = rng.normal(size=(2, groups.max() + 1, N_FEATURES))[:, groups]
    clean, noise = np.sqrt(icc) * of_groups + np.sqrt(1 - icc) * rng.normal(size=of_groups.shape)
    return np.concatenate([clean, clean + 0.5 * noise + shift * np.eye(N_FEATURES)[0]])


def auroc_in_folds(scores: np.ndarray, folds: np.ndarray) -> float:
    """AUROC of the fit of each fold, and their mean with the number of pairs of the fold as weight.

    Args:
        scores: of new images, clean first, ``(2N, K)``; row i is scored by the fit without the fold of image i.
        folds: int ``(N,)``.
    """
    clean, adversarial = scores[: len(folds)], scores[len(folds) :]
    aurocs, n_pairs = [], []
    for fold in np.unique(folds):
        low, high = clean[folds == fold].ravel(), adversarial[folds == fold].ravel()
        aurocs.append(mannwhitneyu(high, low).statistic / (len(low) * len(high)))
        n_images = int((folds == fold).sum())
        n_pairs.append(n_images * (n_images - 1))
    return float(np.average(aurocs, weights=n_pairs))


def _pair_row(gains: np.ndarray, losses: np.ndarray, sizes: np.ndarray, difference: float) -> Row:
    low, high = paired_intervals(gains.astype(float), losses.astype(float), sizes)
    row = coverage_of(low, high, difference)
    with_zero = (low > 0) | (high < 0)
    return row | {"rejected": _rejected(gains - losses), "zero_excluded": round(100 * float(with_zero.mean()), 2)}


def _rejected(differences: np.ndarray) -> float:
    """Per cent of the data sets with a p-value below 0.05."""
    return round(100 * float(np.mean([sign_flip_p_value(row) < 0.05 for row in differences])), 2)


def rate_cells() -> Iterator[Cell]:
    """All numbers of groups, correlations and rates."""
    for n_groups in N_GROUPS:
        for icc in ICCS:
            for rate in RATES:
                yield _cell(rate_cell, n_groups=n_groups, icc=icc, rate=rate)


def other_cells() -> Iterator[Cell]:
    """Rates under conditions that differ from those of the main table."""
    conditions = {
        "sizes of COVID-CT": (patient_cell, ICCS),
        "rate depends on size": (informative_cell, (0.0, 0.3)),
        "single images": (single_cell, (0.0,)),
    }
    for name, (function, iccs) in conditions.items():
        for n_groups in (12, 25, 50, 100):
            for icc in iccs:
                for rate in (0.5, 0.8, 0.95) if function is informative_cell else (0.05, 0.5, 0.8, 0.95):
                    condition, simulate = _cell(function, n_groups=n_groups, icc=icc, rate=rate)
                    yield {"condition": name, **condition}, simulate


def best_detector_cells() -> Iterator[Cell]:
    """Numbers of groups, correlations and detection rates of equal and of unequal detectors."""
    for rates in (EQUAL_DETECTORS, UNEQUAL_DETECTORS):
        for n_groups in (12, 40):
            for icc in ICCS:
                for rate, others in rates:
                    yield _cell(best_detector_cell, n_groups=n_groups, icc=icc, rate=rate, others=others)


def detector_auroc_cells() -> Iterator[Cell]:
    """Numbers of groups, correlations and AUROCs of detectors."""
    for n_groups in (25, 50, 100):
        for icc in ICCS:
            for auroc, others in AUROCS_OF_DETECTORS:
                yield _cell(detector_auroc_cell, n_groups=n_groups, icc=icc, auroc=auroc, others=others)


def overlap_cells() -> Iterator[Cell]:
    """Numbers of groups, correlations and shifts of features."""
    for n_groups in (12, 25, 50):
        for icc in ICCS:
            for shift in SHIFTS:
                yield _cell(overlap_cell, n_groups=n_groups, icc=icc, shift=shift)


def large_cells() -> Iterator[Cell]:
    """Numbers of large groups and of single images, correlations and rates."""
    for n_large in (2, 3, 4, 5, 6, 8):
        for n_single in (10, 40):
            for icc in (0.3, 0.6):
                for rate in (0.05, 0.2, 0.5):
                    yield _cell(large_cell, n_large=n_large, n_single=n_single, icc=icc, rate=rate)


def auroc_cells() -> Iterator[Cell]:
    """All numbers of groups of a class, correlations and AUROCs."""
    for aurocs in (AUROCS, HIGH_AUROCS):
        for n_groups in N_GROUPS_OF_CLASS:
            for icc in ICCS:
                for auroc in aurocs:
                    yield _cell(auroc_cell, n_groups=n_groups, icc=icc, auroc=auroc)


def mean_cells() -> Iterator[Cell]:
    """All numbers of groups, correlations and spreads."""
    for n_groups in N_GROUPS:
        for icc in ICCS:
            for spread in SPREADS:
                yield _cell(mean_cell, n_groups=n_groups, icc=icc, spread=spread)


def pair_cells() -> Iterator[Cell]:
    """All numbers of groups, correlations and pairs of accuracies."""
    for n_groups in N_GROUPS:
        for icc in ICCS:
            for first, second in PAIRS:
                yield _cell(pair_cell, n_groups=n_groups, icc=icc, first=first, second=second)


def balanced_cells() -> Iterator[Cell]:
    """All numbers of groups of a class, correlations and pairs of recalls."""
    for n_groups in N_GROUPS_OF_CLASS:
        for icc in ICCS:
            for first, second in RECALLS:
                condition, function = _cell(balanced_cell, n_groups=n_groups, icc=icc, first=first, second=second)
                recalls = {
                    name: f"{value[0]:g}, {value[1]:g}" for name, value in (("first", first), ("second", second))
                }
                yield {**condition, **recalls}, function


def ratio_cells() -> Iterator[Cell]:
    """All numbers of groups of a class, correlations and accuracies."""
    for n_groups in N_GROUPS_OF_CLASS:
        for icc in ICCS:
            for clean, attacked, defended in RESTORED:
                condition = {"n_groups": n_groups, "icc": icc}
                accuracies = {"clean": clean, "attacked": attacked, "defended": defended}
                yield _cell(ratio_cell, **condition, **accuracies)


def asymmetric_cells() -> Iterator[Cell]:
    """All numbers of groups."""
    for n_groups in N_GROUPS:
        yield _cell(asymmetric_cell, n_groups=n_groups, icc=0.0)


def power_cells() -> Iterator[Cell]:
    """Two accuracies, and all numbers of groups with two correlations."""
    for accuracy in POWER_ACCURACIES:
        for n_groups in N_GROUPS:
            for icc in (0.0, 0.3):
                yield _cell(power_cell, n_groups=n_groups, icc=icc, accuracy=accuracy)


def method_cells() -> Iterator[Cell]:
    """Methods for the interval of a rate, on the same data sets."""

    def compare(method: Callable[[np.ndarray, np.ndarray], Interval], **condition: Any) -> Cell:
        def simulate(rng: np.random.Generator, repetitions: int) -> Row:
            # the data sets do not depend on the method
            same = np.random.default_rng([round(1000 * value) for value in condition.values()])
            return rate_cell(same, min(repetitions, MAX_REPETITIONS_OF_METHODS), **condition, method=method)

        return condition, simulate

    for n_groups in (12, 25, 50, 100, 200):
        for icc in ICCS:
            for rate in COMPARED_RATES:
                for name, method in METHODS.items():
                    condition, simulate = compare(method, n_groups=n_groups, icc=icc, rate=rate)
                    yield {"method": name, **condition}, simulate


def _cell(function: Callable[..., Row], **condition: Any) -> Cell:
    return condition, lambda rng, repetitions: function(rng, repetitions, **condition)


def simulate(cells: Iterator[Cell], repetitions: int, report: Callable[[], None] = lambda: None) -> pd.DataFrame:
    """Simulate cells: one row for each, with its condition and its results."""
    rows = []
    for number, (condition, function) in enumerate(cells):
        rows.append({**condition, **function(np.random.default_rng([number, 1]), repetitions)})
        report()
    return pd.DataFrame(rows)


def misses_goal(row: Any) -> bool:
    """Return whether the coverage of a row is outside the goal; near 0 and 1 it may be larger."""
    truth = row.get("rate", row.get("auroc", 0.5))
    low, high, coverage = *COVERAGE_GOAL, round(row["coverage"], 1)
    return bool(coverage < low or (coverage > high and 0.2 <= truth <= 0.8))


def pivot_text(results: pd.DataFrame, index: Sequence[str], column: str) -> str:
    """Coverage with rows by index and columns by one variable; bold outside the goal, with the share of NaN."""
    head = [*map(_heading, index), *map(_text, results[column].unique())]
    rows = []
    for names, group in results.groupby(list(index), sort=False):
        texts = {}
        for _, row in group.iterrows():
            text = f"{row['coverage']:.1f}"
            text = f"**{text}**" if misses_goal(row) else text
            texts[row[column]] = text + (f" ({row['too_few_groups']:.0f})" if row["too_few_groups"] >= 0.5 else "")
        rows.append([*map(_text, names), *(texts.get(value, "") for value in results[column].unique())])
    return f"{markdown(head, rows)}\n\n{summary(results)}"


def pairs_text(results: pd.DataFrame) -> str:
    """Coverage of the interval of a difference, and rejections of the sign-flip test, by pair of accuracies."""
    results = results.assign(pair=[f"{row.first:g}, {row.second:g}" for row in results.itertuples()])
    is_null = results["first"] == results["second"]
    coverage = [f"**{value:.1f}**" if value < COVERAGE_GOAL[0] else f"{value:.1f}" for value in results["coverage"]]
    rejected = [
        f"**{value:.1f}**" if null and value > TYPE_I_ERROR_GOAL else f"{value:.1f}"
        for value, null in zip(results["rejected"], is_null, strict=True)
    ]
    few = [f" ({value:.0f})" if value >= 0.5 else "" for value in results["too_few_groups"]]
    results = results.assign(coverage_text=np.char.add(coverage, few), rejected_text=rejected)
    tables = []
    for column in ("coverage_text", "rejected_text"):
        table = results.pivot(index=["n_groups", "icc"], columns="pair", values=column)[results["pair"].unique()]
        rows = [[*map(_text, names), *row] for names, row in zip(table.index, table.to_numpy(), strict=True)]
        tables.append(markdown(["groups", "icc", *map(str, table.columns)], rows))
    n_below = int((results["coverage"] < COVERAGE_GOAL[0]).sum())
    lowest, largest = results["coverage"].min(), results["rejected"][is_null].max()
    sentences = [
        f"Coverage is below 93 % in {n_below} of {len(results)} cells (lowest {lowest:.1f} %).",
        f"The largest type-I error of the sign-flip test is {largest:.1f} %.",
        "If the first classifier is worse by exactly the margin of non-inferiority, it passes in at most "
        f"{results['interval_above'].max():.1f} % of the data sets (nominal: 2.5 %).",
    ]
    return (
        f"Coverage of the interval of the difference:\n\n{tables[0]}\n\n"
        "Data sets with p < 0.05 in the sign-flip test (type-I error for equal accuracies, otherwise power):\n\n"
        f"{tables[1]}\n\n{' '.join(sentences)}"
    )


def frame_text(results: pd.DataFrame) -> str:
    """All columns of the results."""
    head = [_heading(name) for name in results.columns]
    return markdown(head, [[_text(value) for value in row] for row in results.itertuples(index=False)])


def balanced_text(results: pd.DataFrame) -> str:
    """All columns, and the cells that miss a goal."""
    is_null = [_mean(row.first) == _mean(row.second) for row in results.itertuples()]
    sentences = [
        f"Coverage of the {name} is {results[column].min():.1f} to {results[column].max():.1f} %."
        for name, column in (("accuracy", "coverage_of_accuracy"), ("difference", "coverage_of_difference"))
    ]
    largest = f"The largest type-I error of the sign-flip test is {results['rejected'][is_null].max():.1f} %."
    return f"{frame_text(results)}\n\n{' '.join([*sentences, largest])}"


def ratio_text(results: pd.DataFrame) -> str:
    """Coverage of the restored fraction, by accuracies."""
    columns = ["clean", "attacked", "defended"]
    return pivot_text(
        results.assign(accuracies=[", ".join(f"{value:g}" for value in row) for row in results[columns].to_numpy()]),
        ["n_groups", "icc"],
        "accuracies",
    )


def methods_text(results: pd.DataFrame) -> str:
    """Coverage of every method, in the same cells."""
    table = results.pivot_table(index=["n_groups", "icc", "rate"], columns="method", values="coverage", sort=False)
    head = ["groups", "icc", "rate", *map(str, table.columns)]
    cells = zip(table.index, table.to_numpy(), strict=True)
    rows = [[*map(_text, names), *(f"{value:.1f}" for value in row)] for names, row in cells]
    lowest = ["lowest", "", "", *(f"{value:.1f}" for value in table.min())]
    return markdown(head, [*rows, lowest])


def detectors_text(results: pd.DataFrame) -> str:
    """Coverage and bias of the rate of the best of equal detectors."""
    columns = ["n_groups", "icc", "rate", "others", "coverage", "coverage_same_images", "bias", "bias_same_images"]
    rows = [[_text(value) for value in row] for row in results[columns].to_numpy()]
    return f"{markdown([_heading(column) for column in columns], rows)}\n\n{summary(results)}"


def summary(results: pd.DataFrame) -> str:
    """Sentence about the cells that miss the goal."""
    missed = results.apply(misses_goal, axis=1)
    below = results["coverage"] < COVERAGE_GOAL[0]
    return (
        f"{int((~missed).sum())} of {len(results)} cells meet the goal; {int(below.sum())} are below 93 % (lowest "
        f"{results['coverage'].min():.1f} %), {int((missed & ~below).sum())} are above 97 % (highest "
        f"{results['coverage'][missed & ~below].max() if (missed & ~below).any() else 97:.1f} %)."
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Table in Markdown."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mean(recalls: str) -> float:
    return round(float(np.mean([float(recall) for recall in recalls.split(", ")])), 6)


def _heading(column: str) -> str:
    return column.removeprefix("n_").replace("_", " ")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


TABLES = {
    "methods": Table(method_cells, methods_text),
    "rates": Table(rate_cells, lambda results: pivot_text(results, ["n_groups", "icc"], "rate")),
    "other": Table(other_cells, lambda results: pivot_text(results, ["condition", "n_groups", "icc"], "rate")),
    "large": Table(
        large_cells, lambda results: pivot_text(results, ["n_large", "n_single", "effective_groups", "icc"], "rate")
    ),
    "auroc": Table(auroc_cells, lambda results: pivot_text(results, ["n_groups", "icc"], "auroc")),
    "means": Table(mean_cells, lambda results: pivot_text(results, ["n_groups", "icc"], "spread")),
    "pairs": Table(pair_cells, pairs_text),
    "balanced": Table(balanced_cells, balanced_text),
    "ratio": Table(ratio_cells, ratio_text),
    "asymmetric": Table(asymmetric_cells, frame_text),
    "power": Table(power_cells, frame_text),
    "detectors": Table(best_detector_cells, detectors_text),
    "detector_auroc": Table(detector_auroc_cells, lambda results: f"{frame_text(results)}\n\n{summary(results)}"),
    "overlap": Table(overlap_cells, lambda results: f"{frame_text(results)}\n\n{summary(results)}"),
}


def write_between_markers(document: Path, name: str, text: str) -> None:
    """Replace the text between ``<!-- simulation: NAME -->`` and ``<!-- end simulation -->``.

    Raises:
        ValueError: the document does not have the markers.
    """
    old = document.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- simulation: {name} -->\n).*?(<!-- end simulation -->)", re.DOTALL)
    if not pattern.search(old):
        raise ValueError(f"{document}: no marker for {name}. Add '<!-- simulation: {name} -->' and the end marker")
    document.write_text(pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", old), encoding="utf-8")


class Progress:
    """Prints the finished cells and an estimate of the remaining time."""

    def __init__(self, n_cells: int) -> None:
        self._n_cells, self._n_done, self._start, self._last = n_cells, 0, time.monotonic(), 0.0

    def __call__(self) -> None:
        self._n_done += 1
        elapsed = time.monotonic() - self._start
        if elapsed - self._last >= 10 or self._n_done == self._n_cells:
            self._last = elapsed
            left = elapsed / self._n_done * (self._n_cells - self._n_done)
            print(f"  {self._n_done} of {self._n_cells} cells, {elapsed:.0f} s, about {left:.0f} s left", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5000, help="data sets of each cell (default 5000)")
    parser.add_argument("--only", default=",".join(TABLES), help=f"tables to simulate: {', '.join(TABLES)}")
    parser.add_argument("--output", type=Path, default=EVIDENCE, help="folder of statistics.md and statistics/")
    options = parser.parse_args(arguments)
    if unknown := set(options.only.split(",")) - set(TABLES):
        sys.exit(f"--only: {', '.join(sorted(unknown))}. Allowed are {', '.join(TABLES)}. Correct the names")
    (options.output / "statistics").mkdir(exist_ok=True)
    for name in options.only.split(","):
        print(f"{name}: (processor time so far: {time.process_time():.0f} s)", flush=True)
        cells = list(TABLES[name].cells())
        results = simulate(iter(cells), options.repetitions, Progress(len(cells)))
        results.to_csv(options.output / "statistics" / f"{name}.csv", index=False)
        write_between_markers(options.output / "statistics.md", name, TABLES[name].to_markdown(results))
    print(f"processor time: {time.process_time():.0f} s")


if __name__ == "__main__":
    main()
