"""Healthy anatomy of the phantoms: lungs, heart, bones, airways and vessels of one computer-drawn patient.

Lengths are in units of half the image width. The axis x points to the right of the image, y to the back of the
patient, and z from the apex of the lungs (0) to the diaphragm (about 1.5). Tissue is in Hounsfield units (HU).
"""

import math

import numpy as np
from scipy import ndimage

AIR, FAT, MUSCLE, BLOOD, BONE = -1000.0, -90.0, 40.0, 60.0, 420.0
"""HU of tissues."""
SIDES = (-1, 1)
"""Signs of x in the left and in the right half of the image, which contain one lung each."""

VESSEL_RADII = (0.009, 0.0025)
"""Radii of large and of small vessels."""
SLAB_THICKNESS = 0.04
"""Extent in z of the vessels that one slice shows."""


class Anatomy:
    """Random sizes and positions of the organs of one patient, and the appearance of the organs at each z."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.zoom = rng.uniform(0.86, 1.16)
        self.shift = rng.uniform(-0.08, 0.08), rng.uniform(-0.1, 0.1)
        self.rotation = math.radians(rng.uniform(-8, 8))
        self.lung_hu = rng.uniform(-890, -800)
        self.body_size = rng.uniform(1.0, 1.12), rng.uniform(0.76, 0.86)
        self.lung_centre = {side: rng.uniform(0.43, 0.50) for side in SIDES}
        self.lung_width = {side: rng.uniform(0.36, 0.44) for side in SIDES}
        self.lung_depth = {side: rng.uniform(0.48, 0.62) for side in SIDES}
        self.heart_centre = rng.uniform(0.02, 0.16), rng.uniform(-0.26, -0.14)
        self.heart_size = rng.uniform(0.26, 0.38), rng.uniform(0.24, 0.34)
        self.mediastinum_width = rng.uniform(0.12, 0.22)
        self.aorta_radius = rng.uniform(0.05, 0.08)
        self.carina_z = rng.uniform(0.45, 0.6)
        self.liver_dome_z = rng.uniform(1.05, 1.4)
        self.rib_phase = rng.uniform(0, 2 * np.pi)
        self.contrast_hu = rng.uniform(0, 140)
        self.vessels = _vessel_tree(rng)

    def lung_scale(self, z: float) -> float:
        """Size of the lungs at z relative to their largest size: 0.5 at the apex, 1 from z = 0.7."""
        return 0.5 + 0.5 * math.sqrt(1 - (1 - min(z, 0.7) / 0.7) ** 2)

    def lung_ellipse(self, side: int, z: float) -> tuple[float, float, float, float]:
        """Ellipse of one lung at z: x and y of the centre, half-width and half-depth."""
        size = self.lung_scale(z)
        centre = side * self.lung_centre[side] * (0.5 + 0.5 * size)
        return centre, 0.02, self.lung_width[side] * size, self.lung_depth[side] * size

    def grid(self, height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates x and y of every pixel, float32 ``(H, W)`` each.

        A small random shift of every slice simulates breathing.
        """
        columns = (2 * np.arange(width, dtype=np.float32) + 1) / width - 1
        rows = (2 * np.arange(height, dtype=np.float32)[:, None] + 1) / width - height / width
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        zoom = self.zoom * rng.normal(1, 0.02)
        x = (columns * cos - rows * sin) * zoom - self.shift[0] + rng.normal(0, 0.02)
        y = (columns * sin + rows * cos) * zoom - self.shift[1] + rng.normal(0, 0.02)
        return x, y

    def lung_mask(self, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        """Soft mask of the lungs, ``(H, W)`` in [0, 1]."""
        inside = np.maximum(*(ellipse(x, y, *self.lung_ellipse(side, z), power=2.3) for side in SIDES))
        heart_scale = min(max((z - 0.45) / 0.4, 0.02), 1.0)
        (heart_x, heart_y), (heart_width, heart_depth) = self.heart_centre, self.heart_size
        around_lungs = [
            ellipse(x, y, 0, -0.12, self.mediastinum_width * (0.8 + 0.3 * heart_scale), 0.44 * self.lung_scale(z)),
            ellipse(x, y, 0, 0.28, 0.12, 0.3),  # spine
            ellipse(x, y, heart_x * heart_scale, heart_y, heart_width * heart_scale, heart_depth * heart_scale),
            ellipse(x, y, 0.13, 0.24, self.aorta_radius + 0.02, self.aorta_radius + 0.02),
        ]
        if z > self.liver_dome_z:
            liver_radius = 0.9 * (z - self.liver_dome_z) ** 0.5
            around_lungs.append(ellipse(x, y, -0.42, -0.08, liver_radius, liver_radius))
        return np.asarray(soft_mask(inside, 0.03) * (1 - soft_mask(np.maximum.reduce(around_lungs), 0.05)))

    def render_slice(self, lung_hu: np.ndarray, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        """Complete slice in HU, ``(H, W)``: ``lung_hu`` inside the lungs, the other organs around them."""
        size = self.lung_scale(z)
        rib_cage = ellipse(x, y, 0, 0.02, 0.56 + 0.36 * size, 0.14 + 0.50 * size, power=2.2)
        tissue = FAT + (MUSCLE - FAT) * soft_mask(rib_cage + 0.06, 0.05)

        width, depth = self.heart_size
        chambers = soft_mask(ellipse(x, y, *self.heart_centre, 0.8 * width, 0.8 * depth), 0.3) * (z > 0.6)
        aorta = soft_mask(ellipse(x, y, 0.13, 0.24, self.aorta_radius, self.aorta_radius), 0.2)
        tissue += self.contrast_hu * np.maximum(chambers, aorta)

        ribs = np.sin(9 * np.arctan2(y, x) + self.rib_phase + 14 * z * np.sign(x))
        bones = [
            soft_mask(ribs - 0.45, 0.4) * soft_mask(0.04 - abs(rib_cage), 0.03),
            soft_mask(ellipse(x, y, 0, 0.41, 0.12, 0.1), 0.15),  # vertebral body
            soft_mask(ellipse(abs(x) - 0.5 * (y - 0.55), y, 0.1, 0.57, 0.1, 0.04), 0.3),  # vertebral arch
            soft_mask(ellipse(x, y, 0, -0.12 - 0.5 * size, 0.12, 0.035), 0.3),  # sternum
        ]
        tissue += (BONE - tissue) * np.maximum.reduce(bones)
        spinal_canal = soft_mask(ellipse(x, y, 0, 0.55, 0.045, 0.04), 0.3)
        tissue += (30 - tissue) * spinal_canal

        # trachea, then main bronchi, until they enter the lungs
        if z < self.carina_z:
            tissue += (AIR - tissue) * soft_mask(ellipse(x, y, 0, -0.02, 0.065, 0.075), 0.2)
        elif (bronchus_x := 0.06 + 0.5 * (z - self.carina_z)) < 0.16:
            tissue += (AIR - tissue) * soft_mask(ellipse(abs(x), y, bronchus_x, 0.02, 0.05, 0.045), 0.2)

        tissue += (lung_hu - tissue) * self.lung_mask(x, y, z)
        return np.asarray(AIR + (tissue - AIR) * soft_mask(ellipse(x, y, 0, 0, *self.body_size), 0.02))

    def vessel_mask(self, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        """Soft mask of the vessels, ``(H, W)`` in [0, 1].

        A vessel in the plane of the slice is a line. A vessel perpendicular to the plane is a dot.
        """
        height, width = x.shape
        in_slab = self.vessels[abs(self.vessels[:, 2] - z) < SLAB_THICKNESS / 2]
        # inverse of grid(): rotate back, then convert coordinates to pixels
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        origin_x, origin_y = x[0, 0], y[0, 0]
        step = math.hypot(x[0, 1] - x[0, 0], y[0, 1] - y[0, 0])
        columns = ((in_slab[:, 0] - origin_x) * cos + (in_slab[:, 1] - origin_y) * sin) / step
        rows = ((in_slab[:, 1] - origin_y) * cos - (in_slab[:, 0] - origin_x) * sin) / step
        visible = (rows > -0.5) & (rows < height - 0.5) & (columns > -0.5) & (columns < width - 0.5)
        mask = np.zeros((height, width), dtype=np.float32)
        for level, radius in enumerate(VESSEL_RADII):
            chosen = visible & (in_slab[:, 3] == level)
            points = np.zeros((height, width), dtype=np.float32)
            points[np.rint(rows[chosen]).astype(int), np.rint(columns[chosen]).astype(int)] = 1
            sigma = radius / step
            blurred = ndimage.gaussian_filter(points, max(sigma, 0.6), truncate=2.5)
            # the exponential keeps the mask below 1 where points overlap; vessels thinner than a pixel are fainter
            mask = np.maximum(mask, 1 - np.exp(-10 * sigma**2 * blurred))
        return mask


def ellipse(
    x: np.ndarray, y: np.ndarray, centre_x: float, centre_y: float, width: float, depth: float, power: float = 2.0
) -> np.ndarray:
    """Implicit function of an ellipse, ``(H, W)``: 1 at the centre, 0 on the border, negative outside.

    A ``power`` above 2 makes the ellipse more rectangular.
    """
    squared_x, squared_y = (x - centre_x) / width, (y - centre_y) / depth
    squared_x *= squared_x
    squared_y *= squared_y
    if power == 2:
        return np.asarray(1 - np.sqrt(squared_x + squared_y))
    return np.asarray(1 - (squared_x ** (power / 2) + squared_y ** (power / 2)) ** (1 / power))


def soft_mask(values: np.ndarray, edge_width: float) -> np.ndarray:
    """Soft mask of the positive values, in [0, 1].

    The mask rises linearly from 0 to 1 where the values rise from -edge_width / 2 to edge_width / 2.
    """
    mask = values / edge_width
    mask += 0.5
    return np.clip(mask, 0, 1, out=mask)


def _vessel_tree(rng: np.random.Generator) -> np.ndarray:
    """Points along the vessels, which branch from both hila, ``(n, 4)``: x, y, z, index into VESSEL_RADII."""
    n_trunks = int(rng.integers(4, 9))
    points = []
    for side in SIDES:
        hilum = np.array([side * 0.2, 0.06, 0.75])
        position = hilum + rng.standard_normal((n_trunks, 3)) * [0.02, 0.06, 0.12]
        direction = rng.standard_normal((n_trunks, 3)) * [0.6, 1, 1.3] + [0.8 * side, 0, 0]
        for generation in range(6):
            for _ in range(14):
                direction += 0.08 * rng.standard_normal(direction.shape)
                direction /= np.linalg.norm(direction, axis=1, keepdims=True)
                position = position + 0.0085 * direction
                points.append(np.column_stack([position, np.full(len(position), generation // 4)]))
            position = np.repeat(position, 2, axis=0)
            direction = np.repeat(direction, 2, axis=0) + 0.45 * rng.standard_normal((len(position), 3))
    return np.concatenate(points)
