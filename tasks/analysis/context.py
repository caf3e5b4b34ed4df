"""Inputs that all analyses of images share."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from tasks.analysis.claims import analysed_attack
from tasks.analysis.detection import threshold_at
from tasks.analysis.detectors import Detector, LargestExcess, Scale, build_detectors
from tasks.analysis.feature_extractor import BatchReader, FeatureExtractor, ImageFeatures
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared
from tasks.defences.targets import load_target
from tasks.models.compute import configure_torch
from tasks.outcomes.names import ALL_DETECTORS, AS_GIVEN
from tasks.params import UNDEFENDED, Analyze, Attack, Autoencoder, Params, TrainedAutoencoder, read_defence
from tasks.records.adversarial_images import QuantizedPerturbations, read_perturbations
from tasks.records.vocabulary import CLEAN
from tasks.statistics.groups import GroupJackknife


@dataclass(frozen=True)
class AnalysisContext:
    """Networks, detectors, records, and features of the clean images.

    Shapes: N attacked images, V validation images.
    """

    workspace: Workspace
    seed: int
    """Seed of folds, permutations and t-SNE."""
    settings: Analyze
    attack_settings: Attack
    data: Prepared
    records: pd.DataFrame
    rows: np.ndarray
    """Rows of the attacked images in the prepared table, ascending, ``(N,)``."""
    extractor: FeatureExtractor
    detectors: dict[str, Detector]
    validation_scores: dict[str, np.ndarray]
    """Scores of the clean validation images by detector, which determine thresholds, float32 ``(V,)``."""
    predictions: dict[str, np.ndarray]
    """Predicted class of each clean image, by purifier (``AS_GIVEN``: undefended), int64 ``(N,)``."""
    purified: dict[str, np.ndarray]
    """Output of each purifier for the clean images, float32 ``(N, C, H, W)``."""
    clean: ImageFeatures
    """Features of the clean images."""

    @property
    def labels(self) -> np.ndarray:
        """True classes, int64 ``(N,)``."""
        return self.data.labels(self.rows)

    @property
    def groups(self) -> np.ndarray:
        """Group of each image, int ``(N,)``."""
        groups: np.ndarray = self.data.table["group"].to_numpy()[self.rows]
        return groups

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the labels."""
        return list(self.data.classes)

    @cached_property
    def jackknife(self) -> GroupJackknife:
        """Intervals of statistics of the attacked images."""
        return GroupJackknife(self.groups)

    @property
    def analysed_attack(self) -> str:
        """The attack whose images get heat maps, features and embeddings."""
        return analysed_attack(self.records)

    def scale(self, detector: str) -> Scale:
        """Scale of the scores of a detector, from clean validation images."""
        return scale_of(self.validation_scores[detector], self.settings.false_positive_rate)

    def records_at(self, target: str, threat_model: str, attack: str, eps: float) -> pd.DataFrame:
        """Records of one point, one row for each image in the order of ``rows``."""
        values = {"target": target, "threat_model": threat_model, "attack": attack, "eps": eps}
        at_point = (self.records[list(values)] == pd.Series(values)).all(axis=1)
        return self.records[at_point & self.records["image"].isin(self.rows)].sort_values("image")

    def perturbations(self, surrogate: str, attack: str, eps: float) -> QuantizedPerturbations:
        """Read the perturbations of one attack on one surrogate.

        Raises:
            FileNotFoundError: the perturbations of this eps were not saved.
            ValueError: the file is damaged.
        """
        path = self.workspace.perturbation_file(surrogate, attack, eps)
        perturbations = read_perturbations(self.workspace, self.data, path, eps)
        assert np.array_equal(perturbations.rows, self.rows)
        return perturbations


def build_context(workspace: Workspace, params: Params, data: Prepared, records: pd.DataFrame) -> AnalysisContext:
    """Load the networks, fit the detectors to clean training images, and extract features of the clean test images."""
    device = configure_torch(params.compute)
    targets = {name: load_target(workspace, name, device) for name in autoencoder_defences(workspace, params)}
    extractor = FeatureExtractor(
        classifier=load_target(workspace, UNDEFENDED, device),
        purifiers={name: target.get_submodule("purifier") for name, target in targets.items()},
        image_shape=data.pixels.shape[1:],
        batch_size=params.attack.batch_size,
    )
    training, validation = data.indices("train"), data.indices("validation")
    training_features = extractor.classifier_features(image_reader(data, training), len(training))
    detectors = build_detectors(training_features, data.labels(training))
    rate = params.analyze.false_positive_rate
    scores = extractor.detector_scores(image_reader(data, validation), len(validation), detectors)
    scales = {name: scale_of(of_detector, rate) for name, of_detector in scores.items()}
    combined = LargestExcess(detectors, scales)
    on_device = {name: extractor.to_device(of_detector) for name, of_detector in scores.items()}
    scores[ALL_DETECTORS] = combined.of_scores(on_device).cpu().numpy()
    detectors[ALL_DETECTORS] = combined

    rows = np.unique(records["image"][records["attack"] != CLEAN])
    clean = records[(records["attack"] == CLEAN) & records["image"].isin(rows)].sort_values("image")
    predictions = {
        AS_GIVEN if target == UNDEFENDED else str(target): group["prediction"].to_numpy(dtype=np.int64)
        for target, group in clean.groupby("target", sort=False)
        if target in {UNDEFENDED, *extractor.purifiers}
    }
    images = image_reader(data, rows)
    purified = extractor.purify(images, len(rows))
    return AnalysisContext(
        workspace=workspace,
        seed=params.seed,
        settings=params.analyze,
        attack_settings=params.attack,
        data=data,
        records=records,
        rows=rows,
        extractor=extractor,
        detectors=detectors,
        validation_scores=scores,
        predictions=predictions,
        purified=purified,
        clean=extractor.extract_features(images, images, purified, predictions, detectors),
    )


def scale_of(scores: np.ndarray, false_positive_rate: float) -> Scale:
    """Return the scale of a detector from its scores of clean validation images ``(V,)``."""
    return Scale(float(np.median(scores)), threshold_at(scores, false_positive_rate))


def image_reader(data: Prepared, rows: np.ndarray) -> BatchReader:
    """Return a function that reads a batch of these rows."""
    return lambda batch: data.floats(rows[batch])


def autoencoder_defences(workspace: Workspace, params: Params) -> list[str]:
    """Names of the selected defences that are autoencoders before the undefended classifier; the study's first."""
    settings = {name: read_defence(workspace.defence_settings(name)) for name in params.selected_defences}
    kinds = (Autoencoder, TrainedAutoencoder)
    return [name for kind in kinds for name, defence in settings.items() if isinstance(defence, kind)]
