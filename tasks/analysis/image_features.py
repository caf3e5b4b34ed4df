"""Portraits of images, and the tables that come of comparing those of attacked images with that of the clean ones."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from tasks.analysis.embeddings import N_COMPONENTS, pca, tsne
from tasks.analysis.feature_overlap import overlap
from tasks.analysis.heatmaps import heatmap_correlation, is_blank, top_iou
from tasks.analysis.intensity import intensity_distances, level_shares, ring_frequencies
from tasks.analysis.resilience import quality_estimates, recovery_correlation
from tasks.records.vocabulary import AS_GIVEN
from tasks.statistics.intervals import Estimate, bootstrap, resampled_mean

Portrait = dict[tuple[str, str], np.ndarray]
"""(viewer, quantity) -> a row an image; a viewer is ``AS_GIVEN``, the name of a purifier or that of a detector.

Of each viewer but detectors: ``histogram`` of what it sees (int32 ``(N, B)``), ``power`` of the perturbation in it
(float64 ``(N, F)``), ``mse``, ``psnr``, ``ssim`` against the original, ``features`` (penultimate, ``(N, D)``), ``map``
(Grad-CAM, float32 ``(N, h, w)``). Of each purifier also ``removed`` (share of the perturbation) and ``bottleneck``
``(N, B)``. Of each detector ``score`` ``(N,)``.
"""

Point = dict[str, Any]
"""Columns that say which images a row is about."""

Tables = dict[str, list[pd.DataFrame]]
"""Parts of every table by its name."""


@dataclass(frozen=True)
class Comparison:
    """Rows of the tables of the step ``analyze`` that need images, filled portrait by portrait.

    Args:
        clean: portrait of the N clean images.
        rows: of the prepared table, ``(N,)``.
        labels: true classes, int ``(N,)``.
        groups: images of one patient share a number, int ``(N,)``.
        classes: names in the order of the labels.
        counts: how often each image is drawn in each bootstrap resample, ``(R, N)``.
        seed: of folds, permutations and t-SNE.
    """

    clean: Portrait
    rows: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    classes: list[str]
    counts: np.ndarray
    seed: int
    tables: Tables = field(default_factory=lambda: defaultdict(list))

    def add_pictures(self, point: Point, viewer: str, images: str, portrait: Portrait) -> None:
        """How what the viewer sees differs from the clean images, pixel by pixel: intensity and resilience."""
        named = {**point, "images": images, "purifier": viewer}
        self.add_intensities(point, viewer, images, portrait)
        distances = intensity_distances(
            self.clean[AS_GIVEN, "histogram"], portrait[viewer, "histogram"], self.labels, self.classes, self.counts
        )
        self.add("intensity", named, distances)
        quality = {name: portrait[viewer, name] for name in ("mse", "psnr", "ssim")}
        self.add("resilience", named, _estimates(quality_estimates(quality, self.counts)))

    def add_intensities(self, point: Point, viewer: str, images: str, portrait: Portrait) -> None:
        """Histograms of the grey levels that the viewer sees, over all classes and in each."""
        histograms = portrait[viewer, "histogram"]
        of_class = {name: self.labels == label for label, name in enumerate(self.classes)}
        for name, members in {"all": np.full(len(self.labels), True), **of_class}.items():
            if members.any():
                shares = pd.DataFrame({"level": range(256), "share": level_shares(histograms[members])})
                self.add("intensity_histograms", {**point, "images": images, "purifier": viewer, "class": name}, shares)

    def add_spectrum(self, point: Point, viewer: str, of: str, power: np.ndarray) -> None:
        """Mean power by spatial frequency, from that of each image, ``(N, F)``."""
        values = pd.DataFrame({"frequency": ring_frequencies(power.shape[1]), "power": power.mean(axis=0)})
        self.add("spectrum", {**point, "of": of, "purifier": viewer}, values)

    def add_removal(self, point: Point, viewer: str, portrait: Portrait) -> None:
        """What share of the perturbation a purifier removes."""
        removed = bootstrap(partial(resampled_mean, portrait[viewer, "removed"]), self.counts)
        named = {**point, "images": "denoised", "purifier": viewer}
        self.add("resilience", named, _estimates({"removed": removed}))

    def add_recovery(
        self, point: Point, viewer: str, broken: np.ndarray, recovered: np.ndarray, portrait: Portrait
    ) -> None:
        """Whether predictions are right again where the purified image is near to what it should be.

        ``recovery_correlation`` is about the distance from the original image, most of which is the purifier's own
        blur; ``residual_correlation`` about the distance from the original image as purified, what is left of the
        perturbation.

        Args:
            point: which images, crafted on the bare classifier.
            viewer: the purifier.
            broken: whether the bare classifier was right before the attack and is not so now, bool ``(N,)``.
            recovered: whether the defended one is right, bool ``(N,)``.
            portrait: of the images.
        """
        residual = (1 - portrait[viewer, "removed"]) * portrait[AS_GIVEN, "mse"]
        losses = {"recovery_correlation": portrait[viewer, "mse"], "residual_correlation": residual}
        estimates = {
            name: recovery_correlation(loss[broken], recovered[broken], self.counts[:, broken])
            for name, loss in losses.items()
        }
        self.add("resilience", {**point, "images": "denoised", "purifier": viewer}, _estimates(estimates))

    def add_heatmaps(self, point: Point, maps: np.ndarray, reference: np.ndarray) -> None:
        """How far heat maps ``(N, h, w)`` are from those of reference, of the same images and the same classes.

        ``n_blank`` of them have lost all heat, and agree with none; where the reference has none either, an image is
        left out of ``n``.
        """
        without_reference = is_blank(maps) & is_blank(reference)
        n_blank = int((is_blank(maps) & ~without_reference).sum())
        agreement = {"correlation": heatmap_correlation(maps, reference), "iou": top_iou(maps, reference)}
        estimates = {
            name: bootstrap(partial(resampled_mean, values), self.counts) for name, values in agreement.items()
        }
        self.add("heatmaps", point, _estimates(estimates).assign(n=int((~without_reference).sum()), n_blank=n_blank))

    def add_features(self, point: Point, viewer: str, quantity: str, portrait: Portrait) -> None:
        """Whether the viewer's features of clean and of attacked images overlap."""
        pair = self.clean[viewer, quantity], portrait[viewer, quantity]
        found = overlap(*pair, self.labels, self.groups, self.counts, self.seed)
        self.add("features", point, _estimates(found).assign(n=len(self.rows)))

    def add_embeddings(self, point: Point, viewer: str, quantity: str, portrait: Portrait) -> None:
        """The same features in two dimensions, for the eye."""
        pair = self.clean[viewer, quantity], portrait[viewer, quantity]
        components, _ = pca(*pair, N_COMPONENTS)
        for method, places in {"pca": components[:, :2], "tsne": tsne(components, self.seed)}.items():
            embedding = pd.DataFrame(
                {
                    "method": method,
                    "image": np.tile(self.rows, 2),
                    "origin": np.repeat(["clean", "adversarial"], len(self.rows)),
                    "label": np.tile(self.labels, 2),
                    "x": places[:, 0].astype(np.float32),
                    "y": places[:, 1].astype(np.float32),
                }
            )
            self.add("embeddings", point, embedding)

    def table(self, name: str) -> pd.DataFrame:
        """All rows of a table, in the order in which they were added."""
        return pd.concat(self.tables[name], ignore_index=True)

    def add(self, table: str, point: Point, values: pd.DataFrame) -> None:
        """Rows of a table that are about one point."""
        self.tables[table].append(pd.concat([pd.DataFrame(point, index=values.index), values], axis=1))


def _estimates(by_metric: dict[str, Estimate]) -> pd.DataFrame:
    return pd.DataFrame([{"metric": name, **estimate._asdict()} for name, estimate in by_metric.items()])
