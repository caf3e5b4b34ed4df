"""Numbers of the report name their operating point, their images, and the power of the attacks."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

from tasks.core.workspace import Workspace
from tasks.evaluation.attack_checks import MAX_TRANSFER_ACCURACY, independent_surrogates
from tasks.params import parse_params
from tasks.reporting import page
from tasks.reporting.headline import Headline, effort_of, headline_of
from tasks.reporting.results import Results, load_results
from tasks.reporting.sections import all_sections
from tasks.reporting.sections.accuracy import survivors_table
from tasks.reporting.sections.comparison import comparison_section
from tasks.reporting.templating import environment, headline_sentences
from tasks.tracking import MAX_NOTE_CHARACTERS
from tests.conftest import with_overrides
from tests.plausible_attack import minimum_eps_in
from tests.report_workspace import DEFENCES, EPS, SIDE, leave_out_static_figures, write_workspace
from tests.test_checks import BARE, DEFENDED, SOUND, inputs_of, outcome
from tests.test_comparison import records as records
from tests.test_comparison import tables_of
from tests.test_report import headline_with

PARAMS = parse_params(
    with_overrides({"attack.eps": list(EPS), "prepare.image_size": SIDE, "selected_defences": DEFENCES})
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("scans"))
        leave_out_static_figures(patch)
        write_workspace(PARAMS, is_phantom=False)
        return load_results(Workspace(), PARAMS)


def on_a_part(results: Results, status: str) -> tuple[Results, Headline]:
    """The results with black-box attacks on 30 of the images, which break 2 of 27 where all attacks break 12."""
    adaptive = results.comparison[results.comparison["threat_model"] == "adaptive"]
    counts = {"n": 30, "n_clean_correct": 27.0, "n_broken": 2.0, "n_broken_adaptive": 12.0}
    black_box = adaptive.assign(threat_model="black_box", **counts)
    checks = [each | ({"status": status} if each["key"] == "black_box" else {}) for each in results.checks]
    changed = replace(results, comparison=pd.concat([results.comparison, black_box]), checks=checks)
    return changed, headline_of(changed)


@pytest.mark.parametrize(("status", "ending"), [("NO POWER", ", no power"), ("PASS", "")])
def test_black_box_attacks_on_a_part_of_the_images_stand_beside_all_attacks_on_the_same_images(
    results: Results, status: str, ending: str
) -> None:
    section = comparison_section(*on_a_part(results, status))
    tables = [section.values["ranking"], *section.values["other_rankings"].values()]
    for cell in (row[table.head.index("worst case, black box")] for table in tables for row in table.rows):
        assert cell.endswith(f" (n = 30: 2 of 27 broken, 12 by all attacks){ending}")
    names = {row[2] for row in section.values["everywhere"].rows}
    assert names == {"adaptive", "transfer", f"black box{ending}"}


def test_survivors_of_black_box_attacks_without_power_say_so() -> None:
    points = product(["undefended", "jpeg"], ["as_trained"], range(3), ["suite", "square_on_survivors"])
    searches = pd.DataFrame(points, columns=["target", "operating_point", "image", "attack"]).assign(minimum_eps=np.inf)
    table = survivors_table(searches, [1.0], ["undefended"])
    assert [row[:3] for row in table.rows] == [["undefended", "as trained", "no power"], ["jpeg", "as trained", "–"]]
    assert [row[3:] for row in table.rows] == [["0 of 3"], ["0 of 3"]]


def test_the_comparison_counts_successes_on_the_images_of_each_threat_model(records: pd.DataFrame) -> None:
    # Square ran on the first four images, of which it breaks none
    part = records[(records["attack"] == "clean") & (records["image"] < 4)]
    columns = ["target", "image", "label", "group", "norm"]
    by_scores = part[columns].assign(
        operating_point="as_trained", threat_model="black_box", attack="square", found_by="square"
    )
    smallest = np.where(part["correct"], math.inf, 0.0)
    by_scores = by_scores.assign(minimum_eps=smallest, minimum_eps_8bit=smallest, minimum_perturbation=smallest)
    searches = pd.concat([minimum_eps_in(records), by_scores], ignore_index=True)
    table = tables_of(records, searches)[1]
    is_shown = (table["threat_model"] == "black_box") & (table["eps"] == 1) & (table["target"] == "undefended")
    (found,) = table[is_shown].to_dict("records")
    outcomes = records[(records["target"] == "undefended") & (records["image"] < 4)]
    clean = outcomes[outcomes["attack"] == "clean"].set_index("image")["correct"]
    attacked = outcomes[outcomes["eps"] == 1].groupby("image")["correct"].all()
    assert (found["n"], found["n_clean_correct"], found["n_broken"]) == (4, clean.sum(), 0)
    assert found["n_broken_adaptive"] == (clean & ~attacked).sum() > 0


def test_the_stage_with_twice_the_effort_is_named_with_its_operating_point(results: Results) -> None:
    doubled = results.minimum_eps.assign(attack="suite_doubled", operating_point="recalibrated")
    found = replace(results, minimum_eps=pd.concat([results.minimum_eps, doubled]))
    headline = headline_of(found)
    stage = "white-box suite with twice the steps and restarts"
    assert f"{stage} with effort quick (only at the operating point recalibrated)" in headline.effort
    section = comparison_section(found, headline)
    templates = environment()
    sentences = templates.get_template("sentences.j2").module
    assert f"{stage} did not run here" in sentences.scores(headline, "as_trained")  # type: ignore[attr-defined]  # a macro
    assert "did not run here" not in sentences.scores(headline, "recalibrated")  # type: ignore[attr-defined]  # a macro
    figures = page.render_figures([section])
    text = templates.get_template("sections/comparison.html.j2").render(
        section.values, headline=headline, figures=figures
    )
    captions = [caption for caption in text.split("<caption>")[1:] if f"{stage} ran only at" in caption]
    assert len(captions) == 3
    assert not any("twice the steps" in each for each in headline_of(results).effort)


@pytest.mark.parametrize(
    ("n_with_power", "power"), [(0, "0 of 2 have power"), (1, "1 of 2 has power"), (2, "2 of 2 have power")]
)
def test_surrogates_are_counted_with_their_power(n_with_power: int, power: str) -> None:
    assert effort_of(PARAMS.attack, [], 2, n_with_power)[-1] == (
        f"PGD transferred from 2 independent surrogates ({power})"
    )


def test_the_headline_names_judged_targets_that_are_not_above_the_shortcut_baseline(results: Results) -> None:
    assert "shortcut" not in headline_sentences(headline_of(results))
    checks = [each | ({"status": "WARN"} if each["key"] == "shortcut_baseline" else {}) for each in results.checks]
    text = headline_sentences(headline_of(replace(results, checks=checks)))
    assert text.endswith(
        " As trained, the clean accuracy of the undefended classifier and of the retrained autoencoder is not "
        "significantly above that of the shortcut baseline."
    )


def test_the_choice_among_defences_names_operating_point_and_validation_images(results: Results) -> None:
    headline = headline_of(results)
    assert " as trained, n = 60 images of 21 inferred groups), balanced accuracy is " in headline_sentences(headline)
    section = comparison_section(results, headline)
    assert "validation, sweep, as trained" in section.values["ranking"].head
    assert "as trained" not in headline_sentences(headline_with())


def test_page_and_markdown_have_the_numbers_of_tested_and_attacked_images_and_the_data_digest(results: Results) -> None:
    headline = headline_of(results)
    sections = all_sections(results, headline)
    html = page.html(results, headline, sections, page.render_figures(sections))
    markdown = page.markdown(results, headline, sections, MAX_NOTE_CHARACTERS)
    assert "on 60 test images, of which 60 are attacked" in html
    for text in (html, markdown):
        assert f"Data digest: {results.configurations['data'].iloc[0]} (" in text
        assert "mlflow.source.git.commit" in text


@pytest.mark.parametrize(("n_groups", "reason"), [(4, "too few groups"), (100, "undetermined")])
def test_the_table_of_operating_points_says_why_a_bias_has_no_interval(
    results: Results, n_groups: int, reason: str
) -> None:
    table = results.data.table.assign(split="validation")
    number = table.groupby(["split", "label"]).cumcount()
    grouped = replace(results.data, table=table.assign(group=table["label"] * 100 + number % n_groups))
    points = {
        target: [replace(point, biases_low=None, biases_high=None) for point in of_target]
        for target, of_target in results.operating_points.items()
    }
    changed = replace(results, data=grouped, operating_points=points)
    shown = comparison_section(changed, headline_of(results)).values["operating_points"]
    cells = [row[2] for row in shown.rows if row[1] != "as trained"]
    assert cells
    assert {cell.partition(" [")[2].rstrip("]") for cell in cells} == {reason}


def test_markdown_is_not_escaped_for_html(results: Results) -> None:
    headline = headline_of(results)
    text = page.markdown(results, headline, all_sections(results, headline), MAX_NOTE_CHARACTERS)
    assert "&#" not in text
    assert "&gt;" not in text
    template = environment(is_markdown=True).from_string(
        "{% macro again(text) %}{{ text }}{% endmacro %}{{ text }}\n{{ again(text) }}\n"
    )
    text = 'the study\'s "a|b" & c < d <b>x</b> &lt; [a](b)'
    shown = 'the study\'s "a\\|b" & c < d &lt;b>x&lt;/b> &amp;lt; [a]\\(b)'
    assert template.render(text=text) == f"{shown}\n{shown}\n"


def test_page_markdown_and_document_have_the_same_headline(results: Results) -> None:
    checks = [each | ({"status": "WARN"} if each["key"] == "shortcut_baseline" else {}) for each in results.checks]
    warned = replace(results, checks=checks)
    headline = headline_of(warned)
    text = page.markdown(warned, headline, all_sections(warned, headline), MAX_NOTE_CHARACTERS)
    assert text.split("\n\n")[1].strip() == headline_sentences(headline)


def test_the_power_of_a_surrogate_is_that_of_the_check() -> None:
    known = {
        (target, "transfer", f"pgd from {name}"): {1: 1.0, 4: accuracy}
        for target in (BARE, DEFENDED)
        for name, accuracy in (("cnn-1", MAX_TRANSFER_ACCURACY), ("cnn-2", MAX_TRANSFER_ACCURACY + 0.01))
    }
    check = outcome(SOUND | known)[BARE, "transfer_vs_adaptive"]
    assert "The pass applies to cnn-1 at eps 4 only" in check.explanation
    assert independent_surrogates(inputs_of(SOUND | known)[0]) == {"cnn-1": True, "cnn-2": False}
    # no eps breaks the undefended classifier, so there is no evidence of power
    too_small = {key: {1: curve[1]} for key, curve in known.items()} | {(BARE, "none", "clean"): {0: 1.0}}
    too_small |= {(BARE, "adaptive", "pgd"): {1: 0.4}}
    assert independent_surrogates(inputs_of(too_small)[0]) == {"cnn-1": False, "cnn-2": False}
