"""Confusion matrices of clean and of attacked images."""

import numpy as np
import pandas as pd

from tasks.outcomes.names import display_name, is_independent
from tasks.records.vocabulary import CLEAN
from tasks.reporting import figures
from tasks.reporting.curves import Curve, curves_under
from tasks.reporting.drawings import Drawing
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Point, Section


def confusion_section(results: Results, headline: Headline) -> Section:
    """Return a confusion matrix of each target on clean images, and of each curve under the analysed attack.

    Curves of independent surrogates are left out.
    """
    clean, attacked, drawings = [], [], []
    curves = curves_under(results.robustness, headline.analysed_attack)
    of_study = [curve for curve in curves if not is_independent(curve.surrogate)]
    for name, (curve, eps) in _points(of_study, headline.eps).items():
        counts = _counts(results.confusion, curve, eps, results.data.classes)
        drawings.append(Drawing(name, figures.confusion(counts, results.data.classes)))
        matrix = {"name": name, "n": int(counts.sum()), "cells": _cells(counts, results.data.classes)}
        if eps:
            attacked.append(matrix | {"title": curve.name})
        else:
            clean.append(matrix | {"title": display_name(curve.target)})
    values = {"clean": clean, "attacked": attacked, "point": Point(headline.analysed_attack, headline.eps)}
    return Section("confusion", "Confusion matrices", values, drawings)


def _points(curves: list[Curve], eps: float) -> dict[str, tuple[Curve, float]]:
    """Return curve and eps (0: clean) of each matrix, by the name of its figure."""
    clean = {f"confusion-clean-{curve.target}": (curve, 0.0) for curve in curves}
    attacked = {f"confusion-{curve.attack}-{curve.target}-{curve.threat_model}": (curve, eps) for curve in curves}
    return clean | attacked


def _counts(confusion: pd.DataFrame, curve: Curve, eps: float, classes: tuple[str, ...]) -> np.ndarray:
    """Return the images by actual and predicted class, int64 ``(K, K)``."""
    threat_model, attack = (curve.threat_model, curve.attack) if eps else ("none", CLEAN)
    cells = confusion[
        (confusion["target"] == curve.target)
        & (confusion["threat_model"] == threat_model)
        & (confusion["attack"] == attack)
        & (confusion["surrogate"] == (curve.surrogate if eps else ""))
        & (confusion["eps"] == eps)
    ]
    by_class = cells.pivot(index="actual", columns="prediction", values="n")
    return by_class.reindex(index=list(classes), columns=list(classes)).to_numpy(dtype=np.int64)


def _cells(counts: np.ndarray, classes: tuple[str, ...]) -> str:
    """Return all cells as text, for readers who do not see the figure."""
    return "; ".join(
        f"{counts[i, j]} {actual} predicted {predicted}"
        for i, actual in enumerate(classes)
        for j, predicted in enumerate(classes)
    )
