"""The report: what it says of a workspace whose numbers are known."""

import json
import re
from collections.abc import Callable, Mapping
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from tasks import paths
from tasks.attacks.kept import kept_path, save_perturbations
from tasks.evaluate import evaluate
from tasks.evaluation.records import build_records, write_records
from tasks.models.autoencoder import build_autoencoder
from tasks.models.files import save_model
from tasks.params import Params, parse_params
from tasks.report import report
from tasks.reporting import page
from tasks.reporting.findings import headline_metrics, headline_of
from tasks.reporting.results import load_results
from tasks.tracking import MAX_NOTE_CHARACTERS, Tracker
from tests.conftest import smallest_eps_in, with_overrides

CLASSES = ["<script>alert(1)</script>", "NA", "a|b $\\frac"]
N_TRAIN, N_TEST, SIDE = 3, 60, 32
SHORTENED = "\n\n*Shortened: the whole is in report.html.*\n"
EPS = (0.25, 1.0, 4.0)
# correct images out of 60
CORRECT = {
    ("undefended", "none", "clean"): [57],
    ("autoencoder", "none", "clean"): [45],
    ("undefended", "adaptive", "fgsm"): [48, 12, 3],
    ("undefended", "adaptive", "pgd"): [42, 6, 0],
    ("autoencoder", "transfer", "fgsm"): [45, 42, 39],
    ("autoencoder", "transfer", "pgd"): [45, 39, 30],
    ("autoencoder", "adaptive", "fgsm"): [42, 24, 6],
    ("autoencoder", "adaptive", "pgd"): [39, 9, 0],
}


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


def write_workspace(params: Params, is_phantom: bool) -> None:
    """What the earlier steps leave; 60 test images of three classes, of which CORRECT says how many are right."""
    for step in ("validate", "prepare", "train_classifier", "train_autoencoder", "attack", "evaluate"):
        paths.step_folder(step).mkdir(parents=True)
    n = N_TRAIN + N_TEST
    labels = np.arange(n) % len(CLASSES)
    names = [CLASSES[label] for label in labels]
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(n)], "class": names, "label": labels, "group": 0})
    table["near_duplicate_group"] = np.arange(n)
    sizes = {"width": 320 + np.arange(n), "height": 240, "mode": "L", "format": "PNG"}
    table.assign(**sizes).to_parquet(paths.MANIFEST)
    table["split"] = ["train"] * N_TRAIN + ["test"] * N_TEST
    table.to_parquet(paths.SPLIT)
    pixels = np.random.default_rng(0).integers(0, 256, (n, 1, SIDE, SIDE), dtype=np.uint8)
    np.save(paths.PIXELS, pixels)
    by_split = {"train": N_TRAIN, "validation": 0, "test": N_TEST}
    info = {
        "name": "phantoms" if is_phantom else "scans & more",
        "source": "phantom" if is_phantom else "folder",
        "is_phantom": is_phantom,
        "classes": CLASSES,
        "positive_class": CLASSES[0],
        "image_size": SIDE,
        "value_range": [0.0, 1.0],
        "strategy": "stratified",
        "n": n,
        "n_groups": 1,
        "n_images": {split: dict.fromkeys(CLASSES, count // 3) for split, count in by_split.items()},
        "leakage": {"near_duplicate_in_train": 0.0625, "group_in_train": 0.875},
    }
    paths.DATASET_INFO.write_text(json.dumps(info), encoding="utf-8")
    expectation = {"observed": "3.25 %", "allowed": "at most 2 %", "n_unexpected": 2, "examples": ["<b>.png"]}
    outcomes = [("sides", "error", True), ("near_duplicates", "warning", False)]
    expectations = [
        {"name": name, "description": f"About {name}", "severity": severity, "success": success, **expectation}
        for name, severity, success in outcomes
    ]
    paths.VALIDATION.write_text(json.dumps({"success": True, "expectations": expectations}), encoding="utf-8")
    paths.DATA_DOCS.mkdir()
    (paths.DATA_DOCS / "index.html").write_text("<html></html>", encoding="utf-8")
    history = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [3.0, 2, 1], "validation_loss": [3.0, 1.5, 2]})
    history = history.assign(learning_rate=1e-3, best=[0, 1, 0])
    history.to_csv(paths.AUTOENCODER_HISTORY, index=False)
    accuracies = {"train_accuracy": [0.5, 0.6, 0.7], "validation_accuracy": [0.5, 0.875, 0.6]}
    history.assign(**accuracies).to_csv(paths.CLASSIFIER_HISTORY, index=False)
    save_model(paths.AUTOENCODER, build_autoencoder("plain"), architecture="plain")

    rows = np.arange(N_TRAIN, n)
    records = pa.concat_tables(
        records_of(rows, labels[rows], *curve, eps, n_correct)
        for curve, counts in CORRECT.items()
        for eps, n_correct in zip((0.0,) if curve[2] == "clean" else EPS, counts, strict=True)
    )
    write_records(records, paths.RECORDS)
    smallest_eps_in(records.to_pandas()).to_parquet(paths.SMALLEST_EPS)
    paths.PERTURBATIONS.mkdir()
    images = pixels[rows] / np.float32(255)
    shifted = np.clip(images + np.float32(4 / 255), 0, 1)
    save_perturbations(kept_path("undefended", "pgd", 4.0), rows, images, shifted)
    evaluate(params, Tracker())


def records_of(
    rows: np.ndarray, labels: np.ndarray, target: str, threat_model: str, attack: str, eps: float, n_correct: int
) -> pa.Table:
    def logits(n_correct: int) -> np.ndarray:
        right = np.eye(len(CLASSES), dtype=np.float32)[labels]
        wrong = np.eye(len(CLASSES), dtype=np.float32)[(labels + 1) % len(CLASSES)]
        return np.where(np.arange(len(labels))[:, None] < n_correct, right, wrong)

    return build_records(
        rows,
        np.array([f"{row}.png" for row in rows], dtype=object),
        labels,
        {"target": target, "threat_model": threat_model, "attack": attack, "norm": "linf"},
        eps,
        eps / 255,
        logits(n_correct),
        logits(CORRECT[target, "none", "clean"][0]),
        {"linf": np.full(len(rows), eps / 255), "l2": np.full(len(rows), eps / 10)},
        np.full(len(rows), 0.01) if target == "autoencoder" else None,
    )


@pytest.fixture(scope="module")
def params() -> Params:
    return parse_params(with_overrides({"attack.eps": list(EPS), "attack.keep_eps": [4], "prepare.image_size": SIDE}))


@pytest.fixture(scope="module")
def phantom_workspace(tmp_path_factory: pytest.TempPathFactory, params: Params) -> tuple[Path, Notebook]:
    """A workspace of phantoms with its report, and what the tracker heard."""
    workspace, notebook = tmp_path_factory.mktemp("phantoms"), Notebook()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        write_workspace(params, is_phantom=True)
        paths.REPORT.mkdir()
        report(params, notebook)
    return workspace, notebook


@pytest.fixture
def workspace(phantom_workspace: tuple[Path, Notebook], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same workspace, to stand in."""
    monkeypatch.chdir(phantom_workspace[0])
    return phantom_workspace[0]


@pytest.fixture
def html(workspace: Path) -> str:
    return paths.REPORT_HTML.read_text(encoding="utf-8")


def text_of(html: str) -> str:
    """What a reader sees, on one line."""
    without_tags = re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL))
    return " ".join(unescape(without_tags).split())


def test_first_screen_tells_what_was_found_in_numbers(html: str) -> None:
    answer = re.search(r'<p class="answer">(.*?)</p>', html, re.DOTALL)
    assert answer
    assert text_of(answer[1]) == (
        "The classifier is right on 95.0 % [86.3, 98.3] of 60 clean test images. "
        "Under PGD at ε = 1/255 it is right on 10.0 % [4.7, 20.1]. "
        "With the autoencoder in front it is right on 65.0 % [52.4, 75.8] when the attacker ignores the defence "
        "(transfer), and on 15.0 % [8.1, 26.1] when the attacker attacks through it (adaptive). "
        "The autoencoder costs 20.0 points of clean accuracy. "
        "Its gain of 55.0 points under attack shrinks to 5.0 points once the attacker knows it, "
        "and the intervals overlap. At ε = 4/255 that attacker leaves 0.0 % [0.0, 6.0]."
    )


def test_every_accuracy_stands_in_the_table_with_its_interval(html: str) -> None:
    text = text_of(html)
    assert "undefended autoencoder, transfer autoencoder, adaptive 0 (clean) 95.0 % [86.3, 98.3]" in text
    assert "4 0.0 % [0.0, 6.0] 50.0 % [37.7, 62.3] 0.0 % [0.0, 6.0]" in text


def test_texts_from_outside_are_escaped(html: str) -> None:
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<b>.png" not in html
    assert "&lt;b&gt;.png" in html


def test_page_refers_to_nothing_outside_itself(html: str) -> None:
    assert "http://" not in html
    assert "https://" not in html
    targets = re.findall(r'(?:src|href)="([^"]*)"', html) + re.findall(r"url\(([^)]*)\)", html)
    assert targets
    assert all(target.startswith(("#", "data:")) for target in targets)
    ids = re.findall(r'\sid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)


def test_page_is_small_and_its_figures_have_words(html: str) -> None:
    assert len(html) < 5_000_000
    figures = re.findall(r"<figure.*?</figure>", html, re.DOTALL)
    assert len(figures) == 15
    for figure in figures:
        assert re.search(r'(aria-label|alt)="[^"]{10,}"', figure)
        assert re.search(r"<figcaption>.+</figcaption>", figure)


def test_page_shows_data_validation_training_and_checks(html: str) -> None:
    text = text_of(html)
    assert "320 × 240 to 382 × 240 pixels (width × height), median 351 × 240" in text
    assert "6.2 % of the test images have a near-duplicate in training, 87.5 % another image of their group" in text
    assert "NA 1 0 20 21" in text
    assert "PASS About sides" in text
    assert "WARN About near_duplicates" in text
    assert "Of the classifier's 3 epochs, epoch 2 was kept (validation loss 1.5, accuracy 87.5 %)" in text
    assert "Passing all of them proves nothing; failing one says where to look." in text
    for check in json.loads(paths.CHECKS.read_text(encoding="utf-8")):
        assert f"{check['status']} {check['name']}" in text
    assert "Not for diagnosis" in text


def test_page_lists_every_parameter(html: str, params: Params) -> None:
    for key in params.flat():
        assert f'<td class="code">{key}</td>' in html
    assert '<td class="code">attack.eps</td><td class="code">0.25, 1, 4</td>' in html


def test_phantoms_are_called_phantoms(html: str) -> None:
    assert "These are phantoms (computer-drawn), not patients." in html
    assert "phantoms (computer-drawn), not patients" in paths.REPORT_MARKDOWN.read_text(encoding="utf-8")


def test_patients_are_not_called_phantoms_and_nothing_is_shown_that_was_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    monkeypatch.chdir(tmp_path)
    write_workspace(params, is_phantom=False)
    kept_path("undefended", "pgd", 4.0).unlink()
    paths.REPORT.mkdir()
    report(params, Tracker())
    html = paths.REPORT_HTML.read_text(encoding="utf-8")
    assert "computer-drawn" not in html
    assert "scans &amp; more" in html
    assert "computer-drawn" not in paths.REPORT_MARKDOWN.read_text(encoding="utf-8")
    assert "Images under attack" not in html
    assert not (paths.FIGURES / "images-attack.png").exists()


def test_reporting_twice_gives_the_same_bytes(workspace: Path, params: Params) -> None:
    def outputs() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(paths.REPORT.rglob("*")) if path.is_file()}

    first = outputs()
    paths.REPORT.rename(workspace / "before")
    paths.REPORT.mkdir()
    report(params, Tracker())
    assert outputs() == first
    assert len(first) == 17


def test_figures_are_images_of_their_names(workspace: Path) -> None:
    names = {path.stem for path in paths.FIGURES.iterdir()}
    assert {"robustness-fgsm", "robustness-pgd", "classifier-loss", "images-classes", "images-attack"} <= names
    for path in paths.FIGURES.iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)


def test_tracker_hears_data_set_headline_metrics_artifacts_and_note(phantom_workspace: tuple[Path, Notebook]) -> None:
    workspace, notebook = phantom_workspace
    assert notebook.heard["clean/accuracy"] == pytest.approx(0.95)
    assert notebook.heard["clean/autoencoder_accuracy"] == pytest.approx(0.75)
    assert notebook.heard["robust/undefended_adaptive_pgd_eps_1"] == pytest.approx(0.1)
    assert notebook.heard["robust/autoencoder_transfer_fgsm_eps_1"] == pytest.approx(0.7)
    assert not any(key.endswith("eps_4") for key in notebook.heard)
    assert notebook.datasets == [(paths.PREPARE, "phantoms", "evaluation")]
    assert notebook.artifacts == {
        paths.REPORT_HTML: "",
        paths.METRICS: "",
        paths.CHECKS: "",
        paths.FIGURES: "figures",
        paths.DATA_DOCS: "data_docs",
    }
    assert notebook.text == (workspace / paths.REPORT_MARKDOWN).read_text(encoding="utf-8")
    assert notebook.linked


def test_markdown_tables_keep_their_columns_whatever_classes_are_called(workspace: Path) -> None:
    lines = paths.REPORT_MARKDOWN.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert "| 0 (clean) | 95.0 % [86.3, 98.3] | 75.0 % [62.8, 84.2] | 75.0 % [62.8, 84.2] |" in rows
    assert "| 1 | 10.0 % [4.7, 20.1] | 65.0 % [52.4, 75.8] | 15.0 % [8.1, 26.1] |" in rows
    assert "| a\\|b $\\frac | 1 | 0 | 20 | 21 |" in rows
    assert "| &lt;script&gt;alert(1)&lt;/script&gt; | 1 | 0 | 20 | 21 |" in rows
    blocks = "\n".join(lines).split("\n\n")
    for block in (block.splitlines() for block in blocks if block.startswith("|")):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1
        assert re.fullmatch(r"[|:-]+", block[1])


def test_markdown_stays_below_the_limit_of_notes_and_says_so(workspace: Path) -> None:
    results = load_results()
    headline = headline_of(results.robustness)
    whole = page.markdown(results, headline, MAX_NOTE_CHARACTERS)
    assert len(whole) < MAX_NOTE_CHARACTERS
    for limit in (900, 1500, len(whole)):
        short = page.markdown(results, headline, limit)
        assert len(short) < limit
        kept, ending = short[: -len(SHORTENED)], short[-len(SHORTENED) :]
        assert ending == SHORTENED
        assert whole.startswith(f"{kept}\n")


@pytest.mark.parametrize("path", [paths.VALIDATION, paths.SPLIT, paths.ROBUSTNESS, paths.AUTOENCODER])
def test_a_missing_file_is_named_with_the_step_to_run(workspace: Path, params: Params, path: Path) -> None:
    hidden = path.rename(workspace / "hidden")
    try:
        with pytest.raises(FileNotFoundError, match=f"^{path} not found: run the step {path.parts[1]} first"):
            report(params, Tracker())
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
