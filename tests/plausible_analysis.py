"""Synthetic outputs of the step ``analyze``, drawn from a seeded random generator."""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd

from tasks.core.workspace import Workspace

ATTACKS = ["fgsm", "pgd"]
DETECTORS = ["reconstruction error", "entropy", "prediction change", "feature distance", "all detectors"]
WIDTHS = {"": 0.0, "_low": -0.05, "_high": 0.05}


class PlausibleAnalysis:
    """Tables of ``data/analyze/`` with plausible values.

    Args:
        eps: the grid, ascending.
        classes: class names in the order of the labels.
        images: rows of the attacked images in the prepared table.
        labels: their labels.
        defences: names.
        purifiers: names of the defences with a purifier.
        seed: of the random generator.
    """

    def __init__(
        self,
        eps: tuple[float, ...],
        classes: list[str],
        images: np.ndarray,
        labels: np.ndarray,
        defences: Sequence[str],
        purifiers: Sequence[str],
        seed: int = 0,
    ) -> None:
        self.eps, self.classes, self.images, self.labels = eps, classes, images, labels
        self.targets, self.purifiers = ["undefended", *defences], list(purifiers)
        self.curves = [("undefended", "adaptive"), *product(defences, ("transfer", "adaptive"))]
        self.random = np.random.default_rng(seed)

    def write(self, workspace: Workspace | None = None) -> None:
        """Write all outputs to a workspace without outputs of this step, by default to the current folder."""
        workspace = workspace or Workspace()
        workspace.examples.parent.mkdir(parents=True)
        for path, rows in {
            workspace.robustness_area: self.area(),
            workspace.classification: self.classification(),
            workspace.reliability: self.reliability(),
            workspace.entropy: self.entropy(),
            workspace.intensity: self.intensity(),
            workspace.intensity_histograms: self.histograms(),
            workspace.spectrum: self.spectrum(),
            workspace.heatmaps: self.heatmaps(),
            workspace.features: self.features(),
            workspace.resilience: self.resilience(),
            workspace.detection: self.detection(),
            workspace.roc: self.roc(),
            workspace.rejection: self.rejection(),
        }.items():
            pd.DataFrame(rows).to_csv(path, index=False)
        self.embeddings().to_parquet(workspace.embeddings)
        workspace.claims.write_text(json.dumps(self.claims()), encoding="utf-8")
        np.savez_compressed(workspace.examples, **self.examples(np.load(workspace.pixels)))

    def estimate(self, value: float, width: float = 0.04) -> dict[str, float]:
        """Draw an estimate near a value, with its interval."""
        value += self.random.normal(0, width / 4)
        return {"value": value, "low": value - width, "high": value + width}

    def attack_points(self) -> Iterator[dict[str, Any]]:
        for (target, threat_model), attack, eps in product(self.curves, ATTACKS, self.eps):
            yield {"target": target, "threat_model": threat_model, "attack": attack, "eps": eps}

    def area(self) -> list[dict[str, Any]]:
        return [
            {"target": target, "threat_model": threat_model, "attack": attack, **self.estimate(0.4)}
            for (target, threat_model), attack in product(self.curves, ATTACKS)
        ]

    def points(self) -> list[dict[str, Any]]:
        clean = [{"target": t, "threat_model": "none", "attack": "clean", "eps": 0.0} for t in self.targets]
        return [*clean, *self.attack_points()]

    def classification(self) -> list[dict[str, Any]]:
        typical = {"accuracy": 0.9, "loss": 0.4, "precision": 0.9, "recall": 0.9, "f1": 0.9, "top1_error": 0.1}
        typical |= {"auroc": 0.95, "ece": 0.05, "brier": 0.1, "mean_entropy": 0.2}
        rows = []
        for point in self.points():
            weight = min(1.0, point["eps"] / 2)
            for metric, value in typical.items():
                worst = (
                    1 - value if metric in ("accuracy", "precision", "recall", "f1", "auroc") else 1.5 * (value + 0.2)
                )
                rows.append({**point, "metric": metric, **self.estimate(value + weight * (worst - value))})
        return rows

    def reliability(self) -> list[dict[str, Any]]:
        rows = []
        for point in self.points():
            for bin_, middle in enumerate((np.arange(15) + 0.5) / 15):
                n = int(self.random.integers(0, 20)) if middle > 0.4 else 0
                accuracy = max(0.0, middle - 0.5 * min(1.0, point["eps"])) if n else np.nan
                value = (
                    {"low": max(accuracy - 0.1, 0), "high": min(accuracy + 0.1, 1)}
                    if n
                    else {"low": np.nan, "high": np.nan}
                )
                rows.append(
                    {**point, "bin": bin_, "n": n, "confidence": middle if n else np.nan, "accuracy": accuracy, **value}
                )
        return rows

    def entropy(self) -> list[dict[str, Any]]:
        edges = np.linspace(0, np.log(len(self.classes)), 21)
        rows = []
        for point in self.points():
            for low, high in pairwise(edges):
                counts = self.random.poisson(30 * np.exp(-4 * low), 2)
                rows.append(
                    {
                        **point,
                        "lower_edge": low,
                        "upper_edge": high,
                        "n_correct": counts[0],
                        "n_misclassified": counts[1],
                    }
                )
        return rows

    def image_sets(self) -> Iterator[dict[str, Any]]:
        """Denoised clean images, then adversarial and denoised images for each surrogate, attack and eps."""
        for purifier in self.purifiers:
            clean = {"surrogate": "undefended", "attack": "clean", "eps": 0.0}
            yield {**clean, "image_kind": "denoised", "purifier": purifier}
        for surrogate, attack, eps in product(self.targets, ATTACKS, self.eps):
            point = {"surrogate": surrogate, "attack": attack, "eps": eps}
            yield {**point, "image_kind": "adversarial", "purifier": ""}
            for purifier in self.purifiers:
                if surrogate in ("undefended", purifier):
                    yield {**point, "image_kind": "denoised", "purifier": purifier}

    def intensity(self) -> list[dict[str, Any]]:
        rows = []
        for point, name in product(self.image_sets(), ["all", *self.classes]):
            blur = 2.0 if point["image_kind"] == "denoised" else 0.0
            rows.append(
                {
                    **point,
                    "class": name,
                    "metric": "wasserstein_distance",
                    **self.estimate(blur + 0.4 * point["eps"], 0.1),
                }
            )
            rows.append(
                {
                    **point,
                    "class": name,
                    "metric": "ks_statistic",
                    **self.estimate(blur / 40 + 0.02 * point["eps"], 0.005),
                }
            )
        return rows

    def histograms(self) -> list[dict[str, Any]]:
        clean = {"surrogate": "undefended", "attack": "clean", "eps": 0.0, "image_kind": "clean", "purifier": ""}
        widths = {"clean": 30, "adversarial": 33, "denoised": 25}
        level = np.arange(256)
        rows = []
        for point, (label, name) in product([clean, *self.image_sets()], enumerate(["all", *self.classes])):
            peaks = [np.exp(-(((level - at) / widths[point["image_kind"]]) ** 2)) for at in (70 + 10 * label, 170)]
            share = (peaks[0] + 0.6 * peaks[1]) * self.random.uniform(0.95, 1.05, 256)
            share[0] = 8.0
            row = {**point, "class": name}
            rows += [{**row, "grey_level": at, "pixel_fraction": value} for at, value in enumerate(share / share.sum())]
        return rows

    def spectrum(self) -> list[dict[str, Any]]:
        frequency = (np.arange(16) + 0.5) / 32
        kinds = {"clean images": 1e-3 * frequency**-2.5, "perturbation": 2e-5 * frequency**-0.3}
        points = [("undefended", "clean", 0.0, "clean images", "")]
        points += product(self.targets, ATTACKS, self.eps, ["perturbation"], [""])
        crafted = product(self.targets, ATTACKS, self.eps, ["denoised perturbation"], self.purifiers)
        points += [point for point in crafted if point[0] in ("undefended", point[-1])]
        kinds["denoised perturbation"] = kinds["perturbation"] * np.exp(-8 * frequency)
        return [
            {
                **dict(zip(("surrogate", "attack", "eps", "signal", "purifier"), point, strict=True)),
                "frequency": at,
                "power": value,
            }
            for point in points
            for at, value in zip(frequency, kinds[point[3]] * self.random.uniform(0.9, 1.1, 16), strict=True)
        ]

    def heatmaps(self) -> list[dict[str, Any]]:
        counts = {"n": len(self.images), "n_blank": 2}
        return [
            {**point, "metric": metric, **self.estimate(0.9 / (1 + point["eps"])), **counts}
            for point, metric in product(self.points()[1:], ("correlation", "iou"))
        ]

    def features(self) -> list[dict[str, Any]]:
        typical = {"linear_probe_auroc": 0.5, "knn_auroc": 0.5, "silhouette": 0.0, "mmd": 0.0, "mmd_p_value": 0.5}
        typical |= {"linear_probe_auroc_successful": 0.5, "knn_auroc_successful": 0.5}
        classes = {"class_auroc_clean": 0.95, "class_auroc_adversarial": 0.8}
        classes |= {"class_silhouette_clean": 0.4, "class_silhouette_adversarial": 0.2}
        rows = []
        for space, point in product(("classifier", "bottleneck"), self.attack_points()):
            if space == "bottleneck" and point["target"] not in self.purifiers:
                continue
            shift = 0.45 * min(1.0, point["eps"] / 4) * (1 if space == "classifier" else 0.4)
            for metric, value in (typical | classes).items():
                moved = value if metric in classes else value + (-shift if metric == "mmd_p_value" else shift)
                row = {"feature_space": space, **point, "metric": metric, **self.estimate(moved)}
                row |= {"n": len(self.images), "n_groups": 21}
                rows.append(row | ({"low": np.nan, "high": np.nan} if metric == "mmd_p_value" else {}))
        return rows

    def embeddings(self) -> pd.DataFrame:
        parts = []
        curves = [
            ("classifier", "undefended", "adaptive"),
            *(("bottleneck", name, "transfer") for name in self.purifiers),
        ]
        for (space, target, threat_model), eps, method in product(curves, self.eps, ("pca", "tsne")):
            for kind, shift in (("clean", 0.0), ("adversarial", 0.4 * eps)):
                coordinates = self.random.normal(0, 1, (len(self.images), 2)) + 2 * self.labels[:, None]
                columns = {
                    "image": self.images,
                    "image_kind": kind,
                    "label": self.labels,
                    "x": coordinates[:, 0] + shift,
                    "y": coordinates[:, 1],
                }
                point = {
                    "feature_space": space,
                    "target": target,
                    "threat_model": threat_model,
                    "attack": "pgd",
                    "eps": eps,
                }
                parts.append(pd.DataFrame({**point, "method": method, **columns}))
        return pd.concat(parts, ignore_index=True)

    def resilience(self) -> list[dict[str, Any]]:
        rows = []
        for point in self.image_sets():
            mse = (point["eps"] / 255) ** 2 + (1e-3 if point["image_kind"] == "denoised" else 0)
            rows.append({**point, "metric": "mse", "value": mse, "low": 0.9 * mse, "high": 1.1 * mse})
            rows.append({**point, "metric": "psnr", **self.estimate(-10 * np.log10(mse), 0.5)})
            rows.append({**point, "metric": "ssim", **self.estimate(0.99 - 30 * mse, 0.005)})
            if point["attack"] != "clean" and point["image_kind"] == "denoised":
                rows.append({**point, "metric": "removed_energy_fraction", **self.estimate(0.6 - 0.05 * point["eps"])})
                if point["surrogate"] == "undefended":
                    rows.append({**point, "metric": "recovery_correlation", **self.estimate(-0.1)})
                    rows.append({**point, "metric": "residual_correlation", **self.estimate(-0.4)})
        return rows

    def detection_points(self) -> Iterator[tuple[dict[str, Any], float]]:
        """Points of the detectors, and the difference between their AUROC and 0.5."""
        evasions = ["detector_evasion", "joint_detector_evasion"]
        points = [*product(self.targets, ATTACKS, self.eps), *product(["undefended"], evasions, [1.0, 4.0])]
        for (at, detector), (surrogate, attack, eps) in product(enumerate(DETECTORS), points):
            if detector == "all detectors" and attack == "detector_evasion":
                continue
            separation = 0.0 if attack in evasions else 0.1 * (at + 1) * min(1.0, eps / 2)
            yield {"detector": detector, "surrogate": surrogate, "attack": attack, "eps": eps}, separation

    def detection(self) -> list[dict[str, Any]]:
        rows = []
        for point, separation in self.detection_points():
            row: dict[str, Any] = {**point, "n": len(self.images), "n_groups": 21, "threshold": 0.123}
            for name, value in (
                ("auroc", 0.5 + separation),
                ("false_positive_rate", 0.06),
                ("detection_rate", 0.06 + separation),
            ):
                row |= {name: value, f"{name}_low": value - 0.05, f"{name}_high": value + 0.05}
            successful = {"value": 0.1 + separation, "low": separation, "high": 0.2 + separation}
            row |= {
                f"detection_rate_successful{end}": successful[key]
                for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
            row |= {f"undetected_success_rate{end}": 0.8 - separation + wide for end, wide in WIDTHS.items()}
            rows.append(row | {"n_successful": 9, "n_groups_successful": 6})
        names = ("false_positive_rate", "detection_rate", "detection_rate_successful", "undetected_success_rate")
        for attack, eps in product(("pgd", "detector_evasion", "joint_detector_evasion"), (1.0, 4.0)):
            point = {"detector": "best detector", "surrogate": "undefended", "attack": attack, "eps": eps}
            # attacks on detectors run on a part of the images
            counts = {"n": len(self.images), "n_groups": 21, "n_successful": 30}
            if attack != "pgd":
                counts = {"n": 12, "n_groups": 8, "n_successful": 9}
            chosen = {"n_detectors": 5, "chosen_detector": "feature distance"}
            value = 0.6 if attack == "pgd" else 0.1
            rates = {f"{name}{end}": value + wide for name in names for end, wide in WIDTHS.items()}
            row = point | counts | chosen | rates
            if attack == "detector_evasion":
                row |= {"ignoring_n_successful": 8}
                row |= {f"ignoring_detection_rate_successful{end}": 0.5 + wide for end, wide in WIDTHS.items()}
            rows.append(row)
        return rows

    def roc(self) -> list[dict[str, Any]]:
        rates = np.linspace(0, 1, 21)
        return [
            {**point, "false_positive_rate": x, "true_positive_rate": x ** (1 / (1 + 5 * separation))}
            for point, separation in self.detection_points()
            for x in rates
        ]

    def rejection(self) -> list[dict[str, Any]]:
        rows = []
        for point, separation in self.detection_points():
            if point["surrogate"] != "undefended":
                continue
            for rate in (0.0, 0.05, 0.2, 0.5):
                rejected = min(1.0, rate * (1 + 4 * separation))
                accuracy = 0.4 + 0.4 * separation * rejected
                row = {**point, "nominal_false_positive_rate": rate, "threshold": 1 - rate}
                row |= {"n_accepted": round((1 - rejected) * len(self.images))}
                for name, value, width in (
                    ("clean_rejection_rate", rate, 0.05),
                    ("adversarial_rejection_rate", rejected, 0.05),
                    ("clean_accepted_accuracy", 0.95, 0.05),
                    ("accepted_accuracy", accuracy, 0.1),
                    ("undetected_error_rate", (1 - accuracy) * (1 - rejected), 0.05),
                ):
                    row |= {name: value, f"{name}_low": value - width, f"{name}_high": value + width}
                rows.append(row)
        return rows

    def claims(self) -> list[dict[str, Any]]:
        common = {
            "study_result": "they overlap in its pictures",
            "measure": "AUROC of the linear probe",
            "bound": 0.7,
            "above": False,
            "bounds_robustness": False,
            "has_converged": True,
            "separated_by": "",
            "reasons_without_power": [],
            "result_by_eps": {"0.25": "holds", "4": "does not hold"},
            "result_by_bound_and_eps": {"0.6": {"0.25": "holds", "1": "not significant", "4": "does not hold"}},
            "result_by_bound": {"0.6": "not significant", "0.75": "holds", "0.8": "holds"},
        }
        measured = (
            ("accuracy", "The accuracy is 93.23 %", "does not hold", (0.8, 0.75, 0.85, 0.012)),
            ("overlap", "Clean and adversarial features overlap", "holds", (0.55, 0.5, 0.6, 0.0004)),
            ("restoration", "The autoencoder | does not help", "not significant", (0.7, 0.6, 0.8, 1.0)),
            ("retraining", "Retraining helps", "not tested", (None, None, None, None)),
        )
        claims = []
        for key, statement, result, numbers in measured:
            claim = {**common, "key": key, "statement": statement, "result": result}
            claim |= dict(zip(("value", "low", "high", "p_value_holm"), numbers, strict=True))
            counts = {"n": len(self.images), "n_groups": 21, "detectable_difference": 0.1234}
            untested = {"bound": None, "result_by_bound": {}, "result_by_bound_and_eps": {}}
            claims.append(claim | (counts if numbers[0] else dict.fromkeys(counts, None) | untested))
        return claims

    def examples(self, pixels: np.ndarray) -> dict[str, Any]:
        side = np.linspace(-1, 1, 32)
        disc = np.exp(-((side[:, None] - 0.3) ** 2 + side**2) / 0.1)
        shown = pixels[self.images[: len(self.classes)], 0] / 255
        named = [name.replace("_", " ") for name in self.purifiers]
        columns = ["clean", "adversarial", "perturbation × 64"]
        columns += [f"{images}, denoised by {name}" for name in named for images in ("clean", "adversarial")]
        mapped = [0, 1, *range(4, len(columns), 2)]
        differences = ["adversarial − clean × 64"]
        for name in named:
            differences += [f"clean, denoised by {name} − clean × 4", f"denoised by {name}: adversarial − clean × 99"]
        images = np.repeat(shown[:, None], len(columns), axis=1)
        images[:, 2] = 0.5 + 0.3 * self.random.choice([-1, 1], images[:, 2].shape)
        captions = [f"predicted {self.classes[0]}"] * len(columns)
        captions[2] = "mid grey: unchanged"
        return {
            "attack": "pgd",
            "eps": 4.0,
            "rows": np.array(self.classes),
            "images": images.astype(np.float16),
            "columns": np.array(columns),
            "captions": np.array([captions] * len(self.classes)),
            "maps": np.broadcast_to(disc, (len(images), len(mapped), 32, 32)).astype(np.float16),
            "mapped": np.array(mapped),
            "differences": np.repeat(images[:, 2:3], len(differences), axis=1).astype(np.float16),
            "difference_columns": np.array(differences),
        }
