import numpy as np
import pandas as pd
import pytest

from tasks.evaluation.robustness import confusion_table, curve_table, curves_of, robustness_table, search_table
from tasks.reporting.sections.accuracy import survivors_table

CLASSES = ["non-COVID", "COVID"]


def records_of(
    point: tuple[str, str, str, float],
    labels: list[int],
    clean: list[int],
    predictions: list[int],
    surrogate: str = "undefended",
) -> pd.DataFrame:
    """Records of some images at one point, with the columns that tables are made of.

    ``surrogate`` is that of transfer attacks.
    """
    target, threat_model, attack, eps = point
    frame = pd.DataFrame({"image": range(len(labels)), "label": labels, "prediction": predictions})
    frame["correct"] = frame["label"] == frame["prediction"]
    frame["clean_correct"] = frame["label"] == pd.Series(clean)
    frame["success"] = frame["clean_correct"] & ~frame["correct"]
    frame["correct_8bit"] = frame["correct"]
    # every image is a group of its own
    frame["group"] = frame["image"]
    n_classes = max(labels) + 1
    frame["logits"] = [np.eye(n_classes)[prediction] for prediction in predictions]
    names = {"target": target, "threat_model": threat_model, "attack": attack, "norm": "linf", "eps": eps}
    names["surrogate"] = surrogate if threat_model == "transfer" else ""
    error = np.nan if target == "undefended" else 0.5
    scores = {"entropy": 0.25, "margin": 2.0, "linf": eps / 255, "l2": 2 * eps / 255, "reconstruction_error": error}
    return frame.assign(**names, radius=eps / 255, **scores)


LABELS = [1, 1, 1, 1, 0, 0, 0, 0]
CLEAN = [1, 1, 1, 0, 0, 0, 0, 1]
NONE = [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.fixture
def records() -> pd.DataFrame:
    """Eight images, six of them right before the attack; FGSM and PGD break different ones at eps 1, PGD all at 2."""
    return pd.concat(
        [
            records_of(("undefended", "none", "clean", 0.0), LABELS, CLEAN, CLEAN),
            records_of(("undefended", "adaptive", "fgsm", 1.0), LABELS, CLEAN, [0, 1, 1, 0, 0, 0, 0, 1]),
            records_of(("undefended", "adaptive", "fgsm", 2.0), LABELS, CLEAN, [0, 0, 1, 0, 0, 0, 0, 1]),
            records_of(("undefended", "adaptive", "pgd", 1.0), LABELS, CLEAN, [1, 0, 1, 1, 0, 0, 0, 1]),
            records_of(("undefended", "adaptive", "pgd", 2.0), LABELS, CLEAN, NONE),
        ],
        ignore_index=True,
    )


def at(table: pd.DataFrame, attack: str, eps: float) -> pd.Series:
    return table[(table["attack"] == attack) & (table["eps"] == eps)].iloc[0]


def test_accuracy_stands_beside_its_wilson_interval(records: pd.DataFrame) -> None:
    table = robustness_table(records, CLASSES, positive=1)
    clean = at(table, "clean", 0)
    assert clean["n"] == 8
    assert clean["accuracy"] == 6 / 8
    assert (clean["accuracy_low"], clean["accuracy_high"]) == pytest.approx((0.4093, 0.9285), abs=5e-5)
    assert clean["top1_error"] == pytest.approx(2 / 8)
    assert len(table) == 5


def test_balanced_accuracy_and_recalls_stand_beside_every_accuracy(records: pd.DataFrame) -> None:
    table = robustness_table(records, CLASSES, positive=1)
    fgsm = at(table, "fgsm", 1)
    assert fgsm["accuracy"] == 5 / 8
    assert (fgsm["sensitivity"], fgsm["specificity"], fgsm["balanced_accuracy"]) == (2 / 4, 3 / 4, 5 / 8)
    # a search that breaks one image of each class, of all eight
    found = pd.DataFrame({"image": range(8), "label": LABELS, "group": range(8), "minimum_eps": [1.0, *[4.0] * 6, 1.0]})
    names = {"target": "undefended", "threat_model": "adaptive", "attack": "suite", "operating_point": "as_trained"}
    searches = search_table(found.assign(**names, norm="linf"), [1.0, 4.0], list(table), CLASSES, positive=1)
    assert searches["balanced_accuracy"].tolist() == [6 / 8, 0]
    assert searches["specificity"].tolist() == [3 / 4, 0]
    # an attack on survivors has no accuracy over all images
    on_survivors = found.assign(**names | {"attack": "square_on_survivors"}, norm="linf")
    assert search_table(on_survivors, [1.0, 4.0], list(table), CLASSES, positive=1).empty
    labels, predictions = [0, 1, 1, 2, 2, 2], [0, 1, 0, 2, 2, 0]
    of_three = robustness_table(
        records_of(("undefended", "none", "clean", 0.0), labels, predictions, predictions), ["a", "b", "c"], positive=1
    ).iloc[0]
    assert of_three[["recall_a", "recall_b", "recall_c"]].tolist() == pytest.approx([1, 1 / 2, 2 / 3])
    assert of_three["balanced_accuracy"] == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)


def test_square_on_survivors_is_counted_over_the_images_that_survive_the_suite_at_each_eps() -> None:
    # one image is wrong unchanged, one survives up to eps 1 and Square breaks it there, one survives everything
    of_attacks = {"suite": [0.0, 1.0, 4.0, np.inf], "square_on_survivors": [0.0, np.inf, 1.0, np.inf]}
    found = pd.concat(
        pd.DataFrame({"image": range(4), "attack": attack, "minimum_eps": values, "operating_point": "as_trained"})
        for attack, values in of_attacks.items()
    ).assign(target="undefended")
    table = survivors_table(found, [0.5, 1.0, 4.0])
    assert table.rows == [["undefended", "as trained", "–", "0 of 3", "1 of 2", "0 of 1"]]
    assert survivors_table(found[found["attack"] == "suite"], [1.0]).rows == []


def test_attack_success_rate_is_over_images_that_were_right_before(records: pd.DataFrame) -> None:
    table = robustness_table(records, CLASSES, positive=1)
    # under PGD at eps 1, one right image is turned wrong and one wrong image right
    pgd = at(table, "pgd", 1)
    assert pgd["accuracy"] == 6 / 8
    assert pgd["n_clean_correct"] == 6
    assert pgd["attack_success_rate"] == pytest.approx(1 / 6)
    assert pgd["attack_success_rate_low"] < 1 / 6 < pgd["attack_success_rate_high"]
    assert at(table, "pgd", 2)["attack_success_rate"] == 1
    assert np.isnan(at(table, "clean", 0)["attack_success_rate"])


def test_success_rate_is_null_where_no_image_was_right_before() -> None:
    wrong = [
        records_of(("undefended", *point), [1, 0], [0, 1], [0, 1])
        for point in (("none", "clean", 0.0), ("adaptive", "pgd", 1.0))
    ]
    row = at(robustness_table(pd.concat(wrong), CLASSES, positive=1), "pgd", 1)
    assert row["accuracy"] == 0
    assert row[["attack_success_rate", "attack_success_rate_low", "attack_success_rate_high"]].isna().all()


def test_precision_and_recall_are_of_the_positive_class(records: pd.DataFrame) -> None:
    # under FGSM at eps 1: positives found 2 of 4, called positive 3
    for positive, precision, recall in ((1, 2 / 3, 2 / 4), (0, 3 / 5, 3 / 4)):
        row = at(robustness_table(records, CLASSES, positive), "fgsm", 1)
        assert (row["precision"], row["recall"]) == pytest.approx((precision, recall))
    assert "macro_f1" not in robustness_table(records, CLASSES, 1)


def test_three_classes_have_macro_averages_too() -> None:
    labels, predictions = [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0]
    parts = [
        records_of(("undefended", *point), labels, predictions, predictions)
        for point in (("none", "clean", 0.0), ("adaptive", "pgd", 1.0))
    ]
    row = at(robustness_table(pd.concat(parts), ["a", "b", "c"], positive=2), "pgd", 1)
    assert (row["precision"], row["recall"]) == (1, 0.5)
    assert row["macro_precision"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert row["macro_recall"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)


def test_transfer_without_adaptive_is_refused() -> None:
    alone = [
        records_of(("autoencoder", *point), [1, 0], [1, 0], [0, 0])
        for point in (("none", "clean", 0.0), ("transfer", "pgd", 1.0))
    ]
    with pytest.raises(ValueError, match=r"\['autoencoder'\] hold transfer attacks without adaptive ones"):
        robustness_table(pd.concat(alone), CLASSES, 1)


def test_curves_begin_with_the_targets_own_clean_row(records: pd.DataFrame) -> None:
    curves = curves_of(robustness_table(records, CLASSES, 1))
    assert list(curves) == [("undefended", "adaptive", "fgsm", ""), ("undefended", "adaptive", "pgd", "")]
    for points in curves.values():
        assert points["eps"].tolist() == [0, 1, 2]
        assert points["accuracy"][0] == 6 / 8
    points = curve_table(robustness_table(records, CLASSES, 1), "accuracy")
    assert points.columns.tolist() == ["curve", "eps", "value"]
    assert points["curve"].unique().tolist() == ["undefended/adaptive/fgsm", "undefended/adaptive/pgd"]
    assert points.loc[points["curve"] == "undefended/adaptive/pgd", "value"].tolist() == [6 / 8, 6 / 8, 0]


def test_every_surrogate_has_a_curve_of_its_own(records: pd.DataFrame) -> None:
    broken = {"cnn-1": [0, 1, 1, 0, 0, 0, 0, 1], "resnet18-2": NONE}
    transferred = [
        records_of(("undefended", "transfer", "pgd", eps), LABELS, CLEAN, predictions, surrogate)
        for surrogate, predictions in broken.items()
        for eps in (1.0, 2.0)
    ]
    both = pd.concat([records, *transferred])
    table = robustness_table(both, CLASSES, 1)
    curves = {names[3]: points["accuracy"].tolist() for names, points in curves_of(table).items() if names[3]}
    assert curves == {"cnn-1": [6 / 8, 5 / 8, 5 / 8], "resnet18-2": [6 / 8, 0, 0]}
    assert curve_table(table, "accuracy")["curve"].unique().tolist()[2:] == [
        "undefended/transfer/pgd_from_cnn-1",
        "undefended/transfer/pgd_from_resnet18-2",
    ]
    counts = confusion_table(both, CLASSES)
    assert (counts.groupby(["threat_model", "attack", "surrogate", "eps"])["n"].sum() == 8).all()


def test_confusion_counts_every_pair_of_classes_at_every_point(records: pd.DataFrame) -> None:
    table = confusion_table(records, CLASSES)
    assert len(table) == 5 * 4
    assert (table.groupby(["attack", "eps"])["n"].sum() == 8).all()
    clean = table[table["attack"] == "clean"].set_index(["actual", "prediction"])["n"]
    assert clean["COVID", "COVID"] == 3
    assert clean["COVID", "non-COVID"] == 1
    assert clean["non-COVID", "COVID"] == 1


def test_curves_of_fewer_attacked_images_begin_with_these_alone(records: pd.DataFrame) -> None:
    few = records[(records["attack"] == "clean") | (records["image"] < 4)]
    table = robustness_table(few, CLASSES, 1)
    clean = table[table["attack"] == "clean"]
    assert clean["n"].tolist() == [8, 4]
    assert clean["accuracy"].tolist() == [0.75, 0.75]
    for points in curves_of(table).values():
        assert points["n"].tolist() == [4, 4, 4]
        assert points["eps"].tolist() == [0, 1, 2]
