"""The report of a workspace with known numbers."""

import base64
import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup
from PIL import Image

from tasks.analysis.claim_measures import features_overlap
from tasks.attacks.effort import EFFORTS
from tasks.core.files import write_table
from tasks.core.workspace import Workspace
from tasks.evaluation.subgroups import subgroup_table
from tasks.outcomes.names import unit_of
from tasks.params import Params, Report, parse_params
from tasks.report import report
from tasks.reporting import page
from tasks.reporting.drawings import IMAGES, render
from tasks.reporting.formats import estimate, value_text
from tasks.reporting.headline import DefenceComparison, Headline, effort_of, eps_in_unit, headline_metrics, headline_of
from tasks.reporting.results import Results, load_results, read_table
from tasks.reporting.section import Point, Section, relation_of
from tasks.reporting.sections import all_sections
from tasks.reporting.sections.accuracy import accuracy_section
from tasks.reporting.sections.active_learning import active_learning_section, reference_training
from tasks.reporting.sections.checks import checks_section
from tasks.reporting.sections.claims import claims_section, results_at_other_eps
from tasks.reporting.sections.comparison import checks_text, comparison_section
from tasks.reporting.sections.data_changes import data_changes_section
from tasks.reporting.sections.detection import detection_section, flag_too_often
from tasks.reporting.sections.features import features_section
from tasks.reporting.templating import environment, headline_sentences, keep_together
from tasks.statistics.formatting import percent, sample_text, with_interval
from tasks.statistics.intervals import Estimate
from tasks.tracking import MAX_NOTE_CHARACTERS, Tracker
from tests.conftest import with_overrides
from tests.report_workspace import DEFENCES, EPS, SIDE, empty_analysis, leave_out_static_figures, write_workspace
from tests.test_subgroups import outcomes_of


class RecordingTracker(Tracker):
    """A tracker that keeps everything in memory."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.artifacts: dict[Path, str] = {}
        self.datasets: list[tuple[Path, str, str]] = []
        self.text = ""
        self.linked = False

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.values |= values

    def artifact(self, path: Path, folder: str = "") -> None:
        assert path.exists()
        self.artifacts[path] = folder

    def dataset(self, path: Path, name: str, context: str) -> None:
        self.datasets.append((path, name, context))

    def note(self, markdown: str) -> None:
        self.text = markdown

    def link_steps(self) -> None:
        self.linked = True


@pytest.fixture(scope="module")
def params() -> Params:
    return params_of(DEFENCES)


def params_of(defences: list[str]) -> Params:
    overrides = {"attack.eps": list(EPS), "prepare.image_size": SIDE, "selected_defences": defences}
    return parse_params(with_overrides(overrides))


@pytest.fixture(scope="module")
def phantom_workspace(tmp_path_factory: pytest.TempPathFactory, params: Params) -> tuple[Path, RecordingTracker]:
    """A workspace of phantoms with its report, and the tracker of that report."""
    workspace, tracker = tmp_path_factory.mktemp("phantoms"), RecordingTracker()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        write_workspace(params, is_phantom=True)
        Workspace().report.mkdir()
        report(Workspace(), params, tracker)
    return workspace, tracker


@pytest.fixture
def phantoms(phantom_workspace: tuple[Path, RecordingTracker], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same workspace as the current folder."""
    monkeypatch.chdir(phantom_workspace[0])
    return phantom_workspace[0]


@pytest.fixture
def own_copy(phantom_workspace: tuple[Path, RecordingTracker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the same workspace as the current folder."""
    shutil.copytree(phantom_workspace[0] / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_static_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the PNG files and the layout of static figures, which take most of the time of a report."""
    leave_out_static_figures(monkeypatch)


@pytest.fixture
def html(phantoms: Path) -> str:
    return Workspace().report_html.read_text(encoding="utf-8")


def without_scripts(html: str) -> str:
    return re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.DOTALL)


def text_of(html: str) -> str:
    """Return the visible text on one line."""
    without_tags = re.sub(r"<[^>]*>", " ", without_scripts(html))
    return " ".join(unescape(without_tags).split())


def worst(target: str, eps: float, metric: str = "balanced_accuracy") -> str:
    """Return a rate of worst_case.csv of the current workspace, with its interval, as the page shows it."""
    table = read_table(Workspace().worst_case)
    keys = {"target": target, "eps": eps, "metric": metric, "operating_point": "recalibrated"}
    (row,) = table[(table[list(keys)] == pd.Series(keys)).all(axis=1) & (table["threat_model"] == "adaptive")].to_dict(
        "records"
    )
    return f"{100 * row['value']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def test_first_screen_states_the_worst_case_of_all_attacks_in_three_sentences(html: str) -> None:
    answer = re.search(r'<p class="answer">(.*?)</p>', html, re.DOTALL)
    assert answer
    undefended, defended, conclusion = (text_of(each) for each in re.findall(r"<span>(.*?)</span>", answer[1]))
    clean, attacked = worst("undefended", 0), worst("undefended", 1)
    assert (clean[:6], attacked[:6]) == ("95.0 %", "10.0 %")
    assert undefended == (
        f"Without a defence, balanced accuracy is {clean} on clean images and {attacked} in the worst case of all "
        "attacks at ε = 1/255 (operating point: recalibrated on validation images; n = 60 images of 21 inferred "
        "groups; 95 % intervals by inferred group)."
    )
    clean, attacked = worst("retrained_autoencoder", 0), worst("retrained_autoencoder", 1)
    assert (clean[:6], attacked[:6]) == ("90.0 %", "50.0 %")
    # the sweep finds on validation images what the suite finds on test images
    on_validation = worst("retrained_autoencoder", 1)
    assert defended.startswith(
        "With the retrained autoencoder, chosen among 2 defences by balanced accuracy on attacked validation images "
        f"({on_validation} as trained, n = 60 images of 21 inferred groups), balanced accuracy is "
        f"{clean} on clean images and {attacked} in the worst case, a difference of +40.0 ["
    )
    # a constant prediction has 33.3 %
    assert " after Holm's correction for 2 comparisons with the undefended classifier), and of +16.7 [" in defended
    assert defended.endswith("] points to a constant prediction, which is better than the undefended classifier.")
    assert conclusion.startswith("These images are computer-drawn phantoms and cannot judge a defence: at ε = 1/255, ")


def test_first_screen_calls_the_leakage_unverified_and_gives_its_estimate_without_patient_ids(html: str) -> None:
    line = text_of(html.partition('<a href="#data">Leakage</a>')[2].partition("</p>")[0])
    assert re.fullmatch(
        r": unverified without patient ids; an estimated \d+\.\d % \[.*\] of the test images have another image of "
        r"their patient in the training set\.",
        line,
    )


def test_score_table_has_clean_images_and_the_worst_case_at_both_operating_points(html: str) -> None:
    scores = re.findall(r'<table class="score">.*?</table>', html, re.DOTALL)
    assert ["Operating point: recalibrated on validation images" in table for table in scores] == [True, False]
    assert "Operating point: as trained" in scores[1]
    for table in map(text_of, scores):
        assert "n = 60 images of 21 inferred groups; 95 % intervals by inferred group." in table
        assert "target images balanced accuracy accuracy undefended clean 95.0 % [" in table
        for target in ("undefended", "autoencoder", "retrained_autoencoder"):
            rates = [f"{worst(target, eps)} {worst(target, eps, 'accuracy')}" for eps in (0, 1)]
            assert f"{target.replace('_', ' ')} clean {rates[0]} worst case {rates[1]}" in table


@pytest.mark.usefixtures("phantoms")
def test_the_report_has_the_number_of_queries_of_square(params: Params) -> None:
    values = accuracy_section(*loaded(params)).values
    n_queries = sum(stage.square_queries for stage in EFFORTS[params.attack.effort])
    assert (values["effort"], values["square_queries"]) == (params.attack.effort, n_queries)
    assert values["max_square_queries"] == n_queries * len(params.attack.eps) > 0


def test_tables_show_every_accuracy_with_its_interval_and_after_rounding_to_8_bits(html: str) -> None:
    text, table = text_of(html), read_table(Workspace().robustness)
    heads = (
        "autoencoder, transfer from undefended rounded autoencoder, adaptive rounded "
        "retrained autoencoder, transfer from undefended rounded retrained autoencoder, adaptive rounded"
    )
    clean = table[(table["target"] == "undefended") & (table["eps"] == 0)].iloc[0]
    assert f"undefended rounded {heads} 0 (clean) {with_interval(clean)} 95.0 %" in text
    assert "No independent surrogate was used." in text
    rows = table[(table["attack"] == "pgd") & (table["eps"] == 4)].to_dict("records")
    assert [round(60 * row["accuracy"]) for row in rows] == [0, 30, 0, 51, 3]
    assert "4 " + " ".join(f"{with_interval(row)} {with_interval(row, 'accuracy_8bit')}" for row in rows) in text


def test_class_names_and_paths_are_escaped(html: str) -> None:
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<b>.png" not in html
    assert "&lt;b&gt;.png" in html


def test_page_refers_to_nothing_outside_itself(html: str) -> None:
    page = without_scripts(html)
    assert "http://" not in page
    assert "https://" not in page
    targets = re.findall(r'(?:src|href)="([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page)
    assert targets
    assert all(target.startswith(("#", "data:")) for target in targets)
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)


def test_only_the_scripts_of_the_page_may_run(html: str) -> None:
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 2
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    policy = unescape(re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[0])
    assert policy.endswith(f"script-src 'sha256-{digests[0]}' 'sha256-{digests[1]}'")
    assert "default-src 'none'" in policy


def test_page_is_small_and_every_figure_has_a_caption_and_alternative_text(html: str) -> None:
    assert len(html) < 10_700_000
    figures = re.findall(r"<figure(?! id=.explorer).*?</figure>", html, re.DOTALL)
    assert len(figures) == 54
    for figure in figures:
        assert re.search(r'(aria-label|alt)="[^"]{10,}"', figure)
        assert re.search(r"<figcaption>.+</figcaption>", figure)


def test_sections_with_a_finding_start_with_it(html: str) -> None:
    heads = r'<section id="([^"]*)">\s*<h2>[^<]*</h2>\s*<p class="finding">(.*?)</p>'
    findings = {key: text_of(finding) for key, finding in re.findall(heads, html, re.DOTALL)}
    at = "PGD at ε = 1/255"
    beginnings = {
        "claims": "These images are computer-drawn phantoms. They cannot confirm or refute the study's claims.",
        "data-changes": "Images since the reference: added 1, removed 1, changed 1; 63 before, 63 now.",
        "comparison": "Of 3 targets, the retrained autoencoder has the highest balanced accuracy on attacked "
        f"validation images: {worst('retrained_autoencoder', 1)} at ε = 1/255 (as trained, n = 60 images of 21 "
        "inferred groups). On test images, it is "
        f"{worst('retrained_autoencoder', 1)} in the worst case and {worst('retrained_autoencoder', 0)} on clean "
        "images. "
        # below a constant prediction, the autoencoder does not rank above the undefended classifier
        "Its difference from the next target, the undefended classifier, is +40.0 [",
        "heatmaps": f"Under {at}, the IoU of the heat maps with those of the clean images is 0.4",
        "intensities": f"{at} shifts the distribution of grey levels by 0.3",
        "features": f"Under {at}: in the penultimate layer of the classifier, these probes do not separate clean "
        "and adversarial features (highest AUROC ",
        "resilience": f"Under {at}, images purified by the autoencoder (the best of 2 purifiers) are farther from the "
        "clean images than the adversarial images: MSE ",
        "classification": "The expected calibration error (ECE) of the undefended classifier is 4.",
        "detection": "At a false-positive rate of 60.0 % [55.0, 65.0], the best of 5 detectors (chosen on other "
        "inferred groups, mostly the feature distance) detects 60.0 % [55.0, 65.0] of the 30 successful images of "
        f"{at}, which ignores detectors (n = 60). ",
        "active-learning": "Entropy changes the mean clean accuracy by +20.0 [",
    }
    assert list(findings) == list(beginnings)
    for key, beginning in beginnings.items():
        assert findings[key].startswith(beginning)
    assert findings["comparison"].endswith("for 2 comparisons of neighbours in rank at ε = 1/255).")
    assert findings["detection"].endswith(
        "On the 12 images of the adaptive attack at ε = 1/255, it detects 50.0 % [45.0, 55.0] of the 8 successful "
        "images of PGD, and 10.0 % [5.0, 15.0] of the 9 of the adaptive attack. On the 12 images of the adaptive "
        "attack at ε = 4/255, it detects 50.0 % [45.0, 55.0] of the 8 successful images of PGD, and 10.0 % [5.0, 15.0] "
        "of the 9 of the adaptive attack. A joint attack misleads the classifier and evades all detectors for 80.0 % "
        "[75.0, 85.0] of the images that are correct without an attack."
    )


def test_claims_section_has_one_row_for_each_claim_with_its_result(html: str) -> None:
    section = html[html.index('<section id="claims">') : html.index('<section id="data">')]
    assert "Clean and adversarial features overlap they overlap in its pictures 0.550 [0.500, 0.600]" in text_of(
        section
    )
    assert re.findall(r'class="status (\w+)">([^<]*)<', unescape(section)) == [
        ("FAILS", "does not hold"),
        ("HOLDS", "holds"),
        ("OPEN", "not significant"),
        ("OPEN", "not tested"),
    ]
    text = text_of(section)
    assert "claim bound ε = 0.25/255 ε = 1/255 ε = 4/255" in text
    assert "Clean and adversarial features overlap 0.6 holds not significant does not hold" in text
    markdown = Workspace().report_markdown.read_text(encoding="utf-8")
    assert (
        "| Clean and adversarial features overlap | they overlap in its pictures | 0.550 [0.500, 0.600] (" in markdown
    )


@pytest.mark.usefixtures("own_copy", "no_static_figures")
def test_a_section_without_results_says_so(params: Params) -> None:
    empty_analysis()
    shutil.rmtree(Workspace().report)
    Workspace().report.mkdir()
    report(Workspace(), params, Tracker())
    html = Workspace().report_html.read_text(encoding="utf-8")
    text = text_of(html)
    for sentence in (
        "They cannot confirm or refute the study's claims.",
        "The area under the accuracy curves was not computed in this run.",
        "Heat maps were not computed in this run.",
        "Pixel intensities were not compared in this run.",
        "Features were not compared in this run.",
        "Reconstruction was not measured in this run.",
        "Classification metrics were not computed in this run.",
        "No detector was tested in this run.",
    ):
        assert sentence in text
    assert 'id="explorer"' not in html


def test_page_shows_data_validation_training_and_checks(html: str) -> None:
    text = text_of(html)
    assert "320 × 240 to 382 × 240 pixels (width × height), median 351 × 240" in text
    assert "Attacks change the prepared image of 32 × 32 pixels (prepare.image_size), not the pixels of the" in text
    assert "6.2 % of the test images have a near-duplicate in the training set. 87.5 % have another image of" in text
    assert "NA 1 0 20 21" in text
    assert "an estimated 50.0 % [40.0, 60.0] have another image of their patient in the training set." in text
    assert "0.3 4 25.0 %" in text
    assert "without anatomy: test accuracy 33.3 %, balanced accuracy 37.5 %" in text
    assert "PASS About sides" in text
    assert "WARN About near_duplicates" in text
    assert "classifier: best epoch 2 of 3, validation loss 1.5, validation accuracy 87.5 %." in text
    assert "retrained autoencoder: best epoch 2 of 3, validation loss 1.5." in text
    assert "Passed checks do not prove robustness." in text
    for check in json.loads(Workspace().checks.read_text(encoding="utf-8")):
        target = (check["target"] or "data").replace("_", " ")
        assert f"{check['status']} {target} {check['name']}" in text
    assert "Not for diagnosis" in text


def test_page_lists_every_parameter_of_the_run(html: str, params: Params) -> None:
    for key in params.of_step("report"):
        assert f'<td class="code">{key}</td>' in html
    assert '<td class="code">attack.eps</td><td class="code">0.25, 1, 4</td>' in html


def test_a_report_on_phantoms_says_so(html: str) -> None:
    assert "These images are computer-drawn phantoms, not scans of patients." in html
    assert "computer-drawn phantoms, not scans of patients" in Workspace().report_markdown.read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_static_figures")
def test_a_report_on_scans_does_not_mention_phantoms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    monkeypatch.chdir(tmp_path)
    write_workspace(params, is_phantom=False)
    empty_analysis()
    Workspace().report.mkdir()
    report(Workspace(), params, Tracker())
    html = Workspace().report_html.read_text(encoding="utf-8")
    assert "computer-drawn" not in html
    assert "scans &amp; more" in html
    assert "computer-drawn" not in Workspace().report_markdown.read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_static_figures")
def test_a_report_on_one_defence_compares_no_defences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = params_of(["autoencoder"])
    write_workspace(params, is_phantom=True)
    Workspace().report.mkdir()
    report(Workspace(), params, Tracker())
    html = Workspace().report_html.read_text(encoding="utf-8")
    text = text_of(html)
    assert (
        f"With the autoencoder, balanced accuracy is {worst('autoencoder', 0)} on clean images and "
        f"{worst('autoencoder', 1)} in the worst case, a difference of +5.0 ["
    ) in text
    assert "after Holm's correction for 1 comparison with the undefended classifier" in text
    assert "Under PGD at ε = 1/255, images purified by the autoencoder are farther from the clean images" in text
    assert "This is smaller than the shift of clean images by the autoencoder: 2." in text
    assert "the best of 1" not in text
    assert "of 1 purifiers" not in text
    assert "retrained" not in text_of(html[: html.index('<section id="parameters">')])


@pytest.mark.usefixtures("no_static_figures")
def test_a_defence_without_a_purifier_is_left_out_of_the_comparison_of_purifiers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = params_of(["autoencoder"])
    write_workspace(params, is_phantom=True, has_purifiers=False)
    Workspace().report.mkdir()
    report(Workspace(), params, Tracker())
    text = text_of(Workspace().report_html.read_text(encoding="utf-8"))
    assert "No selected defence purifies images." in text
    assert "(Wasserstein distance). Wasserstein distance" in text
    assert "bottleneck of the purifier" not in text
    assert "autoencoder, adaptive" in text
    assert not (Workspace().figures / "resilience-restored.png").exists()


def test_captions_of_example_images_state_attack_and_eps(html: str) -> None:
    text = text_of(html)
    assert "PGD at ε = 4/255, computed on the undefended classifier. One row for each class" in text
    assert "Grad-CAM for the class that is predicted for each image (below it), PGD at ε = 4/255." in text
    assert "the perturbation (PGD at ε = 4/255)" in text


@pytest.mark.usefixtures("own_copy", "no_static_figures")
def test_reporting_twice_gives_the_same_bytes(params: Params) -> None:
    """``tests/test_figures.py`` compares the bytes of static figures."""
    written = []
    for _ in range(2):
        shutil.rmtree(Workspace().report)
        Workspace().report.mkdir()
        report(Workspace(), params, Tracker())
        files = [path for path in sorted(Workspace().report.rglob("*")) if path.is_file()]
        written.append({str(path): path.read_bytes() for path in files})
    assert written[0] == written[1]
    assert len(written[0]) == 57


def test_figures_are_png_files_with_the_names_of_the_figures(phantoms: Path) -> None:
    names = {path.stem for path in Workspace().figures.iterdir()}
    assert {"robustness-fgsm", "robustness-pgd", "classifier-loss", "images-classes", "images-attack"} <= names
    assert "defence-retrained_autoencoder-loss" in names
    for path in Workspace().figures.iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)


def test_the_summary_for_git_has_balanced_accuracies_and_training_curves(phantoms: Path, params: Params) -> None:
    _, headline = loaded(params)
    summary = json.loads(Workspace().summary_metrics.read_text(encoding="utf-8"))
    assert (summary["eps"], summary["operating_point"]) == (headline.eps, "recalibrated")
    metrics = summary["balanced_accuracy"]
    assert list(metrics) == ["undefended", *DEFENCES]
    for target, values in metrics.items():
        at = {"clean": 0.0, "adaptive": headline.eps}
        assert set(values) <= {*at, "transfer", "validation_as_trained"}
        assert {name: values[name] for name in at} == {
            name: round(headline.at(target, eps)["value"], 6) for name, eps in at.items()
        }
    loss = pd.read_csv(Workspace().summary_plots / "training_loss.csv")
    curves = {f"{each}/{of}" for each in ("classifier", *DEFENCES) for of in ("train", "validation")}
    assert set(loss["curve"]) == curves
    assert loss.loc[loss["curve"] == "classifier/validation", ["epoch", "value"]].to_numpy().tolist() == [
        [1, 3.0],
        [2, 1.5],
        [3, 2.0],
    ]


def test_tracker_gets_data_set_headline_metrics_artifacts_and_note(
    phantom_workspace: tuple[Path, RecordingTracker],
) -> None:
    workspace, tracker = phantom_workspace
    assert tracker.values["clean/accuracy"] == pytest.approx(0.95)
    assert tracker.values["clean/autoencoder_accuracy"] == pytest.approx(0.75)
    assert tracker.values["clean/retrained_autoencoder_accuracy"] == pytest.approx(0.9)
    assert tracker.values["robust/undefended_adaptive_pgd_eps_1"] == pytest.approx(0.1)
    assert tracker.values["robust/autoencoder_transfer_fgsm_eps_1"] == pytest.approx(0.7)
    assert tracker.values["worst_case/retrained_autoencoder_recalibrated_eps_1"] == pytest.approx(0.5)
    assert tracker.values["worst_case/retrained_autoencoder_as_trained_eps_0"] == pytest.approx(0.9)
    assert not any(key.endswith("eps_4") for key in tracker.values)
    assert tracker.datasets == [(Workspace().prepare, "phantoms", "evaluation")]
    assert tracker.artifacts == {
        Workspace().report_html: "",
        Workspace().metrics: "",
        Workspace().checks: "",
        Workspace().worst_case: "",
        Workspace().comparison: "",
        Workspace().figures: "figures",
        Workspace().data_docs: "data_docs",
    }
    assert tracker.text == (workspace / Workspace().report_markdown).read_text(encoding="utf-8")
    assert tracker.linked


@pytest.mark.usefixtures("phantoms", "no_static_figures")
def test_markdown_tables_keep_their_columns_for_every_class_name(params: Params) -> None:
    results, headline = loaded(params)
    lines = page.markdown(results, headline, all_sections(results, headline), MAX_NOTE_CHARACTERS).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert f"| undefended | worst case | {worst('undefended', 1)} | {worst('undefended', 1, 'accuracy')} |" in rows
    assert "| a\\|b $\\frac | 1 | 0 | 20 | 21 |" in rows
    assert "| &lt;script>alert(1)&lt;/script> (positive) | 1 | 0 | 20 | 21 |" in rows
    blocks = "\n".join(lines).split("\n\n")
    for block in (block.splitlines() for block in blocks if block.startswith("|")):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1
        assert re.fullmatch(r"[|:-]+", block[1])


@pytest.mark.usefixtures("phantoms", "no_static_figures")
def test_markdown_above_the_limit_of_notes_leaves_out_and_names_whole_sections_from_the_end(params: Params) -> None:
    results, headline = loaded(params)
    sections = all_sections(results, headline)
    whole = page.markdown(results, headline, sections, MAX_NOTE_CHARACTERS)
    titles = re.findall(r"^## (.*)", whole, flags=re.MULTILINE)
    assert titles == ["Scores", "Claims of the study", "Data set", "Checks"]
    # with twelve targets, scores grow fourfold, and no other section grows as much
    assert len(whole) < 0.6 * MAX_NOTE_CHARACTERS
    for number, title in enumerate(titles[1:], start=1):
        kept = whole[: whole.index(f"\n## {title}")]
        short = page.markdown(results, headline, sections, len(kept) + 90)
        assert short == f"{kept}\n## Further sections\n\nIn report.html: {', '.join(titles[number:])}.\n"


@pytest.mark.usefixtures("no_static_figures")
def test_subgroups_have_a_section_with_their_significant_gaps_if_there_are_any(phantoms: Path, params: Params) -> None:
    assert "subgroups" not in {section.key for section in all_sections(*loaded(params))}
    outcomes, split = outcomes_of({"F": 0.95, "M": 0.5})
    write_table(subgroup_table(outcomes, split, 1.0, ["healthy", "ill"], 1), Workspace().subgroups)
    try:
        results, headline = loaded(params)
    finally:
        Workspace().subgroups.unlink()
    (section,) = [section for section in all_sections(results, headline) if section.key == "subgroups"]
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", unescape(rendered(section, headline))))
    assert "undefended adaptive 0 sex F 9" in text
    assert "adjusted by Holm's method over the 6 comparisons" in text
    assert re.search(r"sex F accuracy \+\d+\.\d \[\+\d+\.\d, \+\d+\.\d\] p [=<] 0\.0", text)


@pytest.mark.parametrize(
    "path", [Workspace().validation, Workspace().split, Workspace().robustness, Workspace().features]
)
def test_error_names_the_missing_file_and_the_step_to_run(phantoms: Path, params: Params, path: Path) -> None:
    hidden = path.rename(phantoms / "hidden")
    try:
        with pytest.raises(FileNotFoundError, match=f"^{path} not found: run the step {path.parts[1]} first"):
            report(Workspace(), params, Tracker())
    finally:
        hidden.rename(path)


def headline_with(
    attacked: float = 0.8,
    half_width: float = 0.05,
    difference: tuple[float, float, float] = (0.2, 0.1, 0.3),
    p_value: float = 0.001,
    at_larger_eps: float = 0.8,
    over_better: tuple[float, float, float] = (0.2, 0.1, 0.3),
    is_phantom: bool = False,
) -> Headline:
    """Headline of one defence on 100 images of 40 patients in two classes, at eps 1, with a larger eps of 4.

    Args:
        attacked: balanced accuracy of the defence in the worst case at eps 1.
        half_width: of all intervals; NaN for too few groups.
        difference: of the defence to the undefended classifier, with its interval.
        p_value: after Holm's correction.
        at_larger_eps: balanced accuracy of the defence in the worst case at eps 4.
        over_better: difference to the better of the undefended classifier and a constant prediction.
        is_phantom: whether the images are computer-drawn.
    """
    values = {"undefended": (0.9, 0.3, 0.1), "autoencoder": (0.85, attacked, at_larger_eps)}
    rows = [
        {"target": target, "operating_point": "fixed_sensitivity", "eps": eps, "metric": metric, "value": value}
        for target, of_target in values.items()
        for eps, value in zip((0.0, 1.0, 4.0), of_target, strict=True)
        for metric in ("accuracy", "balanced_accuracy", "sensitivity", "specificity")
    ]
    table = pd.DataFrame(rows).assign(threat_model="adaptive", n=100, n_groups=40)
    table = table.assign(low=table["value"] - half_width, high=table["value"] + half_width)
    on_validation = Estimate(0.75, 0.65, 0.85)
    return Headline(
        eps=1.0,
        operating_point="fixed_sensitivity",
        worst_case=table,
        comparisons={
            "autoencoder": DefenceComparison(
                Estimate(*difference),
                p_value,
                0.123,
                attacked - half_width > 0.5,
                on_validation,
                Estimate(*over_better),
            )
        },
        best="autoencoder",
        n_configurations=2,
        unit="patient",
        effort=("FGSM", "PGD with 10 steps"),
        analysed_attack="pgd",
        sensitivity=0.95,
        is_phantom=is_phantom,
    )


def test_headline_names_operating_point_unit_and_numbers() -> None:
    text = headline_sentences(headline_with())
    assert text.startswith(
        "Without a defence, balanced accuracy is 90.0 % [85.0, 95.0] on clean images and 30.0 % [25.0, 35.0] in the "
        "worst case of all attacks at ε = 1/255 (operating point: sensitivity of 95 % on validation images; n = 100 "
        "images of 40 patients; 95 % intervals by patient). With the autoencoder, balanced accuracy is 85.0 % "
        "[80.0, 90.0] on clean images and 80.0 % [75.0, 85.0] in the worst case, a difference of +20.0 [+10.0, +30.0] "
        "points to the undefended classifier (significant: p = 0.001 after Holm's correction for 1 comparison with "
        "the undefended classifier)."
    )


def test_the_headline_of_a_classifier_that_can_only_be_queried_names_the_gradients_of_the_attacks() -> None:
    note = "the classifier can only be queried, so all gradients are those of the surrogates)"
    assert note in headline_sentences(replace(headline_with(), is_only_queried=True))
    assert note not in headline_sentences(headline_with())


@pytest.mark.parametrize(("jpeg", "is_tied"), [(0.45, True), (0.5, True), (0.6, False)])
def test_headline_names_defences_that_equal_the_chosen_one_on_attacked_validation_images(
    jpeg: float, is_tied: bool
) -> None:
    chosen = headline_with()
    on_validation = {"autoencoder": Estimate(0.4, 0.3, 0.5), "jpeg": Estimate(jpeg, 0.3, 0.7)}
    comparisons = {name: replace(chosen.comparison, on_validation=each) for name, each in on_validation.items()}
    text = headline_sentences(replace(chosen, comparisons=comparisons))
    # a constant prediction has 50 %, so 40 % and 45 % count as equal
    tie = (
        "40.0 % [30.0, 50.0] as trained; equal for the jpeg, so balanced accuracy on unchanged validation images "
        "decides, and then the name)"
    )
    assert (tie in text) == is_tied
    assert ("; equal for" in text) == is_tied


@pytest.mark.parametrize(
    ("attacked", "half_width", "conclusion"),
    [
        (0.8, 0.05, "the autoencoder is not broken by these attacks (FGSM, PGD with 10 steps);"),
        (0.4, 0.05, "the autoencoder is broken by these attacks (FGSM, PGD with 10 steps)."),
        (0.5, 0.05, "it is undecided whether the autoencoder is broken by these attacks (FGSM"),
        (0.8, math.nan, "there are too few groups to decide whether the autoencoder is broken by these attacks (FGSM"),
    ],
)
def test_a_defence_is_broken_if_its_whole_interval_is_at_most_a_constant_prediction(
    attacked: float, half_width: float, conclusion: str
) -> None:
    text = headline_sentences(headline_with(attacked, half_width))
    assert conclusion in text
    assert "The worst case is an upper bound on robustness, since a stronger attack can lower it: at ε = 1/255" in text
    assert "help" not in text
    assert "nan" not in text


def test_the_smallest_larger_eps_that_breaks_the_defence_is_named() -> None:
    broken = "(FGSM, PGD with 10 steps); at ε = 4/255, it is broken (10.0 % [5.0, 15.0])."
    for is_phantom in (False, True):
        text = headline_sentences(headline_with(at_larger_eps=0.1, is_phantom=is_phantom))
        assert text.endswith(broken)
        assert len(re.findall(r"[.] [A-Z]", text)) == 2
    assert headline_sentences(headline_with(at_larger_eps=0.5)).endswith("; it is broken at no larger ε up to 4/255.")


def test_a_gain_up_to_a_constant_prediction_is_told_apart_from_one_above_it() -> None:
    text = headline_sentences(headline_with(difference=(0.5, 0.4, 0.6), over_better=(0.3, 0.25, 0.35)))
    assert "a difference of +50.0 [+40.0, +60.0] points to the undefended classifier (significant" in text
    assert "), and of +30.0 [+25.0, +35.0] points to a constant prediction, which is better than" in text
    assert "constant" not in headline_sentences(headline_with())


@pytest.mark.parametrize(
    ("difference", "p_value", "judged"),
    [
        ((0.2, 0.1, 0.3), 0.049, "(significant: p = 0.049 after Holm's correction"),
        ((0.2, 0.1, 0.3), 0.05, "(not significant: p = 0.050 after Holm's correction for 1 comparison with the "
         "undefended classifier; the smallest difference that these data can show is 12.3 points)"),
        ((0.2, -0.1, 0.3), 0.01, "(undecided: the interval contains 0, but p = 0.010 after Holm's correction"),
        ((0.2, math.nan, math.nan), 0.01, "+20.0 [too few groups] points to the undefended classifier (too few groups "
         "for a test)."),
    ],
)  # fmt: skip
def test_the_difference_is_judged_by_the_corrected_p_value_and_its_interval(
    difference: tuple[float, float, float], p_value: float, judged: str
) -> None:
    assert judged in headline_sentences(headline_with(difference=difference, p_value=p_value))


def test_phantoms_judge_no_defence() -> None:
    text = headline_sentences(headline_with(is_phantom=True))
    assert "These images are computer-drawn phantoms and cannot judge a defence: at ε = 1/255, the" in text


def test_every_defence_is_compared_with_the_undefended_classifier_on_the_same_images(
    phantoms: Path, params: Params
) -> None:
    _, headline = loaded(params)
    assert headline.best == "retrained_autoencoder"
    assert headline.styles == {"undefended": 0, "autoencoder": 1, "retrained_autoencoder": 2}
    # correct at eps 1: the first 6, 9 and 30 of 60 images
    assert {name: each.difference.value for name, each in headline.comparisons.items()} == pytest.approx(
        {"autoencoder": 0.05, "retrained_autoencoder": 0.4}
    )
    table = read_table(Workspace().comparison)
    is_shown = (table["operating_point"] == "recalibrated") & (table["threat_model"] == "adaptive")
    p_values = table[is_shown & (table["eps"] == 1)].set_index("target")["p_value_gain"]
    # Holm: the smaller p-value counts twice
    assert headline.comparison.p_value_holm == pytest.approx(2 * p_values["retrained_autoencoder"])
    assert headline.comparisons["autoencoder"].p_value_holm == pytest.approx(p_values["autoencoder"])


def test_a_defence_that_is_not_above_a_constant_prediction_gets_no_credit_in_the_headline() -> None:
    # all images are moved to one class, where the undefended classifier has no correct image
    text = headline_sentences(headline_with(attacked=0.5, half_width=0.001, difference=(0.3, 0.25, 0.35)))
    assert "(no gain over a constant prediction: p = 0.001 after Holm's correction" in text
    assert "not broken" not in text


def test_the_defence_with_the_best_result_on_test_images_is_not_chosen_for_it(phantoms: Path, params: Params) -> None:
    results, _ = loaded(params)
    # on validation images the other defence is the better one
    rank = results.comparison["target"].map({"autoencoder": 1, "retrained_autoencoder": 2, "undefended": 3})
    headline = headline_of(replace(results, comparison=results.comparison.assign(rank=rank)))
    assert headline.best == "autoencoder"
    assert "With the autoencoder, chosen among 2 defences" in headline_sentences(headline)


def test_the_number_of_compared_configurations_is_stated(html: str, phantoms: Path, params: Params) -> None:
    text = text_of(html)
    assert "So far, 3 configurations of targets were compared on these images ( data/configurations.csv )." in text
    assert "If the best of 3 were chosen by test results, its test results would be too high." in text
    listed = pd.read_csv(Workspace().configurations)
    for digest in listed["configuration"]:
        assert str(digest) in text
    # configurations on other images do not count
    others = listed.assign(data="other", configuration=["x", "y", "z"])
    known = Workspace().configurations.read_bytes()
    pd.concat([listed, others]).to_csv(Workspace().configurations, index=False)
    assert loaded(params)[1].n_configurations == 3
    Workspace().configurations.write_bytes(known)


def test_headline_of_three_classes_is_at_the_recalibrated_operating_point(phantoms: Path, params: Params) -> None:
    _, headline = loaded(params)
    assert headline.operating_point == "recalibrated"
    assert headline.metrics == ["balanced_accuracy", "accuracy"]
    assert headline.chance == pytest.approx(1 / 3)
    assert headline_with().metrics == ["balanced_accuracy", "accuracy", "sensitivity", "specificity"]
    assert headline_with().chance == 0.5


def test_the_effort_of_the_attacks_is_named(params: Params) -> None:
    assert effort_of(params.attack, ["suite", "square"]) == (
        "FGSM",
        "PGD with 10 steps",
        "white-box suite with effort quick",
        "Square attack with effort quick",
    )


@pytest.mark.parametrize(
    ("leakage", "n_groups", "unit", "sample"),
    [
        ({}, 12, "inferred group", "n = 60 images of 9 inferred groups"),
        ({}, 60, "image", "n = 60 images"),
        ({"patient_in_train": 0.0}, 12, "patient", "n = 60 images of 9 patients"),
    ],
)
def test_the_unit_of_intervals_depends_on_patient_ids_and_groups(
    leakage: dict[str, float], n_groups: int, unit: str, sample: str
) -> None:
    assert unit_of({"leakage": leakage, "n": 60, "n_groups": n_groups}) == unit
    assert sample_text(60, 9, unit) == sample


@pytest.mark.usefixtures("no_static_figures")
def test_too_few_groups_have_no_interval_and_no_conclusion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    monkeypatch.chdir(tmp_path)
    write_workspace(params, is_phantom=False, n_groups=4)
    results, headline = loaded(params)
    text = headline_sentences(headline)
    assert "95.0 % [too few groups] on clean images and 10.0 % [too few groups] in the worst case" in text
    few = "(too few of <script>alert(1)</script>: 4, effective number 4.00; NA: 4, effective number 4.00;"
    assert f"n = 60 images of 4 inferred groups {few}" in text
    assert "+40.0 [too few groups] points to the undefended classifier (too few groups for a test), and of" in text
    assert "too few groups to decide whether the retrained autoencoder is broken" in text
    section = comparison_section(results, headline)
    assert "is +40.0 [too few groups] points (too few groups for a test)." in finding_of(section, headline)
    for table in (section.values["ranking"], section.values["operating_points"], section.values["everywhere"]):
        assert not [cell for row in table.rows for cell in row if "nan" in cell]
    # neighbours have no p-value without an interval
    assert [row[-2] for row in section.values["ranking"].rows] == ["–", "–", "–"]


def test_an_estimate_without_an_interval_says_so() -> None:
    row = {"value": 0.5, "low": math.nan, "high": math.nan}
    assert estimate(row, percent) == "50.0 % [too few groups]"
    assert estimate(row, percent, no_interval="") == "50.0 %"
    assert estimate(row | {"value": math.nan}, percent) == "–"
    assert with_interval({"accuracy": 0.5, "accuracy_low": math.nan, "accuracy_high": math.nan}) == (
        "50.0 % [too few groups]"
    )


def test_estimates_without_intervals_are_not_compared() -> None:
    low, high, unknown = {"low": 0.1, "high": 0.2}, {"low": 0.3, "high": 0.4}, {"low": math.nan, "high": math.nan}
    relations = ("smaller", "larger", "similar")
    assert relation_of(low, high, *relations) == "smaller"
    assert relation_of(high, low, *relations) == "larger"
    assert relation_of(low, low, *relations) == "similar"
    assert relation_of(low, unknown, *relations) is None


def test_headline_metrics_are_those_of_one_eps() -> None:
    metrics: dict[str, Any] = {
        "clean": {"undefended": {"accuracy": 0.9, "f1": 0.8}, "autoencoder": {"f1": 0.7}},
        "robust": {"undefended": {"adaptive": {"pgd": {"eps_0.5": 0.4, "eps_1": 0.2}}}},
        "worst_case": {
            "undefended": {
                "as_trained": {
                    "adaptive": {
                        "eps_0": {"balanced_accuracy": 0.8, "accuracy": 0.9},
                        "eps_0.5": {"balanced_accuracy": 0.3, "accuracy": 0.3},
                        "eps_1": {"balanced_accuracy": None, "accuracy": None},
                    }
                }
            }
        },
    }
    assert headline_metrics(metrics, 0.5) == {
        "clean/accuracy": 0.9,
        "clean/f1": 0.8,
        "clean/autoencoder_f1": 0.7,
        "robust/undefended_adaptive_pgd_eps_0.5": 0.4,
        "worst_case/undefended_as_trained_eps_0": 0.8,
        "worst_case/undefended_as_trained_eps_0.5": 0.3,
    }


def test_parameter_values_are_written_without_brackets() -> None:
    assert value_text(None) == "–"
    assert value_text([0.25, 1.0, "x"]) == "0.25, 1, x"
    assert value_text([{"kind": "gaussian", "strength": 0.1}, {"kind": "uniform"}]) == (
        "kind: gaussian, strength: 0.1; kind: uniform"
    )
    assert value_text(True) == "true"


def test_checks_section_has_a_table_by_target_then_explains_warnings_and_failures(html: str) -> None:
    section = html[html.index('<section id="checks">') :]
    matrix, raised, *_ = re.findall(r"<table.*?</table>", section, re.DOTALL)
    assert re.findall(r'scope="col">([^<]*)', matrix) == ["check", "undefended", "autoencoder", "retrained autoencoder"]
    checks = json.loads(Workspace().checks.read_text(encoding="utf-8"))
    assert matrix.count('<th scope="row">') == len({check["name"] for check in checks if check["target"]})
    (transfer,) = re.findall(r"transfer attacks are not stronger than adaptive attacks</th>(.*?)</tr>", matrix)
    assert text_of(transfer).split() == ["–", "PASS", "PASS"]
    assert ">PASS<" not in raised
    assert "not checked: needs" in raised


def test_statuses_of_checks_are_counted_and_have_their_own_badges(phantoms: Path, params: Params) -> None:
    results, headline = loaded(params)
    statuses = ["PASS", "INFO", "WARN", "FAIL", "NO POWER", "UNVERIFIED"]
    checks = [{**check, "status": status} for check, status in zip(results.checks, statuses, strict=False)]
    section = checks_section(replace(results, checks=checks), headline)
    assert list(section.values["counts"].items()) == [
        ("FAIL", 1),
        ("NO POWER", 1),
        ("UNVERIFIED", 1),
        ("WARN", 1),
        ("INFO", 1),
        ("PASS", 1),
    ]
    assert [check["status"] for check in section.values["not_passed"]] == [
        "FAIL",
        "NO POWER",
        "UNVERIFIED",
        "WARN",
        "INFO",
    ]
    html = rendered(section, headline)
    assert 'class="status NO-POWER">NO POWER<' in html
    assert "of 6 checks" in text_of(html)


def test_checks_without_power_are_no_passes() -> None:
    assert checks_text(["PASS", "INFO"]) == "all pass"
    assert checks_text(["WARN", "NO POWER", "WARN", "PASS", "FAIL"]) == "1 FAIL, 1 NO POWER, 2 WARN"


def test_data_changes_since_the_reference_are_counted(html: str) -> None:
    section = html[html.index('<section id="data-changes">') : html.index('<section id="training">')]
    assert "Images since the reference: added 1, removed 1, changed 1; 63 before, 63 now." in section
    rows = [re.sub(r"<[^>]*>", " ", row).split() for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", section)]
    # of the first class an image has other pixels, of the second one is gone, of the third one is new
    assert [row[-5:] for row in rows[:3]] == [
        ["21", "21", "0", "0", "1"],
        ["22", "21", "0", "1", "0"],
        ["20", "21", "1", "0", "0"],
    ]
    assert "not corrected for 24 comparisons" in section


def test_unchanged_data_and_different_data_are_recognised(phantoms: Path, params: Params) -> None:
    results, headline = loaded(params)
    same = data_changes_section(replace(results, reference=results.manifest), headline)
    assert finding_of(same, headline) == "No changes: the same 63 images as in the reference."
    assert same.values["changes"] is None
    elsewhere = results.manifest.assign(path="elsewhere/" + results.manifest["path"])
    other = data_changes_section(replace(results, reference=elsewhere), headline)
    assert finding_of(other, headline) == (
        "Different data: none of the 63 reference images is among the 63 images of this run."
    )
    assert other.values["changes"] is other.values["shifts"] is None


@pytest.mark.usefixtures("no_static_figures")
def test_acquisition_functions_that_differ_from_random_are_named(phantoms: Path, params: Params) -> None:
    results, headline = loaded(params)

    def row(name: str, metric: str, gain: float, p_value: float, n_seeds: int) -> dict[str, object]:
        bounds = {"low": gain - 0.01, "high": gain + 0.01, "lowest": gain - 0.02, "highest": gain + 0.02}
        bounds |= {"all_seeds_low": gain - 0.02, "all_seeds_high": gain + 0.02, "p_value_holm": p_value}
        key = {"acquisition": name, "metric": metric, "value": gain, "n_seeds": n_seeds, "n_comparisons": 6}
        return key | bounds

    for n_seeds, conclusion in ((10, ""), (9, "too few seeds")):
        rows = [row("random", "mean_clean_accuracy", 0.7, math.nan, n_seeds)]
        for name, gain, p_value in (("entropy", 0.05, 0.01), ("bald", 0.0, 1.0), ("core_set", -0.04, 0.02)):
            rows += [row(name, f"mean_{kind}_accuracy_gain", gain, p_value, n_seeds) for kind in ("clean", "robust")]
        section = active_learning_section(replace(results, label_efficiency=pd.DataFrame(rows)), headline)
        finding = finding_of(section, headline)
        if conclusion:
            assert finding.count("There are too few seeds for a conclusion.") == 3
        else:
            assert finding == (
                "Mean clean accuracy of 3 acquisition functions compared with random, in points. Better: "
                "entropy (+5.0 [+4.0, +6.0]). Worse: core set (−4.0 [−5.0, −3.0]). Not significant: 1 (Holm's "
                "correction for 6 comparisons with random)."
            )


@pytest.mark.parametrize(
    ("epochs", "patience", "description"),
    [
        ([31, 28], 10, "trained until the accuracy on validation images had not risen for 10 epochs (28 to 31 epochs)"),
        (
            [100, 28],
            10,
            "trained until the accuracy on validation images had not risen for 10 epochs, for at most 100 epochs: 1 of "
            "2 trainings reached this number and may not have converged",
        ),
        ([100], 0, "trained for 100 epochs, without a rule that stops it"),
    ],
)
def test_the_report_says_how_the_reference_of_active_learning_was_trained(
    params: Params, epochs: list[int], patience: int, description: str
) -> None:
    training = params.active_learning.reference_training.model_copy(
        update={"epochs": 100, "early_stopping_patience": patience}
    )
    cycles = pd.DataFrame({"acquisition": "all labels", "n_epochs": epochs})
    assert reference_training(cycles, training) == description


def test_results_of_a_claim_at_other_eps_are_grouped_by_result() -> None:
    claim = {"result_by_eps": {"0.5": "holds", "2": "holds", "4": "does not hold"}}
    assert results_at_other_eps(claim) == "0.5, 2: holds; 4: does not hold"


@pytest.mark.usefixtures("no_static_figures")
def test_a_report_on_scans_counts_the_results_of_the_claims(phantoms: Path, params: Params) -> None:
    results, headline = loaded(params)
    scans = replace(results, data=replace(results.data, is_phantom=False))
    finding = finding_of(claims_section(scans, headline), headline)
    assert finding == "Result of 4 claims: holds (1), does not hold (1), not significant (1), not tested (1)."


def test_a_finding_about_features_has_the_interval_of_the_claim(phantoms: Path, params: Params) -> None:
    results, headline = loaded(params)
    values = features_section(results, headline).values
    at_point = values["point"].of(results.features)
    claims = features_overlap(at_point, "pgd", 0.6)
    of_claims = {f"{claim.value:.2f} [{claim.low:.2f}, {claim.high:.2f}]" for claim in claims}
    found = {each["auroc"] for each in values["separation"]}
    assert found
    assert found <= of_claims


def test_probes_that_do_not_find_the_classes_have_no_power_in_the_report(phantoms: Path, params: Params) -> None:
    results, headline = loaded(params)
    is_class = results.features["metric"] == "class_auroc_clean"
    results.features.loc[is_class, "low"] = 0.4
    assert {each["result"] for each in features_section(results, headline).values["separation"]} == {"no power"}
    assert "the probes have no power: the probe does not find the classes" in finding_of(
        features_section(results, headline), headline
    )


def test_the_report_says_that_groups_are_too_few_to_test_a_probe_that_finds_the_classes(
    phantoms: Path, params: Params
) -> None:
    results, headline = loaded(params)
    is_class = results.features["metric"] == "class_auroc_clean"
    results.features.loc[is_class, ["value", "low", "high", "n_groups"]] = [0.98, math.nan, math.nan, 20]
    finding = finding_of(features_section(results, headline), headline)
    assert "the probes have no power: too few groups (20 of all classes, at least 5 effective groups of each" in finding
    assert "does not find" not in finding
    claim = {**results.claims[0], "result": "no power", "reasons_without_power": ["too few groups"], "n": 0}
    (row,) = claims_section(replace(results, claims=[claim]), headline).values["claims"]
    assert row["reasons"] == "too few groups"
    assert row["sample"].startswith("n = 0 images")


def test_tables_of_detectors_have_the_number_of_images_of_each_attack(phantoms: Path, params: Params) -> None:
    values = detection_section(*loaded(params)).values
    best = next(row for row in values["by_attack"].rows if row[0] == "best detector")
    assert [best[2], best[5], best[8]] == ["60 (30)", "12 (9)", "12 (9)"]
    assert {tuple(row[2:4]) for row in values["rejection"].rows} == {("60", "21")}
    assert values["rejection_samples"][0] == "PGD: n = 60 images of 21 inferred groups"


def test_only_detectors_that_flag_significantly_too_many_clean_images_are_named(phantoms: Path, params: Params) -> None:
    results, headline = loaded(params)
    table = results.detection
    assert flag_too_often(table, Point("pgd", 1.0), 0.05) == []
    is_often = table["detector"] == "entropy"
    rates = {"false_positive_rate": 0.2, "false_positive_rate_low": 0.06, "false_positive_rate_high": 0.3}
    table.loc[is_often, list(rates)] = list(rates.values())
    assert flag_too_often(table, Point("pgd", 1.0), 0.05) == ["entropy (20.0 % [6.0, 30.0])"]
    section = detection_section(replace(results, detection=table), headline)
    assert section.values["too_often"] == ["entropy (20.0 % [6.0, 30.0])"]


@pytest.mark.usefixtures("no_static_figures")
def test_rejection_is_shown_at_the_false_positive_rate_of_the_parameters(phantoms: Path, params: Params) -> None:
    for rate, shown in ((0.05, "5.0 %"), (0.3, "20.0 %")):
        analyze = params.analyze.model_copy(update={"false_positive_rate": rate})
        results, headline = loaded(params.model_copy(update={"analyze": analyze}))
        assert detection_section(results, headline).values["nominal_rate"] == shown


def test_every_caption_of_a_table_with_intervals_names_their_unit(html: str) -> None:
    captions = [text_of(caption) for caption in re.findall(r"<caption>(.*?)</caption>", html, re.DOTALL)]
    with_intervals = [caption for caption in captions if "95 % interval" in caption and "seeds" not in caption]
    assert len(with_intervals) > 20
    assert [caption for caption in with_intervals if "by inferred group" not in caption] == []
    assert "Wilson" not in html[html.index("<body>") :]
    assert "McNemar" not in html[html.index("<body>") :]


def loaded(params: Params) -> tuple[Results, Headline]:
    results = load_results(Workspace(), params)
    return results, headline_of(results)


def rendered(section: Section, headline: Headline) -> str:
    template = environment().get_template(f"sections/{section.key.replace('-', '_')}.html.j2")
    figures = {drawing.name: render(drawing) for drawing in section.drawings}
    return template.render(section.values, figures=figures, headline=headline)


def finding_of(section: Section, headline: Headline) -> str:
    finding = re.search(r'<p class="finding">(.*?)</p>', rendered(section, headline), re.DOTALL)
    assert finding
    return text_of(finding[1])


def test_intervals_and_units_are_not_broken_across_lines_and_text_stays_escaped() -> None:
    assert keep_together("<b> 3 % [1, 2] < 4").replace("\xa0", "_") == "&lt;b&gt; 3_%_[1,_2]_&lt;_4"
    assert keep_together(Markup("p &lt; 0.1")).replace("\xa0", "_") == "p_&lt;_0.1"


def test_eps_is_also_in_the_unit_of_a_window() -> None:
    window = {"kind": "window", "bits": 0, "low": -1350.0, "high": 150.0, "unit": "HU"}
    assert eps_in_unit({"intensity": window}, 1.0) == " (5.88 HU)"
    assert eps_in_unit({}, 1.0) == ""
    assert eps_in_unit({"intensity": window | {"kind": "full_range"}}, 1.0) == ""


@pytest.mark.usefixtures("no_static_figures")
def test_without_images_nothing_that_the_report_writes_depends_on_a_pixel(
    phantom_workspace: tuple[Path, RecordingTracker], tmp_path: Path, params: Params
) -> None:
    shutil.copytree(phantom_workspace[0], tmp_path, dirs_exist_ok=True)
    workspace, pixels = Workspace(tmp_path), np.load(Workspace(phantom_workspace[0]).pixels)
    with_images = {path.name for path in workspace.figures.iterdir()}
    page_with_images = workspace.report_html.read_text(encoding="utf-8")
    shutil.rmtree(workspace.examples.parent)
    written = []
    for shown in (pixels, 255 - pixels):
        np.save(workspace.pixels, shown)
        shutil.rmtree(workspace.report)
        workspace.report.mkdir()
        tracker = RecordingTracker()
        report(workspace, params.model_copy(update={"report": Report(include_images=False)}), tracker)
        files = sorted(path for path in workspace.report.rglob("*") if path.is_file())
        written.append({path.name: path.read_bytes() for path in files} | {"note": tracker.text.encode()})
    assert written[0] == written[1]
    of_images = {name for name in with_images if name.startswith(IMAGES)}
    assert {"images-classes.png", "images-attack.png", "images-heatmaps.png", "images-queried-random.png"} <= of_images
    assert {path.name for path in workspace.figures.iterdir()} == with_images - of_images
    assert "data:image/jpeg" in page_with_images
    page_without = written[0]["report.html"].decode()
    assert "data:image/jpeg" not in page_without
    assert "<img" not in without_scripts(page_without)
