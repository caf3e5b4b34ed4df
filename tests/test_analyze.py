import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.analyze import analyze
from tasks.attack import attack
from tasks.attack_defence import attack_defence
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.params import Params, parse_params
from tasks.records.tables import read_records
from tasks.tracking import Tracker
from tests.conftest import with_overrides
from tests.small_workspace import DEFENCES, SMALL

ANALYSED = SMALL | {
    "benchmark": DEFENCES,
    "attack.keep_eps": [],
    "analyze.n_resamples": 100,
    "analyze.evasion": {"eps": [4], "n_steps": 20, "max_images": 0},
}


@pytest.fixture(scope="module")
def attacked(small_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the steps attack and analyze have run."""
    folder = tmp_path_factory.mktemp("analysed")
    shutil.copytree(small_workspace / "data", folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Workspace().attack.mkdir()
        params = parse_params(with_overrides(ANALYSED))
        attack(Workspace(), params, Tracker())
        for defence in DEFENCES:
            Workspace().step_folder("attack_defence", defence).mkdir(parents=True)
            attack_defence(Workspace(), params, Tracker(), defence)
        run(params)
    return folder


@pytest.fixture
def analysed(attacked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(attacked)
    return attacked


def run(params: Params, tracker: Tracker | None = None) -> dict[str, bytes]:
    shutil.rmtree(Workspace().analyze, ignore_errors=True)
    Workspace().analyze.mkdir()
    analyze(Workspace(), params, tracker or Tracker())
    return {file.name: file.read_bytes() for file in Workspace().analyze.rglob("*") if file.is_file()}


def test_the_step_gives_the_same_bytes_twice_and_with_more_threads(
    attacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params_with: Callable[..., Params]
) -> None:
    shutil.copytree(attacked / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    before = {file.name: file.read_bytes() for file in Workspace().analyze.rglob("*") if file.is_file()}
    assert run(params_with(ANALYSED | {"compute.threads": 2})) == before


def test_every_crafted_set_is_analysed_by_every_viewer(analysed: Path) -> None:
    curves = [("undefended", "adaptive"), *product(DEFENCES, ("transfer", "adaptive"))]
    points = {(*curve, attack, eps) for curve in curves for attack in ("fgsm", "pgd") for eps in (0.5, 4.0)}
    clean_denoised = {(defence, "none", "clean", 0.0) for defence in DEFENCES}
    heatmaps = pd.read_csv(Workspace().heatmaps)
    assert set(zip(*(heatmaps[c] for c in ("target", "threat_model", "attack", "eps")), strict=True)) == {
        *(point for point in points if point[2] == "pgd"),
        *clean_denoised,
    }
    features = pd.read_csv(Workspace().features)
    of_classifier = features[features["space"] == "classifier"]
    of_bottleneck = features[features["space"] == "bottleneck"]
    names = ("target", "threat_model", "attack", "eps")
    of_pgd = {point for point in points if point[2] == "pgd"}
    assert set(zip(*(of_classifier[c] for c in names), strict=True)) == of_pgd
    assert set(zip(*(of_bottleneck[c] for c in names), strict=True)) == {
        point for point in of_pgd if point[0] in DEFENCES
    }
    detection = pd.read_csv(Workspace().detection)
    assert set(detection["detector"]) == {"reconstruction error", "entropy", "prediction change", "feature distance"}
    assert set(detection["attack"]) == {"fgsm", "pgd", "pgd and detector"}
    assert len(detection) == 4 * (3 * 2 * 2 + 1)


def test_the_perturbation_of_fgsm_has_the_error_that_its_size_gives(analysed: Path) -> None:
    resilience = pd.read_csv(Workspace().resilience)
    of_fgsm = resilience[(resilience["attack"] == "fgsm") & (resilience["images"] == "adversarial")]
    mse = of_fgsm[of_fgsm["metric"] == "mse"].set_index(["surrogate", "eps"])["value"]
    for (_, eps), value in mse.items():
        assert value == pytest.approx((eps / 255) ** 2, rel=0.02)
    kept = resilience[(resilience["attack"] == "clean") & (resilience["metric"] == "mse")]
    assert (kept["value"] > mse.max()).all()


def test_intervals_hold_their_values_and_say_so_where_nothing_is_defined(analysed: Path) -> None:
    for path in (
        Workspace().classification,
        Workspace().heatmaps,
        Workspace().features,
        Workspace().resilience,
        Workspace().robustness_area,
    ):
        table = pd.read_csv(path)
        bounded = table.dropna(subset=["low", "high"])
        assert (bounded["low"] <= bounded["high"]).all(), path
        if "metric" in bounded:
            # a calibration error is above 0 in every resample, and Wasserstein distances likewise
            bounded = bounded[bounded["metric"] != "ece"]
        assert ((bounded["low"] <= bounded["value"] + 1e-6) & (bounded["value"] <= bounded["high"] + 1e-6)).all(), path


def test_accuracies_are_those_of_the_records(analysed: Path) -> None:
    records = read_records(Workspace(), DEFENCES)
    classification = pd.read_csv(Workspace().classification)
    accuracy = classification[classification["metric"] == "accuracy"]
    points = ["target", "threat_model", "attack", "eps"]
    by_point = records.groupby(points)["correct"].mean()
    assert accuracy.set_index(points)["value"].to_dict() == pytest.approx(by_point.to_dict(), abs=1e-5)


def test_an_attacker_who_knows_the_detector_is_detected_less(analysed: Path) -> None:
    detection = pd.read_csv(Workspace().detection)
    at = detection[(detection["surrogate"] == "undefended") & (detection["eps"] == 4)]
    # of all images: where one attack breaks others than the other, AUROCs of what each has broken are of two sets
    auroc = at.pivot(index="detector", columns="attack", values="auroc")
    # a detector that is told apart from the other side is no worse
    told_apart = (auroc - 0.5).abs().mean()
    assert told_apart["pgd and detector"] < told_apart["pgd"]
    for rate in ("detection_rate", "detection_rate_successful"):
        found = at.pivot(index="detector", columns="attack", values=rate).mean()
        assert found["pgd and detector"] < found["pgd"]
    # he begins where the other one ended
    n_broken = at.pivot(index="detector", columns="attack", values="n_successful")
    assert (n_broken["pgd and detector"] >= n_broken["pgd"]).all()


def test_attacks_on_detectors_may_be_of_fewer_images(
    attacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params_with: Callable[..., Params]
) -> None:
    shutil.copytree(attacked / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    run(params_with(ANALYSED | {"analyze.evasion": {"eps": [4], "n_steps": 1, "max_images": 12}}))
    detection = pd.read_csv(Workspace().detection)
    assert set(detection["n"][detection["attack"] == "pgd and detector"]) == {12}
    assert set(detection["n"][detection["attack"] == "pgd"]) == {32}


def test_embeddings_place_every_image_clean_and_adversarial(analysed: Path) -> None:
    embeddings = pd.read_parquet(Workspace().embeddings)
    rows = load_prepared(Workspace()).indices("test")
    places = embeddings.groupby(["space", "target", "threat_model", "attack", "eps", "method", "origin"])
    assert len(places) == 3 * 2 * 2 * 2
    for _, group in places:
        assert group["image"].tolist() == rows.tolist()
        assert np.isfinite(group[["x", "y"]].to_numpy()).all()


def test_the_examples_show_every_class_clean_attacked_and_denoised(analysed: Path) -> None:
    with np.load(Workspace().examples, allow_pickle=False) as examples:
        assert examples["rows"].tolist() == ["none", "left", "right"]
        assert (str(examples["attack"]), float(examples["eps"])) == ("pgd", 4)
        assert examples["images"].shape == (3, 7, 32, 32)
        assert examples["captions"].shape == (3, 7)
        clean, adversarial, perturbation, *denoised = examples["columns"].tolist()
        assert (clean, adversarial, perturbation.split(" × ")[0]) == ("clean", "adversarial", "perturbation")
        assert denoised == [
            f"{images}, denoised by {name}"
            for name in ("autoencoder", "retrained autoencoder")
            for images in ("clean", "adversarial")
        ]
        assert examples["maps"].shape == (3, 4, 32, 32)
        assert examples["mapped"].tolist() == [0, 1, 4, 6]
        assert examples["differences"].shape == (3, 5, 32, 32)
        shown, factor = examples["images"].astype(np.float64), int(perturbation.split(" × ")[1])
        # half floats are off by 1/4096 near 1, twice
        assert shown[:, 2] == pytest.approx(0.5 + factor * (shown[:, 1] - shown[:, 0]), abs=0.001 + factor / 2048)
        for name in ("images", "maps", "differences"):
            assert 0 <= examples[name].min() <= examples[name].max() <= 1


def test_every_claim_has_an_outcome_that_its_interval_gives(analysed: Path) -> None:
    claims = json.loads(Workspace().verdict.read_text())
    assert len(claims) >= 7
    for claim in claims:
        assert claim["outcome"] in {"holds", "does not hold"} or claim["outcome"].startswith("can't be told ")


def test_an_attack_that_kept_no_images_of_an_eps_is_named(
    attacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params_with: Callable[..., Params]
) -> None:
    shutil.copytree(attacked / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    (Workspace().perturbations("autoencoder") / "pgd-eps4.npz").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"pgd-eps4.npz not found: add 4 to attack.keep_eps and run .* attack_defence@auto"
    ):
        run(params_with(ANALYSED))
