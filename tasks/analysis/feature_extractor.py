"""Portraits: everything that the analyses want to know of images, one pass through the networks for all of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from tasks.analysis.detectors import Detector
from tasks.analysis.heatmaps import Heatmaps
from tasks.analysis.image_features import Portrait
from tasks.analysis.input_transforms import Seen
from tasks.analysis.intensity import histograms, radial_power
from tasks.analysis.resilience import image_quality, removed_share
from tasks.models.compute import device_of
from tasks.models.features import Features, last_feature_map
from tasks.records.vocabulary import AS_GIVEN

Images = Callable[[slice], np.ndarray]
"""A part of some images, float32 ``(n, 1, H, W)`` in [0, 1], read when it is asked for."""


@dataclass(frozen=True)
class Painter:
    """Networks that portraits are made with.

    Args:
        classifier: the undefended one; takes images ``(N, 1, H, W)``, returns logits ``(N, K)``.
        purifiers: by the name of the defence that they are part of; detectors look through the first.
        image_size: H and W.
        batch_size: images that are looked at together.
    """

    classifier: nn.Module
    purifiers: dict[str, nn.Module]
    image_size: int
    batch_size: int

    def seen(self, images: Tensor, purifier: str | None = None) -> Seen:
        """A batch of images through the classifier and a purifier (the first without a name)."""
        name = purifier or next(iter(self.purifiers))
        return Seen(images, self._features, self.purifiers[name])

    def features(self, images: Images, n: int) -> np.ndarray:
        """Penultimate features of the classifier on N images, float32 ``(N, D)``."""
        with torch.inference_mode():
            return np.concatenate([_array(self.seen(batch).features) for batch in self._batches(images, n)])

    def scores(self, images: Images, n: int, detectors: dict[str, Detector]) -> dict[str, np.ndarray]:
        """Score of N images by every detector, float32 ``(N,)`` each."""
        with torch.inference_mode():
            batches = map(self.seen, self._batches(images, n))
            parts = [[_array(detect(seen)) for detect in detectors.values()] for seen in batches]
        return dict(zip(detectors, map(np.concatenate, zip(*parts, strict=True)), strict=True))

    def purified(self, images: Images, n: int) -> dict[str, np.ndarray]:
        """What every purifier makes of N images, float32 ``(N, 1, H, W)`` each."""
        with torch.inference_mode():
            return {
                name: np.concatenate([_array(purifier(batch)) for batch in self._batches(images, n)])
                for name, purifier in self.purifiers.items()
            }

    def pictures(self, viewer: str, images: np.ndarray) -> np.ndarray:
        """A batch of images ``(N, 1, H, W)`` as one viewer sees them, float32."""
        if viewer == AS_GIVEN:
            return images
        with torch.inference_mode():
            return _array(self.purifiers[viewer](self.on_device(images)))

    def heatmaps(self, pictures: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Grad-CAM heat maps of what the classifier is given, float32 ``(N, h, w)``.

        Args:
            pictures: a batch of images as a viewer sees them, float32 ``(N, 1, H, W)``.
            classes: what is explained, int64 ``(N,)``.
        """
        return self._heatmaps(self.on_device(pictures), self.on_device(classes))

    def portray(
        self,
        images: Images,
        originals: Images,
        purified: dict[str, np.ndarray],
        explained: dict[str, np.ndarray],
        detectors: dict[str, Detector],
    ) -> Portrait:
        """Portrait of N images by the undefended classifier, some purifiers and all detectors.

        Args:
            images: to look at.
            originals: the same images as they were before an attack.
            purified: by the purifiers that shall look, what they make of the originals, float32 ``(N, 1, H, W)``.
            explained: viewer -> the class whose heat map is wanted of each image, int64 ``(N,)``; of the viewers in it.
            detectors: by name.
        """
        n = len(next(iter(purified.values())))
        parts = []
        for part in self.parts(n):
            of_purifiers, of_viewers = ({name: of[part] for name, of in each.items()} for each in (purified, explained))
            parts.append(self._portray(images(part), originals(part), of_purifiers, of_viewers, detectors))
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _portray(
        self,
        images: np.ndarray,
        originals: np.ndarray,
        purified: dict[str, np.ndarray],
        explained: dict[str, np.ndarray],
        detectors: dict[str, Detector],
    ) -> Portrait:
        given = self.on_device(images)
        portrait: Portrait = {}
        pictures, perturbations = {AS_GIVEN: images}, {AS_GIVEN: images - originals}
        with torch.inference_mode():
            seen_by = {name: self.seen(given, name) for name in purified}
            for name, seen in seen_by.items():
                pictures[name] = _array(seen.purified)
                perturbations[name] = pictures[name] - purified[name]
                portrait[name, "removed"] = removed_share(perturbations[AS_GIVEN], perturbations[name])
                portrait[name, "bottleneck"] = _array(seen.bottleneck)
                portrait[name, "features"] = _array(seen.purified_features)
            seen = seen_by.get(next(iter(self.purifiers))) or self.seen(given)
            portrait[AS_GIVEN, "features"] = _array(seen.features)
            for name, detect in detectors.items():
                portrait[name, "score"] = _array(detect(seen))
        for viewer, shown in pictures.items():
            portrait[viewer, "histogram"] = histograms(shown)
            portrait[viewer, "power"] = radial_power(perturbations[viewer])
            for quantity, values in image_quality(shown, originals).items():
                portrait[viewer, quantity] = values
        for viewer, classes in explained.items():
            portrait[viewer, "map"] = self.heatmaps(pictures[viewer], classes)
        return portrait

    @cached_property
    def _features(self) -> Features:
        return Features(self.classifier)

    @cached_property
    def _heatmaps(self) -> Heatmaps:
        return Heatmaps(self.classifier, last_feature_map(self.classifier, self.image_size))

    def parts(self, n: int) -> list[slice]:
        """N images cut into batches."""
        return [slice(start, min(start + self.batch_size, n)) for start in range(0, n, self.batch_size)]

    def _batches(self, images: Images, n: int) -> Iterator[Tensor]:
        for part in self.parts(n):
            yield self.on_device(images(part))

    def on_device(self, array: np.ndarray) -> Tensor:
        """An array where the networks are."""
        return torch.from_numpy(array).to(device_of(self.classifier))


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.cpu().numpy()
    return array
