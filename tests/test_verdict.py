import numpy as np
import pandas as pd
import pytest

from tasks.analysis.claims import Claim, verdict, won_back
from tasks.statistics.intervals import bootstrap_counts

N = 200
COUNTS = bootstrap_counts(np.arange(N), 500, 0)


def records(clean: float, bare: float, transfer: float, adaptive: float) -> pd.DataFrame:
    """Of 200 images, the first share of which is classified correctly at each point."""
    points = [
        ("undefended", "none", "clean", 0.0, clean),
        ("undefended", "adaptive", "pgd", 1.0, bare),
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
    point = {"space": "bottleneck", "target": "autoencoder", "threat_model": "transfer", "attack": "pgd", "eps": eps}
    metrics = {"probe_auroc": probe, "knn_auroc": knn, "mmd_p_value": (0.25, np.nan, np.nan)}
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


def claims(kinds: dict[str, str] | None = None, **changed: pd.DataFrame) -> list[Claim]:
    kinds = kinds or {"autoencoder": "autoencoder"}
    tables = {
        "records": records(0.95, 0.4, 0.9, 0.5),
        "features": features((0.55, 0.5, 0.6), (0.5, 0.45, 0.55)),
        "detection": detection(("entropy", "pgd", 0.6)),
    }
    return verdict(**(tables | changed), kinds=kinds, eps=1.0, resampled=lambda rows: COUNTS)


@pytest.mark.parametrize(
    ("accuracy", "outcome"),
    [(1.0, "holds"), (0.8, "does not hold"), (0.93, "can't be told from 200 images")],
)
def test_the_accuracy_of_the_study_is_reached_when_the_whole_interval_is_above_it(
    accuracy: float, outcome: str
) -> None:
    reached = claims(records=records(accuracy, 0.4, 0.9, 0.5))[0]
    assert reached.outcome == outcome
    assert reached.value == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("probe", "outcome"),
    [
        ((0.55, 0.5, 0.6), "holds"),
        ((0.9, 0.85, 0.95), "does not hold"),
        ((0.7, 0.65, 0.75), "can't be told from 200 images"),
    ],
)
def test_features_overlap_when_neither_probe_nor_neighbours_tell_them_apart(
    probe: tuple[float, float, float], outcome: str
) -> None:
    for pair in ((probe, (0.5, 0.45, 0.55)), ((0.5, 0.45, 0.55), probe)):
        overlap = claims(features=features(*pair))[1]
        assert overlap.outcome == outcome
        assert overlap.value == probe[0]


def test_discrimination_is_judged_by_the_best_detector_and_once_for_each_attacker() -> None:
    found = claims(
        detection=detection(
            ("entropy", "pgd", 0.6),
            ("reconstruction error", "pgd", 0.9),
            ("entropy", "pgd and detector", 0.42),
            ("reconstruction error", "pgd and detector", 0.5),
        )
    )
    unaware, aware = (claim for claim in found if "No detector" in claim.claim)
    assert (unaware.outcome, unaware.value) == ("does not hold", 0.9)
    assert "reconstruction error" in unaware.figure
    # a score that is too low tells as much as one that is too high
    assert (aware.outcome, aware.value) == ("holds", pytest.approx(0.58))
    assert (aware.low, aware.high) == pytest.approx((0.53, 0.63))


def test_claims_are_judged_at_every_eps_and_shown_at_one() -> None:
    at_one, at_four = features((0.55, 0.5, 0.6), (0.5, 0.45, 0.55)), features((0.9, 0.85, 0.95), (0.5, 0.45, 0.55), 4.0)
    found = claims(features=pd.concat([at_four, at_one], ignore_index=True))[1]
    assert (found.outcome, found.value) == ("holds", 0.55)
    assert found.elsewhere == {"4": "does not hold"}
    assert "ε = 1/255" in found.figure
    assert "p = 0.25" in found.figure


def test_resilience_is_judged_for_each_threat_model_by_the_share_won_back() -> None:
    transfer, adaptive = (claim for claim in claims() if "restore" in claim.claim)
    assert (transfer.outcome, transfer.value) == ("does not hold", pytest.approx(50 / 55))
    assert (adaptive.outcome, adaptive.value) == ("holds", pytest.approx(10 / 55))


def test_a_defence_that_makes_it_worse_wins_back_less_than_nothing() -> None:
    images = np.arange(N)
    found = won_back(images < 190, images < 80, images < 60, COUNTS)
    assert found.value == pytest.approx(-20 / 110)
    assert found.low < found.value < found.high < 0


def test_nothing_can_be_won_back_where_nothing_was_lost() -> None:
    right = np.full(N, True)
    assert np.isnan(won_back(right, right, right, COUNTS)).all()
    claim = claims(records=records(0.95, 0.95, 0.95, 0.95))[-2]
    assert (claim.value, claim.outcome) == (None, "can't be told from 200 images")


@pytest.mark.parametrize(
    ("gain", "outcome"), [(0.2, "holds"), (0.0, "does not hold"), (0.05, "can't be told from 200 images")]
)
def test_retraining_helps_when_the_retrained_autoencoder_is_right_on_more_of_the_same_images(
    gain: float, outcome: str
) -> None:
    plain, better = records(0.95, 0.4, 0.7, 0.5), records(0.95, 0.4, 0.7, 0.5 + gain)
    retrained = better[better["target"] == "autoencoder"].assign(target="second_autoencoder")
    found = claims(
        kinds={"second_autoencoder": "retrained_autoencoder", "autoencoder": "autoencoder"},
        records=pd.concat([plain, retrained], ignore_index=True),
    )
    transfer, adaptive = (claim for claim in found if "retrained" in claim.claim)
    assert (transfer.outcome, transfer.value) == ("does not hold", 0)
    assert (adaptive.outcome, adaptive.value) == (outcome, pytest.approx(gain, abs=1 / N))
    assert "accuracy of the second autoencoder minus that of the autoencoder" in adaptive.figure
    # the study says nothing of this one
    assert not any("second autoencoder" in claim.claim for claim in found)


def test_what_was_not_tried_is_said_to_be_open() -> None:
    retraining = claims()[-1]
    assert retraining.outcome == "can't be told without such an autoencoder"
    assert retraining.value is None
