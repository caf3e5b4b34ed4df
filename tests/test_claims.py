import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter

from tasks.analysis.claim_measures import Claim
from tasks.analysis.claims import at_comparison_point, judge_claims
from tasks.analysis.feature_overlap import overlap
from tasks.analysis.tables import estimate_rows
from tasks.outcomes.convergence import convergence_table, unconverged_eps
from tasks.outcomes.worst_case import worst_case_outcomes
from tasks.params import ClaimBounds, Defence
from tasks.records.operating_points import OperatingPoint
from tasks.statistics.intervals import Estimate, best_of
from tests.conftest import VALUES

N = 200
OVERLAP = "overlap/bottleneck/autoencoder/transfer"
BOUNDS = ClaimBounds(study_accuracy=0.9323, separable_auroc=0.7, min_accuracy_gain=0.05, min_restored_fraction=0.5)
AS_TRAINED = OperatingPoint("as_trained", (0.0, 0.0))


def records(clean: float, undefended: float, transfer: float, adaptive: float, n_per_group: int = 1) -> pd.DataFrame:
    """Records of 200 images; at each point the given share of them, the first ones, is classified correctly."""
    points = [
        ("undefended", "none", "clean", 0.0, clean),
        ("undefended", "adaptive", "pgd", 1.0, undefended),
        ("autoencoder", "none", "clean", 0.0, clean),
        ("autoencoder", "transfer", "pgd", 1.0, transfer),
        ("autoencoder", "adaptive", "pgd", 1.0, adaptive),
    ]
    images = np.arange(N)
    parts = [
        pd.DataFrame(
            {
                "image": images,
                "label": images % 2,
                "group": images // n_per_group,
                "target": target,
                "threat_model": threat_model,
                "attack": attack,
                "surrogate": "",
                "eps": eps,
                "correct": images < share * N,
                "norm": "linf",
                "correct_8bit": images < share * N,
                "clean_correct": images < clean * N,
                "logits": list(np.eye(2)[np.where(images < share * N, images % 2, 1 - images % 2)]),
            }
        )
        for target, threat_model, attack, eps, share in points
    ]
    return pd.concat(parts, ignore_index=True)


def features(
    probe: tuple[float, float, float],
    knn: tuple[float, float, float],
    eps: float = 1.0,
    of_classes: tuple[float, float, float] = (0.9, 0.8, 0.95),
    n_broken_groups: int = 50,
) -> pd.DataFrame:
    point = {
        "feature_space": "bottleneck",
        "target": "autoencoder",
        "threat_model": "transfer",
        "attack": "pgd",
        "eps": eps,
    }
    metrics = {"linear_probe_auroc": probe, "knn_auroc": knn, "mmd_p_value": (0.25, np.nan, np.nan)}
    metrics |= {"class_auroc_clean": of_classes}
    metrics |= dict.fromkeys(["linear_probe_auroc_successful", "knn_auroc_successful"], (0.6, 0.5, 0.7))
    return pd.DataFrame(
        [
            {
                **point,
                "metric": metric,
                **dict.fromkeys(["n", "n_groups"], n_broken_groups if metric.endswith("_successful") else N),
                **dict(zip(("value", "low", "high"), numbers, strict=True)),
            }
            for metric, numbers in metrics.items()
        ]
    )


def detection(*aurocs: tuple[str, str, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"detector": name, "surrogate": "undefended", "attack": attack, "eps": 1.0}
            | {"n_successful": 50, "n_groups_successful": 50, "n_auroc": 50, "n_groups_auroc": 50, "n_detectors": 5}
            | {"auroc_successful": auroc, "auroc_successful_low": auroc - 0.05, "auroc_successful_high": auroc + 0.05}
            for name, attack, auroc in aurocs
        ]
    )


def settings_of(**rows: str) -> dict[str, Defence]:
    """Settings of defences: the name in params.yaml of each."""
    adapter: TypeAdapter[Defence] = TypeAdapter(Defence)
    return {name: adapter.validate_json(json.dumps(VALUES["defences"][row])) for name, row in rows.items()}


def claims(
    defences: dict[str, Defence] | None = None,
    unconverged: dict[str, list[float]] | None = None,
    **changed: pd.DataFrame,
) -> dict[str, Claim]:
    defences = defences or settings_of(autoencoder="autoencoder")
    tables = {
        "records": records(0.95, 0.4, 0.9, 0.5),
        "features": features((0.55, 0.5, 0.6), (0.5, 0.45, 0.55)),
        "detection": detection(("best detector", "pgd", 0.6)),
    }
    tables |= changed
    # no search found more than the records show
    columns = ["target", "operating_point", "image", "threat_model", "minimum_eps", "minimum_eps_8bit"]
    points = {target: [AS_TRAINED] for target in tables["records"]["target"].unique()}
    worst = worst_case_outcomes(tables["records"], pd.DataFrame(columns=columns), points)
    if unconverged is None:
        unconverged = {target: [] for target in points}
    judged = judge_claims(**tables, worst=worst, defences=defences, eps=1.0, bounds=BOUNDS, unconverged=unconverged)
    return {claim.key: claim for claim in judged}


@pytest.mark.parametrize(("accuracy", "result"), [(1.0, "holds"), (0.8, "does not hold"), (0.93, "not significant")])
def test_the_accuracy_claim_holds_if_the_whole_interval_is_above_that_of_the_study(
    accuracy: float, result: str
) -> None:
    reached = claims(records=records(accuracy, 0.4, 0.9, 0.5))["accuracy"]
    assert reached.result == result
    assert reached.value == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("probe", "result"),
    [
        ((0.55, 0.5, 0.6), "not separated by these probes"),
        ((0.9, 0.85, 0.95), "does not hold"),
        ((0.7, 0.65, 0.75), "not significant"),
    ],
)
def test_features_are_not_separated_if_neither_probe_nor_nearest_neighbours_separate_them(
    probe: tuple[float, float, float], result: str
) -> None:
    for pair in ((probe, (0.5, 0.45, 0.55)), ((0.5, 0.45, 0.55), probe)):
        overlap = claims(features=features(*pair))[OVERLAP]
        assert overlap.result == result
        assert overlap.value == probe[0]


@pytest.mark.parametrize(
    ("probe", "power", "result"),
    [
        # the attack breaks images of one group less than the minimum
        ((0.55, 0.5, 0.6), {"n_broken_groups": 5}, "no power"),
        ((0.55, 0.5, 0.6), {"n_broken_groups": 6}, "not separated by these probes"),
        # the probe does not find the classes
        ((0.55, 0.5, 0.6), {"of_classes": (0.6, 0.49, 0.7)}, "no power"),
        ((0.55, 0.5, 0.6), {"of_classes": (math.nan, math.nan, math.nan)}, "no power"),
        ((0.7, 0.65, 0.75), {"n_broken_groups": 5}, "no power"),
        # what is separated is separated, also by a probe without power
        ((0.9, 0.85, 0.95), {"n_broken_groups": 5, "of_classes": (0.5, 0.4, 0.6)}, "does not hold"),
    ],
)
def test_non_separability_needs_a_probe_that_finds_the_classes_and_an_attack_that_breaks_images(
    probe: tuple[float, float, float], power: dict[str, Any], result: str
) -> None:
    assert claims(features=features(probe, (0.5, 0.45, 0.55), **power))[OVERLAP].result == result


@pytest.mark.parametrize(
    ("moved", "distance_of_classes", "result"),
    [
        (5.0, 5.0, "does not hold"),
        (0.0, 5.0, "not separated by these probes"),
        (0.0, 0.0, "no power"),
        (5.0, 0.0, "does not hold"),
    ],
)
def test_planted_features_give_their_known_outcome(moved: float, distance_of_classes: float, result: str) -> None:
    """Features whose attack moves all images or none, and with or without the classes."""
    random, labels = np.random.default_rng(0), np.arange(60) % 2
    clean, noise = random.normal(size=(2, 60, 5)).astype(np.float32)
    clean[:, 0] += distance_of_classes * labels
    adversarial = clean + 0.1 * noise
    adversarial[:, 1] += moved
    success = np.arange(60) < 20
    found = overlap(clean, adversarial, labels, np.arange(60), 1, success)
    rows = estimate_rows(found).assign(n=60, n_groups=60)
    rows.loc[rows["metric"].str.endswith("_successful"), ["n", "n_groups"]] = 20
    point = {"feature_space": "bottleneck", "target": "autoencoder", "threat_model": "transfer", "attack": "pgd"}
    claim = claims(features=rows.assign(**point, eps=1.0))[OVERLAP]
    assert claim.result == result
    assert "broken images: 20 of 20 groups, AUROC on these" in claim.measure


def test_detectors_have_no_power_against_an_attack_that_breaks_too_few_groups() -> None:
    few = detection(("best detector", "pgd", 0.58)).assign(n_groups_successful=5)
    assert claims(detection=few)["detection/unaware"].result == "no power"
    found = detection(("best detector", "pgd", 0.9)).assign(n_groups_successful=5)
    assert claims(detection=found)["detection/unaware"].result == "does not hold"


def test_an_auroc_of_too_few_groups_is_no_measured_value_of_detection() -> None:
    few = detection(("best detector", "pgd", math.nan)).assign(n_auroc=4, n_groups_auroc=4)
    claim = claims(detection=few)["detection/unaware"]
    assert (claim.result, claim.value, claim.n, claim.n_groups) == ("too few groups", None, 4, 4)
    assert "50 successful images of 50 groups, of which 4 share their fold with another group" in claim.measure


@pytest.mark.parametrize(
    ("half_width", "result"),
    # the detectable difference is 1.43 times the half width; at most 0.3 is possible above the bound 0.7
    [(0.2, "not significant"), (0.22, "no power")],
)
def test_a_claim_has_no_power_if_no_possible_value_could_be_shown(half_width: float, result: str) -> None:
    auroc = 0.72
    interval = {"auroc_successful_low": auroc - half_width, "auroc_successful_high": auroc + half_width}
    found = detection(("best detector", "pgd", auroc)).assign(**interval)
    claim = claims(detection=found)["detection/unaware"]
    assert claim.result == result
    reason = "the detectable distance from the bound is larger than 0.3, up to 1"
    assert claim.reasons_without_power == ([reason] if result == "no power" else [])
    # with the bound 0.6, at most 0.4 is possible
    assert claim.result_by_bound["0.6"] == "not significant"
    assert claim.result_by_bound["0.8"] == "no power"


def test_a_class_auroc_without_an_interval_has_no_power_because_of_its_number_of_groups() -> None:
    few = features((0.55, 0.5, 0.6), (0.5, 0.45, 0.55), of_classes=(0.983, math.nan, math.nan))
    claim = claims(features=few)[OVERLAP]
    assert claim.result == "no power"
    assert "AUROC of a linear probe for the class: 0.983 [too few groups]" in claim.measure
    (reason,) = claim.reasons_without_power
    assert reason.startswith(
        "too few groups (200 of all classes, at least 5 effective groups of each class are needed)"
    )


def test_detection_is_judged_by_the_detector_that_was_chosen_on_other_groups() -> None:
    found = claims(
        detection=detection(
            ("entropy", "pgd", 0.95),
            ("best detector", "pgd", 0.9),
            ("entropy", "detector_evasion", 0.8),
            ("best detector", "detector_evasion", 0.58),
            ("best detector", "joint_detector_evasion", 0.5),
        )
    )
    unaware, aware = found["detection/unaware"], found["detection/aware"]
    assert (unaware.result, unaware.value) == ("does not hold", 0.9)
    assert "best of 5 detectors" in unaware.measure
    assert (aware.result, aware.value) == ("not separated by these detectors", pytest.approx(0.58))
    assert (aware.low, aware.high) == pytest.approx((0.53, 0.63))


def test_claims_are_judged_at_every_eps_and_have_the_value_of_one() -> None:
    at_one, at_four = features((0.55, 0.5, 0.6), (0.5, 0.45, 0.55)), features((0.9, 0.85, 0.95), (0.5, 0.45, 0.55), 4.0)
    of = records(0.95, 0.4, 0.9, 0.5)
    of = pd.concat([of, of[of["eps"] == 1].assign(eps=4.0)], ignore_index=True)
    found = claims(records=of, features=pd.concat([at_four, at_one], ignore_index=True))[OVERLAP]
    assert (found.result, found.value) == ("not separated by these probes", 0.55)
    assert found.result_by_eps == {"4": "does not hold"}
    assert "(MMD): 0.25" in found.measure


def test_claims_are_judged_again_with_other_bounds() -> None:
    found = claims(features=features((0.62, 0.58, 0.66), (0.5, 0.45, 0.55)))[OVERLAP]
    assert found.result == "not separated by these probes"
    assert found.result_by_bound == {
        "0.6": "not significant",
        "0.65": "not significant",
        "0.75": "not separated by these probes",
        "0.8": "not separated by these probes",
    }
    assert found.result_by_bound_and_eps == {
        bound: {"1": result} for bound, result in sorted((found.result_by_bound | {"0.7": found.result}).items())
    }


def test_a_defence_can_fail_to_restore_accuracy_or_be_not_broken_by_these_attacks() -> None:
    found = claims()
    transfer, adaptive = (found[f"restoration/autoencoder/{model}"] for model in ("transfer", "adaptive"))
    # of 45 points above a constant prediction, which is better than the undefended classifier
    assert (transfer.result, transfer.value) == ("not broken by these attacks", pytest.approx(40 / 45))
    assert (adaptive.result, adaptive.value) == ("holds", pytest.approx(0))


def test_the_restored_fraction_is_of_the_accuracy_that_the_undefended_classifier_has_lost() -> None:
    found = claims(records=records(0.95, 0.6, 0.9, 0.67))
    assert found["restoration/autoencoder/transfer"].value == pytest.approx(30 / 35)
    assert found["restoration/autoencoder/adaptive"].value == pytest.approx(7 / 35)


def test_a_defence_fails_to_restore_accuracy_only_if_the_attack_on_the_undefended_classifier_has_converged() -> None:
    # the second has no doubled stage, so its convergence is unknown
    for unconverged in ({"undefended": [1.0]}, {}):
        found = claims(unconverged=unconverged)
        assert found["restoration/autoencoder/adaptive"].result == "attack not converged"
    # a stronger attack on the undefended classifier does not change what is above the bound
    assert found["restoration/autoencoder/transfer"].result == "not broken by these attacks"
    assert claims(unconverged={"undefended": [4.0]})["restoration/autoencoder/adaptive"].result == "holds"


def test_convergence_is_unknown_for_a_target_without_a_doubled_stage() -> None:
    table = records(0.95, 0.4, 0.9, 0.5)
    images = np.arange(N)
    found = {"operating_point": "as_trained", "threat_model": "adaptive", "minimum_eps": 1.0, "minimum_eps_8bit": 1.0}
    of = {"target": "undefended", "attack": "suite_doubled", "image": images, "label": images % 2, "group": images}
    searches = pd.DataFrame(of | found)
    points = {target: [AS_TRAINED] for target in ("undefended", "autoencoder")}
    converged = convergence_table(table, searches, points, worst_case_outcomes(table, searches, points))
    # the stage breaks the images that the records leave
    assert unconverged_eps(converged) == {"undefended": [1.0]}


def test_a_purifier_that_moves_everything_to_one_class_gets_no_credit_in_the_claims() -> None:
    # under attack the undefended classifier has no correct image, and the purifier makes every image negative
    moved = records(0.95, 0.0, 0.5, 0.5)
    is_purified = (moved["target"] == "autoencoder") & (moved["eps"] > 0)
    for number, row in moved[is_purified].iterrows():
        moved.at[number, "logits"] = np.array([1.0, 0.0])
        moved.at[number, "correct"] = row["label"] == 0
    found = claims(records=moved)["restoration/autoencoder/adaptive"]
    # half of the images are correct again, and a constant prediction has as many
    assert found.value == pytest.approx(0, abs=0.06)
    assert found.result == "holds"
    # the same as a retrained autoencoder
    retrained = moved[moved["target"] == "autoencoder"].assign(target="retrained")
    broken = records(0.95, 0.0, 0.0, 0.0)
    defences = settings_of(autoencoder="autoencoder", retrained="retrained_autoencoder")
    gain = claims(defences, records=pd.concat([broken, retrained]))["retraining/autoencoder/retrained/adaptive"]
    assert gain.value == pytest.approx(0, abs=0.03)
    assert gain.result != "not broken by these attacks"


def test_the_restored_fraction_uses_the_worst_case_to_which_transfer_attacks_belong() -> None:
    # the adaptive attack is weaker than the transfer attack, whose successes count for it
    found = claims(records=records(0.95, 0.4, 0.5, 0.9))
    assert found["restoration/autoencoder/adaptive"].value == pytest.approx(0)


def test_the_restored_fraction_of_a_harmful_defence_is_negative() -> None:
    found = claims(records=records(0.95, 0.4, 0.3, 0.3))["restoration/autoencoder/adaptive"]
    assert found.value == pytest.approx(-20 / 45)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high < 0


def test_the_restored_fraction_is_undefined_if_no_accuracy_was_lost() -> None:
    claim = claims(records=records(0.95, 0.95, 0.95, 0.95))["restoration/autoencoder/adaptive"]
    assert (claim.value, claim.result, claim.p_value) == (None, "undefined", None)


@pytest.mark.parametrize(
    ("gain", "result"), [(0.3, "not broken by these attacks"), (0.0, "does not hold"), (0.05, "not significant")]
)
@pytest.mark.parametrize("has_control", [True, False])
def test_retraining_is_compared_with_further_training_on_noise_alone(
    gain: float, result: str, has_control: bool
) -> None:
    plain, better = records(0.95, 0.4, 0.9, 0.5), records(0.95, 0.4, 0.9, 0.5 + gain)
    retrained = better[better["target"] == "autoencoder"].assign(target="retrained")
    # the control alone has the accuracy with which the retrained autoencoder is compared
    control = plain[plain["target"] == "autoencoder"].assign(target="control")
    rows = {"retrained": "retrained_autoencoder", "autoencoder": "autoencoder"}
    parts = [plain, retrained]
    if has_control:
        # the second one has another architecture, so it is no control
        rows |= {"control": "further_trained_autoencoder", "other": "unet_autoencoder"}
        parts.append(control)
    found = claims(defences=settings_of(**rows), records=pd.concat(parts, ignore_index=True))
    name = "control" if has_control else "autoencoder"
    adaptive = found[f"retraining/{name}/retrained/adaptive"]
    assert (adaptive.result, adaptive.value) == (result, pytest.approx(gain, abs=1 / N))
    assert f"balanced accuracy of the retrained minus that of the {name}" in adaptive.measure
    assert ("without a control" in adaptive.measure) != has_control
    assert sum(key.startswith("retraining") for key in found) == 2
    # the study has no claim about the retrained autoencoder alone
    assert not any(key.startswith("restoration/retrained") for key in found)


def test_a_gain_of_retraining_is_at_most_the_accuracy_without_attack_minus_that_of_the_control() -> None:
    plain, better = records(0.95, 0.4, 0.9, 0.88, n_per_group=4), records(0.95, 0.4, 0.9, 0.9, n_per_group=4)
    retrained = better[better["target"] == "autoencoder"].assign(target="retrained")
    rows = {"retrained": "retrained_autoencoder", "autoencoder": "autoencoder"}
    found = claims(defences=settings_of(**rows), records=pd.concat([plain, retrained], ignore_index=True))
    claim = found["retraining/autoencoder/retrained/adaptive"]
    assert claim.value == pytest.approx(0.02)
    assert claim.largest == pytest.approx(0.95 - 0.88)
    assert claim.bound == BOUNDS.min_accuracy_gain == 0.05
    assert claim.detectable_difference is not None
    assert 0.02 < claim.detectable_difference < 0.95
    # with the range up to 1, it would only be "not significant"
    assert claim.result == "no power"
    assert claim.reasons_without_power == ["the detectable distance from the bound is larger than 0.02, up to 0.07"]
    assert found["restoration/autoencoder/adaptive"].largest == 1


def test_retraining_is_not_tested_without_a_retrained_autoencoder() -> None:
    retraining = claims()["retraining"]
    assert (retraining.result, retraining.value) == ("not tested", None)


def test_every_claim_has_its_result_and_its_numbers_of_images_and_groups() -> None:
    accuracy = claims(records=records(0.93, 0.4, 0.9, 0.5, n_per_group=2))["accuracy"]
    # an accuracy is at most 6.77 points above the bound, and the detectable difference is 7.34 points
    assert (accuracy.result, accuracy.n, accuracy.n_groups) == ("no power", 200, 100)
    assert accuracy.low is not None
    assert accuracy.high is not None
    # 2.8 standard errors, where the interval has 3.92
    assert accuracy.detectable_difference == pytest.approx(2.8016 / 3.92 * (accuracy.high - accuracy.low), rel=1e-3)


def test_two_groups_are_too_few_for_a_verdict() -> None:
    few = claims(records=records(1.0, 0.0, 0.0, 0.0, n_per_group=100))
    for key in ("accuracy", "restoration/autoencoder/adaptive"):
        assert (few[key].result, few[key].low, few[key].p_value) == ("too few groups", None, None)


def test_results_at_the_reported_eps_are_corrected_for_the_number_of_claims() -> None:
    # alone, p is 0.03; with five more claims it is not significant
    barely = features((0.65, 0.6, 0.6955), (0.5, 0.45, 0.55))
    found = claims(features=barely)[OVERLAP]
    assert found.p_value == pytest.approx(0.031, abs=0.003)
    assert found.p_value_holm is not None
    assert found.p_value_holm > 0.05
    assert found.result == "not significant"
    # the results with other bounds are descriptive
    assert found.result_by_bound["0.75"] == "not separated by these probes"


def worst_at(*points: str, targets: tuple[str, ...] = ("undefended", "autoencoder")) -> pd.DataFrame:
    return pd.DataFrame([{"target": target, "operating_point": point} for target in targets for point in points])


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (("as_trained", "recalibrated", "fixed_sensitivity"), "fixed_sensitivity"),
        (("as_trained", "recalibrated"), "recalibrated"),
        (("as_trained",), "as_trained"),
    ],
)
def test_targets_are_compared_at_one_operating_point(points: tuple[str, ...], expected: str) -> None:
    assert set(at_comparison_point(worst_at(*points))["operating_point"]) == {expected}


def test_an_operating_point_that_a_target_lacks_is_not_used() -> None:
    worst = pd.concat([worst_at("as_trained", "recalibrated"), worst_at("fixed_sensitivity", targets=("undefended",))])
    assert set(at_comparison_point(worst)["operating_point"]) == {"recalibrated"}


def test_the_json_fields_do_not_change() -> None:
    fields = ["key", "result", "statement", "study_result", "measure", "value", "low", "high", "n", "n_groups"]
    fields += ["bound", "above", "bounds_robustness", "has_converged", "separated_by", "reasons_without_power"]
    fields += ["p_value", "p_value_holm"]
    fields += ["detectable_difference", "largest", "result_by_eps", "result_by_bound", "result_by_bound_and_eps"]
    assert all(list(asdict(claim)) == fields for claim in claims().values())


def test_there_is_no_verdict_from_tied_scores_or_an_interval_without_width() -> None:
    tied = claims(features=features((math.nan, math.nan, math.nan), (math.nan, math.nan, math.nan)))[OVERLAP]
    assert (tied.result, tied.value, tied.p_value) == ("undefined", None, None)
    one_defined = claims(features=features((0.6, 0.5, 0.65), (math.nan, math.nan, math.nan)))[OVERLAP]
    assert (one_defined.result, one_defined.value) == ("not separated by these probes", 0.6)
    without_width = claims(features=features((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))[OVERLAP]
    assert without_width.result == "undefined"


def test_the_interval_of_the_best_of_several_aurocs_allows_for_the_choice() -> None:
    # with ten degrees of freedom, t is 2.634 at 1 - 0.025 / 2 and 2.228 at 0.975
    best = best_of([Estimate(0.58, 0.53, 0.63), Estimate(0.5, 0.4, 0.65)], 60)
    assert best == pytest.approx((0.58, 0.5208, 0.65), abs=1e-4)
    near_1 = best_of([Estimate(0.99, 0.9, 0.998), Estimate(0.5, 0.4, 0.65)], 60)
    assert near_1 == pytest.approx((0.99, 0.8532, 0.998), abs=1e-4)
    at_1 = best_of([Estimate(1.0, 0.8, 1.0), Estimate(0.5, 0.4, 0.65)], 60)
    assert at_1 == pytest.approx((1.0, 1 - 0.2 * 2.634 / 2.228, 1.0), abs=1e-4)
    # one estimate is no choice
    assert best_of([Estimate(0.58, 0.53, 0.63)], 60) == pytest.approx((0.58, 0.53, 0.63))
    # another one may be larger, if it has no upper bound
    assert math.isnan(best_of([Estimate(0.58, 0.53, 0.63), Estimate(0.5, math.nan, math.nan)], 60).high)
