from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from tasks.analysis.claims import Claim, judge_claims, restored_fraction
from tasks.statistics.groups import GroupJackknife

N = 200
OVERLAP = "overlap/bottleneck/autoencoder/transfer"
ALONE = GroupJackknife(np.arange(N))


def records(clean: float, undefended: float, transfer: float, adaptive: float) -> pd.DataFrame:
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
                "target": target,
                "threat_model": threat_model,
                "attack": attack,
                "eps": eps,
                "correct": images < share * N,
                "clean_correct": images < clean * N,
            }
        )
        for target, threat_model, attack, eps, share in points
    ]
    return pd.concat(parts, ignore_index=True)


def features(probe: tuple[float, float, float], knn: tuple[float, float, float], eps: float = 1.0) -> pd.DataFrame:
    point = {
        "feature_space": "bottleneck",
        "target": "autoencoder",
        "threat_model": "transfer",
        "attack": "pgd",
        "eps": eps,
    }
    metrics = {"linear_probe_auroc": probe, "knn_auroc": knn, "mmd_p_value": (0.25, np.nan, np.nan)}
    return pd.DataFrame(
        [
            {**point, "metric": metric, "n": N, **dict(zip(("value", "low", "high"), numbers, strict=True))}
            for metric, numbers in metrics.items()
        ]
    )


def detection(*aurocs: tuple[str, str, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"detector": name, "surrogate": "undefended", "attack": attack, "eps": 1.0, "n_successful": 50}
            | {
                "auroc_successful": auroc,
                "auroc_successful_low": auroc - 0.05,
                "auroc_successful_high": auroc + 0.05,
            }
            for name, attack, auroc in aurocs
        ]
    )


def claims(kinds: dict[str, str] | None = None, **changed: pd.DataFrame) -> dict[str, Claim]:
    kinds = kinds or {"autoencoder": "autoencoder"}
    tables = {
        "records": records(0.95, 0.4, 0.9, 0.5),
        "features": features((0.55, 0.5, 0.6), (0.5, 0.45, 0.55)),
        "detection": detection(("entropy", "pgd", 0.6)),
    }
    judged = judge_claims(**(tables | changed), kinds=kinds, eps=1.0, jackknife_of=GroupJackknife)
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
        ((0.55, 0.5, 0.6), "holds"),
        ((0.9, 0.85, 0.95), "does not hold"),
        ((0.7, 0.65, 0.75), "not significant"),
    ],
)
def test_features_overlap_if_neither_probe_nor_nearest_neighbours_separate_them(
    probe: tuple[float, float, float], result: str
) -> None:
    for pair in ((probe, (0.5, 0.45, 0.55)), ((0.5, 0.45, 0.55), probe)):
        overlap = claims(features=features(*pair))[OVERLAP]
        assert overlap.result == result
        assert overlap.value == probe[0]


def test_detection_is_judged_by_the_best_detector_for_each_threat_model() -> None:
    found = claims(
        detection=detection(
            ("entropy", "pgd", 0.6),
            ("reconstruction error", "pgd", 0.9),
            ("entropy", "pgd and detector", 0.42),
            ("reconstruction error", "pgd and detector", 0.5),
        )
    )
    unaware, aware = found["detection/unaware"], found["detection/aware"]
    assert (unaware.result, unaware.value) == ("does not hold", 0.9)
    assert "reconstruction error" in unaware.measure
    # a score that is lower for adversarial images separates them as well
    assert (aware.result, aware.value) == ("holds", pytest.approx(0.58))
    assert (aware.low, aware.high) == pytest.approx((0.53, 0.63))


def test_claims_are_judged_at_every_eps_and_have_the_value_of_one() -> None:
    at_one, at_four = features((0.55, 0.5, 0.6), (0.5, 0.45, 0.55)), features((0.9, 0.85, 0.95), (0.5, 0.45, 0.55), 4.0)
    found = claims(features=pd.concat([at_four, at_one], ignore_index=True))[OVERLAP]
    assert (found.result, found.value) == ("holds", 0.55)
    assert found.result_by_eps == {"4": "does not hold"}
    assert "ε = 1/255" in found.measure
    assert "(MMD): 0.25" in found.measure


def test_resilience_is_judged_for_each_threat_model_by_the_restored_fraction() -> None:
    found = claims()
    transfer, adaptive = (found[f"restoration/autoencoder/{model}"] for model in ("transfer", "adaptive"))
    assert (transfer.result, transfer.value) == ("does not hold", pytest.approx(50 / 55))
    assert (adaptive.result, adaptive.value) == ("holds", pytest.approx(10 / 55))


def test_the_restored_fraction_of_a_harmful_defence_is_negative() -> None:
    images = np.arange(N)
    found = restored_fraction(images < 190, images < 80, images < 60, ALONE)
    assert found.value == pytest.approx(-20 / 110)
    assert found.low < found.value < found.high < 0


def test_the_restored_fraction_is_undefined_if_no_accuracy_was_lost() -> None:
    correct = np.full(N, True)
    assert np.isnan(restored_fraction(correct, correct, correct, ALONE)).all()
    claim = claims(records=records(0.95, 0.95, 0.95, 0.95))["restoration/autoencoder/adaptive"]
    assert (claim.value, claim.result) == (None, "not significant")


@pytest.mark.parametrize(("gain", "result"), [(0.2, "holds"), (0.0, "does not hold"), (0.05, "not significant")])
def test_retraining_helps_if_the_retrained_autoencoder_has_a_higher_accuracy_on_the_same_images(
    gain: float, result: str
) -> None:
    plain, better = records(0.95, 0.4, 0.7, 0.5), records(0.95, 0.4, 0.7, 0.5 + gain)
    retrained = better[better["target"] == "autoencoder"].assign(target="second_autoencoder")
    found = claims(
        kinds={"second_autoencoder": "retrained_autoencoder", "autoencoder": "autoencoder"},
        records=pd.concat([plain, retrained], ignore_index=True),
    )
    pair = "retraining/autoencoder/second_autoencoder"
    transfer, adaptive = found[f"{pair}/transfer"], found[f"{pair}/adaptive"]
    assert (transfer.result, transfer.value) == ("does not hold", 0)
    assert (adaptive.result, adaptive.value) == (result, pytest.approx(gain, abs=1 / N))
    assert "accuracy of the second autoencoder minus accuracy of the autoencoder" in adaptive.measure
    # the study has no claim about the second autoencoder alone
    assert not any("second autoencoder" in claim.statement for claim in found.values())


def test_retraining_is_not_tested_without_a_retrained_autoencoder() -> None:
    retraining = claims()["retraining"]
    assert (retraining.result, retraining.value) == ("not tested", None)


def test_every_claim_has_its_result_and_number_of_images() -> None:
    found = claims(records=records(0.93, 0.4, 0.9, 0.5))
    assert (found["accuracy"].result, found["accuracy"].n) == ("not significant", 200)
    assert found["restoration/autoencoder/adaptive"].result == "holds"


def test_claims_of_several_retrained_autoencoders_keep_their_own_results() -> None:
    tables = []
    for eps, (good, bad) in {1.0: (0.8, 0.5), 4.0: (0.5, 0.8)}.items():
        base = records(0.95, 0.4, 0.7, 0.5)
        tables.append(base)
        for name, adaptive in (("good", good), ("bad", bad)):
            of_defence = records(0.95, 0.4, 0.7, adaptive)
            tables.append(of_defence[of_defence["target"] == "autoencoder"].assign(target=name))
        for table in tables[-3:]:
            table.loc[table["attack"] == "pgd", "eps"] = eps
    joined = pd.concat(tables, ignore_index=True).drop_duplicates(["image", "target", "threat_model", "attack", "eps"])
    overlaps = [features((0.55, 0.5, 0.6), (0.5, 0.45, 0.55), eps) for eps in (1.0, 4.0)]
    found = claims(
        kinds={"autoencoder": "autoencoder", "good": "retrained_autoencoder", "bad": "retrained_autoencoder"},
        records=joined,
        features=pd.concat(overlaps, ignore_index=True),
    )
    good, bad = (found[f"retraining/autoencoder/{name}/adaptive"] for name in ("good", "bad"))
    assert (good.result, good.result_by_eps) == ("holds", {"4": "does not hold"})
    assert (bad.result, bad.result_by_eps) == ("does not hold", {"4": "holds"})


def test_the_json_fields_do_not_change() -> None:
    fields = [
        "key",
        "result",
        "statement",
        "study_result",
        "measure",
        "value",
        "low",
        "high",
        "n",
        "rule",
        "result_by_eps",
    ]
    assert all(list(asdict(claim)) == fields for claim in claims().values())
