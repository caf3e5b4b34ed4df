"""Inputs and outcomes of checks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from tasks.core.workspace import Workspace
from tasks.outcomes.names import is_independent
from tasks.params import UNDEFENDED, Params, Preprocessing, read_defence
from tasks.records.expected import FRESH
from tasks.records.vocabulary import AS_TRAINED, CLEAN
from tasks.statistics.multiplicity import SIGNIFICANCE_LEVEL, holm
from tasks.statistics.paired import PairedComparison, compare_paired

Status = Literal["PASS", "WARN", "FAIL", "NO POWER", "UNVERIFIED", "INFO"]
"""``NO POWER``: the attacks are too weak, or the groups too few, for a conclusion. ``UNVERIFIED``: the data are not
sufficient. ``INFO``: a fact that is no problem."""


class Curve(NamedTuple):
    """One attack on a target at one eps."""

    threat_model: str
    attack: str
    eps: float
    surrogate: str = ""
    """The surrogate of a transfer attack."""


@dataclass(frozen=True)
class CheckOutcome:
    """Outcome of a check of one target."""

    status: Status
    value: float | None
    """The measured value, in the unit that the explanation names; None if it could not be measured."""
    explanation: str


@dataclass(frozen=True)
class CheckInputs:
    """The data of one target, as trained, that its checks read."""

    name: str
    """Name of the target."""
    is_positive_control: bool
    """True if the target is known to be broken, or has no defence at all."""
    eps: float
    """``analyze.eps``."""
    records: pd.DataFrame
    minimum_eps: pd.DataFrame
    """The smallest eps that breaks each image, at the operating point ``as_trained``."""
    diagnostics: pd.DataFrame
    convergence: pd.DataFrame
    """Worst case with and without twice the effort (:func:`tasks.outcomes.convergence.convergence_table`)."""
    worst_case: pd.DataFrame
    """Outcomes in the worst case (:func:`tasks.outcomes.worst_case.worst_case_outcomes`), at ``as_trained``."""
    shortcut_correct: "pd.Series[bool]"
    """True for test images that the shortcut baseline classifies correctly, by image."""
    undefended: "CheckInputs | None"
    """The data of the undefended classifier; None for the undefended classifier itself."""

    @property
    def is_random(self) -> bool:
        """Return whether the target is known to draw random numbers; then its records have fractions of predictions."""
        return FRESH in self.records and bool(self.records[FRESH].notna().any())

    def diagnostic(self, name: str) -> pd.DataFrame:
        """Rows of one diagnostic."""
        return self.diagnostics[self.diagnostics["diagnostic"] == name]

    @cached_property
    def images(self) -> pd.DataFrame:
        """Label, group and clean_correct of each attacked image, by image."""
        attacked = self.records[self.records["attack"] != CLEAN]
        return attacked.drop_duplicates("image").set_index("image")[["label", "group", "clean_correct"]].sort_index()

    @cached_property
    def correct(self) -> "dict[Curve, pd.Series[bool]]":
        """Outcome of each image under each attack at each eps, True if correct; only of the images that it tried.

        A search leaves an image correct at every eps below the smallest that breaks it.
        """
        attacked = self.records[self.records["attack"] != CLEAN]
        found: dict[Curve, pd.Series[bool]] = {
            Curve(str(threat_model), str(attack), float(str(eps)), str(surrogate)): rows.set_index("image")["correct"]
            for (threat_model, attack, eps, surrogate), rows in attacked.groupby(list(Curve._fields), sort=False)
        }
        grid = sorted({curve.eps for curve in found})
        for (threat_model, attack), rows in self.minimum_eps.groupby(["threat_model", "attack"], sort=False):
            breaking = rows.set_index("image")["minimum_eps"]
            found |= {Curve(str(threat_model), str(attack), eps): breaking > eps for eps in grid}
        return found

    @property
    def grid(self) -> list[float]:
        """All eps, rising."""
        return sorted({curve.eps for curve in self.correct})

    def robust(
        self, eps: float, threat_models: Sequence[str], leave_out: Sequence[str] = (), with_independent: bool = True
    ) -> "pd.Series[bool]":
        """Return which images are correct unchanged and under each attack of some threat models up to an eps, by image.

        Only of the images that an attack of the first threat model tried.

        Args:
            eps: the largest that counts.
            threat_models: of the attacks that count.
            leave_out: attacks that do not count.
            with_independent: whether transfer from independent surrogates counts.
        """
        curves = [
            (curve, values)
            for curve, values in self.correct.items()
            if curve.threat_model in threat_models
            and curve.eps <= eps
            and curve.attack not in leave_out
            and (with_independent or not is_independent(curve.surrogate))
        ]
        tried = set().union(*(values.index for curve, values in curves if curve.threat_model == threat_models[0]))
        robust: pd.Series[bool] = self.images["clean_correct"].loc[sorted(tried)].astype(bool)
        for _, values in curves:
            robust = robust & values.reindex(robust.index, fill_value=True)
        return robust

    @property
    def robust_by_eps(self) -> "dict[float, pd.Series[float]]":
        """Outcome of each image in the worst case of adaptive attacks, by eps and image.

        An image of a random target counts by the fraction of fresh predictions that are correct.
        """
        adaptive = self.worst_case[self.worst_case["threat_model"] == "adaptive"]
        return {float(str(eps)): rows.set_index("image")["robust_correct"] for eps, rows in adaptive.groupby("eps")}

    def compare(self, first: "pd.Series[bool]", second: "pd.Series[bool]") -> PairedComparison:
        """Compare two series of outcomes on the images that both have, by group."""
        images = first.index.intersection(second.index)
        groups = self.images["group"].loc[images].to_numpy()
        return compare_paired(first.loc[images].to_numpy(dtype=bool), second.loc[images].to_numpy(dtype=bool), groups)


def judge_excess(excesses: Sequence[tuple[PairedComparison, str]], statement: str) -> CheckOutcome:
    """Judge differences of accuracy that should not be above 0: (comparison on the same images, where).

    A difference above 0 is a failure if its interval by group is above 0 and the p-value of its sign-flip test is at
    most ``SIGNIFICANCE_LEVEL`` after Holm's correction for all these differences. Otherwise it is a warning.
    """
    p_values = holm(np.array([found.p_value for found, _ in excesses]))
    beyond = [
        excess
        for excess, p_value in zip(excesses, p_values, strict=True)
        if excess[0].difference.low > 0 and p_value <= SIGNIFICANCE_LEVEL
    ]
    found, where = max(beyond or excesses, key=lambda excess: excess[0].difference.value)
    value = found.difference.value
    if np.isnan(found.difference.low):
        return CheckOutcome("NO POWER", float(value), f"too few groups for a test: {statement}")
    if value <= 0:
        return CheckOutcome("PASS", float(value), f"not observed: {statement}")
    extent = "significantly" if beyond else "not significantly"
    if not beyond and not np.isnan(found.detectable_difference):
        extent += f" (a single comparison can show {100 * found.detectable_difference:.1f} points)"
    return CheckOutcome(
        "FAIL" if beyond else "WARN", float(value), f"{statement} by {100 * value:.1f} points, {extent}: {where}"
    )


def as_trained(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows at the operating point ``as_trained``."""
    return frame[frame["operating_point"] == AS_TRAINED]


def check_inputs(workspace: Workspace, params: Params, tables: dict[str, pd.DataFrame]) -> list[CheckInputs]:
    """The inputs of the checks, one for each target; the undefended classifier is the first."""
    shortcut = pd.read_csv(workspace.shortcut_predictions).set_index("image")["correct"].astype(bool)
    inputs: list[CheckInputs] = []
    for name in (UNDEFENDED, *params.selected_defences):
        inputs.append(
            CheckInputs(
                name=name,
                is_positive_control=name == UNDEFENDED or is_broken_defence(workspace, name),
                eps=params.analyze.eps,
                shortcut_correct=shortcut,
                undefended=inputs[0] if inputs else None,
                **{key: of_all[of_all["target"] == name] for key, of_all in tables.items()},
            )
        )
    return inputs


def is_broken_defence(workspace: Workspace, defence: str) -> bool:
    """Return whether a defence is known to be broken: image processing directly before the undefended classifier."""
    settings = read_defence(workspace.defence_settings(defence))
    return isinstance(settings, Preprocessing) and settings.applied_before == "classifier"
