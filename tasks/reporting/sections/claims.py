"""Claims of the study: result of each claim in this run."""

from typing import Any

from tasks.reporting.formats import estimate, fixed, number, p_text
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Section
from tasks.reporting.tables import Table
from tasks.statistics.formatting import sample_text

BADGES = {
    "holds": "HOLDS",
    "does not hold": "FAILS",
    "not broken by these attacks": "OPEN",
    "not separated by these probes": "OPEN",
    "not separated by these detectors": "OPEN",
    "no power": "OPEN",
    "attack not converged": "OPEN",
    "not significant": "OPEN",
    "too few groups": "OPEN",
    "undefined": "OPEN",
    "not tested": "OPEN",
}
"""Result -> CSS class of its badge."""


def claims_section(results: Results, headline: Headline) -> Section:
    """Return one row for each claim, and the number of claims by result."""
    claims = [
        {
            **claim,
            "estimate": estimate(claim, fixed(3)),
            "badge": BADGES[claim["result"]],
            "sample": None if claim["n"] is None else sample_text(claim["n"], claim["n_groups"], headline.unit),
            "reasons": "; ".join(claim["reasons_without_power"]) if claim["result"] == "no power" else "",
            "rule": None
            if claim["bound"] is None
            else rule_text(claim["bound"], claim["above"], claim["separated_by"]),
            "p_text": None if claim["p_value_holm"] is None else p_text(claim["p_value_holm"]),
            "detectable": number(claim["detectable_difference"], fixed(3)),
            "other_eps": results_at_other_eps(claim),
            "other_bounds": _by_result(claim["result_by_bound"]),
        }
        for claim in results.claims
    ]
    results_of_claims = [claim["result"] for claim in claims]
    values = {
        "claims": claims,
        "counts": {result: results_of_claims.count(result) for result in BADGES if result in results_of_claims},
        "sensitivity": sensitivity_table(results.claims),
        "n_family": sum(claim["p_value_holm"] is not None for claim in claims),
        "is_phantom": results.data.is_phantom,
    }
    return Section("claims", "Claims of the study", values)


def sensitivity_table(claims: list[dict[str, Any]]) -> Table:
    """Return the result of each claim with each bound (rows) at each eps (columns)."""
    by_bound = [
        (claim["statement"], bound, by_eps)
        for claim in claims
        for bound, by_eps in claim["result_by_bound_and_eps"].items()
        if by_eps
    ]
    grid = sorted({eps for *_, by_eps in by_bound for eps in by_eps}, key=float)
    rows = [[statement, bound, *(by_eps.get(eps, "–") for eps in grid)] for statement, bound, by_eps in by_bound]
    return Table(["claim", "bound", *(f"ε = {eps}/255" for eps in grid)], rows)


def rule_text(bound: float, above: bool, separated_by: str = "") -> str:
    """Side of the bound on which a claim holds: ``holds below 0.7``; a claim of non-separability can only fail."""
    if separated_by:
        return f"does not hold from {bound:.4g} up"
    return f"holds from {bound:.4g} up" if above else f"holds below {bound:.4g}"


def results_at_other_eps(claim: dict[str, Any]) -> str:
    """Results at the other eps: ``0.25, 0.5: holds; 4: does not hold``; empty if the claim does not depend on eps."""
    return _by_result(claim["result_by_eps"])


def _by_result(results: dict[str, str]) -> str:
    """Group values of eps or of the bound by their result."""
    grouped: dict[str, list[str]] = {}
    for value, result in results.items():
        grouped.setdefault(result, []).append(value)
    return "; ".join(f"{', '.join(values)}: {result}" for result, values in grouped.items())
