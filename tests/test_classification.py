import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import (
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from tasks.analysis.classification import classification_table, entropy_table, reliability_table, robustness_area
from tasks.records.scores import entropy
from tasks.statistics.groups import GroupJackknife

CLEAN = ("undefended", "none", "clean", 0.0)
METRICS = ["accuracy", "balanced_accuracy", "top1_error", "loss", "precision", "recall", "f1", "auroc", "ece", "brier"]
METRICS += ["mean_entropy"]


def pgd(eps: float) -> tuple[str, str, str, float]:
    return "undefended", "adaptive", "pgd", eps


def records_at(
    point: tuple[str, str, str, float], labels: np.ndarray, logits: np.ndarray, images: np.ndarray | None = None
) -> pd.DataFrame:
    target, threat_model, attack, eps = point
    prediction = logits.argmax(axis=1)
    columns = {
        "image": np.arange(len(labels)) if images is None else images,
        "label": labels,
        "prediction": prediction,
        "logits": list(logits.astype(np.float32)),
        "entropy": entropy(logits),
        "correct": prediction == labels,
    }
    return pd.DataFrame(columns).assign(target=target, threat_model=threat_model, attack=attack, eps=eps)


def drawn(n_images: int, n_classes: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n_images) % n_classes
    logits = rng.normal(size=(n_images, n_classes))
    logits[np.arange(n_images), labels] += shift
    return labels, logits


def correct_logits(labels: np.ndarray, correct: list[bool]) -> np.ndarray:
    predictions = np.where(correct, labels, 1 - labels)
    return np.eye(2)[predictions] * 4


def alone(n: int) -> GroupJackknife:
    """Every image is a group of its own."""
    return GroupJackknife(np.arange(n))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_metrics_equal_scikit_learn(n_classes: int) -> None:
    parts, expected = [], {}
    for seed, point in enumerate([CLEAN, pgd(1.0)]):
        labels, logits = drawn(90, n_classes, shift=1 - seed, seed=seed)
        parts.append(records_at(point, labels, logits))
        # the records store float32
        probabilities, actual = softmax(np.float64(np.float32(logits)), axis=1), labels == 1
        predicted = logits.argmax(axis=1) == 1
        accuracy = float((logits.argmax(axis=1) == labels).mean())
        scores = probabilities[:, 1] if n_classes == 2 else probabilities
        expected[point[-1]] = {
            "accuracy": accuracy,
            "balanced_accuracy": balanced_accuracy_score(labels, logits.argmax(axis=1)),
            "loss": log_loss(labels, probabilities),
            "precision": precision_score(actual, predicted),
            "recall": recall_score(actual, predicted),
            "f1": f1_score(actual, predicted),
            "top1_error": 1 - accuracy,
            "auroc": roc_auc_score(labels, scores, multi_class="ovr"),
            "brier": brier_score_loss(labels, probabilities, scale_by_half=False, labels=range(n_classes)),
            "mean_entropy": float(entropy(logits).mean()),
        }
    table = classification_table(pd.concat(parts), 1, alone(90))
    assert list(table.columns) == ["target", "threat_model", "attack", "eps", "metric", "value", "low", "high"]
    assert table["metric"].tolist() == METRICS * 2
    for eps, values in expected.items():
        found = table[table["eps"] == eps].set_index("metric")["value"]
        assert found[list(values)].to_dict() == pytest.approx(values, rel=1e-6)
    inside = table[table["metric"] != "ece"]
    assert ((inside["low"] < inside["value"]) & (inside["value"] < inside["high"])).all()


def test_clean_rows_cover_the_attacked_images_in_any_order() -> None:
    labels, logits = drawn(40, 2, shift=1, seed=0)
    few = np.array([31, 2, 17, 8])
    of_few = records_at(CLEAN, labels[few], logits[few], few)
    attacked = records_at(pgd(1.0), labels[few][::-1], logits[few][::-1], few[::-1])
    table = classification_table(pd.concat([records_at(CLEAN, labels, logits), attacked]), 1, alone(4))
    of_all = classification_table(pd.concat([of_few, attacked]), 1, alone(4))
    pd.testing.assert_frame_equal(table, of_all)
    # equal predictions of equal images give equal intervals
    clean, after = (table.loc[table["eps"] == eps, ["value", "low", "high"]].to_numpy() for eps in (0, 1))
    assert clean == pytest.approx(after, nan_ok=True)


def test_auroc_is_nan_without_a_class_and_precision_is_0_without_positive_predictions() -> None:
    labels = np.zeros(6, dtype=int)
    logits = correct_logits(labels, [True] * 6)
    records = pd.concat([records_at(point, labels, logits) for point in (CLEAN, pgd(1.0))])
    table = classification_table(records, 1, alone(6)).set_index(["eps", "metric"])
    assert table.loc[(1.0, "auroc")][["value", "low", "high"]].isna().all()
    precision = table.loc[(1.0, "precision")]
    assert precision["value"] == 0
    assert precision[["low", "high"]].isna().all()
    # Clopper and Pearson's bound for 6 of 6
    assert table.loc[(1.0, "accuracy")][["value", "low", "high"]].tolist() == [1, pytest.approx(0.025 ** (1 / 6)), 1]


def test_auroc_orders_saturated_predictions() -> None:
    labels = np.array([0, 0, 1, 1])
    logits = np.column_stack([np.zeros(4), [50.0, 60, 70, 80]])
    records = pd.concat([records_at(point, labels, logits) for point in (CLEAN, pgd(1.0))])
    table = classification_table(records, 1, alone(4)).set_index(["eps", "metric"])
    assert table.loc[(0.0, "auroc"), "value"] == 1
    below = classification_table(records, 0, alone(4)).set_index(["eps", "metric"])
    assert below.loc[(0.0, "auroc"), "value"] == 1


def test_points_with_different_images_raise_an_error() -> None:
    labels, logits = drawn(6, 2, shift=1, seed=0)
    records = pd.concat([records_at(CLEAN, labels, logits), records_at(pgd(1.0), labels, logits)])
    missing = pd.concat([records, records_at(pgd(2.0), labels[:5], logits[:5])])
    with pytest.raises(ValueError, match=r"records of undefended/adaptive/pgd/2.0 is 5, but 6 images"):
        classification_table(missing, 1, alone(6))
    with pytest.raises(ValueError, match=r"records of undefended/adaptive/pgd/2.0 is 5, but 6 images"):
        robustness_area(missing, alone(6))


def test_every_point_has_a_reliability_curve() -> None:
    labels = np.array([0, 1, 0, 1])
    sure = correct_logits(labels, [True, True, True, False])
    records = pd.concat([records_at(CLEAN, labels, sure), records_at(pgd(1.0), labels, np.zeros((4, 2)))])
    table = reliability_table(records, alone(4))
    assert len(table) == 2 * 15
    filled = table[table["n"] > 0].set_index("eps")
    assert filled["bin"].to_dict() == {0.0: 14, 1.0: 7}
    assert filled["accuracy"].to_dict() == {0.0: 0.75, 1.0: 0.5}
    assert filled["confidence"].to_dict() == pytest.approx({0.0: 1 / (1 + np.exp(-4)), 1.0: 0.5})


def test_entropy_histograms_are_split_by_correctness_and_end_at_the_maximum() -> None:
    labels = np.array([0, 1, 0, 1])
    logits = np.array([[0, 0], [0, 0], [60, 0], [60, 0]])
    records = pd.concat([records_at(point, labels, logits) for point in (CLEAN, pgd(1.0))])
    records["entropy"] += np.where(records["entropy"] > 0.1, 1e-12, 0)
    table = entropy_table(records)
    at_one = table[table["eps"] == 1]
    assert at_one["lower_edge"].tolist() == pytest.approx(np.arange(20) / 20 * np.log(2))
    assert at_one["upper_edge"].tolist() == pytest.approx(np.arange(1, 21) / 20 * np.log(2))
    assert at_one["n_correct"].tolist() == [1, *[0] * 18, 1]
    assert at_one["n_misclassified"].tolist() == [1, *[0] * 18, 1]


def test_the_area_is_the_mean_accuracy_over_octaves() -> None:
    labels = np.array([0, 1, 0, 1] * 4)
    accuracies = {1.0: [True] * 16, 2.0: [True, True, False, False] * 4, 8.0: [False] * 16}
    parts = [records_at(CLEAN, labels, correct_logits(labels, [True] * 16))]
    # one octave from 1 to 0.5, then two from 0.5 to 0
    parts += [records_at(pgd(eps), labels, correct_logits(labels, right)) for eps, right in accuracies.items()]
    area = robustness_area(pd.concat([parts[0], parts[3], parts[1], parts[2]]), alone(16))
    assert len(area) == 1
    assert area.loc[0, ["target", "threat_model", "attack"]].tolist() == ["undefended", "adaptive", "pgd"]
    assert area.loc[0, "value"] == pytest.approx((1 * 0.75 + 2 * 0.25) / 3)
    # every image has an area of 1/6 or 4/6
    assert 1 / 6 <= area.loc[0, "low"] < area.loc[0, "value"] < area.loc[0, "high"] <= 4 / 6


def test_groups_of_similar_images_make_intervals_wider() -> None:
    labels, logits = drawn(90, 2, shift=1, seed=0)
    correct = np.repeat(np.arange(30) % 3 > 0, 3)
    logits = correct_logits(labels, correct)
    records = pd.concat([records_at(point, labels, logits) for point in (CLEAN, pgd(1.0))])
    widths = []
    for groups in (np.arange(90), np.repeat(np.arange(30), 3)):
        jackknife = GroupJackknife(groups)
        tables = classification_table(records, 1, jackknife), robustness_area(records, jackknife)
        widths += [table.iloc[0]["high"] - table.iloc[0]["low"] for table in tables]
    assert widths[2] / widths[0] == pytest.approx(3**0.5, rel=0.15)
    assert widths[3] / widths[1] == pytest.approx(3**0.5, rel=0.15)


def test_the_area_for_a_single_eps_is_the_accuracy() -> None:
    labels = np.array([0, 1, 0, 1])
    logits = correct_logits(labels, [True, True, True, False])
    area = robustness_area(pd.concat([records_at(point, labels, logits) for point in (CLEAN, pgd(4.0))]), alone(4))
    assert area["value"].tolist() == [0.75]
