"""Write a workspace with known numbers, as the earlier steps leave it, for tests of the report."""

import base64
import json
from itertools import product

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tasks.core.files import write_table
from tasks.core.workspace import SCHEMA_VERSION, Workspace
from tasks.dataset.data_versions import write_reference
from tasks.evaluate import evaluate
from tasks.evaluation.label_efficiency import efficiency_tables
from tasks.evaluation.learning_curves import curve_table, cycle_table
from tasks.params import UNDEFENDED, Params
from tasks.records.operating_points import OperatingPoint
from tasks.records.tables import build_records
from tasks.reporting import figures
from tasks.tracking import Tracker
from tests.plausible_analysis import PlausibleAnalysis
from tests.plausible_attack import write_attacks

CLASSES = ["<script>alert(1)</script>", "NA", "a|b $\\frac"]
N_TRAIN, N_TEST, SIDE = 3, 60, 32
N_GROUPS = 21
EPS = (0.25, 1.0, 4.0)
DEFENCES = ["autoencoder", "retrained_autoencoder"]
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
"""A PNG of one pixel."""
BIASES = (0.0, 0.25, 0.125)
"""Biases of the operating point ``recalibrated``; too small to change a prediction."""
# correctly classified images of 60
CORRECT = {
    ("undefended", "none", "clean"): [57],
    ("autoencoder", "none", "clean"): [45],
    ("retrained_autoencoder", "none", "clean"): [54],
    ("undefended", "adaptive", "fgsm"): [48, 12, 3],
    ("undefended", "adaptive", "pgd"): [42, 6, 0],
    ("autoencoder", "transfer", "fgsm"): [45, 42, 39],
    ("autoencoder", "transfer", "pgd"): [45, 39, 30],
    ("autoencoder", "adaptive", "fgsm"): [42, 24, 6],
    ("autoencoder", "adaptive", "pgd"): [39, 9, 0],
    ("retrained_autoencoder", "transfer", "fgsm"): [54, 53, 52],
    ("retrained_autoencoder", "transfer", "pgd"): [54, 53, 51],
    ("retrained_autoencoder", "adaptive", "fgsm"): [51, 36, 15],
    ("retrained_autoencoder", "adaptive", "pgd"): [50, 30, 3],
}


def write_workspace(params: Params, is_phantom: bool, has_purifiers: bool = True, n_groups: int = N_GROUPS) -> None:
    """Write the outputs of the earlier steps for 60 test images of three classes, with the accuracies of CORRECT.

    Args:
        params: parameters; their selected defences are in CORRECT.
        is_phantom: whether the images are computer-drawn.
        has_purifiers: whether the defences have a purifier.
        n_groups: number of groups of all images.
    """
    for step in (
        "validate",
        "prepare",
        "train_classifier",
        "train_surrogates",
        "train_autoencoder",
        "attack",
        "evaluate",
    ):
        Workspace().step_folder(step).mkdir(parents=True)
    for step, name in product(("train_defence", "attack_defence"), params.selected_defences):
        Workspace().step_folder(step, name).mkdir(parents=True)
    n = N_TRAIN + N_TEST
    labels = np.arange(n) % len(CLASSES)
    names = [CLASSES[label] for label in labels]
    # by default a group has two or three test images, which are of one class
    groups = np.arange(n) % n_groups
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(n)], "class": names, "label": labels, "group": groups})
    table["near_duplicate_group"] = np.arange(n)
    sizes = {"width": 320 + np.arange(n), "height": 240, "mode": "L", "format": "PNG"}
    looks = {
        "file_size": 5000,
        "mean": np.linspace(0.3, 0.6, n),
        "std": 0.2,
        "saturated_fraction": 0.0,
        "sha256": names,
    }
    manifest = table.assign(**sizes, **looks)
    manifest.to_parquet(Workspace().manifest)
    # the last image is new, another image has other pixels, and one image is missing
    changed = manifest.iloc[:-1].assign(sha256=lambda rows: ["other", *rows["sha256"][1:]])
    write_reference(pd.concat([changed, changed.tail(1).assign(path="gone.png")]), Workspace().reference)
    table["split"] = ["train"] * N_TRAIN + ["test"] * N_TEST
    table.to_parquet(Workspace().split)
    pixels = np.random.default_rng(0).integers(0, 256, (n, 1, SIDE, SIDE), dtype=np.uint8)
    np.save(Workspace().pixels, pixels)
    by_split = {"train": N_TRAIN, "validation": 0, "test": N_TEST}
    info = {
        "schema_version": SCHEMA_VERSION,
        "name": "phantoms" if is_phantom else "scans & more",
        "source": "phantom" if is_phantom else "folder",
        "is_phantom": is_phantom,
        "classes": CLASSES,
        "positive_class": CLASSES[0],
        "image_size": SIDE,
        "value_range": [0.0, 1.0],
        "strategy": "stratified",
        "n": n,
        "n_groups": n_groups,
        "n_images": {split: dict.fromkeys(CLASSES, count // 3) for split, count in by_split.items()},
        "leakage": {"near_duplicate_in_train": 0.0625, "group_in_train": 0.875},
        "shortcut_baseline": {"accuracy": 1 / 3, "balanced_accuracy": 0.375},
    }
    Workspace().dataset_info.write_text(json.dumps(info), encoding="utf-8")
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    leakage = {"outcome": "unverified", "fractions": info["leakage"], "estimate": estimate}
    leakage["sweep"] = [{"same_group_correlation": 0.3, "n_groups": 4, "group_in_train": 0.25}]
    Workspace().leakage.write_text(json.dumps(leakage), encoding="utf-8")
    # the shortcut baseline predicts the first class
    by_shortcut = pd.DataFrame({"image": np.arange(N_TRAIN, n), "correct": labels[N_TRAIN:] == 0})
    by_shortcut.to_csv(Workspace().shortcut_predictions, index=False)
    expectation = {"observed": "3.25 %", "allowed": "at most 2 %", "n_unexpected": 2, "examples": ["<b>.png"]}
    outcomes = [("sides", "error", True), ("near_duplicates", "warning", False)]
    expectations = [
        {"name": name, "description": f"About {name}", "severity": severity, "success": success, **expectation}
        for name, severity, success in outcomes
    ]
    Workspace().validation.write_text(json.dumps({"success": True, "expectations": expectations}), encoding="utf-8")
    Workspace().data_docs.mkdir()
    (Workspace().data_docs / "index.html").write_text("<html></html>", encoding="utf-8")
    Workspace().surrogates.write_text("[]", encoding="utf-8")
    history = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [3.0, 2, 1], "validation_loss": [3.0, 1.5, 2]})
    history = history.assign(learning_rate=1e-3, best=[0, 1, 0])
    history.to_csv(Workspace().autoencoder_history, index=False)
    if "retrained_autoencoder" in params.selected_defences:
        history.to_csv(Workspace().defence_history("retrained_autoencoder"), index=False)
    accuracies = {"train_accuracy": [0.5, 0.6, 0.7], "validation_accuracy": [0.5, 0.875, 0.6]}
    history.assign(**accuracies).to_csv(Workspace().classifier_history, index=False)

    rows = np.arange(N_TRAIN, n)
    records = pa.concat_tables(
        records_of(rows, labels[rows], groups[rows], *curve, eps, n_correct)
        for curve, counts in CORRECT.items()
        if curve[0] in (UNDEFENDED, *params.selected_defences)
        for eps, n_correct in zip((0.0,) if curve[2] == "clean" else EPS, counts, strict=True)
    )
    write_attacks(records, [OperatingPoint("recalibrated", BIASES, (0.0, -0.25, 0.0), (0.0, 0.5, 0.25))])
    evaluate(Workspace(), params, Tracker())
    purifiers = params.selected_defences if has_purifiers else ()
    PlausibleAnalysis(EPS, CLASSES, rows, labels[rows], params.selected_defences, purifiers).write()
    write_learning(labels)


def write_learning(labels: np.ndarray, n_seeds: int = 10, gain: float = 0.2) -> None:
    """Write learning curves in which entropy is better than random by about ``gain`` in every cycle."""
    Workspace().active_learning.mkdir()
    images, rows, pools = np.arange(N_TEST), [], []
    runs = [*product(("random", "entropy"), range(n_seeds), range(3)), *product(["all labels"], range(n_seeds), [0])]
    for name, seed, cycle in runs:
        share = 0.8 if name == "all labels" else 0.4 + 0.1 * cycle + gain * (name == "entropy") - 0.05 * (seed % 2)
        correct = images < round(share * N_TEST)
        key = {"acquisition": name, "seed": seed, "cycle": cycle}
        columns = {"image": images, "group": images, "label": 1, "prediction": correct.astype(int)}
        rows.append(pd.DataFrame(key | columns | {"confidence": 0.75, "robust_correct": correct * (images % 2.0)}))
        n_labelled, n_epochs = (60, 30 + seed) if name == "all labels" else (10 * (cycle + 1), 4)
        pools.append(key | {"n_labelled": n_labelled, "n_epochs": n_epochs, "n_pool": 5, "mean_pool_entropy": 0.3})
    predictions = pd.concat(rows, ignore_index=True)
    asked = product(("random", "entropy"), (1, 2), range(3))
    columns_of_query = ["acquisition", "cycle", "image"]
    queries = pd.DataFrame(asked, columns=columns_of_query).assign(seed=0, prediction=1, confidence=0.5, score=0.1)
    queries = queries.assign(label=labels[queries["image"]], group=queries["image"]).assign(assigned_label=1)
    cycles = cycle_table(predictions, queries, pd.DataFrame(pools), positive=1)
    efficiency, by_seed = efficiency_tables(cycles, predictions)
    write_table(cycles, Workspace().cycles)
    write_table(curve_table(cycles, predictions), Workspace().learning_curves)
    write_table(efficiency, Workspace().label_efficiency)
    write_table(by_seed, Workspace().label_efficiency_by_seed)
    queries.to_parquet(Workspace().queries)


def leave_out_static_figures(patch: pytest.MonkeyPatch) -> None:
    """Replace every PNG of a report by one pixel, and draw figures without computing their layout."""
    patch.setattr(figures, "png", lambda figure: PIXEL)
    patch.setattr(figures.ConstrainedLayoutEngine, "execute", lambda engine, figure: None)


def empty_analysis() -> None:
    """Remove all rows from the tables of the step ``analyze``."""
    for path in Workspace().analyze.glob("*.csv"):
        pd.read_csv(path).iloc[:0].to_csv(path, index=False)
    pd.read_parquet(Workspace().embeddings).iloc[:0].to_parquet(Workspace().embeddings)
    Workspace().claims.write_text("[]", encoding="utf-8")


def records_of(
    rows: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    target: str,
    threat_model: str,
    attack: str,
    eps: float,
    n_correct: int,
) -> pa.Table:
    """Records of one attack at one eps, of which the first ``n_correct`` images are correct."""

    def logits(n_correct: int) -> np.ndarray:
        correct = np.eye(len(CLASSES), dtype=np.float32)[labels]
        incorrect = np.eye(len(CLASSES), dtype=np.float32)[(labels + 1) % len(CLASSES)]
        return np.where(np.arange(len(labels))[:, None] < n_correct, correct, incorrect)

    return build_records(
        {"image": rows, "path": np.array([f"{row}.png" for row in rows], object), "label": labels, "group": groups},
        {
            **{"target": target, "threat_model": threat_model, "attack": attack, "norm": "linf"},
            "surrogate": UNDEFENDED if threat_model == "transfer" else "",
        },
        eps,
        eps / 255,
        logits(n_correct),
        logits(CORRECT[target, "none", "clean"][0]),
        logits(n_correct),
        {"linf": np.full(len(rows), eps / 255), "l2": np.full(len(rows), eps / 10)},
        np.full(len(rows), 0.01) if target != UNDEFENDED else None,
    )
