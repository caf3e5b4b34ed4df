"""Chest-CT-like phantoms: axial slices with drawn anatomy, lesions, noise and windows.

A phantom is no scan of anybody and says nothing about a disease; it lets the whole pipeline run on
any machine without a download. Units and axes are those of :mod:`tasks.dataset.anatomy`.

The positive class has ground-glass opacities, some with consolidations; the first other class has no
disease; each further class has another disease of :data:`FURTHER`. All classes share the same
distractors: crowded vessels, small nodules, haze that gravity makes at the back, motion blur.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from tasks.dataset.anatomy import BLOOD, MUSCLE, SIDES, Anatomy, soft

MILD_SHARE = 0.25
"""Share of the positive patients whose lesions are few, small and faint; higher makes the data set harder."""
GROUND_GLASS_HU = (140.0, 400.0)
"""Faintest and densest ground-glass opacity, in HU above the lung; lower makes the data set harder."""

REACH = 1.5
"""Radii from a lesion's centre beyond which its ragged border doesn't go."""


@dataclass(frozen=True)
class Disease:
    """What a class of patients has."""

    name: str
    """none, pneumonia, nodules, effusion or emphysema."""
    sides: tuple[int, ...] = SIDES
    """Lungs that may be affected."""


@dataclass(frozen=True)
class Lesion:
    """An ellipsoid with a ragged border."""

    centre: tuple[float, float, float]
    """x, y, z."""
    radius: tuple[float, float, float]
    hu: float
    """Added to the lung; negative for emphysema."""
    raggedness: float
    """Of the border, 0 (smooth) to 1."""


FURTHER = tuple(Disease(name, sides) for sides in (SIDES, (-1,), (1,)) for name in ("nodules", "effusion", "emphysema"))
"""Diseases of the classes after the first two."""


def write_phantoms(
    folder: Path, classes: Sequence[str], positive_class: str, n_patients: int, n_slices: int, seed: int
) -> None:
    """Draw ``<folder>/<class>/patient_007_slice_03.png``, 8-bit grey; half of the patients are positive.

    Raises:
        ValueError: too few patients for the classes, or more classes than diseases can be drawn.
    """
    others = [name for name in classes if name != positive_class]
    healthy_and_further = (Disease("none"), *FURTHER)
    if len(others) > len(healthy_and_further):
        raise ValueError(
            f"acquire.classes has {len(classes)} classes, but phantoms can be drawn for at most "
            f"{1 + len(healthy_and_further)}; use acquire.source: folder for more"
        )
    n_positive = n_patients // 2
    if n_patients - n_positive < len(others):
        raise ValueError(
            f"acquire.phantom.n_patients {n_patients} is too few for {len(classes)} classes: half of the patients are "
            f"positive and every other class needs one; use at least {2 * len(others)}"
        )
    diseases = {positive_class: Disease("pneumonia"), **dict(zip(others, healthy_and_further, strict=False))}
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
    """Neighbouring slices of one patient, downwards: uint8 ``(H, W)`` each, all of one size."""
    width = int(rng.integers(180, 381))
    height = int(width * rng.uniform(0.68, 0.86))
    spacing = min(rng.uniform(0.03, 0.06), 1.1 / n_slices)
    first = rng.uniform(0.2, max(1.35 - spacing * n_slices, 0.21))
    levels = first + spacing * np.arange(n_slices)

    anatomy = Anatomy(rng)
    lesions = _lesions(disease, anatomy, levels, rng)
    fluid = rng.uniform(0.08, 0.25) if disease.name == "effusion" else 0.0
    haze = rng.uniform(40, 200) if rng.random() < 0.5 else 0.0
    texture = ndimage.gaussian_filter(rng.standard_normal((2, 256, 256), dtype=np.float32), (0, 4, 4), mode="wrap")
    texture /= texture.std()

    sharpness = rng.uniform(0.3, 0.9)
    motion, motion_axis = (rng.uniform(1.0, 2.5) if rng.random() < 0.25 else 0.0), int(rng.integers(2))
    noise_hu, grain = rng.uniform(15, 70), rng.uniform(0.4, 0.9)
    window_centre, window_width = rng.uniform(-650, -450), rng.uniform(1200, 1700)

    slices = []
    for z in levels.tolist():
        x, y = anatomy.grid(height, width, rng)
        hu = anatomy.lung_hu + 12 * _sample(texture[0], x, y, 1.3)
        hu += haze * np.clip((y - 0.1) / 0.5, 0, 1)
        border = _sample(math.cos(6 * z) * texture[0] + math.sin(6 * z) * texture[1], x, y, 1.6)
        for lesion in lesions:
            if abs(z - lesion.centre[2]) < REACH * lesion.radius[2]:
                hu += lesion.hu * _inside(lesion, x, y, z, border)
        hu = np.clip(hu, -980, MUSCLE)
        hu += (BLOOD - hu) * anatomy.vessel_share(x, y, z)
        for side in disease.sides if fluid else ():
            _, centre_y, _, depth = anatomy.lung_ellipse(side, z)
            surface = centre_y + depth - fluid - 0.1 * (abs(x) - 0.5) + 0.01 * border
            hu += (15 - hu) * soft(y - surface, 0.02) * (np.sign(x) == side)
        hu = ndimage.gaussian_filter(anatomy.around(hu, x, y, z), sharpness, truncate=2.5)
        if motion:
            hu = ndimage.gaussian_filter1d(hu, motion, axis=motion_axis)
        noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), grain, truncate=2.5)
        hu += noise_hu * noise / noise.std()
        slices.append(np.rint(255 * np.clip((hu - window_centre) / window_width + 0.5, 0, 1)).astype(np.uint8))
    return slices


def _lesions(disease: Disease, anatomy: Anatomy, levels: np.ndarray, rng: np.random.Generator) -> list[Lesion]:
    """Lesions and distractors of a patient; the first lesion reaches every slice, so that all show their class."""
    faint, dense = GROUND_GLASS_HU
    middle = (faint + dense) / 2
    # number, radii, HU, raggedness, distance from the lung's centre over its half-width
    match disease.name:
        case "pneumonia" if rng.random() < MILD_SHARE:
            kinds = [(rng.integers(1, 4), (0.05, 0.13), (faint, middle), 0.7, (0.6, 0.95))]
        case "pneumonia":
            kinds = [(rng.integers(3, 9), (0.07, 0.24), (middle, dense), 0.9, (0.5, 1.0))]
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
    for n, radii, hu, raggedness, distances in kinds:
        for _ in range(n):
            reaches_all = len(kinds) > 1 and not lesions
            z = float(levels.mean() if reaches_all else rng.uniform(levels[0] - 0.05, levels[-1] + 0.05))
            side = int(rng.choice(disease.sides))
            centre_x, centre_y, half_width, half_depth = anatomy.lung_ellipse(side, z)
            # 0 points outwards, pi / 2 to the back, which lesions favour
            angle, distance = rng.normal(0.9, 0.7), rng.uniform(*distances)
            x = centre_x + side * distance * half_width * math.cos(angle)
            y = centre_y + distance * half_depth * math.sin(angle)
            across, along, up = rng.uniform(*radii, 3).tolist()
            if reaches_all:
                up = max(up, 1.2 * float(np.ptp(levels)))
            lesions.append(Lesion((x, y, z), (across, along, up), rng.uniform(*hu), raggedness))
    return lesions


def _inside(lesion: Lesion, x: np.ndarray, y: np.ndarray, z: float, border: np.ndarray) -> np.ndarray:
    """Share of the lesion in every pixel, ``(H, W)`` in [0, 1]."""
    (centre_x, centre_y, centre_z), (across, along, up) = lesion.centre, lesion.radius
    squares = ((x - centre_x) / across) ** 2 + ((y - centre_y) / along) ** 2 + ((z - centre_z) / up) ** 2
    distance = np.sqrt(squares)
    return np.asarray(np.clip(1.3 * (1 - distance) + 0.35 * lesion.raggedness * np.clip(border, -1.8, 1.8), 0, 1))


def _sample(field: np.ndarray, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """A periodic field ``(n, n)`` that repeats every ``period``, at every pixel, ``(H, W)``."""
    rows, columns = (np.floor(at * (len(field) / period)).astype(np.int32) % len(field) for at in (y, x))
    return field[rows, columns]
