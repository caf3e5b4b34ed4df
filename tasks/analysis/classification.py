"""Classification metrics at every point of the records, with bootstrap intervals over the images.

All tables cover the attacked images only, also for the clean rows, so that a curve compares the same images.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from tasks.analysis.tables import Point, with_point
from tasks.records.vocabulary import CLEAN, CURVE
from tasks.statistics.calibration import brier_scores, expected_calibration_error, reliability_curve
from tasks.statistics.intervals import (
    Statistic,
    bootstrap,
    proportion_estimate,
    resampled_auroc,
    resampled_mean,
    resampled_ratio,
)


def classification_table(records: pd.DataFrame, positive: int, counts: np.ndarray) -> pd.DataFrame:
    """Metrics at every point, in the order of the records: target, threat_model, attack, eps, metric, value, low, high.

    Metrics: ``accuracy``; ``loss`` (cross-entropy, nats); ``precision``, ``recall``, ``f1`` of the positive class, 0 if
    the denominator is 0; ``top1_error``; ``auroc`` of the positive class, or the mean of one versus rest for more than
    two classes, NaN if a class is missing; ``ece`` and ``brier``, see :mod:`tasks.statistics.calibration`;
    ``mean_entropy`` (nats). ``low`` and ``high`` are the 95 % percentile interval; for accuracy and error, it is at
    least as wide as the Wilson interval. All points share the resamples.

    Args:
        records: of the attack steps.
        positive: label of the positive class.
        counts: how often each attacked image, in ascending order, is drawn in each resample, ``(R, N)``.

    Raises:
        ValueError: the points of the records have different images.
    """
    rows = []
    for point, group in _points(records):
        correct = group["correct"].to_numpy()
        shares = {"accuracy": correct, "top1_error": ~correct}
        rows += [
            {**point, "metric": name, **proportion_estimate(hits, counts)._asdict()} for name, hits in shares.items()
        ]
        for metric, statistic in _statistics(group, positive).items():
            rows.append({**point, "metric": metric, **bootstrap(statistic, counts)._asdict()})
    return pd.DataFrame(rows)


def reliability_table(records: pd.DataFrame) -> pd.DataFrame:
    """Reliability curve of every point: target, threat_model, attack, eps, and the columns of ``reliability_curve``.

    Args:
        records: of the attack steps.

    Raises:
        ValueError: the points of the records have different images.
    """
    parts = []
    for point, group in _points(records):
        confidence = np.exp(_log_probabilities(group)).max(axis=1)
        parts.append(with_point(point, reliability_curve(confidence, group["correct"].to_numpy())))
    return pd.concat(parts, ignore_index=True)


def entropy_table(records: pd.DataFrame, n_bins: int = 20) -> pd.DataFrame:
    """Histograms of the entropy of correct and of wrong predictions at every point.

    Columns: target, threat_model, attack, eps, ``entropy_low`` and ``entropy_high`` (edges of a bin in nats),
    ``n_correct``, ``n_wrong``. The bins have equal widths over [0, ln K].

    Args:
        records: of the attack steps.
        n_bins: number of bins of a histogram.

    Raises:
        ValueError: the points of the records have different images.
    """
    parts = []
    for point, group in _points(records):
        edges = np.linspace(0, np.log(len(group["logits"].iloc[0])), n_bins + 1)
        # the entropy of a uniform softmax can exceed ln K by a rounding error
        entropy, correct = group["entropy"].clip(upper=edges[-1]).to_numpy(), group["correct"].to_numpy()
        columns = {
            "entropy_low": edges[:-1],
            "entropy_high": edges[1:],
            "n_correct": np.histogram(entropy[correct], edges)[0],
            "n_wrong": np.histogram(entropy[~correct], edges)[0],
        }
        parts.append(with_point(point, pd.DataFrame(columns)))
    return pd.concat(parts, ignore_index=True)


def robustness_area(records: pd.DataFrame, counts: np.ndarray) -> pd.DataFrame:
    """Area under accuracy over log2(eps), divided by its width: target, threat_model, attack, value, low, high.

    The trapezoidal rule from the smallest to the largest eps of the records gives the mean accuracy over the octaves of
    the grid, in [0, 1]. Clean rows are left out. With a single eps it is the accuracy at this eps. ``low`` and ``high``
    are the 95 % percentile interval; all curves share the resamples.

    Args:
        records: of the attack steps.
        counts: how often each attacked image, in ascending order, is drawn in each resample, ``(R, N)``.

    Raises:
        ValueError: the points of the records have different images.
    """
    curves: dict[tuple[str, ...], dict[float, np.ndarray]] = defaultdict(dict)
    for point, group in _points(records):
        if point["attack"] != CLEAN:
            curves[tuple(point[name] for name in CURVE)][point["eps"]] = group["correct"].to_numpy()
    rows = []
    for curve, correct_at in curves.items():
        grid = sorted(correct_at)
        correct = np.column_stack([correct_at[eps] for eps in grid])
        area = bootstrap(partial(resampled_mean, correct @ _trapezoid_weights(np.log2(grid))), counts)
        rows.append({**dict(zip(CURVE, curve, strict=True)), **area._asdict()})
    return pd.DataFrame(rows)


def _points(records: pd.DataFrame) -> Iterator[tuple[Point, pd.DataFrame]]:
    """Every point in the order of the records, and its records of the attacked images in ascending order."""
    attacked = np.unique(records.loc[records["attack"] != CLEAN, "image"])
    names = [*CURVE, "eps"]
    for values, group in records[records["image"].isin(attacked)].groupby(names, sort=False):
        point = dict(zip(names, values, strict=True))
        ordered = group.sort_values("image")
        if not np.array_equal(ordered["image"], attacked):
            raise ValueError(
                f"the number of records of {'/'.join(map(str, values))} is {len(group)}, but {len(attacked)} images "
                "were attacked. Every point must have one record for each attacked image. Run the step attack again"
            )
        yield point, ordered


def _log_probabilities(group: pd.DataFrame) -> np.ndarray:
    values: np.ndarray = log_softmax(np.stack(group["logits"].to_list()).astype(np.float64), axis=1)
    return values


def _statistics(group: pd.DataFrame, positive: int) -> dict[str, Statistic]:
    """The metrics with bootstrap intervals, as functions of the counts."""
    log_probabilities = _log_probabilities(group)
    probabilities = np.exp(log_probabilities)
    labels, correct = group["label"].to_numpy(), group["correct"].to_numpy()
    actual, predicted = labels == positive, group["prediction"].to_numpy() == positive
    hits = actual & predicted
    confidence = probabilities.max(axis=1)
    return {
        "loss": partial(resampled_mean, -log_probabilities[np.arange(len(labels)), labels]),
        "precision": partial(resampled_ratio, hits, predicted, zero_division=0),
        "recall": partial(resampled_ratio, hits, actual, zero_division=0),
        "f1": partial(resampled_ratio, 2 * hits, actual.astype(int) + predicted, zero_division=0),
        "auroc": partial(_auroc, log_probabilities, labels, positive),
        "ece": partial(expected_calibration_error, confidence, correct),
        "brier": partial(resampled_mean, brier_scores(probabilities, labels)),
        "mean_entropy": partial(resampled_mean, group["entropy"].to_numpy()),
    }


def _auroc(log_probabilities: np.ndarray, labels: np.ndarray, positive: int, counts: np.ndarray) -> np.ndarray:
    n_classes = log_probabilities.shape[1]
    if n_classes == 2:
        # the logit margin has no ties where the softmax saturates
        margins = log_probabilities[:, positive] - log_probabilities[:, 1 - positive]
        return resampled_auroc(margins, labels == positive, counts)
    areas = [resampled_auroc(log_probabilities[:, k], labels == k, counts) for k in range(n_classes)]
    mean: np.ndarray = np.mean(areas, axis=0)
    return mean


def _trapezoid_weights(x: np.ndarray) -> np.ndarray:
    """Weights ``(E,)`` of the values at ascending ``x`` that give their mean over the range of x."""
    if len(x) == 1:
        return np.ones(1)
    steps = np.diff(x)
    weights: np.ndarray = (np.append(steps, 0) + np.append(0, steps)) / (2 * steps.sum())
    return weights
