"""Claims of the study: result of each claim in this run."""

from typing import Any

from tasks.reporting.formats import estimate, fixed
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Section

HOLDS, FAILS, NOT_SIGNIFICANT, NOT_TESTED = "holds", "does not hold", "not significant", "not tested"
BADGES = {HOLDS: "HOLDS", FAILS: "FAILS", NOT_SIGNIFICANT: "OPEN", NOT_TESTED: "OPEN"}
"""Result -> CSS class of its badge."""


def claims_section(results: Results, _headline: Headline) -> Section:
    """Return one row for each claim, and the number of claims by result."""
    claims = [
        {
            **claim,
            "estimate": estimate(claim, fixed(3)),
            "badge": BADGES[claim["result"]],
            "other_eps": results_at_other_eps(claim),
        }
        for claim in results.claims
    ]
    results_of_claims = [claim["result"] for claim in claims]
    counts = {result: results_of_claims.count(result) for result in BADGES if result in results_of_claims}
    values = {"claims": claims, "counts": counts, "is_phantom": results.data.is_phantom}
    return Section("claims", "Claims of the study", values)


def results_at_other_eps(claim: dict[str, Any]) -> str:
    """Results at the other eps: ``0.25, 0.5: holds; 4: does not hold``; empty if the claim does not depend on eps."""
    eps_by_result: dict[str, list[str]] = {}
    for eps, result in claim["result_by_eps"].items():
        eps_by_result.setdefault(result, []).append(eps)
    return "; ".join(f"{', '.join(eps)}: {result}" for result, eps in eps_by_result.items())
