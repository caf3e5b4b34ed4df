"""Step ``analyze``: the study's figures as numbers with intervals, and what becomes of its claims."""

import json
import logging
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from tasks import paths
from tasks.attacks.ball import Balls, radius
from tasks.attacks.detector_aware import evade
from tasks.attacks.kept import load_kept
from tasks.dataset.prepared import Prepared, choose_stratified, load_prepared
from tasks.defences import UNDEFENDED
from tasks.defences.detectors import Detector, detectors
from tasks.defences.painter import Images, Painter
from tasks.defences.purified import Purified
from tasks.defences.targets import load_targets
from tasks.evaluation.classification import classification_table, entropy_table, reliability_table, robustness_area
from tasks.evaluation.detection import detection_row, roc_curve, threshold_at
from tasks.evaluation.heatmaps import upsampled
from tasks.evaluation.intensity import radial_power
from tasks.evaluation.intervals import bootstrap_counts
from tasks.evaluation.portrait import AS_GIVEN, Comparison, Portrait, Tables
from tasks.evaluation.records import CLEAN, read_records
from tasks.evaluation.verdict import headline_attack, verdict
from tasks.models.compute import set_up
from tasks.params import Params
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
    thresholds: dict[str, float]
    predicted: dict[str, np.ndarray]
    """Viewer -> the class that it predicts of each image as it is, ``(N,)``."""
    comparison: Comparison

    @property
    def clean(self) -> Portrait:
        """Portrait of the images as they are."""
        return self.comparison.clean

    def recorded(self, target: str, threat_model: str, attack: str, eps: float) -> pd.DataFrame:
        """Records of one point, a row an image in the order of ``rows``."""
        values = {"target": target, "threat_model": threat_model, "attack": attack, "eps": eps}
        return self.records[(self.records[list(values)] == pd.Series(values)).all(axis=1)].sort_values("image")


def analyze(params: Params, tracker: Tracker) -> None:
    """Analyse records and kept images of the step ``attack``: a tidy table for each figure of the study, and a verdict.

    Every estimate comes with a 95 % interval; NaN stands where something is not defined.
    """
    settings, records, data = params.analyze, read_records(), load_prepared()
    tracker.dataset(paths.PREPARE, "prepared", "analysis")
    scene = set_scene(params, data, records)
    crafted = [
        (f"{attack} on {surrogate} at eps {eps:g}", partial(add_crafted, surrogate=surrogate, attack=attack, eps=eps))
        for surrogate in [UNDEFENDED, *scene.painter.purifiers]
        for attack in params.attack.attacks
        for eps in params.attack.kept_eps
    ]
    evading = [
        (f"pgd that evades the detector by {name} at eps {eps:g}", partial(add_evasion, name=name, eps=eps))
        for eps in settings.evasion.eps
        for name in scene.detectors
    ]
    add_clean(scene)
    add_all(scene, [*crafted, *evading])

    table = scene.comparison.table
    area = robustness_area(records, settings.n_resamples, params.seed)
    tables = {
        paths.ROBUSTNESS_AREA: area,
        paths.CLASSIFICATION: classification_table(records, data.positive, settings.n_resamples, params.seed),
        paths.RELIABILITY: reliability_table(records),
        paths.ENTROPY: entropy_table(records),
        paths.INTENSITY: table("intensity"),
        paths.INTENSITY_HISTOGRAMS: table("intensity_histograms"),
        paths.SPECTRUM: table("spectrum"),
        paths.HEATMAPS: table("heatmaps"),
        paths.FEATURES: table("features"),
        paths.RESILIENCE: table("resilience"),
        paths.DETECTION: table("detection"),
        paths.ROC: table("roc"),
    }
    plots = plot_tables(tables, headline_attack(records), settings.eps)
    paths.ANALYZE_PLOTS.mkdir()
    for path, values in (tables | plots).items():
        values.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    table("embeddings").to_parquet(paths.EMBEDDINGS, index=False)
    keep_heatmap_examples(scene)
    claims = verdict(records, tables[paths.FEATURES], tables[paths.DETECTION], settings.eps, scene.comparison.counts)
    listed = [asdict(claim) for claim in claims]
    paths.VERDICT.write_text(json.dumps(listed, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    curves = zip(area["target"], area["threat_model"], area["attack"], area["value"], strict=True)
    tracker.metrics({f"area/{target}_{threat_model}_{attack}": value for target, threat_model, attack, value in curves})
    tracker.tags({f"claim.{number}": f"{each.outcome}: {each.claim}" for number, each in enumerate(claims, start=1)})
    tracker.artifact(paths.ANALYZE)


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

    with threadpool_limits(1), ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        done = [pool.submit(alone, do) for _, do in work]
        for number, ((name, _), future) in enumerate(zip(work, done, strict=True), start=1):
            for table, rows in future.result().items():
                scene.comparison.tables[table] += rows
            log.info("%d/%d  %s", number, len(work), name)


def set_scene(params: Params, data: Prepared, records: pd.DataFrame) -> Scene:
    """Networks, detectors fitted to clean training images, their thresholds, and a portrait of clean test images."""
    device = set_up(params.compute)
    targets = {
        name: target.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
        for name, target in load_targets().items()
    }
    purifiers = {name: target.purifier for name, target in targets.items() if isinstance(target, Purified)}
    painter = Painter(targets[UNDEFENDED], purifiers, data.pixels.shape[-1], params.attack.batch_size)
    training, validation = data.indices("train"), data.indices("validation")
    detect = detectors(painter.features(images_of(data, training), len(training)), data.labels(training))
    of_validation = painter.scores(images_of(data, validation), len(validation), detect)
    rate = params.analyze.false_positive_rate

    rows = np.unique(records["image"][records["attack"] != CLEAN])
    clean = records[(records["attack"] == CLEAN) & records["image"].isin(rows)].sort_values("image")
    predicted = {
        AS_GIVEN if target == UNDEFENDED else str(target): group["prediction"].to_numpy(dtype=np.int64)
        for target, group in clean.groupby("target", sort=False)
    }
    images = images_of(data, rows)
    comparison = Comparison(
        clean=painter.portray(images, images, predicted, detect),
        rows=rows,
        labels=data.labels(rows),
        groups=data.table["group"].to_numpy()[rows],
        classes=list(data.classes),
        counts=bootstrap_counts(len(rows), params.analyze.n_resamples, params.seed),
        seed=params.seed,
    )
    thresholds = {name: threshold_at(scores, rate) for name, scores in of_validation.items()}
    return Scene(params, data, records, rows, painter, detect, thresholds, predicted, comparison)


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


def add_crafted(scene: Scene, surrogate: str, attack: str, eps: float) -> None:
    """All analyses of the images of one crafting, by every viewer whom they are meant for."""
    kept, comparison = load_kept(scene.data, surrogate, attack, eps), scene.comparison
    assert np.array_equal(kept.rows, scene.rows)
    # what was crafted on the bare classifier is transferred to every defence; the rest is for its own surrogate
    purifiers = list(scene.painter.purifiers) if surrogate == UNDEFENDED else [surrogate]
    viewers = [AS_GIVEN, *purifiers] if surrogate == UNDEFENDED else purifiers
    explained = {viewer: scene.predicted[viewer] for viewer in viewers}
    portrait = scene.painter.portray(kept.images, images_of(scene.data, scene.rows), explained, scene.detectors)

    point = {"surrogate": surrogate, "attack": attack, "eps": eps}
    comparison.add_pictures(point, AS_GIVEN, "adversarial", portrait)
    comparison.add_spectrum(point, AS_GIVEN, "perturbation", portrait[AS_GIVEN, "power"])
    crafted_on = scene.recorded(surrogate, "adaptive", attack, eps)
    for viewer in viewers:
        target = viewer or UNDEFENDED
        curve = {"target": target, "threat_model": threat_model_of(target, surrogate), "attack": attack, "eps": eps}
        comparison.add_heatmaps(curve, portrait[viewer, "map"], scene.clean[viewer, "map"])
        comparison.add_features({"space": "classifier", **curve}, viewer, "features", portrait)
    for purifier in purifiers:
        threat_model = threat_model_of(purifier, surrogate)
        curve = {"target": purifier, "threat_model": threat_model, "attack": attack, "eps": eps}
        comparison.add_features({"space": "bottleneck", **curve}, purifier, "bottleneck", portrait)
        comparison.add_pictures(point, purifier, "denoised", portrait)
        comparison.add_spectrum(point, purifier, "perturbation, denoised", portrait[purifier, "power"])
        defended = scene.recorded(purifier, threat_model, attack, eps)["correct"].to_numpy()
        comparison.add_removal(point, purifier, crafted_on["success"].to_numpy(), defended, portrait)
    if surrogate == UNDEFENDED and attack == headline_attack(scene.records):
        seen_by = {AS_GIVEN: ("classifier", "features"), **dict.fromkeys(purifiers, ("bottleneck", "bottleneck"))}
        for viewer, (space, quantity) in seen_by.items():
            target = viewer or UNDEFENDED
            curve = {"target": target, "threat_model": threat_model_of(target, surrogate), "attack": attack, "eps": eps}
            comparison.add_embeddings({"space": space, **curve}, viewer, quantity, portrait)
    for name in scene.detectors:
        add_detection(scene, point, name, portrait[name, "score"], crafted_on["success"].to_numpy())


def add_detection(
    scene: Scene,
    point: dict[str, object],
    name: str,
    scores: np.ndarray,
    successful: np.ndarray,
    chosen: slice | np.ndarray = slice(None),
) -> None:
    """How well a detector tells the attacked images (or the chosen of them) from the clean ones.

    Args:
        scene: with the detector's threshold and its scores of the clean images.
        point: surrogate, attack and eps.
        name: of the detector.
        scores: of the attacked images, ``(n,)``.
        successful: whether the attack broke them, bool ``(n,)``.
        chosen: which of the scene's images these are.
    """
    clean = scene.clean[name, "score"][chosen]
    point = {"detector": name, **point}
    found = detection_row(clean, scores, successful, scene.thresholds[name], scene.comparison.counts[:, chosen])
    scene.comparison.add("detection", point, pd.DataFrame([found]))
    false, true = roc_curve(clean, scores)
    scene.comparison.add("roc", point, pd.DataFrame({"false_positive_rate": false, "true_positive_rate": true}))


def add_evasion(scene: Scene, name: str, eps: float) -> None:
    """A detector before the bare classifier, and an attacker who knows both."""
    settings, data, painter = scene.params.analyze.evasion, scene.data, scene.painter
    rows = choose_stratified(data, scene.rows, settings.max_images, scene.params.seed)
    chosen = np.searchsorted(scene.rows, rows)
    detect = scene.detectors[name]
    pgd = scene.params.attack.pgd.model_copy(update={"n_steps": settings.n_steps})
    norm = scene.params.attack.norm

    def look(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = painter.seen(images)
        return seen.logits, detect(seen)

    scores, predictions = [], []
    for part in painter.parts(len(rows)):
        images = painter.on_device(data.floats(rows[part]))
        labels = painter.on_device(data.labels(rows[part]))
        adversarial = evade(
            look,
            images,
            labels,
            radius(eps, norm, data.pixels[0].size),
            Balls(norm, data.value_range),
            pgd,
            scene.params.seed,
            rows[part],
        )
        with torch.inference_mode():
            logits, score = look(adversarial)
            scores.append(score.cpu().numpy())
            predictions.append(logits.argmax(dim=1).cpu().numpy())
    labels_of, predicted = data.labels(rows), np.concatenate(predictions)
    successful = (scene.predicted[AS_GIVEN][chosen] == labels_of) & (predicted != labels_of)
    point = {"surrogate": UNDEFENDED, "attack": "pgd and detector", "eps": eps}
    add_detection(scene, point, name, np.concatenate(scores), successful, chosen)


def keep_heatmap_examples(scene: Scene) -> None:
    """Write the pictures of one image a class, clean and attacked, and the heat maps that go with them."""
    attack, eps = headline_attack(scene.records), scene.params.analyze.eps
    kept = load_kept(scene.data, UNDEFENDED, attack, eps)
    purifier = next(iter(scene.painter.purifiers))
    success = scene.recorded(UNDEFENDED, "adaptive", attack, eps)["success"].to_numpy()
    labels = scene.comparison.labels
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    # argmax is the first success, or the first of all without one
    chosen = np.array([of_class[np.argmax(success[of_class])] for of_class in members])
    clean, attacked = scene.data.floats(scene.rows[chosen]), kept.images(chosen)
    explained = {viewer: scene.predicted[viewer][chosen] for viewer in (AS_GIVEN, purifier)}
    side = clean.shape[-1]
    maps_of_clean = upsampled(scene.clean[AS_GIVEN, "map"][chosen], side)
    portrait = scene.painter.portray(lambda _: attacked, lambda _: clean, explained, {})
    with torch.inference_mode():
        denoised = scene.painter.seen(scene.painter.on_device(attacked), purifier).purified.cpu().numpy()
    factor = max(1, int(0.5 / max(float(np.abs(attacked - clean).max()), 1e-6)))
    perturbation = np.clip(0.5 + factor * (attacked - clean), 0, 1)
    named = np.array(scene.data.classes)
    points = (
        (UNDEFENDED, "none", CLEAN, 0.0),
        (UNDEFENDED, "adaptive", attack, eps),
        (purifier, "transfer", attack, eps),
    )
    captions = [
        [f"predicted {named[label]}" for label in scene.recorded(*point)["prediction"].to_numpy()[chosen]]
        if point[2] != CLEAN
        else [f"predicted {named[label]}" for label in scene.predicted[AS_GIVEN][chosen]]
        for point in points
    ]
    paths.HEATMAP_EXAMPLES.parent.mkdir()
    np.savez_compressed(
        paths.HEATMAP_EXAMPLES,
        images=np.stack([clean, attacked, denoised, perturbation], axis=1)[:, :, 0].astype(np.float16),
        maps=np.stack(
            [maps_of_clean, *(upsampled(portrait[viewer, "map"], side) for viewer in (AS_GIVEN, purifier))], axis=1
        ).astype(np.float16),
        rows=named[labels[chosen]],
        columns=np.array(["clean", "adversarial", "adversarial, denoised", f"perturbation × {factor}"]),
        captions=np.array(captions).T,
    )


def plot_tables(tables: dict[Path, pd.DataFrame], attack: str, eps: float) -> dict[Path, pd.DataFrame]:
    """The curves as ``dvc plots`` wants them: a column for what is on the x axis, and one for each curve.

    Args:
        tables: of this step.
        attack: that the curves are about.
        eps: of the curves that are not against eps.
    """
    curve = ["target", "threat_model"]
    plots = {}
    for path, metric, names in (
        (paths.HEATMAPS, "iou", curve),
        (paths.FEATURES, "probe_auroc", ["space", *curve]),
        (paths.FEATURES, "knn_auroc", ["space", *curve]),
        (paths.RESILIENCE, "mse", ["surrogate", "images"]),
        (paths.RESILIENCE, "ssim", ["surrogate", "images"]),
        (paths.RESILIENCE, "removed", ["surrogate", "images"]),
    ):
        table = tables[path]
        rows = table[(table["attack"] == attack) & (table["metric"] == metric)]
        plots[paths.ANALYZE_PLOTS / f"{path.stem}_{metric}.csv"] = wide(rows, "eps", names, "value")

    def at(path: Path) -> pd.DataFrame:
        table = tables[path]
        return table[table["attack"].isin([attack, f"{attack} and detector"]) & (table["eps"] == eps)]

    detection = tables[paths.DETECTION]
    of_attack = detection[detection["attack"] == attack]
    plots[paths.ANALYZE_PLOTS / "detection_auroc.csv"] = wide(of_attack, "eps", ["detector", "surrogate"], "auroc")
    curves = ["detector", "surrogate", "attack"]
    rates = np.linspace(0, 1, 101)
    roc = {
        "/".join(map(str, names)): np.interp(rates, points["false_positive_rate"], points["true_positive_rate"])
        for names, points in at(paths.ROC).groupby(curves, sort=False)
    }
    plots[paths.ANALYZE_PLOTS / "roc.csv"] = pd.DataFrame({"false_positive_rate": rates, **roc})
    spectrum = at(paths.SPECTRUM)
    plots[paths.ANALYZE_PLOTS / "spectrum.csv"] = wide(spectrum, "frequency", ["surrogate", "of"], "power")
    reliability = at(paths.RELIABILITY)
    plots[paths.ANALYZE_PLOTS / "reliability.csv"] = wide(reliability, "confidence", curve, "accuracy")
    return plots


def wide(table: pd.DataFrame, x: str, names: list[str], value: str) -> pd.DataFrame:
    """A row for each value of ``x``, a column for each curve, called ``a/b/c`` by what ``names`` hold."""
    pivoted = table.pivot_table(index=x, columns=names, values=value, sort=False).sort_index()
    pivoted.columns = pd.Index(["/".join(map(str, column)) for column in pivoted.columns])
    return pivoted.reset_index()


def threat_model_of(target: str, surrogate: str) -> str:
    """``adaptive`` where a target is attacked by what was crafted on itself."""
    return "adaptive" if target == surrogate else "transfer"


def images_of(data: Prepared, rows: np.ndarray) -> Images:
    """Images of these rows, read part by part."""
    return lambda part: data.floats(rows[part])


if __name__ == "__main__":
    from tasks.runner import main

    main(analyze)
