"""The headline result: the worst case of every target at one eps and at equal operating points."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from tasks.analysis.claims import analysed_attack, at_comparison_point
from tasks.dataset.intensity import IntensityRange
from tasks.dataset.prepared import Prepared
from tasks.evaluation.comparison import credited
from tasks.evaluation.worst_case_table import constant_accuracy, is_recall_name, value_at
from tasks.outcomes.names import display_name, unit_of
from tasks.params import UNDEFENDED, Attack
from tasks.records.vocabulary import AS_TRAINED, FIXED_SENSITIVITY, RECALIBRATED, SUITE_DOUBLED
from tasks.reporting.names import attack_name
from tasks.reporting.results import Results
from tasks.statistics.formatting import Row, eps_text, sample_text
from tasks.statistics.groups import class_group_sizes, effective_groups, too_few_groups
from tasks.statistics.intervals import Estimate
from tasks.statistics.multiplicity import SIGNIFICANCE_LEVEL

Outcome = Literal["broken", "not broken", "undecided", "too few groups"]
"""``broken``: the balanced accuracy in the worst case is not above that of a constant prediction, by its whole 95 %
interval; ``not broken``: it is above, by its whole interval; ``undecided``: the interval contains it."""
Significance = Literal[
    "significant", "no gain over a constant prediction", "not significant", "undecided", "too few groups"
]
"""``no gain over a constant prediction``: the difference is significant, but the interval of the defence is not above
the balanced accuracy of a constant prediction; ``undecided``: the test is significant, but the interval contains 0."""


@dataclass(frozen=True)
class DefenceComparison:
    """Balanced accuracy of a defence minus that of the undefended classifier, in the worst case on the same images."""

    difference: Estimate
    """With its 95 % interval by group."""
    p_value_holm: float
    """p-value after Holm's correction for the comparisons of all defences with the undefended classifier."""
    detectable: float | None
    """Smallest difference that these images can show; None if it is undefined."""
    is_above_constant: bool
    """True if the whole interval of the defence is above the balanced accuracy of a constant prediction."""
    on_validation: Estimate
    """Balanced accuracy of the defence on validation images under the sweep, by which defences are chosen."""
    over_better: Estimate
    """Difference to the better of the undefended classifier and a constant prediction."""

    @property
    def significance(self) -> Significance:
        """Outcome of the test; too few groups give none."""
        return significance_of(*self.difference[1:], self.p_value_holm, self.is_above_constant)


@dataclass(frozen=True)
class Headline:
    """Worst case of all targets under the threat model ``adaptive``, and its conclusion about the chosen defence."""

    eps: float
    """``analyze.eps``, in units of 1/255."""
    operating_point: str
    """Operating point at which the targets are compared."""
    worst_case: pd.DataFrame
    """Rows of ``worst_case.csv`` of the threat model ``adaptive``, of all operating points."""
    comparisons: dict[str, DefenceComparison]
    """Comparison of each defence with the undefended classifier, at this operating point and eps."""
    best: str | None
    """Chosen defence: the highest balanced accuracy on validation images under the sweep; None without defences."""
    n_configurations: int
    """Configurations of targets that were compared on these images so far."""
    unit: str
    """Name of the unit of every interval and test."""
    effort: tuple[str, ...]
    """The attacks with their effort."""
    analysed_attack: str
    """The attack at fixed eps whose images the analyses are about; the headline does not depend on it."""
    sensitivity: float
    """``attack.fixed_sensitivity``."""
    is_phantom: bool
    validation_sample: str = ""
    """Number of validation images by which defences are chosen, and of their groups."""
    doubled_at: str | None = None
    """Operating point at which the suite with twice the steps and restarts ran; None if it did not run."""
    not_above_shortcut: tuple[str, ...] = ()
    """The judged targets whose clean accuracy is not significantly above that of the shortcut baseline."""
    without_black_box_power: tuple[str, ...] = ()
    """Targets whose check ``black_box`` has no power."""
    eps_in_unit: str = ""
    """Size of eps in the unit of the values, such as `` (5.88 HU)``; empty if the files have different ranges."""
    scarce_groups: str = ""
    """Result of :func:`scarce_groups`."""
    is_only_queried: bool = False
    """True if the classifier has no gradients, so that attacks use those of the surrogates."""
    is_part: bool = False
    """True if only a part of the test images is attacked."""

    @property
    def targets(self) -> list[str]:
        """All targets, the undefended classifier first."""
        return [UNDEFENDED, *self.comparisons]

    @property
    def styles(self) -> dict[str, int]:
        """Number of the colour and marker of each target, the same in all figures."""
        return {target: number for number, target in enumerate(self.targets)}

    def point_text(self, operating_point: str) -> str:
        """Description of an operating point."""
        return {
            AS_TRAINED: "as trained",
            RECALIBRATED: "recalibrated on validation images",
            FIXED_SENSITIVITY: f"sensitivity of {100 * self.sensitivity:g} % on validation images",
        }[operating_point]

    @property
    def operating_points(self) -> list[str]:
        """All operating points, that of the headline first."""
        return list(dict.fromkeys([self.operating_point, *self.worst_case["operating_point"]]))

    def at(self, target: str, eps: float, metric: str = "balanced_accuracy", operating_point: str | None = None) -> Row:
        """Row of a metric in the worst case: value, low, high, n, n_groups.

        Args:
            target: its name.
            eps: in 1/255; 0 for the unchanged images.
            metric: as in ``worst_case.csv``.
            operating_point: that of the headline by default.
        """
        point = operating_point or self.operating_point
        return value_at(self.worst_case, metric, target=target, operating_point=point, eps=eps)

    @property
    def recalls(self) -> list[str]:
        """Metrics that are the recall of one class."""
        return [str(metric) for metric in self.worst_case["metric"].unique() if is_recall_name(metric)]

    @property
    def metrics(self) -> list[str]:
        """Metrics of the score table: with more than two classes, balanced accuracy replaces the recalls."""
        return ["balanced_accuracy", "accuracy", *(self.recalls if len(self.recalls) == 2 else [])]

    @property
    def n_attacked(self) -> int:
        """Number of attacked test images."""
        return int(self.at(UNDEFENDED, 0.0)["n"])

    @property
    def sample(self) -> str:
        """Number of attacked test images and of their groups, and the classes that have too few groups.

        For example: ``n = 496 images of 43 inferred groups``.
        """
        sample = sample_text(self.n_attacked, int(self.at(UNDEFENDED, 0.0)["n_groups"]), self.unit)
        return sample + self.scarce_groups

    @property
    def intervals(self) -> str:
        """Description of the intervals: ``95 % intervals by inferred group, n = 496 images of 43 inferred groups``."""
        return f"95 % intervals by {self.unit}, {self.sample}"

    @property
    def chance(self) -> float:
        """Balanced accuracy of a constant prediction: 1 / number of classes in the test images."""
        return constant_accuracy(self.worst_case)

    @property
    def comparison(self) -> DefenceComparison:
        """Comparison of the chosen defence with the undefended classifier."""
        assert self.best is not None
        return self.comparisons[self.best]

    def outcome(self, target: str, eps: float) -> Outcome:
        """Return whether the attacks break a target at an eps."""
        row = self.at(target, eps)
        if math.isnan(row["low"]):
            return "too few groups"
        if row["high"] <= self.chance:
            return "broken"
        return "not broken" if row["low"] > self.chance else "undecided"

    @property
    def tied(self) -> list[str]:
        """Other defences that equal the chosen one on attacked validation images, where chance is the lowest value."""
        values = {name: credited(each.on_validation.value, self.chance) for name, each in self.comparisons.items()}
        return [name for name, value in values.items() if name != self.best and value == values[self.judged]]

    @property
    def judged(self) -> str:
        """Target that the conclusion is about: the chosen defence, or the undefended classifier without defences."""
        return self.best or UNDEFENDED

    @property
    def largest_eps(self) -> float:
        """Largest eps of the worst case."""
        return float(self.worst_case["eps"].max())

    @property
    def broken_from(self) -> float | None:
        """Smallest larger eps at which the judged target is broken."""
        larger = sorted(eps for eps in self.worst_case["eps"].unique() if eps > self.eps)
        return next((float(eps) for eps in larger if self.outcome(self.judged, eps) == "broken"), None)


def headline_of(results: Results) -> Headline:
    """Return the headline result at ``analyze.eps``.

    The operating point is that of :func:`tasks.analysis.claims.at_comparison_point`. The defence that is chosen on
    validation images is compared with the undefended classifier; Holm's method corrects for the comparisons of all.
    """
    params, worst_case = results.params, results.worst_case
    adaptive = worst_case[worst_case["threat_model"] == "adaptive"]
    operating_point, eps = str(at_comparison_point(adaptive)["operating_point"].iloc[0]), params.analyze.eps
    ranked = results.comparison[
        (results.comparison["operating_point"] == operating_point)
        & (results.comparison["threat_model"] == "adaptive")
        & (results.comparison["eps"] == eps)
    ].sort_values("rank")
    best = next((str(name) for name in ranked["target"] if name != UNDEFENDED), None)
    unit, searches = unit_of(results.dataset_info), results.minimum_eps
    first: Row = ranked.iloc[0]
    doubled = searches.loc[searches["attack"] == SUITE_DOUBLED, "operating_point"].unique()
    doubled_at = str(doubled[0]) if len(doubled) else None
    n_with_power = sum(results.metrics["surrogate_has_power"].values())
    return Headline(
        eps=eps,
        operating_point=operating_point,
        worst_case=adaptive,
        comparisons={
            target: _comparison(ranked, target, constant_accuracy(adaptive)) for target in params.selected_defences
        },
        best=best,
        n_configurations=len(results.configurations),
        unit=unit,
        effort=effort_of(
            params.attack, list(searches["attack"].unique()), len(results.surrogates), n_with_power, doubled_at
        ),
        analysed_attack=analysed_attack(results.robustness),
        sensitivity=params.attack.fixed_sensitivity,
        is_phantom=results.data.is_phantom,
        validation_sample=sample_text(int(first["n_validation"]), int(first["n_validation_groups"]), unit),
        doubled_at=doubled_at,
        not_above_shortcut=tuple(
            name
            for name in dict.fromkeys([UNDEFENDED, best or UNDEFENDED])
            if _status(results.checks, name, "shortcut_baseline") in ("WARN", "NO POWER")
        ),
        without_black_box_power=tuple(
            name
            for name in (UNDEFENDED, *params.selected_defences)
            if _status(results.checks, name, "black_box") == "NO POWER"
        ),
        eps_in_unit=eps_in_unit(results.dataset_info, eps),
        scarce_groups=scarce_groups(results.data, results.minimum_eps["image"].unique()),
        is_only_queried=_status(results.checks, UNDEFENDED, "white_box_access") is not None,
        is_part=int(first["n"]) < sum(results.dataset_info["n_images"]["test"].values()),
    )


def _status(checks: Sequence[Mapping[str, Any]], target: str, key: str) -> str | None:
    """Return the status of a check of a target; None if the check does not apply."""
    return next((str(each["status"]) for each in checks if (each["target"], each["key"]) == (target, key)), None)


def eps_in_unit(dataset_info: Mapping[str, Any], eps: float) -> str:
    """Size of an eps in the unit of the stored values, such as `` (5.88 HU)``.

    Args:
        dataset_info: content of ``dataset.json``.
        eps: in 1/255.

    Returns:
        The empty text if the values are not mapped by one window or one pair of percentiles.
    """
    per_eps = IntensityRange(**dataset_info.get("intensity", {})).per_eps
    return "" if per_eps is None else f" ({eps * per_eps:.3g} {dataset_info['intensity']['unit']})"


def scarce_groups(data: Prepared, rows: np.ndarray) -> str:
    """Classes with too few groups, such as `` (too few of covid: 9, effective number 4.55)``; empty if there are none.

    Args:
        data: the prepared data set.
        rows: of the attacked images.
    """
    sizes = class_group_sizes(data.labels(rows), data.identity(rows)["group"], len(data.classes))
    scarce = [
        f"{name}: {len(of_class)}, effective number {effective_groups(of_class):.2f}"
        for name, of_class in zip(data.classes, sizes, strict=True)
        if too_few_groups(of_class)
    ]
    return f" (too few of {'; '.join(scarce)})" if scarce else ""


def _comparison(ranked: pd.DataFrame, defence: str, constant: float) -> DefenceComparison:
    """Return the comparison of a defence with the undefended classifier, from its row of ``comparison.csv``."""
    row: Row = ranked.set_index("target").loc[defence]
    difference, on_validation, over_better = (
        Estimate(*(float(row[f"{name}{bound}"]) for bound in ("", "_low", "_high")))
        for name in ("gain", "validation_balanced_accuracy", "gain_over_better")
    )
    detectable = None if math.isnan(row["detectable_gain"]) else float(row["detectable_gain"])
    is_above = bool(row["robust_balanced_accuracy_low"] > constant)
    p_value = float(row["p_value_gain_holm"])
    return DefenceComparison(difference, p_value, detectable, is_above, on_validation, over_better)


def significance_of(low: float, high: float, p_value: float, is_above_constant: bool = True) -> Significance:
    """Outcome of a paired comparison.

    Args:
        low: lower bound of the interval of the difference; NaN for too few groups.
        high: upper bound.
        p_value: corrected for the family of comparisons.
        is_above_constant: whether the whole interval of the first target is above a constant prediction.
    """
    if math.isnan(low) or math.isnan(p_value):
        return "too few groups"
    if p_value >= SIGNIFICANCE_LEVEL:
        return "not significant"
    if low <= 0 <= high:
        return "undecided"
    return "no gain over a constant prediction" if low > 0 and not is_above_constant else "significant"


def effort_of(
    attack: Attack, searches: Sequence[str], n_surrogates: int = 0, n_with_power: int = 0, doubled_at: str | None = None
) -> tuple[str, ...]:
    """Return the attacks with their effort: ``PGD with 10 steps``, ``white-box suite with effort quick``.

    Args:
        attack: parameters.
        searches: names of the searches that ran.
        n_surrogates: number of independent surrogates.
        n_with_power: number of these whose transfer breaks the undefended classifier (check ``transfer_vs_adaptive``).
        doubled_at: operating point at which the search ``suite_doubled`` ran.
    """
    only_at = {SUITE_DOUBLED: f" (only at the operating point {display_name(doubled_at or '')})"}
    power = f"{n_with_power} of {n_surrogates} {'has' if n_with_power == 1 else 'have'} power"
    steps = {"pgd": f" with {attack.pgd.n_steps} steps"}
    return (
        *(attack_name(row) + steps.get(row, "") for row in (*attack.saved_attacks, *attack.eight_bit_attacks)),
        *(f"{row.art} of ART" for row in attack.art_attacks.values()),
        *(f"the attack {row.plugin}" for row in attack.plugin_attacks.values()),
        *(f"{attack_name(name)} with effort {attack.effort}{only_at.get(name, '')}" for name in searches),
        *(
            [f"PGD transferred from {n_surrogates} independent surrogate{'s' * (n_surrogates > 1)} ({power})"]
            if n_surrogates
            else []
        ),
    )


def headline_metrics(metrics: dict[str, Any], eps: float) -> dict[str, float]:
    """Metrics of the report's tracking run, from ``metrics.json``.

    ``clean/<metric>`` and ``clean/<defence>_<metric>`` as the step ``evaluate`` names them. Accuracies at one eps:
    ``robust/<target>_<threat model>_<attack>_eps_<eps>``. Balanced accuracies in the worst case at this eps and on the
    unchanged images (eps 0): ``worst_case/<target>_<operating point>_eps_<eps>``.
    """
    flat = {
        f"clean/{name}" if target == UNDEFENDED else f"clean/{target}_{name}": value
        for target, values in metrics["clean"].items()
        for name, value in values.items()
    }
    key = f"eps_{eps_text(eps)}"
    for target, by_threat_model in metrics["robust"].items():
        for threat_model, by_attack in by_threat_model.items():
            for attack, by_eps in by_attack.items():
                flat[f"robust/{target}_{threat_model}_{attack}_{key}"] = by_eps[key]
    for target, by_point in metrics["worst_case"].items():
        for point, by_threat_model in by_point.items():
            for each in ("eps_0", key):
                value = by_threat_model["adaptive"][each]["balanced_accuracy"]
                flat |= {} if value is None else {f"worst_case/{target}_{point}_{each}": value}
    return flat
