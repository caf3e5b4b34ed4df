"""Healthy anatomy of the phantoms: lungs, heart, bones, airways and vessels of one drawn patient.

Lengths are in units of half the image's width: x to the right, y to the back, z from the apex of the
lungs (0) towards the diaphragm (about 1.5). Tissue is in Hounsfield units (HU).
"""

import math

import numpy as np
from scipy import ndimage

AIR, FAT, MUSCLE, BLOOD, BONE = -1000.0, -90.0, 40.0, 60.0, 420.0
SIDES = (-1, 1)
"""The lungs: left and right in the image."""

VESSEL_RADII = (0.011, 0.005)
"""Of trunks and of twigs."""
SLAB = 0.04
"""Thickness over which a slice shows vessels."""


class Anatomy:
    """Sizes and places of one patient's organs, drawn once, and how they change with z."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.zoom = rng.uniform(0.88, 1.12)
        self.shift = rng.uniform(-0.06, 0.06), rng.uniform(-0.08, 0.08)
        self.tilt = math.radians(rng.uniform(-8, 8))
        self.lung_hu = rng.uniform(-890, -800)
        self.body = rng.uniform(1.0, 1.12), rng.uniform(0.76, 0.86)
        self.lung_centre = {side: rng.uniform(0.43, 0.50) for side in SIDES}
        self.lung_width = {side: rng.uniform(0.36, 0.44) for side in SIDES}
        self.lung_depth = {side: rng.uniform(0.48, 0.62) for side in SIDES}
        self.heart = rng.uniform(0.02, 0.16), rng.uniform(-0.26, -0.14)
        self.heart_size = rng.uniform(0.26, 0.38), rng.uniform(0.24, 0.34)
        self.mediastinum = rng.uniform(0.12, 0.22)
        self.aorta = rng.uniform(0.05, 0.08)
        self.carina = rng.uniform(0.45, 0.6)
        self.liver_dome = rng.uniform(1.05, 1.4)
        self.rib_phase = rng.uniform(0, 2 * np.pi)
        self.contrast_agent = rng.uniform(0, 140)
        self.vessels = _vessel_tree(rng)

    def growth(self, z: float) -> float:
        """Cross-section of the lungs over their largest: 0.5 at the apex, 1 from z 0.7 on."""
        return 0.5 + 0.5 * math.sqrt(1 - (1 - min(z, 0.7) / 0.7) ** 2)

    def lung_ellipse(self, side: int, z: float) -> tuple[float, float, float, float]:
        """Centre x and y, half-width and half-depth of one lung."""
        size = self.growth(z)
        centre = side * self.lung_centre[side] * (0.5 + 0.5 * size)
        return centre, 0.02, self.lung_width[side] * size, self.lung_depth[side] * size

    def grid(self, height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates x and y of every pixel, float32 ``(H, W)`` each; breathing moves every slice a little."""
        columns = (2 * np.arange(width, dtype=np.float32) + 1) / width - 1
        rows = (2 * np.arange(height, dtype=np.float32)[:, None] + 1) / width - height / width
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        x = (columns * cos - rows * sin) * self.zoom - self.shift[0] + rng.normal(0, 0.01)
        y = (columns * sin + rows * cos) * self.zoom - self.shift[1] + rng.normal(0, 0.01)
        return x, y

    def lungs(self, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        """Share of lung in every pixel, ``(H, W)`` in [0, 1]."""
        inside = np.maximum(*(ellipse(x, y, *self.lung_ellipse(side, z), power=2.3) for side in SIDES))
        beat = min(max((z - 0.45) / 0.4, 0.02), 1.0)
        middle = [
            ellipse(x, y, 0, -0.12, self.mediastinum * (0.8 + 0.3 * beat), 0.44 * self.growth(z)),
            ellipse(x, y, 0, 0.28, 0.12, 0.3),
            ellipse(x, y, self.heart[0] * beat, self.heart[1], self.heart_size[0] * beat, self.heart_size[1] * beat),
            ellipse(x, y, 0.13, 0.24, self.aorta + 0.02, self.aorta + 0.02),
        ]
        if (dome := z - self.liver_dome) > 0:
            middle.append(ellipse(x, y, -0.42, -0.08, 0.9 * dome**0.5, 0.9 * dome**0.5))
        return np.asarray(soft(inside, 0.03) * (1 - soft(np.maximum.reduce(middle), 0.05)))

    def around(self, lung_hu: np.ndarray, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        """The whole slice ``(H, W)`` in HU: ``lung_hu`` within the lungs, and what lies around them."""
        size = self.growth(z)
        cage = ellipse(x, y, 0, 0.02, 0.56 + 0.36 * size, 0.14 + 0.50 * size, power=2.2)
        tissue = FAT + (MUSCLE - FAT) * soft(cage + 0.06, 0.05)

        width, depth = self.heart_size
        chambers = soft(ellipse(x, y, *self.heart, 0.8 * width, 0.8 * depth), 0.3) * (z > 0.6)
        aorta = soft(ellipse(x, y, 0.13, 0.24, self.aorta, self.aorta), 0.2)
        tissue += self.contrast_agent * np.maximum(chambers, aorta)

        arcs = np.sin(9 * np.arctan2(y, x) + self.rib_phase + 14 * z * np.sign(x))
        bones = [
            soft(arcs - 0.45, 0.4) * soft(0.04 - abs(cage), 0.03),
            soft(ellipse(x, y, 0, 0.41, 0.12, 0.1), 0.15),
            soft(ellipse(abs(x) - 0.5 * (y - 0.55), y, 0.1, 0.57, 0.1, 0.04), 0.3),
            soft(ellipse(x, y, 0, -0.12 - 0.5 * size, 0.12, 0.035), 0.3),
        ]
        tissue += (BONE - tissue) * np.maximum.reduce(bones)
        tissue += (30 - tissue) * soft(ellipse(x, y, 0, 0.55, 0.045, 0.04), 0.3)

        if z < self.carina:
            tissue += (AIR - tissue) * soft(ellipse(x, y, 0, -0.02, 0.065, 0.075), 0.2)
        elif (apart := 0.06 + 0.5 * (z - self.carina)) < 0.16:
            tissue += (AIR - tissue) * soft(ellipse(abs(x), y, apart, 0.02, 0.05, 0.045), 0.2)

        tissue += (lung_hu - tissue) * self.lungs(x, y, z)
        return np.asarray(AIR + (tissue - AIR) * soft(ellipse(x, y, 0, 0, *self.body), 0.02))

    def vessel_share(self, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        """Share of vessel in every pixel, ``(H, W)`` in [0, 1]; bright lines in the plane, dots across it."""
        height, width = x.shape
        near = self.vessels[abs(self.vessels[:, 2] - z) < SLAB / 2]
        # inverse of grid(): the rotation's transpose, then the pixel of each point
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        origin_x, origin_y = x[0, 0], y[0, 0]
        step = 2 / width * self.zoom
        columns = ((near[:, 0] - origin_x) * cos + (near[:, 1] - origin_y) * sin) / step
        rows = ((near[:, 1] - origin_y) * cos - (near[:, 0] - origin_x) * sin) / step
        visible = (rows > -0.5) & (rows < height - 0.5) & (columns > -0.5) & (columns < width - 0.5)
        share = np.zeros((height, width), dtype=np.float32)
        for level, radius in enumerate(VESSEL_RADII):
            chosen = visible & (near[:, 3] == level)
            points = np.zeros((height, width), dtype=np.float32)
            points[np.rint(rows[chosen]).astype(int), np.rint(columns[chosen]).astype(int)] = 1
            sigma = radius / step
            blurred = ndimage.gaussian_filter(points, max(sigma, 0.6), truncate=2.5)
            # saturates, so that nothing outshines blood where points meet; thinner than a pixel is fainter
            share = np.maximum(share, 1 - np.exp(-10 * sigma**2 * blurred))
        return share


def ellipse(
    x: np.ndarray, y: np.ndarray, centre_x: float, centre_y: float, width: float, depth: float, power: float = 2.0
) -> np.ndarray:
    """1 at the centre, 0 on the border, negative outside; powers above 2 are boxier."""
    across, along = (x - centre_x) / width, (y - centre_y) / depth
    across *= across
    along *= along
    if power == 2:
        return np.asarray(1 - np.sqrt(across + along))
    return np.asarray(1 - (across ** (power / 2) + along ** (power / 2)) ** (1 / power))


def soft(inside: np.ndarray, edge: float) -> np.ndarray:
    """0 outside, 1 inside, rising over ``edge`` around zero."""
    share = inside / edge
    share += 0.5
    return np.clip(share, 0, 1, out=share)


def _vessel_tree(rng: np.random.Generator) -> np.ndarray:
    """Points along vessels that branch from both hila, ``(n, 4)``: x, y, z, index into VESSEL_RADII."""
    n_trunks = int(rng.integers(8, 17))
    points = []
    for side in SIDES:
        hilum = np.array([side * 0.2, 0.06, 0.75])
        place = hilum + rng.standard_normal((n_trunks, 3)) * [0.02, 0.06, 0.12]
        heading = rng.standard_normal((n_trunks, 3)) * [0.6, 1, 1.3] + [0.8 * side, 0, 0]
        for generation in range(7):
            for _ in range(14):
                heading += 0.08 * rng.standard_normal(heading.shape)
                heading /= np.linalg.norm(heading, axis=1, keepdims=True)
                place = place + 0.0085 * heading
                points.append(np.column_stack([place, np.full(len(place), generation // 4)]))
            place = np.repeat(place, 2, axis=0)
            heading = np.repeat(heading, 2, axis=0) + 0.45 * rng.standard_normal((len(place), 3))
    return np.concatenate(points)
