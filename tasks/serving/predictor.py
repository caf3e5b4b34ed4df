"""Predictions of a bundle's target for raw images: input checks, preprocessing, classification, warnings."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from tasks.dataset.images import ImageError, Reading, read_image, resize
from tasks.dataset.intensity import IntensityRange
from tasks.dataset.prepared import as_floats
from tasks.dataset.readers import FORMATS
from tasks.dataset.readers.stored import UnknownFormatError
from tasks.params import Resize
from tasks.records.scores import entropy
from tasks.serving.bundle import Bundle, load_bundle, read_bundle
from tasks.serving.inference import BATCH_SIZE, predict

MAX_IMAGES = 512
"""Maximum number of images of one request: a request of a few bytes for each image can need much memory."""
SERVED_FORMATS = tuple(name for name in FORMATS if name != "NIfTI")
"""Formats of the files in a request; each is recognised by its content."""
NO_IMAGES = "the request has no images. Send at least one image."
ASPECT_TOLERANCE = 1.1
"""Factor by which an aspect ratio may leave the range of the training images without a warning."""
LEVEL_TOLERANCE = 10
"""Grey levels of 255 by which the mean of an image may leave the range of the training images without a warning."""
RESIZED: dict[Resize, str] = {"stretch": "distorted", "pad": "padded more", "crop": "cropped more"}
"""Consequence of an unusual aspect ratio, by ``prepare.resize``."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image."""

    name: str
    """Predicted class."""
    probabilities: dict[str, float]
    """Probability of each class; the sum is 1."""
    entropy: float
    """Entropy of the probabilities in nats, from 0 to ln K."""
    detector_score: float | None
    """Higher for adversarial images; None if the target has no detector."""
    warnings: list[str]
    """Reasons why the prediction may be wrong."""


def check_number(n_images: int) -> None:
    """Check the number of images of a request.

    Raises:
        ValueError: there are no images, or more than ``MAX_IMAGES``.
    """
    if not n_images:
        raise ValueError(NO_IMAGES)
    if n_images > MAX_IMAGES:
        raise ValueError(f"the request has {n_images} images. At most {MAX_IMAGES} are allowed. Send several requests.")


class Predictor:
    """Predicts images with the target of a bundle. Several threads may use it.

    Args:
        bundle: content of ``bundle.json``.
        target: network from :func:`tasks.serving.bundle.load_bundle`.
    """

    def __init__(self, bundle: Bundle, target: nn.Module) -> None:
        self.bundle = bundle
        intensity = IntensityRange(**(bundle.intensity or {}))
        self._reading = Reading(intensity, channels=bundle.channels, resize=bundle.resize, crop_ratio=bundle.crop_ratio)
        self._target = target

    @classmethod
    def load(cls, folder: Path) -> "Predictor":
        """Load a bundle.

        Raises:
            FileNotFoundError: the folder is no bundle, or a network is missing.
        """
        return cls(read_bundle(folder), load_bundle(folder))

    def predict_files(self, files: Sequence[bytes]) -> list[Prediction]:
        """Predict image files: PNG, JPEG, BMP, TIFF or DICOM, read and resized as in the step ``prepare``.

        Args:
            files: contents of the files.

        Raises:
            ImageError: a file cannot be read. The message has its number, from 0, and the reason.
            ValueError: there are no files, or too many.
            RuntimeError: the target returns NaN or infinity.
        """
        check_number(len(files))
        predictions = []
        # one batch in memory at a time
        for start in range(0, len(files), BATCH_SIZE):
            images, warnings = [], []
            for number, content in enumerate(files[start : start + BATCH_SIZE], start):
                image, size = self._read(content, f"image {number}")
                images.append(image)
                warnings.append(self._size_warnings(*size) + self._level_warnings(image))
            predictions += self._predict(as_floats(np.stack(images)), warnings)
        return predictions

    def predict_arrays(self, images: np.ndarray) -> list[Prediction]:
        """Predict images of the target's size and channels.

        Args:
            images: ``(N, C, H, W)`` or ``(C, H, W)``; for grey levels also ``(H, W)`` and ``(N, H, W)``. uint8, or
                floating point in [0, 1].

        Raises:
            ValueError: wrong shape, type or value, no images, or too many.
            RuntimeError: the target returns NaN or infinity.
        """
        shape = self.bundle.channels, *self.bundle.image_size
        given = np.asarray(images)
        # of (H, W); of (N, H, W) for grey, (C, H, W) for colours
        missing: dict[int, tuple[int, ...]] = {2: (0, 1), 3: (1 if self.bundle.channels == 1 else 0,)}
        stacked = np.expand_dims(given, missing.get(given.ndim, ()))
        if stacked.ndim != 4 or stacked.shape[1:] != shape:
            (channels, height, width) = shape
            grey = f"({height}, {width}), (N, {height}, {width}) or " if channels == 1 else ""
            raise ValueError(
                f"pixels have the shape {given.shape}. It must be {grey}(N, {channels}, {height}, {width}). Send "
                "images of another size as files; they are resized."
            )
        check_number(len(stacked))
        if stacked.dtype == np.uint8:
            floats = as_floats(stacked)
        elif np.issubdtype(stacked.dtype, np.floating):
            if not np.isfinite(stacked).all():
                raise ValueError("pixels contain NaN or infinity. All values must be finite.")
            low, high = self.bundle.value_range
            if stacked.min() < low or stacked.max() > high:
                raise ValueError(
                    f"pixels are in [{stacked.min():g}, {stacked.max():g}]. Floating point must be in [{low:g}, "
                    f"{high:g}]. Divide 8-bit grey levels by 255."
                )
            floats = stacked.astype(np.float32)
        else:
            raise ValueError(f"pixels have the type {stacked.dtype}. It must be uint8, or floating point in [0, 1].")
        return self._predict(floats, [[] for _ in floats])

    def _read(self, content: bytes, name: str) -> tuple[np.ndarray, tuple[int, int]]:
        """Return an image as uint8 ``(C, H, W)``, and its original width and height."""
        with tempfile.TemporaryDirectory() as folder:
            # read_image takes a path
            path = Path(folder) / "image"
            path.write_bytes(content)
            try:
                levels = read_image(path, self.bundle.max_megapixels, self._reading).pixels
            except UnknownFormatError:
                raise ImageError(
                    f"{name}: the content is none of {', '.join(SERVED_FORMATS)}. A request has no file names, by "
                    "which the pipeline recognises NIfTI, and DICOM without the letters DICM after 128 bytes. Send "
                    "the image in one of the formats."
                ) from None
            except ImageError as error:
                raise ImageError(str(error).replace(str(path), name)) from None
        height, width = levels.shape[:2]
        return resize(levels, self.bundle.image_size, self.bundle.resize, self.bundle.crop_ratio), (width, height)

    def _size_warnings(self, width: int, height: int) -> list[str]:
        (rows, columns), (least, greatest) = self.bundle.image_size, self.bundle.aspect_ratios
        warnings = []
        if 2 * min(width, height) < min(rows, columns):
            warnings.append(f"small image: {width} x {height} pixels are enlarged to {columns} x {rows}")
        ratio = width / height
        if not least / ASPECT_TOLERANCE <= ratio <= greatest * ASPECT_TOLERANCE:
            warnings.append(
                f"unusual aspect ratio: width / height is {ratio:.2f}, and {least:.2f} to {greatest:.2f} in the "
                f"training images, so the resized image is {RESIZED[self.bundle.resize]}"
            )
        return warnings

    def _level_warnings(self, image: np.ndarray) -> list[str]:
        """Warn of an image of another unit or bit depth, such as a PNG in place of Hounsfield units."""
        least, greatest = self.bundle.mean_levels or (0.0, 255.0)
        mean = float(image.mean())
        if least - LEVEL_TOLERANCE <= mean <= greatest + LEVEL_TOLERANCE:
            return []
        return [
            f"unusual grey levels: the mean is {mean:.0f} of 255, and {least:.0f} to {greatest:.0f} in the training "
            "images, so the file may have another unit or bit depth"
        ]

    def _predict(self, images: np.ndarray, warnings: list[list[str]]) -> list[Prediction]:
        bundle = self.bundle
        torch.set_num_threads(bundle.threads)
        logits, scores = predict(self._target, images)
        if not np.isfinite(logits).all() or (scores is not None and not np.isfinite(scores).all()):
            raise RuntimeError(f"{bundle.target} returns NaN or infinity: its weights are damaged. Do not use it.")
        nats = entropy(logits)
        probabilities = softmax(logits.astype(np.float64), axis=1)
        predictions = []
        for i, size_warnings in enumerate(warnings):
            score = None if scores is None else float(scores[i])
            predictions.append(
                Prediction(
                    name=bundle.classes[int(logits[i].argmax())],
                    probabilities=dict(zip(bundle.classes, probabilities[i].tolist(), strict=True)),
                    entropy=float(nats[i]),
                    detector_score=score,
                    warnings=[*size_warnings, *self._target_warnings(score)],
                )
            )
        return predictions

    def _target_warnings(self, score: float | None) -> list[str]:
        warnings, detector = [], self.bundle.detector
        if detector is None:
            warnings.append(f"no detector: {self.bundle.target} cannot detect adversarial images")
        elif score is not None and score > detector.threshold:
            warnings.append(
                f"possible adversarial image: {detector.name} {score:.3g} is above {detector.threshold:.3g}, a "
                f"threshold that at most {100 * detector.false_positive_rate:g} % of clean validation images exceed"
            )
        if self.bundle.is_phantom:
            warnings.append("trained on phantoms: a prediction for a scan has no meaning")
        return warnings
