"""The worst case: the smallest eps at which anything that a threat model allows breaks each image.

This is the one definition of robust accuracy. The headline, the claims, the comparison, the model card, the promotion
and the audit use it.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tasks.records.operating_points import OperatingPoint
from tasks.records.vocabulary import is_independent

INCLUDES = {
    "adaptive": ("adaptive", "transfer", "black_box"),
    "transfer": ("transfer",),
    "black_box": ("black_box",),
}
"""Threat model -> threat models of the attacks that it allows: an adaptive attack may use everything."""

IMAGE = ["target", "operating_point", "image"]


def smallest_breaking_eps(
    records: pd.DataFrame,
    minimum_eps: pd.DataFrame,
    operating_points: Mapping[str, Sequence[OperatingPoint]],
    transfer_from_independent: bool = True,
) -> pd.DataFrame:
    """Return the smallest eps that breaks each attacked image in the worst case.

    One row for each target, operating point, threat model and image: target, operating_point, threat_model, image,
    label, group, breaking_eps (in 1/255; 0: misclassified unchanged; infinite: nothing breaks the image). A threat
    model is left out where none of its attacks was tried on the image.

    A record counts at every operating point, by its logits with the biases added. Balls nest, so a success at one eps
    is a success at every larger eps: robust accuracy never rises with eps.

    Args:
        records: of the attack steps.
        minimum_eps: results of the searches, of the same steps.
        operating_points: of each target.
        transfer_from_independent: whether the threat model ``transfer`` allows independent surrogates; without them,
            its surrogate is the bare classifier, as in the study. An adaptive attack may use all of them.
    """
    searched = minimum_eps[[*IMAGE, "threat_model", "minimum_eps"]].assign(surrogate="")
    found = pd.concat([_recorded(records, operating_points), searched], ignore_index=True)
    is_clean = found["threat_model"] == "none"
    clean, attempts = found[is_clean], found[~is_clean]
    parts = []
    for threat_model, allowed in INCLUDES.items():
        # transfer and black-box attacks add to adaptive ones; they alone are no adaptive attack
        is_left_out = threat_model == "transfer" and not transfer_from_independent
        usable = attempts[~attempts["surrogate"].map(is_independent)] if is_left_out else attempts
        tried = usable.loc[usable["threat_model"] == threat_model, IMAGE].drop_duplicates()
        counted = pd.concat([usable[usable["threat_model"].isin(allowed)], clean])
        lowest = counted.merge(tried, on=IMAGE).groupby(IMAGE, sort=False)["minimum_eps"].min()
        parts.append(lowest.rename("breaking_eps").reset_index().assign(threat_model=threat_model))
    images = records[["image", "label", "group"]].drop_duplicates("image")
    worst = pd.concat(parts, ignore_index=True).merge(images, on="image")
    return worst[["target", "operating_point", "threat_model", "image", "label", "group", "breaking_eps"]]


def robust_outcomes(worst: pd.DataFrame, eps: Sequence[float]) -> pd.DataFrame:
    """Return whether each image is classified correctly in the worst case at each eps.

    Columns of ``worst`` without ``breaking_eps``, and eps, robust_correct (bool).

    Args:
        worst: of :func:`smallest_breaking_eps`.
        eps: the grid, in 1/255; 0 for the unchanged images.
    """
    breaking = worst["breaking_eps"]
    rest = worst.drop(columns="breaking_eps")
    return pd.concat(
        [rest.assign(eps=float(value), robust_correct=breaking > value) for value in eps], ignore_index=True
    )


def _recorded(records: pd.DataFrame, operating_points: Mapping[str, Sequence[OperatingPoint]]) -> pd.DataFrame:
    """Eps of each record that is misclassified at an operating point, infinite for the others."""
    labels, parts = records["label"].to_numpy(), []
    logits = np.stack(list(records["logits"])).astype(np.float64)
    for target, rows in records.groupby("target", sort=False).indices.items():
        of_target = records.iloc[rows]
        for point in operating_points[str(target)]:
            wrong = (logits[rows] + np.array(point.biases)).argmax(axis=1) != labels[rows]
            parts.append(
                of_target[["target", "image", "threat_model", "surrogate"]].assign(
                    operating_point=point.name, minimum_eps=np.where(wrong, of_target["eps"], math.inf)
                )
            )
    return pd.concat(parts, ignore_index=True)
