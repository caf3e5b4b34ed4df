"""Sections of the report in the order of the page: each module returns values and figures for one template."""

from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Section
from tasks.reporting.sections.accuracy import accuracy_section
from tasks.reporting.sections.active_learning import active_learning_section
from tasks.reporting.sections.adversarial_images import adversarial_images_section
from tasks.reporting.sections.checks import checks_section
from tasks.reporting.sections.claims import claims_section
from tasks.reporting.sections.classification import classification_section
from tasks.reporting.sections.comparison import comparison_section
from tasks.reporting.sections.confusion import confusion_section
from tasks.reporting.sections.data import data_section
from tasks.reporting.sections.data_changes import data_changes_section
from tasks.reporting.sections.detection import detection_section
from tasks.reporting.sections.entropy import entropy_section
from tasks.reporting.sections.features import features_section
from tasks.reporting.sections.heatmaps import heatmaps_section
from tasks.reporting.sections.intensities import intensities_section
from tasks.reporting.sections.parameters import parameters_section
from tasks.reporting.sections.resilience import resilience_section
from tasks.reporting.sections.subgroups import subgroups_section
from tasks.reporting.sections.training import training_section
from tasks.reporting.sections.validation import validation_section

SECTIONS = (
    claims_section,
    data_section,
    validation_section,
    data_changes_section,
    training_section,
    comparison_section,
    accuracy_section,
    subgroups_section,
    confusion_section,
    entropy_section,
    adversarial_images_section,
    heatmaps_section,
    intensities_section,
    features_section,
    resilience_section,
    classification_section,
    detection_section,
    active_learning_section,
    checks_section,
    parameters_section,
)


def all_sections(results: Results, headline: Headline) -> list[Section]:
    """Return the sections in the order of the page, without subgroups, active learning and images if there are none."""
    is_shown = {
        subgroups_section: results.subgroups is not None,
        adversarial_images_section: results.examples is not None,
        active_learning_section: len(results.cycles) > 0,
    }
    return [section(results, headline) for section in SECTIONS if is_shown.get(section, True)]
