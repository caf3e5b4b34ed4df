"""Extract all quantities that the analyses need of a set of images, in one pass through the networks."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from tasks.analysis.activations import Activations
from tasks.analysis.detectors import Detector
from tasks.analysis.heatmaps import Heatmaps
from tasks.analysis.intensity import histograms, radial_power
from tasks.analysis.resilience import image_quality, removed_energy_fraction
from tasks.models.compute import device_of
from tasks.models.features import LogitsAndFeatures, last_feature_map_layer
from tasks.outcomes.names import AS_GIVEN

BatchReader = Callable[[slice], np.ndarray]
"""Returns the images of a batch, float32 ``(n, C, H, W)`` in [0, 1]; images are read when they are needed."""

ImageFeatures = dict[tuple[str, str], np.ndarray]
"""(source, quantity) -> an array with one row for each image.

The source is the name of a purifier or of a detector; ``AS_GIVEN`` stands for images without a purifier. Quantities of
``AS_GIVEN`` and of each purifier, about the images after the purifier:

- ``histogram``: of the grey levels, int32 ``(N, B)``;
- ``power``: spectrum of the perturbation, float64 ``(N, F)``;
- ``mse``, ``ssim``: with respect to the original image, float64 ``(N,)``;
- ``features``: penultimate features of the classifier, float32 ``(N, D)``;
- ``heatmap``: Grad-CAM, float32 ``(N, h, w)``, if requested.

Purifiers also have ``removed_energy_fraction``, the fraction of the perturbation's energy that they remove, float64
``(N,)``, and ``bottleneck``, the output of their encoder, float32 ``(N, B)``. Detectors have ``score``, float32
``(N,)``, only.
"""


@dataclass(frozen=True)
class FeatureExtractor:
    """The undefended classifier and the purifiers, with methods that run them on many images in batches.

    Args:
        classifier: the undefended classifier; takes images ``(N, C, H, W)``, returns logits ``(N, K)``.
        purifiers: by the name of their defence; detectors use the first.
        image_shape: ``(C, H, W)``.
        batch_size: number of images that the networks process together.
    """

    classifier: nn.Module
    purifiers: dict[str, nn.Module]
    image_shape: tuple[int, ...]
    batch_size: int

    def activations(self, images: Tensor, purifier: str | None = None) -> Activations:
        """Activations of a batch of images ``(N, C, H, W)`` for one purifier, by default the first."""
        name = purifier or next(iter(self.purifiers))
        return Activations(images, self._features, self.purifiers[name])

    def classifier_features(self, images: BatchReader, n: int) -> np.ndarray:
        """Penultimate features of N images, float32 ``(N, D)``."""
        with torch.inference_mode():
            return np.concatenate([_to_numpy(self.activations(batch).features) for batch in self._read(images, n)])

    def detector_scores(self, images: BatchReader, n: int, detectors: Mapping[str, Detector]) -> dict[str, np.ndarray]:
        """Scores of N images by detector, float32 ``(N,)`` each."""
        with torch.inference_mode():
            activations = map(self.activations, self._read(images, n))
            parts = [[_to_numpy(detector(batch)) for detector in detectors.values()] for batch in activations]
        return dict(zip(detectors, map(np.concatenate, zip(*parts, strict=True)), strict=True))

    def purify(self, images: BatchReader, n: int) -> dict[str, np.ndarray]:
        """Output of every purifier for N images, float32 ``(N, C, H, W)`` each."""
        with torch.inference_mode():
            return {
                name: np.concatenate([_to_numpy(purifier(batch)) for batch in self._read(images, n)])
                for name, purifier in self.purifiers.items()
            }

    def purify_batch(self, purifier: str, images: np.ndarray) -> np.ndarray:
        """Output of one purifier for a batch of images ``(N, C, H, W)``, float32; the images for ``AS_GIVEN``."""
        if purifier == AS_GIVEN:
            return images
        with torch.inference_mode():
            return _to_numpy(self.purifiers[purifier](self.to_device(images)))

    def heatmaps(self, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Grad-CAM heat maps of a batch of inputs of the classifier, float32 ``(N, h, w)``.

        Args:
            images: inputs of the classifier, float32 ``(N, C, H, W)``.
            classes: the class to explain for each image, int64 ``(N,)``.
        """
        return self._heatmaps(self.to_device(images), self.to_device(classes))

    def extract_features(
        self,
        images: BatchReader,
        originals: BatchReader,
        purified: Mapping[str, np.ndarray],
        explained: Mapping[str, np.ndarray],
        detectors: Mapping[str, Detector],
    ) -> ImageFeatures:
        """Extract the features of N images.

        Args:
            images: clean or adversarial images.
            originals: the same images without a perturbation.
            purified: the purifiers to use, and their output for the originals, float32 ``(N, C, H, W)`` each.
            explained: the sources (purifiers, ``AS_GIVEN``) that get heat maps, and the class to explain for each
                image, int64 ``(N,)`` each.
            detectors: by name.
        """
        n = len(next(iter(purified.values())))
        parts = [
            self._extract_batch(
                images(batch),
                originals(batch),
                {name: outputs[batch] for name, outputs in purified.items()},
                {name: classes[batch] for name, classes in explained.items()},
                detectors,
            )
            for batch in self.batches(n)
        ]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _extract_batch(
        self,
        images: np.ndarray,
        originals: np.ndarray,
        purified: Mapping[str, np.ndarray],
        explained: Mapping[str, np.ndarray],
        detectors: Mapping[str, Detector],
    ) -> ImageFeatures:
        batch = self.to_device(images)
        features: ImageFeatures = {}
        inputs, perturbations = {AS_GIVEN: images}, {AS_GIVEN: images - originals}
        with torch.inference_mode():
            by_purifier = {name: self.activations(batch, name) for name in purified}
            for name, activations in by_purifier.items():
                inputs[name] = _to_numpy(activations.purified)
                perturbations[name] = inputs[name] - purified[name]
                features[name, "removed_energy_fraction"] = removed_energy_fraction(
                    perturbations[AS_GIVEN], perturbations[name]
                )
                features[name, "bottleneck"] = _to_numpy(activations.bottleneck)
                features[name, "features"] = _to_numpy(activations.purified_features)
            # detectors use the first purifier, whichever purifiers are requested
            activations = by_purifier.get(next(iter(self.purifiers))) or self.activations(batch)
            features[AS_GIVEN, "features"] = _to_numpy(activations.features)
            for name, detector in detectors.items():
                features[name, "score"] = _to_numpy(detector(activations))
        for name, shown in inputs.items():
            features[name, "histogram"] = histograms(shown)
            features[name, "power"] = radial_power(perturbations[name])
            for metric, values in image_quality(shown, originals).items():
                features[name, metric] = values
        for name, classes in explained.items():
            features[name, "heatmap"] = self.heatmaps(inputs[name], classes)
        return features

    @cached_property
    def _features(self) -> LogitsAndFeatures:
        return LogitsAndFeatures(self.classifier)

    @cached_property
    def _heatmaps(self) -> Heatmaps:
        return Heatmaps(self.classifier, last_feature_map_layer(self.classifier, self.image_shape))

    def batches(self, n: int) -> list[slice]:
        """Split N images into batches."""
        return [slice(start, min(start + self.batch_size, n)) for start in range(0, n, self.batch_size)]

    def _read(self, images: BatchReader, n: int) -> Iterator[Tensor]:
        for batch in self.batches(n):
            yield self.to_device(images(batch))

    def to_device(self, array: np.ndarray) -> Tensor:
        """Copy an array to the device of the classifier."""
        return torch.from_numpy(array).to(device_of(self.classifier))


def _to_numpy(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.cpu().numpy()
    return array
