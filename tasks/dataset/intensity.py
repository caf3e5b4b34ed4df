"""The map from the values of files to [0, 1], which models and attacks receive."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tasks.dataset.readers import ImageError, StoredImage

MAX_BITS = 16
"""Whole numbers with more bits have no fixed range in practice: no scanner fills 32 bits."""
N_SAMPLED = 4096
"""Values of each image, evenly spaced, from which percentiles are computed."""


@dataclass(frozen=True)
class IntensityRange:
    """The map from values to [0, 1]; values outside the range are clipped to it."""

    kind: Literal["full_range", "window", "percentiles", "file_window"] = "full_range"
    bits: int = 0
    """Significant bits for ``full_range``, if the files do not declare them; 0: as the files declare."""
    low: float = 0.0
    """Value that becomes 0; of ``window`` and ``percentiles``."""
    high: float = 0.0
    """Value that becomes 1; of ``window`` and ``percentiles``."""
    unit: str = "grey level"
    """Unit of the values: ``HU`` or ``grey level``."""

    @property
    def per_eps(self) -> float | None:
        """Size of 1/255 of the value range in the unit; None if the files have different ranges."""
        return (self.high - self.low) / 255 if self.kind in ("window", "percentiles") else None


FULL_RANGE = IntensityRange()
"""The range of the significant bits of each file, 0 to 255 for 8 bits."""


def to_levels(stored: StoredImage, intensity: IntensityRange, path: Path) -> np.ndarray:
    """Map the values of a file to 8-bit levels, uint8 of the same shape: 255 times the number in [0, 1], rounded.

    Args:
        stored: image with its own values.
        intensity: the map.
        path: of the image, for messages.

    Raises:
        ImageError: the values have no fixed range, or more bits than the parameter says; or the file has no window.
    """
    values, kind = stored.values, intensity.kind
    is_8_bit = values.dtype == np.uint8 and stored.bits == 8 and not stored.is_inverted
    if kind == "full_range" and is_8_bit and intensity.bits in (0, 8):
        return values
    if kind == "file_window":
        if stored.displayed is None:
            raise ImageError(
                f"{path}: the file has no window and no VOI table. prepare.intensity.kind file_window requires one in "
                "every file. Set prepare.intensity.kind to window or percentiles."
            )
        fractions = stored.displayed
    else:
        low, high = _full_range(stored, intensity, path) if kind == "full_range" else (intensity.low, intensity.high)
        # float64 is exact for all values of up to 32 bits
        fractions = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    if stored.is_inverted:
        fractions = 1 - fractions
    return np.asarray(np.rint(255 * fractions), dtype=np.uint8)


def percentile_range(
    paths: Iterable[Path], read: Callable[[Path], StoredImage], percentiles: tuple[float, float], unit: str
) -> IntensityRange:
    """The range between two percentiles of the values of all images, each image with equal weight.

    Args:
        paths: of the images; images that cannot be read are left out.
        read: returns an image with its own values.
        percentiles: lower and upper one, in [0, 100].
        unit: of the values.

    Raises:
        ValueError: both percentiles are the same value.
    """
    samples: list[np.ndarray] = []
    for path in paths:
        try:
            values = read(path).values.ravel()
        except ImageError:
            continue
        samples.append(values[np.linspace(0, values.size - 1, N_SAMPLED).astype(np.int64)].astype(np.float64))
    low, high = (float(value) for value in np.percentile(np.array(samples or [np.array([0.0, 1.0])]), percentiles))
    if low == high:
        raise ValueError(
            f"prepare.intensity.percentiles: {list(percentiles)} are both the value {low:g}. They must differ. Use "
            "percentiles that are further apart, or a window."
        )
    return IntensityRange("percentiles", low=low, high=high, unit=unit)


def _full_range(stored: StoredImage, intensity: IntensityRange, path: Path) -> tuple[float, float]:
    if stored.value_range is None or stored.bits is None or stored.bits > MAX_BITS:
        raise ImageError(
            f"{path}: mode {stored.mode} has no fixed range of values. prepare.intensity.kind full_range requires "
            f"whole numbers with at most {MAX_BITS} bits. Set prepare.intensity.kind to window or percentiles."
        )
    low, high = stored.value_range
    if not intensity.bits or intensity.bits == stored.bits:
        return low, high
    # slope of a rescaling, 1 without
    slope = (high - low) / (2.0**stored.bits - 1)
    high = low + slope * (2.0**intensity.bits - 1)
    if stored.values.dtype.kind == "i" or low > stored.values.min() or stored.values.max() > high:
        raise ImageError(
            f"{path}: values from {stored.values.min():g} to {stored.values.max():g} do not fit into "
            f"prepare.intensity.bits {intensity.bits} without a sign: {low:g} to {high:g}. Set more bits, or set "
            "prepare.intensity.kind to window or percentiles."
        )
    return low, high
