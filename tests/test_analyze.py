import json
import shutil
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from threading import Event
from time import sleep
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.analysis.claim_measures import Result
from tasks.analysis.dvc_plots import curve_rows
from tasks.analysis.examples import amplify, choose_examples
from tasks.analysis.parallel import collect_in_threads
from tasks.analyze import analyze
from tasks.attack import attack
from tasks.attack_defence import attack_defence
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.outcomes.attack_outputs import read_records, without_reference
from tasks.params import Params, parse_params
from tasks.tracking import Tracker
from tests.conftest import with_overrides
from tests.small_workspace import DEFENCES, SMALL

pytestmark = pytest.mark.usefixtures("few_channels")

OVERRIDES = SMALL | {
    "selected_defences": DEFENCES,
    "attack.saved_eps": [],
    "analyze.detector_evasion": {"eps": [4], "n_steps": 100, "n_random_starts": 1, "max_images": 0},
}
SINGLE_DETECTORS = {"reconstruction error", "entropy", "prediction change", "feature distance"}
POINT = ["target", "threat_model", "attack", "eps"]


@pytest.fixture(scope="module")
def analysed(small_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which the attack steps and the step analyze have run; tests only read it."""
    folder = tmp_path_factory.mktemp("analysed")
    shutil.copytree(small_workspace / "data", folder / "data")
    workspace, params = Workspace(folder), parse_params(with_overrides(OVERRIDES))
    workspace.attack.mkdir()
    attack(workspace, params, Tracker())
    for defence in DEFENCES:
        workspace.step_folder("attack_defence", defence).mkdir(parents=True)
        attack_defence(workspace, params, Tracker(), defence)
    run_analyze(workspace, params)
    return workspace


@pytest.fixture
def writable(analysed: Workspace, tmp_path: Path) -> Workspace:
    """A copy of that workspace."""
    shutil.copytree(analysed.data, tmp_path / "data")
    return Workspace(tmp_path)


def output_bytes(workspace: Workspace) -> dict[str, bytes]:
    files = [file for file in workspace.analyze.rglob("*") if file.is_file()]
    return {file.relative_to(workspace.analyze).as_posix(): file.read_bytes() for file in files}


def run_analyze(workspace: Workspace, params: Params) -> dict[str, bytes]:
    shutil.rmtree(workspace.analyze, ignore_errors=True)
    workspace.analyze.mkdir()
    analyze(workspace, params, Tracker())
    return output_bytes(workspace)


def points_of(table: pd.DataFrame) -> set[tuple[object, ...]]:
    return set(table[POINT].itertuples(index=False, name=None))


def test_outputs_have_the_same_bytes_in_a_second_run_with_more_threads(
    analysed: Workspace, writable: Workspace, params_with: Callable[..., Params]
) -> None:
    assert run_analyze(writable, params_with(OVERRIDES | {"compute.threads": 2})) == output_bytes(analysed)


def test_every_set_of_adversarial_images_is_analysed_for_every_target(analysed: Workspace) -> None:
    curves = [("undefended", "adaptive"), *product(DEFENCES, ("transfer", "adaptive"))]
    pgd = {(*curve, "pgd", eps) for curve in curves for eps in (0.5, 4.0)}
    clean = {(defence, "none", "clean", 0.0) for defence in DEFENCES}
    assert points_of(pd.read_csv(analysed.heatmaps)) == pgd | clean
    features = pd.read_csv(analysed.features)
    assert points_of(features[features["feature_space"] == "classifier"]) == pgd
    assert points_of(features[features["feature_space"] == "bottleneck"]) == {
        point for point in pgd if point[0] in DEFENCES
    }
    detection = pd.read_csv(analysed.detection)
    assert set(detection["detector"]) == {*SINGLE_DETECTORS, "all detectors", "best detector"}
    assert set(detection["attack"]) == {"fgsm", "pgd", "detector_evasion", "joint_detector_evasion"}
    # five detectors on every set of images; four attacks on one detector; the joint attack; the best detector
    assert len(detection) == 5 * 3 * 2 * 2 + 4 + 5 + (2 + 1 + 1)


def test_the_error_of_fgsm_images_follows_from_eps(analysed: Workspace) -> None:
    resilience = pd.read_csv(analysed.resilience)
    of_fgsm = resilience[(resilience["attack"] == "fgsm") & (resilience["image_kind"] == "adversarial")]
    mse = of_fgsm[of_fgsm["metric"] == "mse"].set_index(["surrogate", "eps"])["value"]
    for (_, eps), value in mse.items():
        assert value == pytest.approx((eps / 255) ** 2, rel=0.02)
    denoised = resilience[(resilience["attack"] == "clean") & (resilience["metric"] == "mse")]
    assert (denoised["value"] > mse.max()).all()


@pytest.mark.parametrize("name", ["classification", "heatmaps", "features", "resilience", "robustness_area"])
def test_intervals_contain_their_values(analysed: Workspace, name: str) -> None:
    table = pd.read_csv(analysed.analyze / f"{name}.csv").dropna(subset=["low", "high"])
    assert (table["low"] <= table["high"]).all()
    if "metric" in table:
        # resampling increases a calibration error
        table = table[table["metric"] != "ece"]
    assert ((table["low"] <= table["value"] + 1e-6) & (table["value"] <= table["high"] + 1e-6)).all()


def test_accuracies_equal_those_of_the_records(analysed: Workspace) -> None:
    classification = pd.read_csv(analysed.classification)
    accuracy = classification[classification["metric"] == "accuracy"].set_index(POINT)["value"]
    expected = without_reference(read_records(analysed, DEFENCES)).groupby(POINT)["correct"].mean()
    assert accuracy.to_dict() == pytest.approx(expected.to_dict(), abs=1e-5)


def test_an_adaptive_attack_lowers_detection(analysed: Workspace) -> None:
    detection = pd.read_csv(analysed.detection)
    at_eps = detection[(detection["surrogate"] == "undefended") & (detection["eps"] == 4)]
    at_eps = at_eps[at_eps["detector"].isin(SINGLE_DETECTORS)]
    for rate in ("detection_rate", "detection_rate_successful"):
        rates = at_eps.pivot(index="detector", columns="attack", values=rate).mean()
        assert rates["detector_evasion"] < rates["pgd"]
    # the adaptive attack starts from the result of the other
    n_successful = at_eps.pivot(index="detector", columns="attack", values="n_successful")
    assert (n_successful["detector_evasion"] >= n_successful["pgd"]).all()
    undetected = at_eps.pivot(index="detector", columns="attack", values="undetected_success_rate")
    assert (undetected["detector_evasion"] >= undetected["pgd"]).all()


def test_rates_follow_from_the_scores_of_the_images(analysed: Workspace) -> None:
    detection, scores = pd.read_csv(analysed.detection), pd.read_parquet(analysed.detector_scores)
    point = ["detector", "surrogate", "attack", "eps"]
    for key, images in scores.groupby(point):
        row = detection[(detection[point] == pd.Series(key, index=point)).all(axis=1)].iloc[0]
        assert (images["flagged"] == (images["score"] > row["threshold"])).all()
        assert row["detection_rate"] == pytest.approx(images["flagged"].mean(), abs=1e-6)
        undetected = images["success"] & ~images["flagged"]
        expected = undetected.sum() / images["clean_correct"].sum()
        assert row["undetected_success_rate"] == pytest.approx(expected, abs=1e-6)


def test_the_joint_attack_evades_all_detectors_more_often_than_an_attack_that_ignores_them(analysed: Workspace) -> None:
    detection = pd.read_csv(analysed.detection)
    rows = detection[(detection["detector"] == "all detectors") & (detection["surrogate"] == "undefended")]
    rates = rows[rows["eps"] == 4].set_index("attack")["undetected_success_rate"]
    assert rates["joint_detector_evasion"] > rates["pgd"]


def test_the_number_of_images_for_adaptive_attacks_on_detectors_can_be_limited(
    writable: Workspace, params_with: Callable[..., Params]
) -> None:
    run_analyze(
        writable,
        params_with(
            OVERRIDES
            | {"analyze.detector_evasion": {"eps": [4], "n_steps": 100, "n_random_starts": 1, "max_images": 12}}
        ),
    )
    detection = pd.read_csv(writable.detection)
    assert set(detection["n"][detection["attack"] == "detector_evasion"]) == {12}
    assert set(detection["n"][detection["attack"] == "pgd"]) == {32}


def test_embeddings_contain_every_image_clean_and_adversarial(analysed: Workspace) -> None:
    embeddings = pd.read_parquet(analysed.embeddings)
    rows = load_prepared(analysed).indices("test")
    groups = embeddings.groupby(["feature_space", *POINT, "method", "image_kind"])
    assert len(groups) == 3 * 2 * 2 * 2
    for _, group in groups:
        assert group["image"].tolist() == rows.tolist()
        assert np.isfinite(group[["x", "y"]].to_numpy()).all()


def test_examples_show_every_class_clean_adversarial_and_denoised(analysed: Workspace) -> None:
    with np.load(analysed.examples, allow_pickle=False) as examples:
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
        images, factor = examples["images"].astype(np.float64), int(perturbation.split(" × ")[1])
        # near 1, float16 is off by up to 1/4096, for each of two images
        assert images[:, 2] == pytest.approx(0.5 + factor * (images[:, 1] - images[:, 0]), abs=0.001 + factor / 2048)
        for name in ("images", "maps", "differences"):
            assert 0 <= examples[name].min() <= examples[name].max() <= 1


def test_every_claim_has_a_result(analysed: Workspace) -> None:
    claims = json.loads(analysed.claims.read_text(encoding="utf-8"))
    assert len(claims) >= 7
    for claim in claims:
        assert claim["result"] in get_args(Result)


def test_missing_perturbations_raise_an_error_that_names_the_file_and_the_step(
    writable: Workspace, params_with: Callable[..., Params]
) -> None:
    writable.perturbation_file("autoencoder", "pgd", 4).unlink()
    with pytest.raises(FileNotFoundError, match=r"pgd-eps4.npz not found.*attack.saved_eps.*attack_defence@auto"):
        run_analyze(writable, params_with(OVERRIDES))


def test_an_example_is_the_first_image_of_its_class_with_a_successful_attack() -> None:
    labels, success = np.array([1, 0, 0, 1, 2]), np.array([False, False, True, False, True])
    assert choose_examples(labels, success).tolist() == [2, 0, 4]


def test_amplified_differences_use_the_whole_range() -> None:
    difference = np.array([[[[-0.1, 0.0, 0.05]]]])
    amplified, factor = amplify(difference)
    assert factor == 5
    assert amplified == pytest.approx(0.5 + 5 * difference)


def test_a_curve_is_named_by_its_columns_and_points_without_a_value_are_dropped() -> None:
    rows = [("a", "", 1.0, 5), ("a", "b", 1.0, 6), ("a", "", 0.5, 7), ("a", "b", np.nan, 8)]
    table = curve_rows(
        pd.DataFrame(rows, columns=["target", "purifier", "eps", "value"]), "eps", ["target", "purifier"], "value"
    )
    assert list(table.columns) == ["curve", "eps", "value"]
    assert list(table.itertuples(index=False, name=None)) == [("a", 1, 5), ("a/b", 1, 6), ("a", 0.5, 7)]


def test_results_of_threads_are_in_the_order_of_the_work() -> None:
    last_is_done = Event()

    def first() -> list[str]:
        assert last_is_done.wait(60)
        return ["first", "second"]

    def last() -> list[str]:
        last_is_done.set()
        return ["last"]

    assert collect_in_threads({"a": first, "b": last}, 2) == ["first", "second", "last"]


def test_each_thread_computes_with_one_torch_thread() -> None:
    assert collect_in_threads({"a": lambda: [torch.get_num_threads()]}, 1) == [1]


def test_an_error_in_a_thread_is_raised_and_cancels_the_rest() -> None:
    started = []

    def slow(number: int) -> list[int]:
        sleep(0.02)
        started.append(number)
        return [number]

    def broken() -> list[int]:
        raise ValueError("broken")

    # the last function starts first
    work = {str(number): partial(slow, number) for number in range(50)} | {"broken": broken}
    with pytest.raises(ValueError, match="broken"):
        collect_in_threads(work, 1)
    assert len(started) < 50
