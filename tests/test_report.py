"""The report of a workspace with known numbers."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from markupsafe import Markup
from PIL import Image

from tasks.core.workspace import Workspace
from tasks.params import Params, parse_params
from tasks.report import report
from tasks.reporting import page
from tasks.reporting.drawings import render
from tasks.reporting.formats import value_text
from tasks.reporting.headline import Headline, headline_metrics, headline_of
from tasks.reporting.results import Results, load_results
from tasks.reporting.section import Section
from tasks.reporting.sections import all_sections
from tasks.reporting.sections.active_learning import active_learning_section
from tasks.reporting.sections.claims import claims_section, results_at_other_eps
from tasks.reporting.sections.data_changes import data_changes_section
from tasks.reporting.sections.detection import detection_section
from tasks.reporting.templating import environment, headline_sentences, keep_together
from tasks.tracking import MAX_NOTE_CHARACTERS, Tracker
from tests.conftest import with_overrides
from tests.report_workspace import DEFENCES, EPS, SIDE, empty_analysis, write_workspace

SHORTENED = "\n\n*Shortened. The full text is in report.html.*\n"


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
def workspace(phantom_workspace: tuple[Path, RecordingTracker], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same workspace as the current folder."""
    monkeypatch.chdir(phantom_workspace[0])
    return phantom_workspace[0]


@pytest.fixture
def html(workspace: Path) -> str:
    return Workspace().report_html.read_text(encoding="utf-8")


def without_scripts(html: str) -> str:
    return re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.DOTALL)


def text_of(html: str) -> str:
    """Return the visible text on one line."""
    without_tags = re.sub(r"<[^>]*>", " ", without_scripts(html))
    return " ".join(unescape(without_tags).split())


def test_first_screen_states_what_was_tested_and_the_result_in_three_sentences(html: str) -> None:
    answer = re.search(r'<p class="answer">(.*?)</p>', html, re.DOTALL)
    assert answer
    assert text_of(answer[1]) == (
        "Without a defence, accuracy is 95.0 % [86.3, 98.3] on 60 clean test images and 10.0 % [4.7, 20.1] under PGD "
        "at ε = 1/255. "
        "With the retrained autoencoder, the best of 2 defences under the adaptive attack, accuracy is "
        "90.0 % [79.9, 95.3] on clean images (5.0 points lower), 88.3 % [77.8, 94.2] under the transfer attack and "
        "50.0 % [37.7, 62.3] under the adaptive attack. "
        "The defence gains 78.3 points of accuracy under the transfer attack and 40.0 points under the adaptive attack."
    )
    table = text_of(html[html.index('<table class="score">') :])
    assert "target clean transfer attack adaptive attack undefended 95.0 % [86.3, 98.3] – 10.0 % [4.7, 20.1]" in table
    assert "autoencoder 75.0 % [62.8, 84.2] 65.0 % [52.4, 75.8] 15.0 % [8.1, 26.1]" in table
    assert "retrained autoencoder 90.0 % [79.9, 95.3] 88.3 % [77.8, 94.2] 50.0 % [37.7, 62.3]" in table


def test_tables_show_every_accuracy_with_its_interval(html: str) -> None:
    text = text_of(html)
    heads = (
        "autoencoder, transfer autoencoder, adaptive retrained autoencoder, transfer retrained autoencoder, adaptive"
    )
    assert f"undefended {heads} 0 (clean) 95.0 % [86.3, 98.3]" in text
    assert "4 0.0 % [0.0, 6.0] 50.0 % [37.7, 62.3] 0.0 % [0.0, 6.0] 85.0 % [73.9, 91.9] 5.0 % [1.7, 13.7]" in text


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
    assert len(figures) == 52
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
        "comparison": "Of 3 targets, the retrained autoencoder has the highest worst-case accuracy under adaptive "
        "attacks: 50.0 % [37.7, 62.3] at ε = 1/255 and 90.0 % [79.9, 95.3] on clean images. The difference to the "
        "next target, the autoencoder, is significant (McNemar's test, p < 0.001, n = 60).",
        "heatmaps": f"Under {at}, the IoU of the heat maps with those of the clean images is 0.4",
        "intensities": f"{at} shifts the distribution of grey levels by 0.3",
        "features": f"Under {at}: in the penultimate layer of the classifier, clean and adversarial features overlap "
        "(highest AUROC ",
        "resilience": f"Under {at}, images purified by the autoencoder (the best of 2 purifiers) are farther from the "
        "clean images than the adversarial images: MSE ",
        "classification": "The expected calibration error (ECE) of the undefended classifier is 4.",
        "detection": f"The best detector of {at} is the feature distance: AUROC 0.70 [0.65, 0.75] (",
        "active-learning": "Entropy changes the mean clean accuracy by +2.1 [+1.9, +2.3] points and the mean robust "
        "accuracy by +1.1 [+0.9, +1.2] points compared with random. It is better than random on clean images.",
    }
    assert list(findings) == list(beginnings)
    for key, beginning in beginnings.items():
        assert findings[key].startswith(beginning)
    assert findings["detection"].endswith("Under a detector-aware attack, its AUROC is 0.50 [0.45, 0.55].")


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
    markdown = Workspace().report_markdown.read_text(encoding="utf-8")
    assert (
        "| Clean and adversarial features overlap | they overlap in its pictures | 0.550 [0.500, 0.600] (" in markdown
    )


def test_a_section_without_results_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params) -> None:
    monkeypatch.chdir(tmp_path)
    write_workspace(params, is_phantom=True)
    empty_analysis()
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
    assert "6.2 % of the test images have a near-duplicate in the training set. 87.5 % have another image of" in text
    assert "NA 1 0 20 21" in text
    assert "PASS About sides" in text
    assert "WARN About near_duplicates" in text
    assert "classifier: best epoch 2 of 3, validation loss 1.5, validation accuracy 87.5 %." in text
    assert "retrained autoencoder: best epoch 2 of 3, validation loss 1.5." in text
    assert "If all checks pass, robustness is not proven." in text
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


def test_a_report_on_one_defence_compares_no_defences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = params_of(["autoencoder"])
    write_workspace(params, is_phantom=True)
    Workspace().report.mkdir()
    report(Workspace(), params, Tracker())
    html = Workspace().report_html.read_text(encoding="utf-8")
    text = text_of(html)
    assert (
        "With the autoencoder, accuracy is 75.0 % [62.8, 84.2] on clean images (20.0 points lower), "
        "65.0 % [52.4, 75.8] under the transfer attack and 15.0 % [8.1, 26.1] under the adaptive attack. "
        "The defence gains 55.0 points of accuracy under the transfer attack and 5.0 points under the adaptive attack "
        "(the 95 % intervals with and without the defence overlap); at ε = 4/255, accuracy under the adaptive attack "
        "is 0.0 % [0.0, 6.0]."
    ) in text
    assert "Under PGD at ε = 1/255, images purified by the autoencoder are farther from the clean images" in text
    assert "This is smaller than the shift of clean images by the autoencoder: 2." in text
    assert "the best of 1" not in text
    assert "of 1 purifiers" not in text
    assert "retrained" not in text_of(html[: html.index('<section id="parameters">')])


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


def test_reporting_twice_gives_the_same_bytes(workspace: Path, params: Params) -> None:
    def outputs() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(Workspace().report.rglob("*")) if path.is_file()}

    first = outputs()
    Workspace().report.rename(workspace / "before")
    Workspace().report.mkdir()
    report(Workspace(), params, Tracker())
    assert outputs() == first
    assert len(first) == 54


def test_figures_are_png_files_with_the_names_of_the_figures(workspace: Path) -> None:
    names = {path.stem for path in Workspace().figures.iterdir()}
    assert {"robustness-fgsm", "robustness-pgd", "classifier-loss", "images-classes", "images-attack"} <= names
    assert "defence-retrained_autoencoder-loss" in names
    for path in Workspace().figures.iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)


def test_tracker_gets_data_set_headline_metrics_artifacts_and_note(
    phantom_workspace: tuple[Path, RecordingTracker],
) -> None:
    workspace, tracker = phantom_workspace
    assert tracker.values["clean/accuracy"] == pytest.approx(0.95)
    assert tracker.values["clean/autoencoder_accuracy"] == pytest.approx(0.75)
    assert tracker.values["clean/retrained_autoencoder_accuracy"] == pytest.approx(0.9)
    assert tracker.values["robust/undefended_adaptive_pgd_eps_1"] == pytest.approx(0.1)
    assert tracker.values["robust/autoencoder_transfer_fgsm_eps_1"] == pytest.approx(0.7)
    assert not any(key.endswith("eps_4") for key in tracker.values)
    assert tracker.datasets == [(Workspace().prepare, "phantoms", "evaluation")]
    assert tracker.artifacts == {
        Workspace().report_html: "",
        Workspace().metrics: "",
        Workspace().checks: "",
        Workspace().comparison: "",
        Workspace().figures: "figures",
        Workspace().data_docs: "data_docs",
    }
    assert tracker.text == (workspace / Workspace().report_markdown).read_text(encoding="utf-8")
    assert tracker.linked


def test_markdown_tables_keep_their_columns_for_every_class_name(workspace: Path) -> None:
    lines = Workspace().report_markdown.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert any(row.startswith("| 0 (clean) | 95.0 % [86.3, 98.3] | 75.0 % [62.8, 84.2] | 75.0 % [62") for row in rows)
    assert any(row.startswith("| 1 | 10.0 % [4.7, 20.1] | 65.0 % [52.4, 75.8] | 15.0 % [8.1, 26.1] |") for row in rows)
    assert "| a\\|b $\\frac | 1 | 0 | 20 | 21 |" in rows
    assert "| &lt;script&gt;alert(1)&lt;/script&gt; (positive) | 1 | 0 | 20 | 21 |" in rows
    blocks = "\n".join(lines).split("\n\n")
    for block in (block.splitlines() for block in blocks if block.startswith("|")):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1
        assert re.fullmatch(r"[|:-]+", block[1])


def test_markdown_is_shortened_to_the_limit_of_notes_and_says_so(workspace: Path, params: Params) -> None:
    results, headline = loaded(params)
    sections = all_sections(results, headline)
    whole = page.markdown(results, headline, sections, MAX_NOTE_CHARACTERS)
    assert len(whole) < MAX_NOTE_CHARACTERS
    for limit in (900, 1500, len(whole)):
        short = page.markdown(results, headline, sections, limit)
        assert len(short) < limit
        kept, ending = short[: -len(SHORTENED)], short[-len(SHORTENED) :]
        assert ending == SHORTENED
        assert whole.startswith(f"{kept}\n")


@pytest.mark.parametrize(
    "path", [Workspace().validation, Workspace().split, Workspace().robustness, Workspace().features]
)
def test_error_names_the_missing_file_and_the_step_to_run(workspace: Path, params: Params, path: Path) -> None:
    hidden = path.rename(workspace / "hidden")
    try:
        with pytest.raises(FileNotFoundError, match=f"^{path} not found: run the step {path.parts[1]} first"):
            report(Workspace(), params, Tracker())
    finally:
        hidden.rename(path)


def table_at_1(undefended: float, transfer: float, adaptive: float) -> pd.DataFrame:
    """A robustness table of n = 1000 with intervals of ± 3 points and ε 1."""
    points = [("undefended", "none", "clean", 0.0, 0.95), ("autoencoder", "none", "clean", 0.0, 0.96)]
    points += [
        (target, threat_model, "pgd", 1.0, accuracy)
        for target, threat_model, accuracy in (
            ("undefended", "adaptive", undefended),
            ("autoencoder", "transfer", transfer),
            ("autoencoder", "adaptive", adaptive),
        )
    ]
    table = pd.DataFrame(points, columns=["target", "threat_model", "attack", "eps", "accuracy"])
    return table.assign(n=1000, accuracy_low=table["accuracy"] - 0.03, accuracy_high=table["accuracy"] + 0.03)


@pytest.mark.parametrize(
    ("undefended", "transfer", "adaptive", "sentence"),
    [
        (0.1, 0.6, 0.3, "gains 50.0 points of accuracy under the transfer attack and 20.0 points under the adaptive "),
        (0.1, 0.6, 0.15, " 5.0 points under the adaptive attack (the 95 % intervals with and without the defence over"),
        (0.1, 0.6, 0.05, "gains 50.0 points of accuracy under the transfer attack and nothing under the adaptive atta"),
        (0.1, 0.6, 0.6, "gains 50.0 points of accuracy under both attacks, so the adaptive attack can be too weak (se"),
        (0.6, 0.5, 0.4, "does not improve accuracy under the transfer attack or under the adaptive attack."),
        (0.1, 0.2, 0.6, "The adaptive attack is weaker than the transfer attack, which indicates gradient masking (se"),
        (0.6, 0.5, 0.7, "The adaptive attack is weaker than the transfer attack, which indicates gradient masking (se"),
    ],
)
def test_last_sentence_of_the_headline_fits_the_numbers(
    undefended: float, transfer: float, adaptive: float, sentence: str
) -> None:
    text = headline_sentences(headline_of(table_at_1(undefended, transfer, adaptive), 1.0))
    assert sentence in text
    assert "lower" not in text


def test_headline_is_about_pgd_at_the_eps_of_the_parameters() -> None:
    table = table_at_1(0.1, 0.2, 0.15)
    attacked = table[table["attack"] == "pgd"]
    grid = [table, *(attacked.assign(attack=attack, eps=eps) for attack, eps in (("pgd", 3.0), ("fgsm", 1.0)))]
    for eps in (1.0, 3.0):
        headline = headline_of(pd.concat(grid, ignore_index=True), eps)
        assert (headline.attack, headline.eps) == ("pgd", eps)
        assert f"under PGD at ε = {eps:g}/255" in headline_sentences(headline)


def test_headline_states_the_number_of_attacked_images_if_not_all_are_attacked() -> None:
    table = table_at_1(0.1, 0.2, 0.15)
    assert "images attacked" not in headline_sentences(headline_of(table, 1.0))
    fewer = table.assign(n=table["n"].where(table["attack"] == "clean", 7))
    assert "at ε = 1/255 (7 images attacked)." in headline_sentences(headline_of(fewer, 1.0))


def test_headline_is_about_the_best_defence_under_the_adaptive_attack() -> None:
    table = table_at_1(0.1, 0.9, 0.2)
    other = table_at_1(0.1, 0.5, 0.4).query("target == 'autoencoder'").assign(target="retrained_autoencoder")
    headline = headline_of(pd.concat([table, other], ignore_index=True), 1.0)
    text = headline_sentences(headline)
    assert "With the retrained autoencoder, the best of 2 defences under the adaptive attack, accuracy is" in text
    assert "gains 40.0 points of accuracy under the transfer attack and 30.0 points under the adaptive attack" in text
    assert headline.styles == {"undefended": 0, "autoencoder": 1, "retrained_autoencoder": 2}


def test_headline_is_about_a_transferred_attack_not_about_the_sweep() -> None:
    table = table_at_1(0.1, 0.2, 0.15).replace({"attack": {"pgd": "fgsm"}})
    swept = table[(table["threat_model"] == "adaptive")].assign(attack="sweep")
    assert headline_of(pd.concat([table, swept], ignore_index=True), 1.0).attack == "fgsm"


def test_headline_metrics_are_those_of_one_eps() -> None:
    metrics: dict[str, Any] = {
        "clean": {"undefended": {"accuracy": 0.9, "f1": 0.8}, "autoencoder": {"f1": 0.7}},
        "robust": {"undefended": {"adaptive": {"pgd": {"eps_0.5": 0.4, "eps_1": 0.2}}}},
    }
    assert headline_metrics(metrics, 0.5) == {
        "clean/accuracy": 0.9,
        "clean/f1": 0.8,
        "clean/autoencoder_f1": 0.7,
        "robust/undefended_adaptive_pgd_eps_0.5": 0.4,
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
    assert re.findall(r'scope="col">([^<]*)', matrix) == [
        "check",
        "undefended",
        "autoencoder",
        "retrained autoencoder",
    ]
    assert matrix.count('<th scope="row">') == 14
    (transfer,) = re.findall(r"transfer attacks are not stronger than adaptive attacks</th>(.*?)</tr>", matrix)
    assert text_of(transfer).split() == ["–", "PASS", "PASS"]
    assert ">PASS<" not in raised
    assert "not checked: needs attack.square.n_queries" in raised


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


def test_unchanged_data_and_different_data_are_recognised(workspace: Path, params: Params) -> None:
    results, headline = loaded(params)
    same = data_changes_section(replace(results, reference=results.manifest), headline)
    assert finding_of(same) == "No changes: the same 63 images as in the reference."
    assert same.values["changes"] is None
    elsewhere = results.manifest.assign(path="elsewhere/" + results.manifest["path"])
    other = data_changes_section(replace(results, reference=elsewhere), headline)
    assert finding_of(other) == ("Different data: none of the 63 reference images is among the 63 images of this run.")


def test_acquisition_functions_that_differ_from_random_are_named(workspace: Path, params: Params) -> None:
    results, headline = loaded(params)
    columns = ["acquisition", "metric", "value", "low", "high", "std", "n_seeds"]
    rows = [["random", "mean_clean_accuracy", 0.7, 0.68, 0.72, 0.01, 3]]
    for name, gain in (("entropy", 0.05), ("bald", 0.0), ("core_set", -0.04)):
        rows += [
            [name, f"mean_{kind}_accuracy_gain", gain, gain - 0.01, gain + 0.01, 0.01, 3]
            for kind in ("clean", "robust")
        ]
    efficiency = pd.DataFrame(rows, columns=columns)
    section = active_learning_section(replace(results, label_efficiency=efficiency), headline)
    assert finding_of(section) == (
        "Mean clean accuracy of 3 acquisition functions compared with random, in points. Better: "
        "entropy (+5.0 [+4.0, +6.0]). Worse: core set (−4.0 [−5.0, −3.0]). Not significant: 1."
    )


def test_results_of_a_claim_at_other_eps_are_grouped_by_result() -> None:
    claim = {"result_by_eps": {"0.5": "holds", "2": "holds", "4": "does not hold"}}
    assert results_at_other_eps(claim) == "0.5, 2: holds; 4: does not hold"


def test_a_report_on_scans_counts_the_results_of_the_claims(workspace: Path, params: Params) -> None:
    results, headline = loaded(params)
    scans = replace(results, data=replace(results.data, is_phantom=False))
    finding = finding_of(claims_section(scans, headline))
    assert finding == "Result of 4 claims: holds (1), does not hold (1), not significant (1), not tested (1)."


def test_rejection_is_shown_at_the_false_positive_rate_of_the_parameters(workspace: Path, params: Params) -> None:
    for rate, shown in ((0.05, "5.0 %"), (0.3, "20.0 %")):
        analyze = params.analyze.model_copy(update={"false_positive_rate": rate})
        results, headline = loaded(params.model_copy(update={"analyze": analyze}))
        assert detection_section(results, headline).values["nominal_rate"] == shown


def loaded(params: Params) -> tuple[Results, Headline]:
    results = load_results(Workspace(), params)
    return results, headline_of(results.robustness, params.analyze.eps)


def finding_of(section: Section) -> str:
    template = environment().get_template(f"sections/{section.key.replace('-', '_')}.html.j2")
    figures = {drawing.name: render(drawing) for drawing in section.drawings}
    finding = re.search(r'<p class="finding">(.*?)</p>', template.render(section.values, figures=figures), re.DOTALL)
    assert finding
    return text_of(finding[1])


def test_intervals_and_units_are_not_broken_across_lines_and_text_stays_escaped() -> None:
    assert keep_together("<b> 3 % [1, 2] < 4").replace("\xa0", "_") == "&lt;b&gt; 3_%_[1,_2]_&lt;_4"
    assert keep_together(Markup("p &lt; 0.1")).replace("\xa0", "_") == "p_&lt;_0.1"
