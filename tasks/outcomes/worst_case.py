"""The worst case: the outcome of the strongest attempt on each image that a threat model allows, at each eps.

This is the one definition of robust accuracy. The headline, the claims, the comparison, the model card, the promotion
and the audit use it. It is the same for deterministic and for random targets: an attempt is selected by its outcome on
some samples and counts by its outcome on others. A deterministic target has one outcome, 0 or 1.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tasks.outcomes.names import is_independent
from tasks.records.expected import EXPECTED, FRESH
from tasks.records.operating_points import OperatingPoint
from tasks.records.vocabulary import CLEAN

INCLUDES = {"adaptive": ("adaptive", "transfer", "black_box"), "transfer": ("transfer",), "black_box": ("black_box",)}
"""Threat model -> threat models of the attacks that it allows; ``adaptive`` allows all of them."""

IMAGE = ["target", "operating_point", "image"]
EPS_OF = {"robust_correct": "eps", "robust_correct_8bit": "eps_8bit"}
"""Column of the outcomes -> column with the eps from which an attempt counts."""
MEASURES = {"robust_correct": ("selected_by", "correct"), "robust_correct_8bit": ("selected_by_8bit", "correct_8bit")}
"""Column of the outcomes -> columns of the attempts: by which one is selected, and what counts."""


def worst_case_outcomes(
    records: pd.DataFrame,
    minimum_eps: pd.DataFrame,
    operating_points: Mapping[str, Sequence[OperatingPoint]],
    transfer_from_independent: bool = True,
) -> pd.DataFrame:
    """Return the outcome of each attacked image in the worst case, at each eps of the records.

    One row for each target, operating point, threat model, image and eps (in 1/255; 0 for the unchanged image): target,
    operating_point, threat_model, image, label, group, eps; ``robust_correct``: 1 if the image is correct, 0 if not, of
    a random target the fraction of fresh predictions that are correct; ``robust_correct_8bit``: the same for the
    adversarial images rounded to 8 bits, from the smallest eps whose ball contains the rounded image, NaN without a
    result. A threat model is left out where none of its attacks was
    tried on the image.

    A record counts at every operating point, by its logits with the biases added. A larger ball contains every smaller
    one, so attempts count at their own and at every larger eps. Of all attempts, the one with the fewest correct
    selection samples counts, by its fresh samples; of equal ones the one at the larger eps. So robust accuracy of a
    deterministic target never rises with eps, and that of a random target only by the noise of the samples.

    Args:
        records: of the attack steps.
        minimum_eps: results of the searches, of the same steps.
        operating_points: of each target.
        transfer_from_independent: whether the threat model ``transfer`` allows independent surrogates; without them,
            its surrogate is the undefended classifier, as in the study. An adaptive attack may use all of them.
    """
    grid = sorted({0.0, *records["eps"]})
    found = pd.concat([_recorded(records, operating_points), _searched(minimum_eps, grid[1:])], ignore_index=True)
    found["eps_8bit"] = _eps_after_rounding(found["eps"], grid) if (records["norm"] == "linf").all() else found["eps"]
    is_clean = found["threat_model"] == "none"
    clean, attempts = found[is_clean], found[~is_clean]
    parts = []
    for threat_model, allowed in INCLUDES.items():
        # transfer and black-box attacks add to adaptive ones; they alone are no adaptive attack
        is_left_out = threat_model == "transfer" and not transfer_from_independent
        usable = attempts[~attempts["surrogate"].map(is_independent)] if is_left_out else attempts
        tried = usable.loc[usable["threat_model"] == threat_model, IMAGE].drop_duplicates()
        counted = usable[usable["threat_model"].isin(allowed)].merge(tried, on=IMAGE)
        if len(tried):
            outcomes = [_strongest(counted, clean.merge(tried, on=IMAGE), grid, name) for name in MEASURES]
            parts.append(pd.concat(outcomes, axis=1).reset_index().assign(threat_model=threat_model))
    images = records[["image", "label", "group"]].drop_duplicates("image")
    worst = pd.concat(parts, ignore_index=True).merge(images, on="image")
    columns = ["target", "operating_point", "threat_model", "image", "label", "group", "eps"]
    return worst[[*columns, *MEASURES]]


def search_outcomes(minimum_eps: pd.DataFrame, eps: Sequence[float]) -> pd.DataFrame:
    """Return the outcome of each image under one search, in the columns of :func:`worst_case_outcomes`.

    Args:
        minimum_eps: results of the search: target, operating_point, threat_model, image, label, group, minimum_eps and
            minimum_eps_8bit.
        eps: in 1/255; 0 for the unchanged images.
    """
    columns = ["target", "operating_point", "threat_model", "image", "label", "group"]
    breaking = dict(zip(MEASURES, ("minimum_eps", "minimum_eps_8bit"), strict=True))
    parts = [
        minimum_eps[columns].assign(
            eps=float(value), **{name: (minimum_eps[of] > value).astype(float) for name, of in breaking.items()}
        )
        for value in eps
    ]
    return pd.concat(parts, ignore_index=True)


def _strongest(attempts: pd.DataFrame, clean: pd.DataFrame, grid: Sequence[float], name: str) -> "pd.Series[float]":
    """Outcome of the strongest attempt up to each eps, by target, operating point, image and eps."""
    selected_by, correct = MEASURES[name]
    attempts = attempts[attempts[selected_by].notna()]
    tried = pd.MultiIndex.from_frame(attempts[IMAGE].drop_duplicates())
    # unchanged images first; at the end of the sorted attempts are those of larger eps
    eps = EPS_OF[name]
    possible = pd.concat([clean, attempts[attempts[eps] <= grid[-1]]]).sort_values(eps, kind="stable")
    fewest = possible.groupby(IMAGE, sort=False)[selected_by].cummin()
    strongest = possible[possible[selected_by] <= fewest].groupby([*IMAGE, eps])[correct].last()
    by_eps = strongest.unstack(eps).reindex(columns=list(grid)).ffill(axis=1)
    by_eps.loc[~by_eps.index.isin(tried)] = math.nan
    stacked = by_eps.rename_axis(columns="eps").stack(future_stack=True)
    assert isinstance(stacked, pd.Series)
    return stacked.rename(name)


def _eps_after_rounding(eps: "pd.Series[float]", grid: Sequence[float]) -> np.ndarray:
    """Return the smallest eps of the grid whose L-infinity ball contains the image after rounding to 8 bits.

    Unchanged images have 8 bits, so a change becomes a whole number of grey levels: of eps 0.5, up to one level.
    """
    largest = np.maximum(eps, np.floor(eps + 0.5))
    edges = np.array([*grid, math.inf])
    contained: np.ndarray = edges[np.searchsorted(edges, largest)]
    return contained


def _recorded(records: pd.DataFrame, operating_points: Mapping[str, Sequence[OperatingPoint]]) -> pd.DataFrame:
    """The records as attempts at each operating point."""
    labels, parts = records["label"].to_numpy(), []
    logits = np.stack(list(records["logits"])).astype(np.float64)
    for target, rows in records.groupby("target", sort=False).indices.items():
        of_target = records.iloc[rows]
        is_random = FRESH in records and of_target[FRESH].notna().all()
        for number, point in enumerate(operating_points[str(target)]):
            if is_random:
                selected_by, correct, correct_8bit = (np.stack(list(of_target[name]))[:, number] for name in EXPECTED)
                selected_by_8bit = selected_by
            else:
                selected_by = (logits[rows] + np.array(point.biases)).argmax(axis=1) == labels[rows]
                selected_by = correct = selected_by.astype(float)
                rounded = of_target["correct_8bit"].to_numpy(dtype=float)
                # the logits of rounded images are not kept; unchanged images have 8 bits
                is_kept = (of_target["attack"] == CLEAN).to_numpy()
                selected_by_8bit = np.where(is_kept, correct, math.nan) if any(point.biases) else rounded
                correct_8bit = selected_by_8bit
            parts.append(
                of_target[["target", "image", "threat_model", "surrogate", "eps"]].assign(
                    operating_point=point.name,
                    selected_by=selected_by,
                    correct=correct,
                    selected_by_8bit=selected_by_8bit,
                    correct_8bit=correct_8bit,
                )
            )
    return pd.concat(parts, ignore_index=True)


def _searched(minimum_eps: pd.DataFrame, grid: Sequence[float]) -> pd.DataFrame:
    """The results of the searches as attempts; an infinite eps stands for a search that found nothing."""
    of_search = minimum_eps[[*IMAGE, "threat_model"]].assign(surrogate="")
    is_random = minimum_eps[FRESH].notna() if FRESH in minimum_eps else np.zeros(len(minimum_eps), dtype=bool)
    parts = []
    for (selected_by, correct), column in zip(MEASURES.values(), ("minimum_eps", "minimum_eps_8bit"), strict=True):
        eps = minimum_eps[column].mask(is_random, math.inf)
        parts.append(of_search.assign(eps=eps, **{selected_by: 0.0, correct: 0.0}))
    if is_random.any():
        scores = [np.stack(list(minimum_eps.loc[is_random, name])) for name in EXPECTED]
        for number, value in enumerate(grid):
            selection, fresh, fresh_8bit = (of[:, number] for of in scores)
            columns = {"selected_by": selection, "correct": fresh}
            columns |= {"selected_by_8bit": selection, "correct_8bit": fresh_8bit}
            parts.append(of_search[is_random].assign(eps=value, **columns))
    return pd.concat(parts, ignore_index=True)
