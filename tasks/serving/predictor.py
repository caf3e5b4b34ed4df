"""What a target says of images that nobody has prepared: checked, made square, classified, seen by its detector."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import nn

from tasks.analysis.detectors import change_of_probabilities
from tasks.dataset.images import ImageError, as_square, read_grey
from tasks.dataset.prepared import as_floats
from tasks.defences.preprocessing import Noise
from tasks.defences.purified import Purified
from tasks.models.compute import device_of
from tasks.records.scores import entropy
from tasks.serving.bundle import Bundle, load_bundle, read_bundle

BATCH = 32
"""Images that are looked at together, at most."""
STRETCHED = 1.1
"""Times the greatest aspect ratio of the training images, or the least, from which an image is unlike them."""

_drawing = Lock()
"""Held by whom a random target answers: its draws begin anew for every image."""


@dataclass(frozen=True)
class Prediction:
    """What a target says of one image."""

    name: str
    """Of the class."""
    probabilities: dict[str, float]
    """Class to predicted probability; they add up to 1."""
    entropy: float
    """Of the probabilities, in nats; 0 where the target is sure, ln K where it knows nothing."""
    detector_score: float | None
    """Higher where the image looks more like an attack; None where the target has no detector."""
    warnings: list[str]
    """Why the answer may not be worth much."""


class Predictor:
    """A bundle's target, ready to be asked. May be asked by several threads.

    Args:
        bundle: what is known of the target.
        target: as :func:`tasks.serving.bundle.load_bundle` gives it.
    """

    def __init__(self, bundle: Bundle, target: nn.Module) -> None:
        self.bundle = bundle
        self._target = target

    @classmethod
    def load(cls, folder: Path) -> "Predictor":
        """The predictor of a bundle.

        Raises:
            FileNotFoundError: the folder is no bundle, or a network is missing.
        """
        return cls(read_bundle(folder), load_bundle(folder))

    def predict_files(self, files: Sequence[bytes]) -> list[Prediction]:
        """Predictions of image files: PNG, JPEG, BMP or TIFF, read and made square as the step ``prepare`` does.

        Args:
            files: their contents.

        Raises:
            ImageError: one can't be read; the message names its number, from 0, and the reason.
            ValueError: none are given.
            RuntimeError: the target gives no finite numbers.
        """
        if not files:
            raise ValueError("no images: send at least one")
        squares, notes = [], []
        for number, content in enumerate(files):
            square, size = self._read(content, f"image {number}")
            squares.append(square)
            notes.append(self._unlike_training(*size))
        return self._predict(as_floats(np.stack(squares)[:, None]), notes)

    def predict_arrays(self, images: np.ndarray) -> list[Prediction]:
        """Predictions of images that are square already.

        Args:
            images: grey levels, ``(H, W)``, ``(N, H, W)`` or ``(N, 1, H, W)`` of the target's size; uint8, or floating
                point in [0, 1].

        Raises:
            ValueError: another shape or size, values outside the range or not finite, no images.
            RuntimeError: the target gives no finite numbers.
        """
        side = self.bundle.image_size
        given = np.asarray(images)
        stacked = given[None] if given.ndim == 2 else given[:, 0] if given.ndim == 4 and given.shape[1] == 1 else given
        if stacked.ndim != 3 or stacked.shape[1:] != (side, side):
            raise ValueError(
                f"pixels of shape {given.shape}: must be ({side}, {side}), (N, {side}, {side}) or "
                f"(N, 1, {side}, {side}); send other sizes as image files, which are stretched"
            )
        if not len(stacked):
            raise ValueError("no images: send at least one")
        if stacked.dtype == np.uint8:
            floats = as_floats(stacked)
        elif np.issubdtype(stacked.dtype, np.floating):
            if not np.isfinite(stacked).all():
                raise ValueError("pixels hold NaN or infinite values")
            low, high = self.bundle.value_range
            if stacked.min() < low or stacked.max() > high:
                raise ValueError(
                    f"pixels lie in [{stacked.min():g}, {stacked.max():g}]: floating point must be in [{low:g}, "
                    f"{high:g}]; divide 8-bit grey levels by 255"
                )
            floats = stacked.astype(np.float32)
        else:
            raise ValueError(f"pixels of type {stacked.dtype}: must be uint8, or floating point in [0, 1]")
        return self._predict(floats[:, None], [[] for _ in floats])

    def _read(self, content: bytes, name: str) -> tuple[np.ndarray, tuple[int, int]]:
        """An image as uint8 ``(side, side)``, and the width and height that it had."""
        with tempfile.TemporaryDirectory() as folder:
            # the one way in which files are read takes files
            path = Path(folder) / "image"
            path.write_bytes(content)
            try:
                grey = read_grey(path, self.bundle.max_megapixels)
            except ImageError as error:
                raise ImageError(str(error).replace(str(path), name)) from None
        height, width = grey.shape
        return as_square(grey, self.bundle.image_size), (width, height)

    def _unlike_training(self, width: int, height: int) -> list[str]:
        side, (least, greatest) = self.bundle.image_size, self.bundle.aspect_ratios
        notes = []
        if 2 * min(width, height) < side:
            notes.append(f"the image is small: {width} x {height} pixels are enlarged to {side} x {side}")
        ratio = width / height
        if not least / STRETCHED <= ratio <= greatest * STRETCHED:
            notes.append(
                f"width / height is {ratio:.2f}, and was {least:.2f} to {greatest:.2f} in training: the image is "
                "distorted otherwise than these were"
            )
        return notes

    def _predict(self, images: np.ndarray, notes: list[list[str]]) -> list[Prediction]:
        bundle = self.bundle
        torch.set_num_threads(bundle.threads)
        logits, scores = look_at_all(self._target, images)
        if not np.isfinite(logits).all() or (scores is not None and not np.isfinite(scores).all()):
            raise RuntimeError(f"{bundle.target} gives no finite numbers: its weights are broken, don't use it")
        nats = entropy(logits)
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        predictions = []
        for i, of_image in enumerate(notes):
            score = None if scores is None else float(scores[i])
            warnings = list(of_image)
            if bundle.detector is None:
                warnings.append(f"{bundle.target} has no detector: nothing tells whether the image was attacked")
            elif score is not None and score > bundle.detector.threshold:
                warnings.append(
                    f"{bundle.detector.name} {score:.3g} is above {bundle.detector.threshold:.3g}, as at most "
                    f"{100 * bundle.detector.false_positive_rate:g} % of clean images are: attacked, or unlike them"
                )
            if bundle.is_phantom:
                warnings.append("the model was trained on drawn phantoms: its answer about a scan means nothing")
            predictions.append(
                Prediction(
                    name=bundle.classes[int(logits[i].argmax())],
                    probabilities=dict(zip(bundle.classes, probabilities[i].tolist(), strict=True)),
                    entropy=float(nats[i]),
                    detector_score=score,
                    warnings=warnings,
                )
            )
        return predictions


def look_at_all(target: nn.Module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits of N images, and what the detector makes of them.

    A target that draws at random looks at one image after the other, its draws begun anew for each: the same image gets
    the same answer whatever stands beside it.

    Args:
        target: in evaluation mode, on any device.
        images: float32 ``(N, 1, H, W)`` in [0, 1].

    Returns:
        float32 ``(N, K)``, and the scores, float32 ``(N,)``; None without a purifier.
    """
    draws = [module for module in target.modules() if isinstance(module, Noise)]
    size = 1 if draws else BATCH
    parts = []
    for start in range(0, len(images), size):
        batch = torch.from_numpy(images[start : start + size]).to(device_of(target))
        if not draws:
            parts.append(look(target, batch))
            continue
        with _drawing:
            for module in draws:
                module.reseed([0])
            parts.append(look(target, batch))
    scores = [of_part for _, of_part in parts if of_part is not None]
    return np.concatenate([logits for logits, _ in parts]), np.concatenate(scores) if scores else None


def look(target: nn.Module, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits of a batch, and by how much purifying changes the predicted probabilities.

    That is what the classifier behind the purifier makes of the images, against what it makes of the purified ones
    (:func:`tasks.analysis.detectors.prediction_change`).

    Args:
        target: in evaluation mode.
        images: float32 ``(N, 1, H, W)`` in [0, 1], where the target is.

    Returns:
        float32 ``(N, K)``, and float32 ``(N,)``; None without a purifier.
    """
    with torch.inference_mode():
        logits = target(images)
        if not isinstance(target, Purified):
            return logits.cpu().numpy(), None
        change = change_of_probabilities(target.classifier(images), logits)
        return logits.cpu().numpy(), change.cpu().numpy()
