"""The step evaluate on records with known accuracies: tables, metrics, checks and tracking."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tasks.core.workspace import Workspace
from tasks.evaluate import evaluate
from tasks.evaluation.checks import CHECKS
from tasks.params import Params
from tasks.records.tables import build_records
from tasks.tracking import Tracker
from tests.plausible_attack import write_attacks, write_leakage

N = 60
EPS = (0.25, 2.0)
GRID = {"attack.eps": [0.25, 2], "analyze.eps": 2, "analyze.detector_evasion.eps": []}


class Recorder(Tracker):
    """A tracker that keeps its calls."""

    def __init__(self) -> None:
        self.logged_metrics: dict[str, float] = {}
        self.curves: dict[str, tuple[dict[str, str], list[tuple[int, Mapping[str, float]]]]] = {}
        self.artifacts: list[Path] = []
        self.logged_tags: dict[str, str] = {}

    def tags(self, values: Mapping[str, str]) -> None:
        self.logged_tags |= values

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.logged_metrics |= values

    def curve(self, name: str, tags: Mapping[str, str], points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        self.curves[name] = (dict(tags), list(points))

    def artifact(self, path: Path, folder: str = "") -> None:
        self.artifacts.append(path)


def make_records(
    n_classes: int, defences: Sequence[str] = ("autoencoder",), surrogates: Sequence[str] = ()
) -> pa.Table:
    """Records of 60 images whose true logit falls with eps: faster under PGD, and slower under transfer attacks.

    PGD is also transferred to every target from independent surrogates.
    """
    labels = np.arange(N) % n_classes
    clean_margin = np.linspace(-0.5, 4, N)
    strength = {"clean": 0.0, "fgsm": 1.0, "pgd": 1.5}

    def table(target: str, threat_model: str, attack: str, eps: float, surrogate: str = "") -> pa.Table:
        logits, clean = np.zeros((2, N, n_classes), dtype=np.float32)
        clean[np.arange(N), labels] = clean_margin
        logits[np.arange(N), labels] = clean_margin - eps * strength[attack] * (
            0.5 if threat_model == "transfer" else 1
        )
        paths = np.array([f"image {i}.png" for i in range(N)], dtype=object)
        return build_records(
            {"image": np.arange(N) + 100, "path": paths, "label": labels, "group": np.arange(N)},
            {
                **{"target": target, "threat_model": threat_model, "attack": attack, "norm": "linf"},
                "surrogate": surrogate or ("undefended" if threat_model == "transfer" else ""),
            },
            eps,
            eps / 255,
            logits,
            clean,
            # the same logits after rounding to 8 bits
            clean,
            {"linf": np.full(N, eps / 255), "l2": np.full(N, eps)},
            np.full(N, 0.01) if target == "autoencoder" else None,
        )

    points: list[tuple[Any, ...]] = []
    for target in ("undefended", *defences):
        threat_models = ["adaptive"] if target == "undefended" else ["transfer", "adaptive"]
        points.append((target, "none", "clean", 0.0))
        points += [
            (target, threat, attack, eps) for threat in threat_models for attack in ("fgsm", "pgd") for eps in EPS
        ]
        points += [(target, "transfer", "pgd", eps, surrogate) for surrogate in surrogates for eps in EPS]
    return pa.concat_tables([table(*point) for point in points])


Evaluated = Callable[..., Recorder]


@pytest.fixture
def evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params_with: Callable[..., Params]) -> Evaluated:
    """Run the step on such records, with these classes, the last one positive, and these parameters."""
    monkeypatch.chdir(tmp_path)

    def run(classes: list[str], overrides: Mapping[str, Any] | None = None, surrogates: Sequence[str] = ()) -> Recorder:
        params = params_with(GRID | (overrides or {}))
        for step in (Workspace().prepare, Workspace().evaluate):
            step.mkdir(parents=True, exist_ok=True)
        info = {"classes": classes, "positive_class": classes[-1], "value_range": [0.0, 1.0], "is_phantom": True}
        Workspace().dataset_info.write_text(json.dumps(info))
        write_leakage(Workspace(), np.arange(N) + 100)
        np.save(Workspace().pixels, np.zeros((N, 1, 2, 2), np.uint8))
        pd.DataFrame({"path": [f"{i}.png" for i in range(N)], "split": "test"}).to_parquet(Workspace().split)
        write_attacks(make_records(len(classes), params.selected_defences, surrogates))
        recorder = Recorder()
        evaluate(Workspace(), params, recorder)
        return recorder

    return run


def read_metrics() -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads(Workspace().metrics.read_text())
    return metrics


def test_the_folder_holds_tables_metrics_plots_and_checks(evaluated: Evaluated) -> None:
    evaluated(["non-COVID", "COVID"])
    files = sorted(
        path.relative_to(Workspace().evaluate).as_posix() for path in Workspace().evaluate.rglob("*") if path.is_file()
    )
    assert files == [
        "certified_accuracy.csv",
        "checks.json",
        "comparison.csv",
        "configurations.csv",
        "confusion.csv",
        "metrics.json",
        "minimum_perturbation.csv",
        "plots/accuracy_by_eps.csv",
        "plots/confusion.csv",
        "plots/mean_entropy_by_eps.csv",
        "robustness.csv",
        "validation_robustness.csv",
        "worst_case.csv",
    ]


def test_metrics_json_has_a_value_for_each_target_threat_model_attack_and_eps(evaluated: Evaluated) -> None:
    evaluated(["non-COVID", "COVID"])
    metrics = read_metrics()
    assert set(metrics) == {"validation", "clean", "robust", "worst_case", "surrogate_has_power"}
    assert {target: list(values) for target, values in metrics["validation"].items()} == {
        target: ["eps_0", "eps_0.25", "eps_2"] for target in ("undefended", "autoencoder")
    }
    worst_case = metrics["worst_case"]["autoencoder"]["as_trained"]
    assert set(worst_case) == {"transfer", "adaptive"}
    assert set(worst_case["adaptive"]) == {"eps_0", "eps_0.25", "eps_2"}
    rates = ["accuracy", "balanced_accuracy", "accuracy_8bit", "balanced_accuracy_8bit"]
    assert list(worst_case["adaptive"]["eps_2"]) == [*rates, "specificity", "sensitivity"]
    assert set(metrics["clean"]) == {"undefended", "autoencoder"}
    for values in metrics["clean"].values():
        assert list(values) == ["accuracy", "accuracy_low", "accuracy_high", "precision", "recall", "f1"]
    assert {target: list(threats) for target, threats in metrics["robust"].items()} == {
        "undefended": ["adaptive"],
        "autoencoder": ["transfer", "adaptive"],
    }
    for threats in metrics["robust"].values():
        assert "suite" in threats["adaptive"]
        for attacks in threats.values():
            assert set(attacks) - {"suite"} == {"fgsm", "pgd", "worst_case"}
            for curve in attacks.values():
                assert list(curve) == ["eps_0.25", "eps_2"]


def test_metrics_and_robustness_table_are_computed_from_the_records(evaluated: Evaluated) -> None:
    evaluated(["non-COVID", "COVID"])
    metrics = read_metrics()
    margins = np.linspace(-0.5, 4, N)
    # no margin is exactly 0, so there are no ties
    accuracy = [round(float((margins > fall).mean()), 6) for fall in (0.0, 2.0, 3.0, 1.5)]
    assert metrics["clean"]["undefended"]["accuracy"] == accuracy[0]
    assert metrics["robust"]["undefended"]["adaptive"]["fgsm"]["eps_2"] == accuracy[1]
    assert metrics["robust"]["undefended"]["adaptive"]["pgd"]["eps_2"] == accuracy[2]
    assert metrics["robust"]["undefended"]["adaptive"]["worst_case"]["eps_2"] == accuracy[2]
    assert metrics["robust"]["undefended"]["adaptive"]["suite"]["eps_2"] == accuracy[2]
    assert metrics["robust"]["autoencoder"]["transfer"]["pgd"]["eps_2"] == accuracy[3]
    table = pd.read_csv(Workspace().robustness)
    assert len(table) == 2 + 3 * 2 * 2 + 2 * 2
    pgd = table[(table["target"] == "undefended") & (table["attack"] == "pgd") & (table["eps"] == 2)].iloc[0]
    assert pgd["accuracy"] == pytest.approx(accuracy[2], abs=1e-6)
    assert pgd["attack_success_rate"] == pytest.approx(1 - accuracy[2] / accuracy[0], abs=1e-6)
    assert pgd["mean_linf"] == pytest.approx(2 / 255)
    assert np.isnan(pgd["mean_reconstruction_error"])
    assert "macro_f1" not in table


def test_the_worst_case_includes_images_that_only_the_suite_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params_with: Callable[..., Params], evaluated: Evaluated
) -> None:
    evaluated(["non-COVID", "COVID"])
    before = read_metrics()["robust"]["undefended"]["adaptive"]["worst_case"]
    found = pd.read_parquet(Workspace().minimum_eps("undefended"))
    unbroken = found[(found["target"] == "undefended") & (found["minimum_eps"] == 2)].index[:3]
    found.loc[unbroken, "minimum_eps"] = 0.25
    found.to_parquet(Workspace().minimum_eps("undefended"))
    shutil.rmtree(Workspace().evaluate)
    Workspace().evaluate.mkdir()
    evaluate(Workspace(), params_with(GRID), Tracker())
    after = read_metrics()["robust"]["undefended"]["adaptive"]["worst_case"]
    assert after["eps_0.25"] == pytest.approx(before["eps_0.25"] - 3 / N, abs=1e-5)
    assert after["eps_2"] == before["eps_2"]


def test_plots_have_the_points_of_each_curve_from_eps_0(evaluated: Evaluated) -> None:
    evaluated(["non-COVID", "COVID"])
    accuracy = pd.read_csv(Workspace().plots / "accuracy_by_eps.csv")
    assert accuracy.columns.tolist() == ["curve", "eps", "value"]
    assert all(points["eps"].tolist() == [0, 0.25, 2] for _, points in accuracy.groupby("curve"))
    assert accuracy["curve"].drop_duplicates().tolist() == [
        "undefended/adaptive/fgsm",
        "undefended/adaptive/pgd",
        "autoencoder/transfer/fgsm",
        "autoencoder/transfer/pgd",
        "autoencoder/adaptive/fgsm",
        "autoencoder/adaptive/pgd",
        "undefended/adaptive/suite",
        "autoencoder/adaptive/suite",
    ]
    assert accuracy.loc[accuracy["eps"] == 0, "value"].nunique() == 1
    entropy = pd.read_csv(Workspace().plots / "mean_entropy_by_eps.csv")
    assert entropy.columns.tolist() == ["curve", "eps", "value"]
    confusion = pd.read_csv(Workspace().plots / "confusion.csv")
    assert confusion.columns.tolist() == ["actual", "prediction"]
    assert len(confusion) == N
    metrics = read_metrics()["clean"]["undefended"]
    assert (confusion["actual"] == confusion["prediction"]).mean() == pytest.approx(metrics["accuracy"], abs=1e-6)


def test_three_classes_are_evaluated_with_their_names_and_macro_averages(evaluated: Evaluated) -> None:
    evaluated(["healthy", "other", "COVID"])
    table = pd.read_csv(Workspace().robustness)
    of_records = table[table["attack"] != "suite"]
    assert of_records[["macro_precision", "macro_recall", "macro_f1"]].notna().all(axis=None)
    counts = pd.read_csv(Workspace().confusion)
    assert set(counts["actual"]) == set(counts["prediction"]) == {"healthy", "other", "COVID"}
    assert (counts.groupby(["target", "threat_model", "attack", "eps"])["n"].sum() == N).all()


def test_clean_metrics_and_a_curve_for_each_attack_are_tracked(evaluated: Evaluated) -> None:
    recorder = evaluated(["non-COVID", "COVID"])
    clean = read_metrics()["clean"]
    assert recorder.logged_metrics["clean/accuracy"] == clean["undefended"]["accuracy"]
    assert recorder.logged_metrics["clean/autoencoder_accuracy"] == clean["autoencoder"]["accuracy"]
    assert list(recorder.curves) == [
        "undefended adaptive fgsm",
        "undefended adaptive pgd",
        "autoencoder transfer fgsm",
        "autoencoder transfer pgd",
        "autoencoder adaptive fgsm",
        "autoencoder adaptive pgd",
        "undefended adaptive suite",
        "autoencoder adaptive suite",
        "autoencoder adaptive worst_case",
        "undefended adaptive worst_case",
        "autoencoder transfer worst_case",
    ]
    tags, points = recorder.curves["autoencoder transfer pgd"]
    curve = {"target": "autoencoder", "threat_model": "transfer", "attack": "pgd", "norm": "linf"}
    curve |= {"operating_point": "as_trained"}
    assert tags == {**curve, "surrogate": "undefended"}
    assert [step for step, _ in points] == [0, 250, 2000]
    assert points[0][1]["robust/accuracy"] == pytest.approx(clean["autoencoder"]["accuracy"], abs=1e-6)
    keys = {
        "robust/accuracy",
        "robust/accuracy_low",
        "robust/accuracy_high",
        "robust/mean_entropy",
        "robust/mean_margin",
    }
    assert set(recorder.curves["undefended adaptive suite"][1][1][1]) >= {"robust/accuracy", "robust/accuracy_low"}
    for _, values in points:
        assert keys <= set(values)
        assert all(isinstance(value, float) and np.isfinite(value) for value in values.values())
    assert {"robust/attack_success_rate", "robust/mean_reconstruction_error"} <= set(points[1][1])
    assert "robust/mean_reconstruction_error" not in recorder.curves["undefended adaptive pgd"][1][1][1]
    assert recorder.artifacts == [Workspace().evaluate]


def test_transfer_from_independent_surrogates_has_curves_metrics_and_runs_of_its_own(evaluated: Evaluated) -> None:
    evaluated(["non-COVID", "COVID"])
    without = read_metrics()
    shutil.rmtree(Workspace().evaluate)
    recorder = evaluated(["non-COVID", "COVID"], surrogates=["cnn-1", "resnet18-2"])
    metrics = read_metrics()
    # numbers, of which flows.seeds has the mean
    assert set(metrics["surrogate_has_power"]) == {"cnn-1", "resnet18-2"}
    assert all(type(power) is int for power in metrics["surrogate_has_power"].values())
    table = pd.read_csv(Workspace().robustness, keep_default_na=False)
    transferred = table[table["threat_model"] == "transfer"]
    assert transferred[["target", "attack", "surrogate"]].drop_duplicates().to_numpy().tolist() == [
        ["undefended", "pgd", "cnn-1"],
        ["undefended", "pgd", "resnet18-2"],
        ["autoencoder", "fgsm", "undefended"],
        ["autoencoder", "pgd", "undefended"],
        ["autoencoder", "pgd", "cnn-1"],
        ["autoencoder", "pgd", "resnet18-2"],
    ]
    assert (transferred["n"].astype(int) == N).all()
    robust = metrics["robust"]
    assert set(robust["undefended"]["transfer"]) == {"pgd_from_cnn-1", "pgd_from_resnet18-2", "worst_case"}
    # the attacks of before keep their names and values
    for attack, by_eps in without["robust"]["autoencoder"]["transfer"].items():
        assert robust["autoencoder"]["transfer"][attack] == by_eps
    tags, _ = recorder.curves["undefended transfer pgd_from_cnn-1"]
    assert tags["surrogate"] == "cnn-1"
    # the undefended classifier is no surrogate of itself, so its transfer attacks are fewer than those of a defence
    ranked = pd.read_csv(Workspace().comparison)
    assert set(ranked.loc[ranked["threat_model"] == "transfer", "target"]) == {"autoencoder"}
    assert {check["target"] for check in json.loads(Workspace().checks.read_text())} >= {"undefended", "autoencoder"}


def test_the_checks_of_every_target_have_status_value_and_explanation(evaluated: Evaluated) -> None:
    recorder = evaluated(["non-COVID", "COVID"])
    checks = json.loads(Workspace().checks.read_text())
    for check in checks:
        assert list(check) == ["target", "key", "name", "status", "value", "explanation"]
        assert check["status"] in {"PASS", "INFO", "WARN", "FAIL", "NO POWER", "UNVERIFIED"}
    found = {(check["target"], check["key"]): check["status"] for check in checks}
    # the undefended classifier has no transfer attacks, and a defence of this kind is no positive control
    of_defences = {"transfer_vs_adaptive", "adaptive_advantage"}
    assert set(found) == {("undefended", key) for key in CHECKS if key not in of_defences} | {
        ("autoencoder", key) for key in CHECKS if key != "positive_control"
    } | {(None, "leakage")}
    # no eps breaks the undefended classifier
    assert found["autoencoder", "transfer_vs_adaptive"] == "NO POWER"
    assert found["undefended", "positive_control"] == "WARN"
    assert found["undefended", "black_box"] == "WARN"
    tags = {f"check.{key}.{target}" if target else "check.leakage": status for (target, key), status in found.items()}
    assert recorder.logged_tags == tags


@pytest.mark.parametrize("in_params", ["classifier", "autoencoder"])
def test_image_processing_is_a_positive_control_only_if_it_is_applied_directly_before_the_classifier(
    evaluated: Evaluated, in_params: str
) -> None:
    defences = ["autoencoder", "jpeg", "median_jpeg_autoencoder"]
    # the settings of the trained defence count, and not a later change of params.yaml
    evaluated(
        ["non-COVID", "COVID"],
        {
            "selected_defences": defences,
            "defences.jpeg.applied_before": in_params,
            "defences.median_jpeg_autoencoder.applied_before": in_params,
        },
    )
    checks = json.loads(Workspace().checks.read_text())
    controls = {check["target"] for check in checks if check["key"] == "positive_control"}
    assert controls == {"undefended", "jpeg"}


def test_every_target_has_a_run_of_its_worst_case_with_the_status_of_its_checks(evaluated: Evaluated) -> None:
    recorder = evaluated(["non-COVID", "COVID"])
    comparison = pd.read_csv(Workspace().comparison).set_index(["target", "threat_model", "eps"])
    for target, threat_models in (("undefended", ["adaptive"]), ("autoencoder", ["transfer", "adaptive"])):
        for threat_model in threat_models:
            tags, points = recorder.curves[f"{target} {threat_model} worst_case"]
            assert tags["attack"] == "worst_case"
            assert tags["check.random_noise"] == "PASS"
            assert [eps for eps, _ in points] == [0, 250, 2000]
            assert points[0][1]["cost/n_parameters"] == 1000
            first = comparison.loc[(target, threat_model, 0.25)]
            assert points[0][1]["robust/accuracy"] == pytest.approx(first["clean_accuracy"])
            assert points[1][1]["robust/accuracy"] == pytest.approx(first["robust_accuracy"])
            assert points[1][1]["robust/accuracy_low"] == pytest.approx(first["robust_accuracy_low"])


def test_the_same_records_give_the_same_bytes(evaluated: Evaluated) -> None:
    def outputs() -> dict[str, bytes]:
        evaluated(["non-COVID", "COVID"])
        found = {path.as_posix(): path.read_bytes() for path in Workspace().evaluate.rglob("*") if path.is_file()}
        for path in found:
            Path(path).unlink()
        Workspace().plots.rmdir()
        return found

    assert outputs() == outputs()


def test_a_target_without_records_is_an_error_that_names_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params_with: Callable[..., Params]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="Run the step attack first"):
        evaluate(Workspace(), params_with(GRID), Tracker())
