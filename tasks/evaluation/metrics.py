"""Metrics of all targets, as in ``metrics.json``."""

import math
from typing import Any

import pandas as pd

from tasks.evaluation.robustness import clean_rows
from tasks.outcomes.names import WORST_CASE, attack_label
from tasks.records.vocabulary import AS_TRAINED, CLEAN

CLEAN_METRICS = ["accuracy", "accuracy_low", "accuracy_high", "precision", "recall", "f1"]


def evaluation_metrics(table: pd.DataFrame, worst_cases: pd.DataFrame, validation: pd.DataFrame) -> dict[str, Any]:
    """Metrics for every attack and eps.

    - ``clean.<target>.<metric>``, as trained
    - ``robust.<target>.<threat model>.<attack>.eps_<eps>``: accuracy, as trained. The attack ``worst_case`` is the
      strongest attack on each image. For transfer from an independent surrogate, the attack ends in the name of the
      surrogate: ``pgd_from_cnn-1``.
    - ``worst_case.<target>.<operating point>.<threat model>.eps_<eps>.<metric>``; eps 0: unchanged images
    - ``validation.<target>.eps_<eps>``: balanced accuracy on validation images under the sweep, as trained. Use it to
      choose among experiments.
    """
    clean = clean_rows(table)[CLEAN_METRICS]
    robust: dict[str, Any] = {}
    is_shown = (worst_cases["metric"] == "accuracy") & (worst_cases["operating_point"] == AS_TRAINED)
    shown = worst_cases[is_shown & (worst_cases["eps"] > 0)]
    shown = shown.rename(columns={"value": "accuracy"}).assign(attack=WORST_CASE, surrogate="")
    attacked = pd.concat([table[table["attack"] != CLEAN], shown])
    for row in attacked.to_dict("records"):
        attacks = robust.setdefault(row["target"], {}).setdefault(row["threat_model"], {})
        attacks.setdefault(attack_label(row["attack"], row["surrogate"]), {})[f"eps_{row['eps']:g}"] = round(
            row["accuracy"], 6
        )
    worst_case: dict[str, Any] = {}
    for row in worst_cases.to_dict("records"):
        of_target = worst_case.setdefault(row["target"], {}).setdefault(row["operating_point"], {})
        of_eps = of_target.setdefault(row["threat_model"], {}).setdefault(f"eps_{row['eps']:g}", {})
        of_eps[row["metric"]] = None if math.isnan(row["value"]) else round(row["value"], 6)
    validated: dict[str, Any] = {}
    for row in validation[validation["metric"] == "balanced_accuracy"].to_dict("records"):
        validated.setdefault(row["target"], {})[f"eps_{row['eps']:g}"] = round(row["value"], 6)
    return {
        "validation": validated,
        "clean": {str(target): row.dropna().round(6).to_dict() for target, row in clean.iterrows()},
        "robust": robust,
        "worst_case": worst_case,
    }
