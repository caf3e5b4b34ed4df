"""Data validation: outcome of each expectation."""

from typing import Any

from tasks.reporting.formats import value_text
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Section

STATUSES = ("FAIL", "NO POWER", "UNVERIFIED", "WARN", "INFO", "PASS")
"""Statuses of checks and expectations, the most serious first."""


def validation_section(results: Results, _headline: Headline) -> Section:
    """Return the expectations with their status."""
    expectations = [
        {
            **each,
            "status": status_of(each),
            **{name: value_text(each[name]) for name in ("observed", "allowed", "n_unexpected")},
        }
        for each in results.validation["expectations"]
    ]
    counts = status_counts([each["status"] for each in expectations])
    values = {"expectations": expectations, "counts": counts, "n_images": len(results.manifest)}
    return Section("validation", "Data validation", values)


def status_of(expectation: dict[str, Any]) -> str:
    """Return PASS, WARN (a failed expectation with the severity warning) or FAIL."""
    if expectation["success"]:
        return "PASS"
    return "WARN" if expectation["severity"] == "warning" else "FAIL"


def status_counts(statuses: list[str]) -> dict[str, int]:
    """Return the number of occurrences of each status that occurs."""
    return {status: statuses.count(status) for status in STATUSES if status in statuses}
