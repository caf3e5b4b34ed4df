"""The report: what it says of a workspace whose numbers are known."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from tasks.core.workspace import Workspace
from tasks.params import Params, parse_params
from tasks.report import report
from tasks.reporting import page
from tasks.reporting.findings import headline_metrics, headline_of
from tasks.reporting.results import load_results
from tasks.reporting.sections.active_learning import active_learning_section
from tasks.reporting.sections.data_changes import data_changes_section
from tasks.tracking import MAX_NOTE_CHARACTERS, Tracker
from tests.conftest import with_overrides
from tests.report_workspace import BENCHMARK, EPS, SIDE, empty_analysis, write_workspace

SHORTENED = "\n\n*Shortened: the whole is in report.html.*\n"


class Notebook(Tracker):
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.heard: dict[str, float] = {}
        self.artifacts: dict[Path, str] = {}
        self.datasets: list[tuple[Path, str, str]] = []
        self.text = ""
        self.linked = False

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.heard |= values

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
    return params_of(BENCHMARK)


def params_of(benchmark: list[str]) -> Params:
    overrides = {"attack.eps": list(EPS), "prepare.image_size": SIDE, "benchmark": benchmark}
    return parse_params(with_overrides(overrides))


@pytest.fixture(scope="module")
def phantom_workspace(tmp_path_factory: pytest.TempPathFactory, params: Params) -> tuple[Path, Notebook]:
    """A workspace of phantoms with its report, and what the tracker heard."""
    workspace, notebook = tmp_path_factory.mktemp("phantoms"), Notebook()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        write_workspace(params, is_phantom=True)
        Workspace().report.mkdir()
        report(Workspace(), params, notebook)
    return workspace, notebook


@pytest.fixture
def workspace(phantom_workspace: tuple[Path, Notebook], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same workspace, to stand in."""
    monkeypatch.chdir(phantom_workspace[0])
    return phantom_workspace[0]


@pytest.fixture
def html(workspace: Path) -> str:
    return Workspace().report_html.read_text(encoding="utf-8")


def without_scripts(html: str) -> str:
    return re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.DOTALL)


def text_of(html: str) -> str:
    """What a reader sees, on one line."""
    without_tags = re.sub(r"<[^>]*>", " ", without_scripts(html))
    return " ".join(unescape(without_tags).split())


def test_first_screen_tells_what_was_found_in_numbers(html: str) -> None:
    answer = re.search(r'<p class="answer">(.*?)</p>', html, re.DOTALL)
    assert answer
    assert text_of(answer[1]) == (
        "The classifier is right on 95.0 % [86.3, 98.3] of 60 clean test images. "
        "Under PGD at ε = 1/255 it is right on 10.0 % [4.7, 20.1]. "
        "Of 2 defences the retrained autoencoder keeps most when the attacker attacks through it (adaptive). "
        "With the retrained autoencoder it is right on 88.3 % [77.8, 94.2] when the attacker ignores the "
        "defence (transfer), and on 50.0 % [37.7, 62.3] when the attacker attacks through it (adaptive). "
        "The retrained autoencoder costs 5.0 points of clean accuracy. "
        "Its gain of 78.3 points under attack shrinks to 40.0 points once the attacker knows it."
    )
    table = text_of(html[html.index('<table class="score">') :])
    assert "with autoencoder 75.0 % [62.8, 84.2] 65.0 % [52.4, 75.8] 15.0 % [8.1, 26.1]" in table
    assert "with retrained autoencoder 90.0 % [79.9, 95.3] 88.3 % [77.8, 94.2] 50.0 % [37.7, 62.3]" in table


def test_every_accuracy_stands_in_the_table_with_its_interval(html: str) -> None:
    text = text_of(html)
    heads = (
        "autoencoder, transfer autoencoder, adaptive retrained autoencoder, transfer retrained autoencoder, adaptive"
    )
    assert f"undefended {heads} 0 (clean) 95.0 % [86.3, 98.3]" in text
    assert "4 0.0 % [0.0, 6.0] 50.0 % [37.7, 62.3] 0.0 % [0.0, 6.0] 85.0 % [73.9, 91.9] 5.0 % [1.7, 13.7]" in text


def test_texts_from_outside_are_escaped(html: str) -> None:
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


def test_page_is_small_and_its_figures_have_words(html: str) -> None:
    assert len(html) < 10_700_000
    figures = re.findall(r"<figure(?! id=.explorer).*?</figure>", html, re.DOTALL)
    assert len(figures) == 52
    for figure in figures:
        assert re.search(r'(aria-label|alt)="[^"]{10,}"', figure)
        assert re.search(r"<figcaption>.+</figcaption>", figure)


def test_every_section_opens_with_its_answer(html: str) -> None:
    heads = r'<section id="([^"]*)">\s*<h2>[^<]*</h2>\s*<p class="finding">(.*?)</p>'
    answers = {key: text_of(answer) for key, answer in re.findall(heads, html, re.DOTALL)}
    at = "PGD at ε = 1/255"
    beginnings = {
        "verdict": "Of 4 claims of the study, 1 holds here, 1 does not, and 2 can't be told.",
        "data-changes": "Images since the reference: 1 added, 1 removed, 1 changed; 63 then, 63 now.",
        "defences": "Of 3 targets, the retrained autoencoder withstands the attacker who knows of it best: 50.0 % "
        "[37.7, 62.3] at ε = 1/255, 90.0 % [79.9, 95.3] on clean images. The next, the autoencoder, differs from it "
        "(p < 0.001).",
        "heatmaps": f"Under {at} the hottest tenth of the heat maps overlaps with that of the clean images by 0.4",
        "intensities": f"{at} shifts the distribution of grey levels by 0.3",
        "features": f"Under {at} clean and adversarial features overlap in the classifier's last layer but one, where ",
        "resilience": f"Under {at} the images denoised by the autoencoder, nearest to the originals of 2 purifiers, "
        "are farther from the originals than the adversarial ones (MSE ",
        "classification": "On clean images the classifier's confidence misses its accuracy by 4.",
        "detection": f"The best detector of {at} is the feature distance, with an AUROC of 0.70 [0.65, 0.75] (",
        "active-learning": "Entropy changes the mean clean accuracy by +2.1 [+1.9, +2.3] points against random, the "
        "robust one by +1.1 [+0.9, +1.2]: better than random on clean images.",
    }
    assert list(answers) == list(beginnings)
    for key, beginning in beginnings.items():
        assert answers[key].startswith(beginning)
    assert answers["detection"].endswith("; against an attacker who knows it the AUROC is 0.50 [0.45, 0.55].")


def test_verdict_has_a_row_a_claim_with_its_outcome(html: str) -> None:
    section = html[html.index('<section id="verdict">') : html.index('<section id="data">')]
    assert "Clean and adversarial features overlap they overlap in its pictures 0.550 [0.500, 0.600]" in text_of(
        section
    )
    assert re.findall(r'class="status (\w+)">([^<]*)<', unescape(section)) == [
        ("FALLS", "does not hold"),
        ("HOLDS", "holds"),
        ("OPEN", "can't be told from 60 images"),
        ("OPEN", "can't be told from 60 images"),
    ]
    markdown = Workspace().report_markdown.read_text(encoding="utf-8")
    assert (
        "| Clean and adversarial features overlap | they overlap in its pictures | 0.550 [0.500, 0.600] (" in markdown
    )


def test_a_table_without_rows_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    monkeypatch.chdir(tmp_path)
    write_workspace(params, is_phantom=True)
    empty_analysis()
    Workspace().report.mkdir()
    report(Workspace(), params, Tracker())
    html = Workspace().report_html.read_text(encoding="utf-8")
    text = text_of(html)
    for sentence in (
        "No claim of the study was put to the test in this run.",
        "The area under these curves was not computed in this run.",
        "Heat maps were not compared in this run.",
        "Grey levels were not compared in this run.",
        "Features were not compared in this run.",
        "Reconstruction was not measured in this run.",
        "Metrics beyond accuracy were not computed in this run.",
        "No detector was put to the test in this run.",
    ):
        assert sentence in text
    assert 'id="explorer"' not in html


def test_page_shows_data_validation_training_and_checks(html: str) -> None:
    text = text_of(html)
    assert "320 × 240 to 382 × 240 pixels (width × height), median 351 × 240" in text
    assert "6.2 % of the test images have a near-duplicate in training, 87.5 % another image of their group" in text
    assert "NA 1 0 20 21" in text
    assert "PASS About sides" in text
    assert "WARN About near_duplicates" in text
    assert "Of the classifier's 3 epochs, epoch 2 was kept (validation loss 1.5, accuracy 87.5 %)" in text
    assert "Of the retrained autoencoder's 3 epochs, epoch 2 was kept (validation loss 1.5)." in text
    assert "Passing all of them proves nothing; failing one says where to look." in text
    for check in json.loads(Workspace().checks.read_text(encoding="utf-8")):
        target = (check["target"] or "data").replace("_", " ")
        assert f"{check['status']} {target} {check['name']}" in text
    assert "Not for diagnosis" in text


def test_page_lists_every_parameter(html: str, params: Params) -> None:
    for key in params.flat():
        assert f'<td class="code">{key}</td>' in html
    assert '<td class="code">attack.eps</td><td class="code">0.25, 1, 4</td>' in html


def test_phantoms_are_called_phantoms(html: str) -> None:
    assert "These are phantoms (computer-drawn), not patients." in html
    assert "phantoms (computer-drawn), not patients" in Workspace().report_markdown.read_text(encoding="utf-8")


def test_patients_are_not_called_phantoms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params) -> None:
    monkeypatch.chdir(tmp_path)
    write_workspace(params, is_phantom=False)
    empty_analysis()
    Workspace().report.mkdir()
    report(Workspace(), params, Tracker())
    html = Workspace().report_html.read_text(encoding="utf-8")
    assert "computer-drawn" not in html
    assert "scans &amp; more" in html
    assert "computer-drawn" not in Workspace().report_markdown.read_text(encoding="utf-8")


def test_one_defence_alone_is_told_without_comparing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = params_of(["autoencoder"])
    write_workspace(params, is_phantom=True)
    Workspace().report.mkdir()
    report(Workspace(), params, Tracker())
    html = Workspace().report_html.read_text(encoding="utf-8")
    text = text_of(html)
    assert (
        "With the autoencoder it is right on 65.0 % [52.4, 75.8] when the attacker ignores the defence "
        "(transfer), and on 15.0 % [8.1, 26.1] when the attacker attacks through it (adaptive). "
        "The autoencoder costs 20.0 points of clean accuracy. "
        "Its gain of 55.0 points under attack shrinks to 5.0 points once the attacker knows it, "
        "and the intervals overlap. At ε = 4/255 that attacker leaves 0.0 % [0.0, 6.0]."
    ) in text
    assert "Under PGD at ε = 1/255 the images denoised by the autoencoder are farther from the originals" in text
    assert "less than the autoencoder shifts clean images: 2." in text
    assert "defences the" not in text
    assert "of 1 purifiers" not in text
    assert "retrained" not in text_of(html[: html.index('<section id="parameters">')])


def test_a_defence_that_purifies_nothing_has_no_rows_where_purifiers_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = params_of(["autoencoder"])
    write_workspace(params, is_phantom=True, has_purifiers=False)
    Workspace().report.mkdir()
    report(Workspace(), params, Tracker())
    text = text_of(Workspace().report_html.read_text(encoding="utf-8"))
    assert "No defence of this run purifies images." in text
    assert "(Wasserstein distance). Wasserstein distance:" in text
    assert "purifier's bottleneck" not in text
    assert "autoencoder, adaptive" in text
    assert not (Workspace().figures / "resilience-restored.png").exists()


def test_pictures_say_at_which_eps_they_were_made(html: str) -> None:
    text = text_of(html)
    assert "PGD at ε = 4/255, crafted on the classifier alone; for each class the first test image" in text
    assert "to most (yellow); PGD at ε = 4/255." in text
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


def test_figures_are_images_of_their_names(workspace: Path) -> None:
    names = {path.stem for path in Workspace().figures.iterdir()}
    assert {"robustness-fgsm", "robustness-pgd", "classifier-loss", "images-classes", "images-attack"} <= names
    assert "defence-retrained_autoencoder-loss" in names
    for path in Workspace().figures.iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)


def test_tracker_hears_data_set_headline_metrics_artifacts_and_note(phantom_workspace: tuple[Path, Notebook]) -> None:
    workspace, notebook = phantom_workspace
    assert notebook.heard["clean/accuracy"] == pytest.approx(0.95)
    assert notebook.heard["clean/autoencoder_accuracy"] == pytest.approx(0.75)
    assert notebook.heard["clean/retrained_autoencoder_accuracy"] == pytest.approx(0.9)
    assert notebook.heard["robust/undefended_adaptive_pgd_eps_1"] == pytest.approx(0.1)
    assert notebook.heard["robust/autoencoder_transfer_fgsm_eps_1"] == pytest.approx(0.7)
    assert not any(key.endswith("eps_4") for key in notebook.heard)
    assert notebook.datasets == [(Workspace().prepare, "phantoms", "evaluation")]
    assert notebook.artifacts == {
        Workspace().report_html: "",
        Workspace().metrics: "",
        Workspace().checks: "",
        Workspace().benchmark: "",
        Workspace().figures: "figures",
        Workspace().data_docs: "data_docs",
    }
    assert notebook.text == (workspace / Workspace().report_markdown).read_text(encoding="utf-8")
    assert notebook.linked


def test_markdown_tables_keep_their_columns_whatever_classes_are_called(workspace: Path) -> None:
    lines = Workspace().report_markdown.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert any(row.startswith("| 0 (clean) | 95.0 % [86.3, 98.3] | 75.0 % [62.8, 84.2] | 75.0 % [62") for row in rows)
    assert any(row.startswith("| 1 | 10.0 % [4.7, 20.1] | 65.0 % [52.4, 75.8] | 15.0 % [8.1, 26.1] |") for row in rows)
    assert "| a\\|b $\\frac | 1 | 0 | 20 | 21 |" in rows
    assert "| &lt;script&gt;alert(1)&lt;/script&gt; | 1 | 0 | 20 | 21 |" in rows
    blocks = "\n".join(lines).split("\n\n")
    for block in (block.splitlines() for block in blocks if block.startswith("|")):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1
        assert re.fullmatch(r"[|:-]+", block[1])


def test_markdown_stays_below_the_limit_of_notes_and_says_so(workspace: Path) -> None:
    results = load_results(Workspace(), BENCHMARK)
    headline = headline_of(results.robustness)
    whole = page.markdown(results, headline, MAX_NOTE_CHARACTERS)
    assert len(whole) < MAX_NOTE_CHARACTERS
    for limit in (900, 1500, len(whole)):
        short = page.markdown(results, headline, limit)
        assert len(short) < limit
        kept, ending = short[: -len(SHORTENED)], short[-len(SHORTENED) :]
        assert ending == SHORTENED
        assert whole.startswith(f"{kept}\n")


@pytest.mark.parametrize(
    "path", [Workspace().validation, Workspace().split, Workspace().robustness, Workspace().features]
)
def test_a_missing_file_is_named_with_the_step_to_run(workspace: Path, params: Params, path: Path) -> None:
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
    ("undefended", "transfer", "adaptive", "verdict"),
    [
        (0.1, 0.6, 0.3, "Its gain of 50.0 points under attack shrinks to 20.0 points once the attacker knows it."),
        (0.1, 0.6, 0.15, "shrinks to 5.0 points once the attacker knows it, and the intervals overlap."),
        (0.1, 0.6, 0.05, "Its gain of 50.0 points under attack vanishes once the attacker knows it."),
        (0.1, 0.6, 0.6, "Its gain of 50.0 points under attack stays when the attacker knows it: look at the checks."),
        (0.6, 0.5, 0.4, "Under attack it gains nothing, not even against an attacker who ignores it."),
        (0.1, 0.2, 0.6, "look for masked gradients in the checks."),
    ],
)
def test_verdict_fits_the_numbers(undefended: float, transfer: float, adaptive: float, verdict: str) -> None:
    sentences = headline_of(table_at_1(undefended, transfer, adaptive)).sentences
    assert sentences[-1].endswith(verdict)
    assert not any("costs" in sentence for sentence in sentences)


def test_headline_is_about_pgd_at_the_eps_nearest_to_one_grey_level() -> None:
    table = table_at_1(0.1, 0.2, 0.15)
    attacked = table[table["attack"] == "pgd"]
    grid = [table, *(attacked.assign(attack=attack, eps=eps) for attack, eps in (("pgd", 3.0), ("fgsm", 1.0)))]
    headline = headline_of(pd.concat(grid, ignore_index=True))
    assert (headline.attack, headline.eps) == ("pgd", 1.0)


def test_headline_says_how_many_images_were_attacked_if_not_all() -> None:
    table = table_at_1(0.1, 0.2, 0.15)
    assert "of them" not in " ".join(headline_of(table).sentences)
    fewer = table.assign(n=table["n"].where(table["attack"] == "clean", 7))
    assert headline_of(fewer).sentences[1].endswith("] of 7 of them.")


def test_of_several_defences_the_headline_is_about_the_one_that_keeps_most_when_it_is_known() -> None:
    table = table_at_1(0.1, 0.9, 0.2)
    other = table_at_1(0.1, 0.5, 0.4).query("target == 'autoencoder'").assign(target="retrained_autoencoder")
    headline = headline_of(pd.concat([table, other], ignore_index=True))
    assert headline.sentences[2].startswith("Of 2 defences the retrained autoencoder keeps most")
    assert headline.sentences[-1].startswith("Its gain of 40.0 points under attack shrinks to 30.0 points")
    assert headline.styles == {"undefended": 0, "autoencoder": 1, "retrained_autoencoder": 2}


def test_headline_is_about_an_attack_that_was_transferred_not_about_the_sweep() -> None:
    table = table_at_1(0.1, 0.2, 0.15).replace({"attack": {"pgd": "fgsm"}})
    swept = table[(table["threat_model"] == "adaptive")].assign(attack="sweep")
    assert headline_of(pd.concat([table, swept], ignore_index=True)).attack == "fgsm"


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


def test_values_are_told_as_people_write_them() -> None:
    tell: Callable[[Any], str] = page.value_text
    assert tell(None) == "–"
    assert tell([0.25, 1.0, "x"]) == "0.25, 1, x"
    assert tell([{"kind": "gaussian", "strength": 0.1}, {"kind": "uniform"}]) == (
        "kind: gaussian, strength: 0.1; kind: uniform"
    )
    assert tell(True) == "true"


def test_checks_are_a_table_of_targets_and_what_does_not_pass_is_explained_first(html: str) -> None:
    section = html[html.index('<section id="checks">') :]
    matrix, raised, *_ = re.findall(r"<table.*?</table>", section, re.DOTALL)
    assert re.findall(r'scope="col">([^<]*)', matrix) == [
        "check",
        "undefended",
        "autoencoder",
        "retrained autoencoder",
    ]
    assert matrix.count('<th scope="row">') == 14
    (transfer,) = re.findall(r"transfer is no stronger than adaptive</th>(.*?)</tr>", matrix)
    assert text_of(transfer).split() == ["–", "PASS", "PASS"]
    assert ">PASS<" not in raised
    assert "not checked: needs attack.suite.n_queries" in raised


def test_what_changed_in_the_data_since_the_reference_is_told(html: str) -> None:
    section = html[html.index('<section id="data-changes">') : html.index('<section id="training">')]
    assert "Images since the reference: 1 added, 1 removed, 1 changed; 63 then, 63 now." in section
    rows = [re.sub(r"<[^>]*>", " ", row).split() for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", section)]
    # of the first class an image has other pixels, of the second one is gone, of the third one is new
    assert [row[-5:] for row in rows[:3]] == [
        ["21", "21", "0", "0", "1"],
        ["22", "21", "0", "1", "0"],
        ["20", "21", "1", "0", "0"],
    ]
    assert "these are 24 comparisons" in section


def test_unchanged_and_other_data_are_told_in_a_sentence(workspace: Path) -> None:
    results = load_results(Workspace(), BENCHMARK)
    same = data_changes_section(replace(results, reference=results.manifest))
    assert same.answer == "Nothing has changed: the same 63 images as in the reference."
    assert not same.tables
    elsewhere = results.manifest.assign(path="elsewhere/" + results.manifest["path"])
    other = data_changes_section(replace(results, reference=elsewhere))
    assert other.answer == "These are other data: none of the reference's 63 images is among the 63."


def test_of_several_acquisition_functions_those_that_differ_from_random_are_named(workspace: Path) -> None:
    results = load_results(Workspace(), BENCHMARK)
    columns = ["acquisition", "quantity", "value", "low", "high", "sd", "n_seeds"]
    rows = [["random", "clean_area", 0.7, 0.68, 0.72, 0.01, 3]]
    for name, gain in (("entropy", 0.05), ("bald", 0.0), ("core_set", -0.04)):
        rows += [[name, f"{kind}_area_gain", gain, gain - 0.01, gain + 0.01, 0.01, 3] for kind in ("clean", "robust")]
    learning = replace(results.learning, efficiency=pd.DataFrame(rows, columns=columns))
    section = active_learning_section(replace(results, learning=learning), headline_of(results.robustness))
    assert section.answer == (
        "Of 3 acquisition functions, by their mean clean accuracy in points against random, better: "
        "entropy (+5.0 [+4.0, +6.0]); worse: core set (−4.0 [−5.0, −3.0]); not told from it: 1."
    )
