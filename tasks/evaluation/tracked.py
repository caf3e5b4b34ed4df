"""The tracking run of an evaluation: metrics, tags of checks, and one child run for each curve."""

from typing import Any

import pandas as pd

from tasks.evaluation.checks import CheckResult
from tasks.evaluation.robustness import curves_of
from tasks.outcomes.names import POINT, WORST_CASE, attack_label
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import AS_TRAINED
from tasks.tracking import Tracker


def track_evaluation(
    tracker: Tracker, table: pd.DataFrame, comparison: pd.DataFrame, checks: list[CheckResult], metrics: dict[str, Any]
) -> None:
    """Log metrics, the status of the checks, and one child run for each curve, all with the same metric keys."""
    for target, values in metrics["clean"].items():
        prefix = "" if target == UNDEFENDED else f"{target}_"
        tracker.metrics({f"clean/{prefix}{name}": value for name, value in values.items()})
    tracker.tags({f"check.{check.key}{f'.{check.target}' if check.target else ''}": check.status for check in checks})
    for (target, threat_model, attack, surrogate), points in curves_of(table).items():
        tags = {"target": target, "threat_model": threat_model, "attack": attack, "norm": points["norm"].iloc[-1]}
        tags["operating_point"] = AS_TRAINED
        tracker.curve(
            name=f"{target} {threat_model} {attack_label(attack, surrogate)}",
            tags=tags | ({"surrogate": surrogate} if surrogate else {}),
            points=[(round(point["eps"] * 1000), _curve_metrics(point)) for _, point in points.iterrows()],
        )
    for names, points in comparison.groupby(["target", "operating_point", "threat_model"], sort=False):
        target, operating_point, threat_model = map(str, names)
        curve = {"target": target, "threat_model": threat_model, "attack": WORST_CASE}
        name = " ".join([*curve.values(), *([] if operating_point == AS_TRAINED else [operating_point])])
        found = {f"check.{check.key}": check.status for check in checks if check.target == curve["target"]}
        tags = {**curve, "operating_point": operating_point, "norm": str(table["norm"].iloc[0]), **found}
        tracker.curve(name, tags, _worst_case_points(points))


def _curve_metrics(point: Any) -> dict[str, float]:
    """Metrics of one point of a curve, under the keys that all curves share; NaN is left out."""
    return {
        f"robust/{name}": float(value)
        for name, value in point.items()
        if name not in {*POINT, "n", "n_clean_correct"} and not pd.isna(value)
    }


def _worst_case_points(points: pd.DataFrame) -> list[tuple[int, dict[str, float]]]:
    """Worst-case accuracy of a target at every eps; first (step 0) clean accuracy and cost."""
    bounds = [f"{metric}{bound}" for metric in ("accuracy", "balanced_accuracy") for bound in ("", "_low", "_high")]
    first = points.iloc[0]
    clean = {f"robust/{name}": float(first[f"clean_{name}"]) for name in bounds if pd.notna(first[f"clean_{name}"])}
    clean |= {f"cost/{name}": float(first[name]) for name in ("n_parameters", "multiply_adds")}
    robust = [
        (
            round(point["eps"] * 1000),
            {f"robust/{name}": float(point[f"robust_{name}"]) for name in bounds if pd.notna(point[f"robust_{name}"])},
        )
        for _, point in points.sort_values("eps").iterrows()
    ]
    return [(0, clean), *robust]
