"""The worst case: which images stay correctly classified under every attack of a threat model."""

import pandas as pd

from tasks.records.vocabulary import CLEAN


def worst_case_outcomes(records: pd.DataFrame, minimum_eps: pd.DataFrame) -> pd.DataFrame:
    """Return which images are robust: target, threat_model, eps, image, robust_correct (bool).

    An image is robust at an eps if it is correct unchanged and under every recorded attack at that eps, and
    if no search broke it at that eps or a smaller one. An ``adaptive`` attacker may also use black-box attacks.

    Args:
        records: as written by the attack steps.
        minimum_eps: the smallest eps that breaks each image, as written by the same steps.
    """
    attacked = records[records["attack"] != CLEAN]
    by_image = attacked.groupby(["target", "threat_model", "eps", "image"], sort=False)
    correct = by_image[["correct", "clean_correct"]].all().all(axis=1).rename("robust_correct").reset_index()
    black_box = minimum_eps[minimum_eps["threat_model"] == "black_box"]
    # an attack on a part of the images is not a threat model of its own
    n_tried = black_box.groupby(["target", "attack"])["image"].nunique().groupby("target").max()
    n_images = minimum_eps.groupby("target")["image"].nunique()
    complete = n_tried.index[n_tried == n_images[n_tried.index]]
    queried = correct[(correct["threat_model"] == "adaptive") & correct["target"].isin(complete)]
    correct = pd.concat([correct, queried.assign(threat_model="black_box", robust_correct=True)], ignore_index=True)

    for threat_model, found in (("adaptive", minimum_eps), ("black_box", black_box)):
        lowest = found.groupby(["target", "image"])["minimum_eps"].min().rename("lowest")
        is_broken = correct[["target", "image"]].join(lowest, on=["target", "image"])["lowest"] <= correct["eps"]
        correct["robust_correct"] &= ~(is_broken & (correct["threat_model"] == threat_model))
    return correct


def worst_case_accuracy(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Worst-case robust accuracy: target, threat_model, eps, accuracy.

    Args:
        outcomes: of :func:`worst_case_outcomes`.
    """
    by_point = outcomes.groupby(["target", "threat_model", "eps"], sort=False)["robust_correct"]
    return by_point.mean().rename("accuracy").reset_index()
