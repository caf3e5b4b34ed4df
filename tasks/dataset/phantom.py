"""Phantoms: computer-drawn axial slices that resemble chest CT, with anatomy, lesions, noise and windows.

A phantom is not a scan of a patient and allows no conclusion about a disease. With phantoms, the complete pipeline runs
on any machine without a download. Units and axes: :mod:`tasks.dataset.anatomy`.

The positive class has ground-glass opacities, some with consolidations. The first other class has no disease. Each
further class has another disease of :data:`OTHER_DISEASES`. All classes have the same distractors: crowded vessels,
small nodules, haze at the back as from gravity, and motion blur.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from tasks.dataset.anatomy import BLOOD, MUSCLE, SIDES, Anatomy, soft_mask

MILD_FRACTION = 0.15
"""Fraction of the positive patients with few, small and faint lesions. A higher value makes the data set harder."""
GROUND_GLASS_HU = (220.0, 500.0)
"""Minimum and maximum of ground-glass opacities, in HU above the lung. Lower values make the data set harder."""

MAX_LESION_EXTENT = 1.5
"""Maximum distance of the irregular margin of a lesion from its centre, in radii."""


@dataclass(frozen=True)
class Disease:
    """Disease of the patients of one class."""

    name: str
    """``none``, ``pneumonia``, ``nodules``, ``effusion`` or ``emphysema``."""
    sides: tuple[int, ...] = SIDES
    """Lungs that the disease can affect."""


@dataclass(frozen=True)
class Lesion:
    """An ellipsoid with an irregular margin."""

    centre: tuple[float, float, float]
    """x, y, z."""
    radius: tuple[float, float, float]
    """Radii in x, y and z."""
    hu: float
    """HU that are added to the lung; negative for emphysema."""
    margin_irregularity: float
    """0 (smooth margin) to 1."""


OTHER_DISEASES = tuple(
    Disease(name, sides) for sides in (SIDES, (-1,), (1,)) for name in ("nodules", "effusion", "emphysema")
)
"""Diseases of the other classes, after the class without a disease."""


def write_phantoms(
    folder: Path, classes: Sequence[str], positive_class: str, n_patients: int, n_slices: int, seed: int
) -> None:
    """Draw ``<folder>/<class>/patient_007_slice_03.png``, 8-bit grey.

    Args:
        folder: of the images.
        classes: names of all classes.
        positive_class: class of half of the patients; the other classes share the other half equally.
        n_patients: over all classes.
        n_slices: of each patient.
        seed: of all random numbers.

    Raises:
        ValueError: there are too few patients for the classes, or more classes than diseases.
    """
    others = [name for name in classes if name != positive_class]
    other_diseases = (Disease("none"), *OTHER_DISEASES)
    if len(others) > len(other_diseases):
        raise ValueError(
            f"acquire.classes has too many classes for phantoms: {len(classes)}. At most {1 + len(other_diseases)} are "
            "allowed. Use acquire.source folder for more classes."
        )
    n_positive = n_patients // 2
    if n_patients - n_positive < len(others):
        raise ValueError(
            f"acquire.phantom.n_patients is too small for {len(classes)} classes: {n_patients}. At least "
            f"{2 * len(others)} patients are needed: half of them are positive, and every other class needs one. "
            "Raise acquire.phantom.n_patients."
        )
    diseases = {positive_class: Disease("pneumonia"), **dict(zip(others, other_diseases, strict=False))}
    patients = [positive_class] * n_positive + [others[i % len(others)] for i in range(n_patients - n_positive)]
    order = np.random.default_rng(seed).permutation(n_patients)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(patients[i] for i in order):
        slices = draw_patient(diseases[name], n_slices, np.random.default_rng([seed, number]))
        for index, pixels in enumerate(slices):
            file = folder / name / f"patient_{number:03d}_slice_{index:02d}.png"
            Image.fromarray(pixels).save(file, compress_level=1)


def draw_patient(disease: Disease, n_slices: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Adjacent slices of one patient, from the apex of the lungs down: uint8 ``(H, W)`` each, all of the same size."""
    width = int(rng.integers(180, 381))
    height = int(width * rng.uniform(0.68, 0.86))
    spacing = min(rng.uniform(0.1, 0.15), 1.1 / n_slices)
    first_z = rng.uniform(0.2, max(1.35 - spacing * n_slices, 0.21))
    z_values = first_z + spacing * np.arange(n_slices)

    anatomy = Anatomy(rng)
    lesions = _lesions(disease, anatomy, z_values, rng)
    fluid_depth = rng.uniform(0.08, 0.25) if disease.name == "effusion" else 0.0
    haze_hu = rng.uniform(40, 160) if rng.random() < 0.4 else 0.0
    texture = ndimage.gaussian_filter(rng.standard_normal((2, 256, 256), dtype=np.float32), (0, 4, 4), mode="wrap")
    texture /= texture.std()

    blur_sigma = rng.uniform(0.4, 1.4)
    motion_sigma, motion_axis = (rng.uniform(1.0, 2.5) if rng.random() < 0.25 else 0.0), int(rng.integers(2))
    noise_hu, noise_sigma = rng.uniform(10, 55), rng.uniform(0.4, 0.9)
    window_centre, window_width = rng.uniform(-680, -420), rng.uniform(1100, 1800)

    slices = []
    for z in z_values.tolist():
        x, y = anatomy.grid(height, width, rng)
        hu = anatomy.lung_hu + 12 * _sample_periodic_field(texture[0], x, y, 1.3)
        hu += haze_hu * np.clip((y - 0.1) / 0.5, 0, 1)
        margin_field = _sample_periodic_field(math.cos(6 * z) * texture[0] + math.sin(6 * z) * texture[1], x, y, 1.6)
        for lesion in lesions:
            if abs(z - lesion.centre[2]) < MAX_LESION_EXTENT * lesion.radius[2]:
                hu += lesion.hu * _lesion_mask(lesion, x, y, z, margin_field)
        hu = np.clip(hu, -980, MUSCLE)
        hu += (BLOOD - hu) * anatomy.vessel_mask(x, y, z)
        for side in disease.sides if fluid_depth else ():
            _, centre_y, _, depth = anatomy.lung_ellipse(side, z)
            surface = centre_y + depth - fluid_depth - 0.1 * (abs(x) - 0.5) + 0.01 * margin_field
            hu += (15 - hu) * soft_mask(y - surface, 0.02) * (np.sign(x) == side)
        hu = ndimage.gaussian_filter(anatomy.render_slice(hu, x, y, z), blur_sigma, truncate=2.5)
        if motion_sigma:
            hu = ndimage.gaussian_filter1d(hu, motion_sigma, axis=motion_axis)
        noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), noise_sigma, truncate=2.5)
        hu += noise_hu * noise / noise.std()
        slices.append(np.rint(255 * np.clip((hu - window_centre) / window_width + 0.5, 0, 1)).astype(np.uint8))
    return slices


def _lesions(disease: Disease, anatomy: Anatomy, z_values: np.ndarray, rng: np.random.Generator) -> list[Lesion]:
    """Lesions and distractors of a patient.

    The first lesion extends over all slices, so that each slice shows the disease of its class.
    """
    faint, dense = GROUND_GLASS_HU
    middle = (faint + dense) / 2
    # number, radii, HU, margin irregularity, distance from the centre of the lung relative to its half-width
    match disease.name:
        case "pneumonia" if rng.random() < MILD_FRACTION:
            kinds = [(rng.integers(2, 5), (0.08, 0.15), (faint, middle), 0.7, (0.6, 0.95))]
        case "pneumonia":
            kinds = [(rng.integers(3, 9), (0.09, 0.25), (middle, dense), 0.9, (0.5, 1.0))]
            if rng.random() < 0.4:
                kinds.append((rng.integers(1, 4), (0.04, 0.12), (700, 800), 0.8, (0.7, 1.0)))
        case "nodules":
            kinds = [(rng.integers(8, 20), (0.02, 0.05), (700, 800), 0.1, (0.1, 0.9))]
        case "emphysema":
            kinds = [(rng.integers(8, 16), (0.06, 0.2), (-160, -100), 0.4, (0.1, 0.9))]
        case _:
            kinds = []

    lesions: list[Lesion] = []
    kinds.append((rng.integers(0, 3), (0.012, 0.03), (700, 800), 0.0, (0.1, 0.9)))
    for n, radii, hu, margin_irregularity, distances in kinds:
        for _ in range(n):
            spans_all_slices = len(kinds) > 1 and not lesions
            z = float(z_values.mean() if spans_all_slices else rng.uniform(z_values[0] - 0.05, z_values[-1] + 0.05))
            side = int(rng.choice(disease.sides))
            centre_x, centre_y, half_width, half_depth = anatomy.lung_ellipse(side, z)
            # 0 points outwards and pi / 2 to the back, where lesions are more frequent
            angle, distance = rng.normal(0.9, 0.7), rng.uniform(*distances)
            x = centre_x + side * distance * half_width * math.cos(angle)
            y = centre_y + distance * half_depth * math.sin(angle)
            radius_x, radius_y, radius_z = rng.uniform(*radii, 3).tolist()
            if spans_all_slices:
                radius_z = max(radius_z, 1.2 * float(np.ptp(z_values)))
            lesions.append(Lesion((x, y, z), (radius_x, radius_y, radius_z), rng.uniform(*hu), margin_irregularity))
    return lesions


def _lesion_mask(lesion: Lesion, x: np.ndarray, y: np.ndarray, z: float, margin_field: np.ndarray) -> np.ndarray:
    """Soft mask of a lesion, ``(H, W)`` in [0, 1]. The random ``margin_field`` makes its margin irregular."""
    (centre_x, centre_y, centre_z), (radius_x, radius_y, radius_z) = lesion.centre, lesion.radius
    squares = ((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2 + ((z - centre_z) / radius_z) ** 2
    irregularity = 0.35 * lesion.margin_irregularity * np.clip(margin_field, -1.8, 1.8)
    return np.asarray(np.clip(1.3 * (1 - np.sqrt(squares)) + irregularity, 0, 1))


def _sample_periodic_field(field: np.ndarray, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """Values of a periodic field at every pixel, ``(H, W)``.

    Args:
        field: one period, ``(n, n)``.
        x: coordinate of every pixel.
        y: coordinate of every pixel.
        period: length of one period.
    """
    rows, columns = (np.floor(axis * (len(field) / period)).astype(np.int32) % len(field) for axis in (y, x))
    return field[rows, columns]
