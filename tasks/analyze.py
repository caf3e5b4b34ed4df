"""Step ``analyze``: the study's figures as numbers with intervals, and what becomes of its claims."""

import logging
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from tasks.analysis.claims import headline_attack, verdict
from tasks.analysis.classification import classification_table, entropy_table, reliability_table, robustness_area
from tasks.analysis.detection import detection_row, gate_rows, roc_curve, threshold_at
from tasks.analysis.detector_evasion import evade
from tasks.analysis.detectors import Detector, detectors
from tasks.analysis.feature_extractor import Images, Painter
from tasks.analysis.heatmaps import upsampled
from tasks.analysis.image_features import Comparison, Portrait, Tables
from tasks.analysis.intensity import radial_power
from tasks.analysis.plots import plot_tables
from tasks.attacks.gradient.balls import Balls, radius
from tasks.attacks.gradient.descent import NotFinite
from tasks.core.files import write_json, write_table
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared, choose_stratified, load_prepared
from tasks.defences.targets import load_target
from tasks.models.compute import set_up, use_threads
from tasks.params import UNDEFENDED, Params
from tasks.records.adversarial_images import load_kept
from tasks.records.tables import read_records
from tasks.records.vocabulary import AS_GIVEN, CLEAN, spoken
from tasks.statistics.intervals import bootstrap_counts
from tasks.tracking import Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scene:
    """What every analysis works on."""

    params: Params
    data: Prepared
    records: pd.DataFrame
    rows: np.ndarray
    """Of the attacked images in the prepared table, rising, ``(N,)``."""
    painter: Painter
    detectors: dict[str, Detector]
    validation_scores: dict[str, np.ndarray]
    """Detector -> its scores of the clean validation images, which set thresholds, ``(V,)``."""
    predicted: dict[str, np.ndarray]
    """Viewer -> the class that it predicts of each image as it is, ``(N,)``."""
    purified: dict[str, np.ndarray]
    """Purifier -> what it makes of each image as it is, float32 ``(N, 1, H, W)``."""
    comparison: Comparison

    @property
    def clean(self) -> Portrait:
        """Portrait of the images as they are."""
        return self.comparison.clean

    def recorded(self, target: str, threat_model: str, attack: str, eps: float) -> pd.DataFrame:
        """Records of one point, a row an image in the order of ``rows``."""
        values = {"target": target, "threat_model": threat_model, "attack": attack, "eps": eps}
        at = (self.records[list(values)] == pd.Series(values)).all(axis=1) & self.records["image"].isin(self.rows)
        return self.records[at].sort_values("image")


def analyze(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Analyse records and kept images of the step ``attack``: a tidy table for each figure of the study, and a verdict.

    Every estimate comes with a 95 % interval; NaN stands where something is not defined.
    """
    settings, records, data = params.analyze, read_records(workspace, params.benchmark), load_prepared(workspace)
    tracker.dataset(workspace.prepare, "prepared", "analysis")
    scene = set_scene(workspace, params, data, records)
    crafted = [
        (
            f"{attack} on {surrogate} at eps {eps:g}",
            partial(add_crafted, workspace, surrogate=surrogate, attack=attack, eps=eps),
        )
        for surrogate in [UNDEFENDED, *scene.painter.purifiers]
        for attack in params.attack.attacks
        for eps in params.attack.kept_eps
    ]
    evading = [
        (f"pgd that evades the detector by {name} at eps {eps:g}", partial(add_evasion, workspace, name=name, eps=eps))
        for eps in settings.evasion.eps
        for name in scene.detectors
    ]
    add_clean(scene)
    add_all(scene, [*crafted, *evading])

    table = scene.comparison.table
    area = robustness_area(records, scene.comparison.counts)
    tables = {
        workspace.robustness_area: area,
        workspace.classification: classification_table(records, data.positive, scene.comparison.counts),
        workspace.reliability: reliability_table(records),
        workspace.entropy: entropy_table(records),
        workspace.intensity: table("intensity"),
        workspace.intensity_histograms: table("intensity_histograms"),
        workspace.spectrum: table("spectrum"),
        workspace.heatmaps: table("heatmaps"),
        workspace.features: table("features"),
        workspace.resilience: table("resilience"),
        workspace.detection: table("detection"),
        workspace.roc: table("roc"),
        workspace.gate: table("gate"),
    }
    plots = plot_tables(workspace, tables, headline_attack(records), settings.eps)
    workspace.analyze_plots.mkdir()
    for path, values in (tables | plots).items():
        write_table(values, path)
    table("embeddings").to_parquet(workspace.embeddings, index=False)
    keep_examples(workspace, scene)
    features, detection = tables[workspace.features], tables[workspace.detection]
    kinds = {name: params.defences[name].kind for name in params.benchmark}
    claims = verdict(records, features, detection, kinds, settings.eps, partial(resampled, params, data))
    write_json([asdict(claim) for claim in claims], workspace.verdict)

    curves = zip(area["target"], area["threat_model"], area["attack"], area["value"], strict=True)
    tracker.metrics({f"area/{target}_{threat_model}_{attack}": value for target, threat_model, attack, value in curves})
    tracker.tags({f"claim.{number}": f"{each.outcome}: {each.claim}" for number, each in enumerate(claims, start=1)})
    tracker.artifact(workspace.analyze)


def add_all(scene: Scene, work: list[tuple[str, Callable[[Scene], None]]]) -> None:
    """Do each piece of work on a scene of its own, as many at once as there are threads, and join their tables.

    One thread a piece: many of the computations are too small to be shared out.

    Args:
        scene: whose tables are added to, in the order of the work.
        work: its name, and what adds rows to the tables of the scene that it is given.
    """
    n_workers = scene.params.compute.threads

    def alone(do: Callable[[Scene], None]) -> Tables:
        # networks of its own, since what is read off their layers must not mix
        own = replace(
            scene, painter=deepcopy(scene.painter), comparison=replace(scene.comparison, tables=defaultdict(list))
        )
        do(own)
        return own.comparison.tables

    with threadpool_limits(1), ThreadPoolExecutor(n_workers, initializer=use_threads, initargs=(1,)) as pool:
        # what comes last takes longest, and begins first
        done = {pool.submit(alone, do): name for name, do in reversed(work)}
        try:
            for number, future in enumerate(as_completed(done), start=1):
                future.result()
                log.info("%d/%d  %s", number, len(work), done[future])
        finally:
            # after an error nobody waits for the rest
            pool.shutdown(cancel_futures=True)
    for future in reversed(done):
        for table, rows in future.result().items():
            scene.comparison.tables[table] += rows


def set_scene(workspace: Workspace, params: Params, data: Prepared, records: pd.DataFrame) -> Scene:
    """Networks, detectors fitted to clean training images, their thresholds, and a portrait of clean test images."""
    device = set_up(params.compute)
    targets = {name: load_target(workspace, name, device) for name in params.autoencoders}
    purifiers = {name: target.get_submodule("purifier") for name, target in targets.items()}
    classifier = load_target(workspace, UNDEFENDED, device)
    painter = Painter(classifier, purifiers, data.pixels.shape[-1], params.attack.batch_size)
    training, validation = data.indices("train"), data.indices("validation")
    detect = detectors(painter.features(images_of(data, training), len(training)), data.labels(training))
    of_validation = painter.scores(images_of(data, validation), len(validation), detect)

    rows = np.unique(records["image"][records["attack"] != CLEAN])
    clean = records[(records["attack"] == CLEAN) & records["image"].isin(rows)].sort_values("image")
    predicted = {
        AS_GIVEN if target == UNDEFENDED else str(target): group["prediction"].to_numpy(dtype=np.int64)
        for target, group in clean.groupby("target", sort=False)
        if target in {UNDEFENDED, *purifiers}
    }
    images = images_of(data, rows)
    purified = painter.purified(images, len(rows))
    comparison = Comparison(
        clean=painter.portray(images, images, purified, predicted, detect),
        rows=rows,
        labels=data.labels(rows),
        groups=data.table["group"].to_numpy()[rows],
        classes=list(data.classes),
        counts=resampled(params, data, rows),
        seed=params.seed,
    )
    return Scene(params, data, records, rows, painter, detect, of_validation, predicted, purified, comparison)


def add_clean(scene: Scene) -> None:
    """What the analyses say of the clean images, and of these once they are denoised."""
    point = {"surrogate": UNDEFENDED, "attack": CLEAN, "eps": 0.0}
    scene.comparison.add_intensities(point, AS_GIVEN, "clean", scene.clean)
    power = [radial_power(scene.data.floats(scene.rows[part])) for part in scene.painter.parts(len(scene.rows))]
    scene.comparison.add_spectrum(point, AS_GIVEN, "clean images", np.concatenate(power))
    for purifier in scene.painter.purifiers:
        scene.comparison.add_pictures(point, purifier, "denoised", scene.clean)
        curve = {"target": purifier, "threat_model": "none", "attack": CLEAN, "eps": 0.0}
        scene.comparison.add_heatmaps(curve, scene.clean[purifier, "map"], scene.clean[AS_GIVEN, "map"])


def add_crafted(workspace: Workspace, scene: Scene, surrogate: str, attack: str, eps: float) -> None:
    """All analyses of the images of one crafting, by every viewer whom they are meant for.

    Heat maps and features are of the headline's attack alone; embeddings show the study's protocol, what was crafted on
    the bare classifier.
    """
    kept, comparison = load_kept(workspace, scene.data, surrogate, attack, eps), scene.comparison
    assert np.array_equal(kept.rows, scene.rows)
    # what was crafted on the bare classifier is transferred to every defence; the rest is for its own surrogate
    purifiers = list(scene.painter.purifiers) if surrogate == UNDEFENDED else [surrogate]
    viewers = [AS_GIVEN, *purifiers] if surrogate == UNDEFENDED else purifiers
    is_headline = attack == headline_attack(scene.records)
    portrait = scene.painter.portray(
        kept.images,
        images_of(scene.data, scene.rows),
        {purifier: scene.purified[purifier] for purifier in purifiers},
        {viewer: scene.predicted[viewer] for viewer in viewers if is_headline},
        scene.detectors,
    )

    point = {"surrogate": surrogate, "attack": attack, "eps": eps}
    comparison.add_pictures(point, AS_GIVEN, "adversarial", portrait)
    comparison.add_spectrum(point, AS_GIVEN, "perturbation", portrait[AS_GIVEN, "power"])
    success = scene.recorded(surrogate, "adaptive", attack, eps)["success"].to_numpy()
    for viewer in viewers:
        target = viewer or UNDEFENDED
        threat_model = "adaptive" if target == surrogate else "transfer"
        curve = {"target": target, "threat_model": threat_model, "attack": attack, "eps": eps}
        if is_headline:
            comparison.add_heatmaps(curve, portrait[viewer, "map"], scene.clean[viewer, "map"])
            spaces = {"classifier": "features"} | ({"bottleneck": "bottleneck"} if viewer else {})
            for space, quantity in spaces.items():
                comparison.add_features({"space": space, **curve}, viewer, quantity, portrait)
            if surrogate == UNDEFENDED:
                space, quantity = [*spaces.items()][-1]
                comparison.add_embeddings({"space": space, **curve}, viewer, quantity, portrait)
        if viewer == AS_GIVEN:
            continue
        comparison.add_pictures(point, viewer, "denoised", portrait)
        comparison.add_spectrum(point, viewer, "perturbation, denoised", portrait[viewer, "power"])
        comparison.add_removal(point, viewer, portrait)
        if surrogate == UNDEFENDED:
            defended = scene.recorded(viewer, threat_model, attack, eps)["correct"].to_numpy()
            comparison.add_recovery(point, viewer, success, defended, portrait)
    right = scene.recorded(surrogate, "adaptive", attack, eps)["correct"].to_numpy()
    for name in scene.detectors:
        add_detection(scene, point, name, portrait[name, "score"], success, right)


def add_detection(
    scene: Scene,
    point: dict[str, object],
    name: str,
    scores: np.ndarray,
    successful: np.ndarray,
    right: np.ndarray,
    chosen: slice | np.ndarray = slice(None),
) -> None:
    """How well a detector tells the attacked images (or the chosen of them) from the clean ones.

    As a gate it stands before the bare classifier, so this is told of what was crafted on that.

    Args:
        scene: with the detector's scores of the clean images, and of those of validation.
        point: surrogate, attack and eps.
        name: of the detector.
        scores: of the attacked images, ``(n,)``.
        successful: whether the attack broke them, bool ``(n,)``.
        right: whether the surrogate is right on them, bool ``(n,)``.
        chosen: which of the scene's images these are.
    """
    clean, of_validation = scene.clean[name, "score"][chosen], scene.validation_scores[name]
    threshold = threshold_at(of_validation, scene.params.analyze.false_positive_rate)
    point = {"detector": name, **point}
    found = detection_row(clean, scores, successful, threshold, scene.comparison.counts[:, chosen])
    scene.comparison.add("detection", point, pd.DataFrame([found]))
    false, true = roc_curve(clean, scores)
    scene.comparison.add("roc", point, pd.DataFrame({"false_positive_rate": false, "true_positive_rate": true}))
    if point["surrogate"] == UNDEFENDED:
        clean_right = (scene.predicted[AS_GIVEN] == scene.comparison.labels)[chosen]
        scene.comparison.add("gate", point, gate_rows(clean, scores, clean_right, right, of_validation))


def add_evasion(workspace: Workspace, scene: Scene, name: str, eps: float) -> None:
    """A detector before the bare classifier, and an attacker who knows both.

    Who lowers a score as far as it goes gives himself away from the other side; this one makes the classifier err and
    brings the score to that of an ordinary clean image, their median. He begins with what the headline's attack found
    without knowing of the detector.
    """
    settings, data, painter = scene.params.analyze.evasion, scene.data, scene.painter
    kept = load_kept(workspace, data, UNDEFENDED, headline_attack(scene.records), eps)
    rows = choose_stratified(data, scene.rows, settings.max_images, scene.params.seed)
    chosen = np.searchsorted(scene.rows, rows)
    detect = scene.detectors[name]
    pgd = scene.params.attack.pgd.model_copy(update={"n_steps": settings.n_steps})
    norm = scene.params.attack.norm
    ordinary = float(np.median(scene.clean[name, "score"]))
    scores, predictions = [], []

    def look(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = painter.seen(batch)
        return seen.logits, (detect(seen) - ordinary).abs()

    for part in painter.parts(len(rows)):
        images = painter.on_device(data.floats(rows[part]))
        labels = painter.on_device(data.labels(rows[part]))
        ball = radius(eps, norm, data.pixels[0].size), Balls(norm, data.value_range)
        try:
            adversarial = evade(look, images, labels, *ball, pgd, [painter.on_device(kept.images(chosen[part]))])
        except NotFinite as error:
            path = data.nearest_path(rows[part], error.image)
            raise ValueError(f"{error}, {path} the first; detector {name}, eps {eps:g}") from error
        with torch.inference_mode():
            seen = painter.seen(adversarial)
            scores.append(detect(seen).cpu().numpy())
            predictions.append(seen.logits.argmax(dim=1).cpu().numpy())
    labels_of, predicted = data.labels(rows), np.concatenate(predictions)
    successful = (scene.predicted[AS_GIVEN][chosen] == labels_of) & (predicted != labels_of)
    point = {"surrogate": UNDEFENDED, "attack": "pgd and detector", "eps": eps}
    add_detection(scene, point, name, np.concatenate(scores), successful, predicted == labels_of, chosen)


def keep_examples(workspace: Workspace, scene: Scene) -> None:
    """Write pictures of one image a class: clean, attacked and denoised, with heat maps, and what differs between them.

    A class is shown by its first image that the attack turns wrong, else by its first. Captions are the predictions on
    record; a heat map explains what was predicted of that very picture.
    """
    attack, eps, painter = headline_attack(scene.records), scene.params.analyze.eps, scene.painter
    labels, names = scene.comparison.labels, np.array(scene.data.classes)
    success = scene.recorded(UNDEFENDED, "adaptive", attack, eps)["success"].to_numpy()
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    # argmax is the first success, or the first of all without one
    chosen = np.array([of_class[np.argmax(success[of_class])] for of_class in members])
    clean = scene.data.floats(scene.rows[chosen])
    attacked = load_kept(workspace, scene.data, UNDEFENDED, attack, eps).images(chosen)

    as_clean, as_attacked, as_transferred = ("none", CLEAN, 0.0), ("adaptive", attack, eps), ("transfer", attack, eps)
    looks = {"clean": (AS_GIVEN, clean, as_clean), "adversarial": (AS_GIVEN, attacked, as_attacked)}
    for purifier in painter.purifiers:
        by = f"denoised by {spoken(purifier)}"
        looks[f"clean, {by}"] = purifier, clean, as_clean
        looks[f"adversarial, {by}"] = purifier, attacked, as_transferred
    seen, predicted, maps = {}, {}, {}
    for title, (viewer, images, point) in looks.items():
        seen[title] = painter.pictures(viewer, images)
        predicted[title] = scene.recorded(viewer or UNDEFENDED, *point)["prediction"].to_numpy(dtype=np.int64)[chosen]
        if viewer == AS_GIVEN or point != as_clean:
            maps[title] = upsampled(painter.heatmaps(seen[title], predicted[title]), images.shape[-1])
    captions = {title: [f"predicted {name}" for name in names[of]] for title, of in predicted.items()}

    differences = {"adversarial − clean": attacked - clean}
    for purifier in painter.purifiers:
        by = f"denoised by {spoken(purifier)}"
        differences[f"clean, {by} − clean"] = seen[f"clean, {by}"] - clean
        differences[f"{by}: adversarial − clean"] = seen[f"adversarial, {by}"] - seen[f"clean, {by}"]
    amplified = {title: about_grey(difference) for title, difference in differences.items()}
    perturbation, factor = amplified["adversarial − clean"]
    # the first two columns, what lies between them, then what purifiers make of both
    titles = [*seen]
    titles.insert(2, f"perturbation × {factor}")
    seen[titles[2]], captions[titles[2]] = perturbation, ["mid grey: unchanged"] * len(chosen)

    workspace.examples.parent.mkdir()
    np.savez_compressed(
        workspace.examples,
        attack=np.array(attack),
        eps=np.array(eps),
        rows=names[labels[chosen]],
        images=np.stack([seen[title] for title in titles], axis=1)[:, :, 0].astype(np.float16),
        columns=np.array(titles),
        captions=np.array([captions[title] for title in titles]).T,
        maps=np.stack([*maps.values()], axis=1).astype(np.float16),
        mapped=np.array([titles.index(title) for title in maps]),
        differences=np.stack([picture for picture, _ in amplified.values()], axis=1)[:, :, 0].astype(np.float16),
        difference_columns=np.array([f"{title} × {times}" for title, (_, times) in amplified.items()]),
    )


def about_grey(difference: np.ndarray) -> tuple[np.ndarray, int]:
    """Differences ``(N, 1, H, W)`` amplified about mid grey so that none leaves [0, 1], and the factor."""
    factor = max(1, int(0.5 / max(float(np.abs(difference).max()), 1e-6)))
    return np.clip(0.5 + factor * difference, 0, 1), factor


def resampled(params: Params, data: Prepared, rows: np.ndarray) -> np.ndarray:
    """How often each of these images is drawn in each bootstrap resample, float32 ``(R, N)``."""
    return bootstrap_counts(data.table["group"].to_numpy()[rows], params.analyze.n_resamples, params.seed)


def images_of(data: Prepared, rows: np.ndarray) -> Images:
    """Images of these rows, read part by part."""
    return lambda part: data.floats(rows[part])


if __name__ == "__main__":
    from tasks.runner import main

    main(analyze)
