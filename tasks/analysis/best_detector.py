"""Choice of the best detector: it is chosen on some groups and evaluated on others.

If the best of several detectors is chosen and measured on the same images, its rate is too high: of four equal
detectors, one is best by chance. So the groups are divided into folds, and each fold uses the detector that is best on
the other folds. The detector of an image is then chosen without its group. The jackknife repeats this choice for each
group that it leaves out, so the interval includes the uncertainty of the choice; docs/evidence/statistics.md has the
simulation. The detector cannot be chosen on validation images, because the attacks on detectors do not run on them.
"""

from typing import Any

import numpy as np
import pandas as pd

from tasks.analysis.feature_overlap import group_folds
from tasks.outcomes.names import ALL_DETECTORS, BEST_DETECTOR, DETECTOR_EVASION, JOINT_DETECTOR_EVASION
from tasks.params import UNDEFENDED
from tasks.statistics.groups import GroupJackknife, too_few_groups
from tasks.statistics.intervals import RATE, UNDEFINED, Estimate

ON_SAME_IMAGES = ["n_successful", *(f"detection_rate_successful{end}" for end in ("", "_low", "_high"))]
"""Results of the attack that ignores detectors that are compared with the adaptive attack on the same images."""


def best_detector_table(scores: pd.DataFrame, attack: str, seed: int) -> pd.DataFrame:
    """Return rows of ``detection.csv`` about the best detector in front of the undefended classifier.

    There is a row for each eps under the attack that ignores detectors, under adaptive attacks on the chosen detector,
    and under the joint attack on all detectors. Adaptive attacks run on some of the images. Their rows also have the
    results of the attack that ignores detectors on the same images, with the prefix ``ignoring_``.

    Args:
        scores: rows of ``detector_scores.parquet``.
        attack: the attack that ignores detectors.
        seed: of the folds.
    """
    is_joint = scores["attack"] == JOINT_DETECTOR_EVASION
    # the joint attack is the adaptive attack on the detector that combines all others
    is_own = (scores["attack"] == DETECTOR_EVASION) | (is_joint & (scores["detector"] == ALL_DETECTORS))
    by_attack = {attack: scores["attack"] == attack, DETECTOR_EVASION: is_own, JOINT_DETECTOR_EVASION: is_joint}
    rows = []
    for name, is_wanted in by_attack.items():
        of_attack = scores[is_wanted & (scores["surrogate"] == UNDEFENDED)]
        for eps, at_eps in of_attack.groupby("eps"):
            point = {"detector": BEST_DETECTOR, "surrogate": UNDEFENDED, "attack": name, "eps": float(str(eps))}
            row = _best_detector_row(at_eps, seed, with_low_scores=name == attack)
            if name == DETECTOR_EVASION:
                ignoring = scores[by_attack[attack] & (scores["surrogate"] == UNDEFENDED) & (scores["eps"] == eps)]
                ignoring = ignoring[ignoring["image"].isin(at_eps["image"])]
                on_same_images = _best_detector_row(ignoring, seed, with_low_scores=True)
                row |= {f"ignoring_{column}": on_same_images.get(column) for column in ON_SAME_IMAGES}
            rows.append(point | row)
    return pd.DataFrame(rows)


def _best_detector_row(scores: pd.DataFrame, seed: int, with_low_scores: bool) -> dict[str, Any]:
    """Metrics of the best of the detectors with a score for every image that is not the same for all, at one point.

    The AUROC also counts detectors for which a low score means adversarial, if the attack ignores detectors. An
    adaptive attack lowers high scores until they are typical. It did not attack a detector of low scores, so the AUROC
    of such a detector would say nothing about an attack on it.
    """
    names = [
        str(name)
        for name, rows in scores.groupby("detector", sort=False)
        # equal scores of all images separate nothing
        if rows[["clean_score", "score"]].notna().all(axis=None) and np.ptp(rows[["clean_score", "score"]].to_numpy())
    ]
    images = scores.drop_duplicates("image").sort_values("image")
    row: dict[str, Any] = {"n": len(images), "n_groups": images["group"].nunique(), "n_detectors": len(names)}
    if not names:
        return row
    clean, adversarial, clean_flagged, flagged, success = (
        np.stack([scores[scores["detector"] == name].sort_values("image")[column] for name in names])
        for column in ("clean_score", "score", "clean_flagged", "flagged", "success")
    )
    jackknife = GroupJackknife(images["group"].to_numpy())
    folds = group_folds(images["label"].to_numpy(), jackknife.groups, seed)
    in_fold = folds == np.arange(folds.max() + 1)[:, None]

    def count(of_images: np.ndarray) -> np.ndarray:
        counts: np.ndarray = np.einsum(
            "rn,dn,fn->rdf", jackknife.counts, of_images, in_fold, dtype=np.float64, optimize=True
        )
        return counts

    n_detected, n_successful = count(flagged & success), count(success)
    n_images, clean_correct = count(np.ones_like(success)), np.tile(images["clean_correct"], (len(names), 1))
    chosen = choose_on_other_folds(n_detected, n_successful)
    row["chosen_detector"] = names[np.bincount(chosen[0][folds]).argmax()]
    of_image = chosen[0][folds], np.arange(len(folds))
    row |= {"n_successful": int(success[of_image].sum())}
    row |= {"n_groups_successful": len(np.unique(jackknife.groups[success[of_image]]))}
    rates = {
        "false_positive_rate": (count(clean_flagged), n_images, success | True),
        "detection_rate": (count(flagged), n_images, success | True),
        "detection_rate_successful": (n_detected, n_successful, success),
        "undetected_success_rate": (count(success & ~flagged), count(clean_correct), clean_correct),
    }
    for name, (numerators, denominators, counted) in rates.items():
        rate = _estimate(rate_of_chosen(numerators, denominators, chosen), jackknife, counted[of_image])
        row |= rate.columns(name)
    compared = success & _has_other_groups(success, in_fold, jackknife)
    row |= {"n_auroc": int(compared[of_image].sum())}
    row |= {"n_groups_auroc": len(np.unique(jackknife.groups[compared[of_image]]))}
    area = UNDEFINED
    # both sides have these groups: the clean and the adversarial versions of the same images
    if not too_few_groups(jackknife.sizes(compared[of_image])):
        areas = best_auroc(clean, adversarial, compared, in_fold, jackknife, with_low_scores)
        area = _estimate(areas, jackknife, compared[of_image])
    return row | area.columns("auroc_successful")


def _has_other_groups(success: np.ndarray, in_fold: np.ndarray, jackknife: GroupJackknife) -> np.ndarray:
    """Return the images whose fold has successful images of at least two groups, bool ``(D, N)``.

    An AUROC orders pairs within a fold, so a fold with one group says nothing about other groups.
    """
    n_groups = [[len(np.unique(jackknife.groups[fold & of_detector])) for fold in in_fold] for of_detector in success]
    has_others: np.ndarray = ((np.array(n_groups)[:, :, None] > 1) & in_fold).any(axis=1)
    return has_others


def _estimate(values: np.ndarray, jackknife: GroupJackknife, counted: np.ndarray) -> Estimate:
    low, high = jackknife.interval(values, RATE, [counted])
    return Estimate(float(values[0]), float(low), float(high))


def choose_on_other_folds(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Return the detector with the highest rate on all other folds, for each resample and fold, int ``(R, F)``.

    Args:
        numerators: successes of D detectors in each resample and fold, ``(R, D, F)``.
        denominators: images that count, ``(R, D, F)``; a detector without one on the other folds has the rate 0.
    """
    n_detected, n_images = (counts.sum(axis=2, keepdims=True) - counts for counts in (numerators, denominators))
    chosen: np.ndarray = (n_detected / np.maximum(n_images, 1)).argmax(axis=1)
    return chosen


def rate_of_chosen(numerators: np.ndarray, denominators: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the rate of all images, each with the detector of its fold, float64 ``(R,)``; NaN without images.

    Args:
        numerators: of D detectors in each resample and fold, ``(R, D, F)``.
        denominators: the same shape.
        chosen: detector of each resample and fold, int ``(R, F)``.
    """
    n_success, n_images = (
        np.take_along_axis(counts, chosen[:, None], axis=1).sum(axis=(1, 2)) for counts in (numerators, denominators)
    )
    rates: np.ndarray = np.divide(n_success, n_images, out=np.full(len(n_images), np.nan), where=n_images > 0)
    return rates


def best_auroc(
    clean: np.ndarray,
    adversarial: np.ndarray,
    success: np.ndarray,
    in_fold: np.ndarray,
    jackknife: GroupJackknife,
    with_low_scores: bool,
) -> np.ndarray:
    """Return the AUROC of the best detector for successful attacks, ``(1 + B,)``.

    The detector of a fold, and the sign of its score, are the best of the other folds. The AUROC is the share of
    correctly ordered pairs among the pairs of two images within a fold, because scores of two detectors are not
    comparable; ties count as half.

    Args:
        clean: scores of the clean images by D detectors, ``(D, N)``.
        adversarial: scores of their adversarial versions, ``(D, N)``.
        success: whether the attack is successful, bool ``(D, N)``.
        in_fold: images of each fold, bool ``(F, N)``.
        jackknife: of the images.
        with_low_scores: whether a low score may mean adversarial, too; otherwise a high score does.
    """
    shape = len(jackknife.counts), len(clean), len(in_fold)
    n_ordered, n_pairs = np.zeros(shape), np.zeros(shape)
    for detector, fold in np.ndindex(shape[1:]):
        images = in_fold[fold] & success[detector]
        counts = jackknife.counts[:, images]
        is_higher = adversarial[detector, images][:, None] - clean[detector, images]
        ordered = (np.sign(is_higher) + 1) / 2
        # the two versions of one image are not independent
        np.fill_diagonal(ordered, 0)
        n_ordered[:, detector, fold] = np.einsum("ri,ri->r", counts @ ordered, counts)
        n_pairs[:, detector, fold] = counts.sum(axis=1) ** 2 - counts.sum(axis=1)
    if with_low_scores:
        n_ordered = np.concatenate([n_ordered, n_pairs - n_ordered], axis=1)
        n_pairs = np.concatenate([n_pairs, n_pairs], axis=1)
    return rate_of_chosen(n_ordered, n_pairs, choose_on_other_folds(n_ordered, n_pairs))
