"""Tables about the clean images and about one set of adversarial images."""

from collections.abc import Iterator
from copy import deepcopy
from functools import partial

import numpy as np
import pandas as pd

from tasks.analysis.context import AnalysisContext, image_reader
from tasks.analysis.detection import detection_row, rejection_rows, roc_curve
from tasks.analysis.embeddings import embedding_table
from tasks.analysis.feature_extractor import ImageFeatures
from tasks.analysis.feature_overlap import overlap
from tasks.analysis.heatmaps import heatmap_agreement
from tasks.analysis.intensity import histogram_table, intensity_distances, radial_power, spectrum_table
from tasks.analysis.resilience import quality_estimates, recovery_correlation
from tasks.analysis.tables import Point, TablePart, estimate_rows, with_point
from tasks.outcomes.names import AS_GIVEN
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import CLEAN
from tasks.statistics.intervals import UNBOUNDED
from tasks.statistics.resampled import resampled_mean


def clean_tables(context: AnalysisContext) -> Iterator[TablePart]:
    """Yield tables about the clean images and about the output of each purifier for them."""
    point = {"surrogate": UNDEFENDED, "attack": CLEAN, "eps": 0.0}
    histograms = histogram_table(context.clean[AS_GIVEN, "histogram"], context.labels, context.classes)
    yield "intensity_histograms", with_point({**point, "image_kind": "clean", "purifier": AS_GIVEN}, histograms)
    read = image_reader(context.data, context.rows)
    power = np.concatenate([radial_power(read(batch)) for batch in context.extractor.batches(len(context.rows))])
    yield "spectrum", with_point({**point, "signal": "clean images", "purifier": AS_GIVEN}, spectrum_table(power))
    for purifier in context.extractor.purifiers:
        yield from _pixel_tables(context, {**point, "image_kind": "denoised", "purifier": purifier}, context.clean)
        curve = {"target": purifier, "threat_model": "none", "attack": CLEAN, "eps": 0.0}
        yield "heatmaps", with_point(curve, _heatmap_rows(context, context.clean, purifier, AS_GIVEN))


def perturbed_tables(context: AnalysisContext, surrogate: str, attack: str, eps: float) -> Iterator[TablePart]:
    """Yield all tables about one set of adversarial images and about the output of the purifiers for them.

    Perturbations of the undefended classifier are transferred to every purifier. Those of a defence are analysed with
    the purifier of this defence. Heat maps, features and embeddings are about the analysed attack only; embeddings are
    about perturbations of the undefended classifier only, as in the study.
    """
    # hooks read the outputs of layers, so every thread needs networks of its own
    extractor = deepcopy(context.extractor)
    perturbations = context.perturbations(surrogate, attack, eps)
    purifiers = list(extractor.purifiers) if surrogate == UNDEFENDED else [surrogate]
    sources = [AS_GIVEN, *purifiers] if surrogate == UNDEFENDED else purifiers
    is_analysed = attack == context.analysed_attack
    features = extractor.extract_features(
        perturbations.images,
        image_reader(context.data, context.rows),
        {purifier: context.purified[purifier] for purifier in purifiers},
        {source: context.predictions[source] for source in sources if is_analysed},
        context.detectors,
    )

    point = {"surrogate": surrogate, "attack": attack, "eps": eps}
    yield from _pixel_tables(context, {**point, "image_kind": "adversarial", "purifier": AS_GIVEN}, features)
    spectrum = spectrum_table(features[AS_GIVEN, "power"])
    yield "spectrum", with_point({**point, "signal": "perturbation", "purifier": AS_GIVEN}, spectrum)
    on_surrogate = context.records_at(surrogate, "adaptive", attack, eps)
    success, correct, clean_correct = (
        on_surrogate[name].to_numpy(dtype=bool) for name in ("success", "correct", "clean_correct")
    )
    for source in sources:
        target = source or UNDEFENDED
        threat_model = "adaptive" if target == surrogate else "transfer"
        if is_analysed:
            curve = {"target": target, "threat_model": threat_model, "attack": attack, "eps": eps}
            with_embeddings = surrogate == UNDEFENDED
            yield from _network_tables(context, curve, features, source, with_embeddings)
        if source == AS_GIVEN:
            continue
        denoised = {**point, "image_kind": "denoised", "purifier": source}
        yield from _pixel_tables(context, denoised, features)
        spectrum = spectrum_table(features[source, "power"])
        yield "spectrum", with_point({**point, "signal": "denoised perturbation", "purifier": source}, spectrum)
        fractions = partial(resampled_mean, features[source, "removed_energy_fraction"])
        removed = context.jackknife.estimate(fractions, UNBOUNDED)
        yield "resilience", with_point(denoised, estimate_rows({"removed_energy_fraction": removed}))
        if surrogate == UNDEFENDED:
            recovered = context.records_at(source, threat_model, attack, eps)["correct"].to_numpy()
            yield "resilience", with_point(denoised, _recovery_rows(context, features, source, success, recovered))
    for detector in context.detectors:
        yield from detection_tables(context, point, detector, features[detector, "score"], clean_correct, correct)


def detection_tables(
    context: AnalysisContext,
    point: Point,
    detector: str,
    scores: np.ndarray,
    clean_correct: np.ndarray,
    correct: np.ndarray,
    chosen: slice | np.ndarray = slice(None),
) -> Iterator[TablePart]:
    """Yield the scores, the detection metrics, the ROC curve and the rejection table of a detector.

    The detector rejects images in front of the undefended classifier. So only perturbations of that classifier have a
    rejection table.

    Args:
        context: with the scores of the clean images and of the validation images.
        point: surrogate, attack and eps.
        detector: name.
        scores: scores of the adversarial images, ``(n,)``.
        clean_correct: whether the surrogate classifies the clean versions correctly, bool ``(n,)``.
        correct: whether the surrogate classifies each of them correctly, bool ``(n,)``.
        chosen: positions of the n images among the attacked images; all by default.
    """
    clean, validation = context.clean[detector, "score"][chosen], context.validation_scores[detector]
    threshold = context.scale(detector).threshold
    point = {"detector": detector, **point}
    jackknife = context.jackknife.select(chosen)
    success = clean_correct & ~correct
    images = {"image": context.rows[chosen], "label": context.labels[chosen], "group": jackknife.groups}
    outcomes = {"clean_correct": clean_correct, "success": success, "clean_score": clean, "score": scores}
    flags = {"clean_flagged": clean > threshold, "flagged": scores > threshold}
    yield "detector_scores", with_point(point, pd.DataFrame(images | outcomes | flags))
    row = detection_row(clean, scores, clean_correct, success, threshold, jackknife)
    yield "detection", with_point(point, pd.DataFrame([row]))
    false, true = roc_curve(clean, scores)
    yield "roc", with_point(point, pd.DataFrame({"false_positive_rate": false, "true_positive_rate": true}))
    if point["surrogate"] == UNDEFENDED:
        rows = rejection_rows(clean, scores, clean_correct, correct, validation, jackknife.groups)
        yield "rejection", with_point(point, rows)


def _pixel_tables(context: AnalysisContext, point: Point, features: ImageFeatures) -> Iterator[TablePart]:
    """Yield grey levels and image quality after the purifier of the point, compared with the clean images."""
    purifier, labels, classes = point["purifier"], context.labels, context.classes
    histograms = features[purifier, "histogram"]
    yield "intensity_histograms", with_point(point, histogram_table(histograms, labels, classes))
    clean = context.clean[AS_GIVEN, "histogram"]
    distances = intensity_distances(clean, histograms, labels, classes, context.jackknife)
    yield "intensity", with_point(point, distances)
    quality = quality_estimates(features[purifier, "mse"], features[purifier, "ssim"], context.jackknife)
    yield "resilience", with_point(point, estimate_rows(quality))


def _network_tables(
    context: AnalysisContext, curve: Point, features: ImageFeatures, source: str, with_embeddings: bool
) -> Iterator[TablePart]:
    """Yield heat maps, feature overlap and embeddings of the classifier behind one purifier (or none)."""
    yield "heatmaps", with_point(curve, _heatmap_rows(context, features, source, source))
    spaces = {"classifier": "features"} | ({"bottleneck": "bottleneck"} if source else {})
    embedded = "bottleneck" if source else "classifier"
    success = context.records_at(**curve)["success"].to_numpy(dtype=bool)
    for space, quantity in spaces.items():
        clean, adversarial = context.clean[source, quantity], features[source, quantity]
        estimates = overlap(clean, adversarial, context.labels, context.groups, context.seed, success)
        rows = estimate_rows(estimates).assign(n=len(context.rows), n_groups=context.jackknife.n_groups)
        is_successful = rows["metric"].str.endswith("_successful")
        rows.loc[is_successful, ["n", "n_groups"]] = success.sum(), len(np.unique(context.groups[success]))
        yield "features", with_point({"feature_space": space, **curve}, rows)
        if with_embeddings and space == embedded:
            embeddings = embedding_table(clean, adversarial, context.rows, context.labels, context.seed)
            yield "embeddings", with_point({"feature_space": space, **curve}, embeddings)


def _heatmap_rows(context: AnalysisContext, features: ImageFeatures, source: str, reference: str) -> pd.DataFrame:
    return heatmap_agreement(features[source, "heatmap"], context.clean[reference, "heatmap"], context.jackknife)


def _recovery_rows(
    context: AnalysisContext, features: ImageFeatures, purifier: str, broken: np.ndarray, recovered: np.ndarray
) -> pd.DataFrame:
    """Correlation of two reconstruction losses with the recovery of the broken images.

    The loss of ``recovery_correlation`` is the distance from the original image; most of it is the blur of the
    purifier. The loss of ``residual_correlation`` is the energy of the perturbation that the purifier leaves.

    Args:
        context: with the groups of the images.
        features: of the adversarial images of the undefended classifier.
        purifier: name.
        broken: whether the attack on the undefended classifier is successful, bool ``(N,)``.
        recovered: whether the defended classifier is correct, bool ``(N,)``.
    """
    residual = (1 - features[purifier, "removed_energy_fraction"]) * features[AS_GIVEN, "mse"]
    losses = {"recovery_correlation": features[purifier, "mse"], "residual_correlation": residual}
    return estimate_rows(
        {
            metric: recovery_correlation(loss[broken], recovered[broken], context.jackknife.select(broken))
            for metric, loss in losses.items()
        }
    )
