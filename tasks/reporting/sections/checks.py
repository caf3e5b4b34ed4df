"""Checks of the evaluation, by target."""

from typing import Any

from tasks.outcomes.names import display_name
from tasks.reporting.formats import number
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Section
from tasks.reporting.sections.validation import STATUSES, status_counts


def checks_section(results: Results, headline: Headline) -> Section:
    """Return the status of each check of each target, and the explanations."""
    checks = [
        {**check, "shown_target": display_name(check["target"] or "data"), "shown_value": number(check["value"])}
        for check in results.checks
    ]
    values = {
        "counts": status_counts([check["status"] for check in checks]),
        "targets": headline.targets,
        "matrix": check_matrix(checks),
        "passed": [check for check in checks if check["status"] == "PASS"],
        "not_passed": sorted(
            (check for check in checks if check["status"] != "PASS"), key=lambda check: STATUSES.index(check["status"])
        ),
    }
    return Section("checks", "Checks of the evaluation", values)


def check_matrix(checks: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Return the status of each check by its name and by target, without the checks of the data."""
    matrix: dict[str, dict[str, str]] = {}
    for check in checks:
        if check["target"]:
            matrix.setdefault(check["name"], {})[check["target"]] = check["status"]
    return matrix
