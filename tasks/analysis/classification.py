"""Classification metrics at every point of the records, with 95 % intervals by group.

All tables cover the attacked images only, also for the clean rows, so that a curve compares the same images. The
surrogate of transfer attacks is the undefended classifier, as in the study.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from tasks.analysis.tables import Point, with_point
from tasks.records.vocabulary import CLEAN
from tasks.statistics.auroc import auroc_without_blocks
from tasks.statistics.balanced import balanced_accuracies
from tasks.statistics.calibration import brier_scores, expected_calibration_error, reliability_curve
from tasks.statistics.groups import GroupJackknife
from tasks.statistics.intervals import POSITIVE, RATE, Estimate
from tasks.statistics.rates import rate_estimate, rate_estimates
from tasks.statistics.resampled import resampled_mean

CURVE = ["target", "threat_model", "attack"]
"""Columns that identify a curve here: the records have no surrogate but the undefended classifier."""
N_ENTROPY_BINS = 20
"""Bins of a histogram of the entropy."""


def classification_table(records: pd.DataFrame, positive: int, jackknife: GroupJackknife) -> pd.DataFrame:
    """Metrics at every point, in the order of the records: target, threat_model, attack, eps, metric, value, low, high.

    Metrics: ``accuracy``; ``balanced_accuracy``, the mean of the recalls of all classes; ``loss`` (cross-entropy, in
    nats); ``precision``, ``recall``, ``f1`` of the positive class, 0 if the denominator is 0; ``top1_error``; ``auroc``
    of the positive class, or the mean of one versus rest for more than two classes, NaN if a class is missing; ``ece``
    and ``brier``, see :mod:`tasks.statistics.calibration`; ``mean_entropy`` (nats). ``low`` and ``high`` are the 95 %
    interval by group; NaN if there are too few groups.

    Args:
        records: of the attack steps.
        positive: label of the positive class.
        jackknife: of the attacked images, in ascending order.

    Raises:
        ValueError: the points of the records have different images.
    """
    rows = []
    for point, group in _points(records):
        estimates = _estimates(group, positive, jackknife)
        rows += [{**point, "metric": metric, **estimate._asdict()} for metric, estimate in estimates.items()]
    return pd.DataFrame(rows)


def reliability_table(records: pd.DataFrame, jackknife: GroupJackknife) -> pd.DataFrame:
    """Reliability curve of every point: target, threat_model, attack, eps, and the columns of ``reliability_curve``.

    Args:
        records: of the attack steps.
        jackknife: of the attacked images, in ascending order.

    Raises:
        ValueError: the points of the records have different images.
    """
    parts = []
    for point, group in _points(records):
        confidence = np.exp(_log_probabilities(group)).max(axis=1)
        parts.append(with_point(point, reliability_curve(confidence, group["correct"].to_numpy(), jackknife.groups)))
    return pd.concat(parts, ignore_index=True)


def entropy_table(records: pd.DataFrame) -> pd.DataFrame:
    """Histograms of the entropy of correct and of incorrect predictions at every point.

    Columns: target, threat_model, attack, eps, ``lower_edge`` and ``upper_edge`` (edges of a bin in nats),
    ``n_correct``, ``n_misclassified``. The bins have equal widths over [0, ln K].

    Args:
        records: of the attack steps.

    Raises:
        ValueError: the points of the records have different images.
    """
    parts = []
    for point, group in _points(records):
        edges = np.linspace(0, np.log(len(group["logits"].iloc[0])), N_ENTROPY_BINS + 1)
        # the entropy of a uniform softmax can exceed ln K by a rounding error
        entropy, correct = group["entropy"].clip(upper=edges[-1]).to_numpy(), group["correct"].to_numpy()
        columns = {
            "lower_edge": edges[:-1],
            "upper_edge": edges[1:],
            "n_correct": np.histogram(entropy[correct], edges)[0],
            "n_misclassified": np.histogram(entropy[~correct], edges)[0],
        }
        parts.append(with_point(point, pd.DataFrame(columns)))
    return pd.concat(parts, ignore_index=True)


def robustness_area(records: pd.DataFrame, jackknife: GroupJackknife) -> pd.DataFrame:
    """Area under accuracy over log2(eps), divided by its width: target, threat_model, attack, value, low, high.

    The trapezoidal rule from the smallest to the largest eps of the records gives the mean accuracy over the octaves of
    the grid, in [0, 1]. Clean rows are left out. With a single eps it is the accuracy at this eps. ``low`` and ``high``
    are the 95 % interval by group.

    Args:
        records: of the attack steps.
        jackknife: of the attacked images, in ascending order.

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
        # rounding must not give an image more than 1
        shares = (correct @ _trapezoid_weights(np.log2(grid))).round(12)
        area = rate_estimate(shares, jackknife.groups)
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


def _estimates(group: pd.DataFrame, positive: int, jackknife: GroupJackknife) -> dict[str, Estimate]:
    """Metrics of one point."""
    log_probabilities = _log_probabilities(group)
    probabilities = np.exp(log_probabilities)
    labels, correct = group["label"].to_numpy(), group["correct"].to_numpy()
    actual, predicted = labels == positive, group["prediction"].to_numpy() == positive
    hits, confidence = actual & predicted, probabilities.max(axis=1)
    loss, entropy = -log_probabilities[np.arange(len(labels)), labels], group["entropy"].to_numpy()
    accuracy, top1_error = rate_estimates(np.stack([correct, ~correct]), jackknife.groups)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": balanced_accuracies(correct[None], labels, jackknife.groups)[0],
        "top1_error": top1_error,
        "loss": jackknife.estimate(partial(resampled_mean, loss), POSITIVE),
        "precision": _zero_if_undefined(rate_estimate(hits, jackknife.groups, predicted)),
        "recall": _zero_if_undefined(rate_estimate(hits, jackknife.groups, actual)),
        "f1": _zero_if_undefined(rate_estimate(2 * hits, jackknife.groups, actual.astype(int) + predicted)),
        "auroc": _auroc(log_probabilities, labels, positive, jackknife),
        "ece": jackknife.estimate(partial(expected_calibration_error, confidence, correct), RATE),
        "brier": jackknife.estimate(partial(resampled_mean, brier_scores(probabilities, labels)), (0.0, 2.0)),
        "mean_entropy": jackknife.estimate(partial(resampled_mean, entropy), POSITIVE),
    }


def _zero_if_undefined(estimate: Estimate) -> Estimate:
    return estimate._replace(value=0.0) if np.isnan(estimate.value) else estimate


def _auroc(log_probabilities: np.ndarray, labels: np.ndarray, positive: int, jackknife: GroupJackknife) -> Estimate:
    n_classes = log_probabilities.shape[1]
    if n_classes == 2:
        # the logit margin has no ties where the softmax saturates
        scores = {positive: log_probabilities[:, positive] - log_probabilities[:, 1 - positive]}
    else:
        scores = dict(enumerate(log_probabilities.T))
    areas = [auroc_without_blocks(values, labels == label, jackknife) for label, values in scores.items()]
    mean = np.mean(areas, axis=0)
    low, high = jackknife.interval(mean, RATE, [labels == label for label in range(n_classes)])
    return Estimate(float(mean[0]), float(low), float(high))


def _trapezoid_weights(x: np.ndarray) -> np.ndarray:
    """Weights ``(E,)`` of the values at ascending ``x`` that give their mean over the range of x."""
    if len(x) == 1:
        return np.ones(1)
    steps = np.diff(x)
    weights: np.ndarray = (np.append(steps, 0) + np.append(0, steps)) / (2 * steps.sum())
    return weights
