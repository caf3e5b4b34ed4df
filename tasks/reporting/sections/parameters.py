"""All parameters of the run."""

from tasks.reporting.formats import value_text
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Section


def parameters_section(results: Results, _headline: Headline) -> Section:
    """Return all parameters by dotted key, grouped by the first part of the key."""
    groups: dict[str, dict[str, str]] = {}
    for key, value in results.params.flat().items():
        groups.setdefault(key.partition(".")[0], {})[key] = value_text(value)
    return Section("parameters", "Parameters", {"groups": groups})
