"""Step ``analyze``: the study's figures as numbers with intervals, and what becomes of its claims."""

import json
import logging
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
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
from tasks.paths import UNDEFENDED
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
    area = robustness_area(records, scene.comparison.counts)
    tables = {
        paths.ROBUSTNESS_AREA: area,
        paths.CLASSIFICATION: classification_table(records, data.positive, scene.comparison.counts),
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
    keep_examples(scene)
    features, detection = tables[paths.FEATURES], tables[paths.DETECTION]
    claims = verdict(records, features, detection, settings.eps, partial(resampled, params, data))
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
    thresholds = {name: threshold_at(scores, rate) for name, scores in of_validation.items()}
    return Scene(params, data, records, rows, painter, detect, thresholds, predicted, purified, comparison)


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
    """All analyses of the images of one crafting, by every viewer whom they are meant for.

    Heat maps and features are of the headline's attack alone; embeddings show the study's protocol, what was crafted on
    the bare classifier.
    """
    kept, comparison = load_kept(scene.data, surrogate, attack, eps), scene.comparison
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
    crafted_on = scene.recorded(surrogate, "adaptive", attack, eps)
    for viewer in viewers:
        target = viewer or UNDEFENDED
        curve = {"target": target, "threat_model": threat_model_of(target, surrogate), "attack": attack, "eps": eps}
        if is_headline:
            comparison.add_heatmaps(curve, portrait[viewer, "map"], scene.clean[viewer, "map"])
            comparison.add_features({"space": "classifier", **curve}, viewer, "features", portrait)
    for purifier in purifiers:
        threat_model = threat_model_of(purifier, surrogate)
        curve = {"target": purifier, "threat_model": threat_model, "attack": attack, "eps": eps}
        if is_headline:
            comparison.add_features({"space": "bottleneck", **curve}, purifier, "bottleneck", portrait)
        comparison.add_pictures(point, purifier, "denoised", portrait)
        comparison.add_spectrum(point, purifier, "perturbation, denoised", portrait[purifier, "power"])
        comparison.add_removal(point, purifier, portrait)
        if surrogate == UNDEFENDED:
            defended = scene.recorded(purifier, threat_model, attack, eps)["correct"].to_numpy()
            comparison.add_recovery(point, purifier, crafted_on["success"].to_numpy(), defended, portrait)
    if is_headline and surrogate == UNDEFENDED:
        for viewer in viewers:
            space, quantity = ("bottleneck", "bottleneck") if viewer else ("classifier", "features")
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
    """A detector before the bare classifier, and an attacker who knows both.

    Who lowers a score as far as it goes gives himself away from the other side; this one makes the classifier err and
    leaves the image the score that it had.
    """
    settings, data, painter = scene.params.analyze.evasion, scene.data, scene.painter
    rows = choose_stratified(data, scene.rows, settings.max_images, scene.params.seed)
    chosen = np.searchsorted(scene.rows, rows)
    detect = scene.detectors[name]
    pgd = scene.params.attack.pgd.model_copy(update={"n_steps": settings.n_steps})
    norm = scene.params.attack.norm
    clean = scene.clean[name, "score"][chosen]
    scores, predictions = [], []
    for part in painter.parts(len(rows)):
        images = painter.on_device(data.floats(rows[part]))
        labels = painter.on_device(data.labels(rows[part]))
        had = painter.on_device(clean[part])

        def look(batch: torch.Tensor, had: torch.Tensor = had) -> tuple[torch.Tensor, torch.Tensor]:
            seen = painter.seen(batch)
            return seen.logits, (detect(seen) - had).abs()

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
            seen = painter.seen(adversarial)
            scores.append(detect(seen).cpu().numpy())
            predictions.append(seen.logits.argmax(dim=1).cpu().numpy())
    labels_of, predicted = data.labels(rows), np.concatenate(predictions)
    successful = (scene.predicted[AS_GIVEN][chosen] == labels_of) & (predicted != labels_of)
    point = {"surrogate": UNDEFENDED, "attack": "pgd and detector", "eps": eps}
    add_detection(scene, point, name, np.concatenate(scores), successful, chosen)


def keep_examples(scene: Scene) -> None:
    """Write pictures of one image a class: clean, attacked and denoised, with heat maps, and what differs between them.

    A heat map explains what the record says was predicted of that very picture.
    """
    attack, eps, painter = headline_attack(scene.records), scene.params.analyze.eps, scene.painter
    purifier = next(iter(painter.purifiers))
    labels = scene.comparison.labels
    success = scene.recorded(UNDEFENDED, "adaptive", attack, eps)["success"].to_numpy()
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    # argmax is the first success, or the first of all without one
    chosen = np.array([of_class[np.argmax(success[of_class])] for of_class in members])
    clean = scene.data.floats(scene.rows[chosen])
    attacked = load_kept(scene.data, UNDEFENDED, attack, eps).images(chosen)
    with torch.inference_mode():
        denoised, clean_denoised = (
            painter.seen(painter.on_device(images), purifier).purified.cpu().numpy() for images in (attacked, clean)
        )
    predicted = (
        scene.predicted[AS_GIVEN][chosen],
        scene.recorded(UNDEFENDED, "adaptive", attack, eps)["prediction"].to_numpy(dtype=np.int64)[chosen],
        scene.recorded(purifier, "transfer", attack, eps)["prediction"].to_numpy(dtype=np.int64)[chosen],
    )
    pictures = ((AS_GIVEN, clean), (AS_GIVEN, attacked), (purifier, attacked))
    maps = [
        upsampled(painter.heatmaps(viewer, images, classes), clean.shape[-1])
        for (viewer, images), classes in zip(pictures, predicted, strict=True)
    ]
    differences = {
        "adversarial − clean": attacked - clean,
        "clean, denoised − clean": clean_denoised - clean,
        "denoised: adversarial − clean": denoised - clean_denoised,
    }
    shown = {name: about_grey(difference) for name, difference in differences.items()}
    perturbation, factor = about_grey(attacked - clean)
    named = np.array(scene.data.classes)
    paths.EXAMPLES.parent.mkdir()
    np.savez_compressed(
        paths.EXAMPLES,
        rows=named[labels[chosen]],
        images=np.stack([clean, attacked, denoised, perturbation], axis=1)[:, :, 0].astype(np.float16),
        maps=np.stack(maps, axis=1).astype(np.float16),
        columns=np.array(["clean", "adversarial", "adversarial, denoised", f"perturbation × {factor}"]),
        captions=np.array([[f"predicted {named[label]}" for label in labels_of] for labels_of in predicted]).T,
        differences=np.stack([picture for picture, _ in shown.values()], axis=1)[:, :, 0].astype(np.float16),
        difference_columns=np.array([f"{name} × {factor}" for name, (_, factor) in shown.items()]),
    )


def about_grey(difference: np.ndarray) -> tuple[np.ndarray, int]:
    """Differences ``(N, 1, H, W)`` amplified about mid grey so that none leaves [0, 1], and the factor."""
    factor = max(1, int(0.5 / max(float(np.abs(difference).max()), 1e-6)))
    return np.clip(0.5 + factor * difference, 0, 1), factor


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
    # two values at one place are an error here, not a mean; an empty bin has no place
    pivoted = table.dropna(subset=[x]).pivot(index=x, columns=names, values=value).sort_index()
    pivoted.columns = pd.Index(["/".join(map(str, column)) for column in pivoted.columns])
    return pivoted.reset_index()


def resampled(params: Params, data: Prepared, rows: np.ndarray) -> np.ndarray:
    """How often each of these images is drawn in each bootstrap resample, float32 ``(R, N)``."""
    return bootstrap_counts(data.table["group"].to_numpy()[rows], params.analyze.n_resamples, params.seed)


def threat_model_of(target: str, surrogate: str) -> str:
    """``adaptive`` where a target is attacked by what was crafted on itself."""
    return "adaptive" if target == surrogate else "transfer"


def images_of(data: Prepared, rows: np.ndarray) -> Images:
    """Images of these rows, read part by part."""
    return lambda part: data.floats(rows[part])


if __name__ == "__main__":
    from tasks.runner import main

    main(analyze)
