"""The parts of the page about the steps ``analyze`` and ``active_learning``: each answers a question, and shows why."""

from tasks.reporting.findings import Headline
from tasks.reporting.results import Results
from tasks.reporting.sections.active_learning import active_learning_section
from tasks.reporting.sections.classification import classification_section
from tasks.reporting.sections.detection import detection_section
from tasks.reporting.sections.features import features_section
from tasks.reporting.sections.heatmaps import heatmaps_section
from tasks.reporting.sections.intensities import intensities_section
from tasks.reporting.sections.resilience import resilience_section
from tasks.reporting.sections.section import Section

SECTIONS = (
    heatmaps_section,
    intensities_section,
    features_section,
    resilience_section,
    classification_section,
    detection_section,
    active_learning_section,
)


def sections_of(results: Results, headline: Headline) -> list[Section]:
    """All of them, in the order of the page."""
    return [section(results, headline) for section in SECTIONS]
