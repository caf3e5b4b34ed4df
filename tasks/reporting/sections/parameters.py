"""All parameters of the run."""

from tasks.params import flatten
from tasks.reporting.formats import value_text
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Section


def parameters_section(results: Results, _headline: Headline) -> Section:
    """Return the parameters of this run by dotted key, grouped by the first part of the key."""
    groups: dict[str, dict[str, str]] = {}
    values = results.params.of_step("report")
    for name, settings in results.defence_settings.items():
        values |= flatten(settings.model_dump(mode="json"), f"defences.{name}")
    for key, value in values.items():
        groups.setdefault(key.partition(".")[0], {})[key] = value_text(value)
    return Section("parameters", "Parameters", {"groups": groups})
