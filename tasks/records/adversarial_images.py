"""Adversarial images on disk: perturbations quantized to one byte a pixel."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared

LEVELS = 127


def save_perturbations(path: Path, perturbations: "QuantizedPerturbations") -> None:
    """Write perturbations to ``path`` (``.npz``), uncompressed, since parts are merged soon.

    The file holds int8 ``q`` ``(N, C, H, W)``, ``rows`` ``(N,)`` and ``scale`` ``(N,)``; a perturbation is
    ``q * scale``.
    """
    np.savez(path, rows=perturbations.rows, scale=perturbations.scale, q=perturbations.levels)


def merge_perturbations(parts: list[Path], path: Path) -> None:
    """Merge the perturbations of several files into one file of the same format.

    One part at a time is in memory. The same parts give the same bytes.
    """
    rows = np.concatenate([_read(part, "rows") for part in parts])
    # level 1: the default level takes six times as long and saves one seventh of the size
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as merged:
        for name in ("rows", "scale", "q"):
            first = _read(parts[0], name)
            header = {
                "descr": np.lib.format.dtype_to_descr(first.dtype),
                "fortran_order": False,
                "shape": (len(rows), *first.shape[1:]),
            }
            with merged.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for part in parts:
                    member.write(_read(part, name).tobytes())


def _read(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as stored:
        array: np.ndarray = stored[name]
    return array


@dataclass(frozen=True)
class QuantizedPerturbations:
    """Perturbations as they are stored; :meth:`images` converts a part of them to adversarial images."""

    data: Prepared
    rows: np.ndarray
    """Rows of the images in the prepared table, ``(N,)``."""
    scale: np.ndarray
    """Change of a pixel per level, float32 ``(N,)``."""
    levels: np.ndarray
    """int8 ``(N, C, H, W)``, -127 to 127."""

    def images(self, part: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Adversarial images of a part of the rows, float32 ``(n, C, H, W)`` in the value range."""
        perturbations = self.levels[part].astype(np.float32) * self.scale[part, None, None, None]
        images: np.ndarray = self.data.floats(self.rows[part]) + perturbations
        np.clip(images, *self.data.value_range, out=images)
        return images


def quantize(
    data: Prepared, rows: np.ndarray, images: np.ndarray, adversarial: np.ndarray, norm: str
) -> QuantizedPerturbations:
    """Round perturbations to 127 levels on either side of zero.

    A pixel changes by at most 1/254 of the largest change in its image (0.4 %). The norm does not grow, so the images
    stay in their ball; for l2 the scale is reduced where rounding made a perturbation longer.

    Args:
        data: prepared data set that the images belong to.
        rows: of the images in the prepared table, ``(N,)``.
        images: unchanged, float32 ``(N, C, H, W)``.
        adversarial: float32 ``(N, C, H, W)``.
        norm: ``linf`` or ``l2``.
    """
    perturbations = adversarial - images
    scale = np.abs(perturbations).max(axis=(1, 2, 3)) / np.float32(LEVELS)
    # an unchanged image has scale 0 and must not be divided by it
    divisor = np.where(scale > 0, scale, np.float32(1))[:, None, None, None]
    levels = np.rint(perturbations / divisor).astype(np.int8)
    if norm == "l2":
        exact, rounded = (
            np.linalg.norm(changes.reshape(len(rows), -1), axis=1) for changes in (perturbations, levels * divisor)
        )
        scale *= np.minimum(1, exact / np.maximum(rounded, np.finfo(np.float32).tiny))
    return QuantizedPerturbations(data, rows, scale, levels)


def read_perturbations(workspace: Workspace, data: Prepared, path: Path, eps: float) -> QuantizedPerturbations:
    """Read the perturbations of one file, which are of one eps.

    Raises:
        FileNotFoundError: the perturbations of this eps were not saved.
        ValueError: the file is damaged, or a perturbation is not finite.
    """
    if not path.is_file():
        step = workspace.step_of(path)
        raise FileNotFoundError(f"{path} not found: add {eps:g} to attack.saved_eps and run the step {step}")
    try:
        rows, scale, levels = (_read(path, name) for name in ("rows", "scale", "q"))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: run the step {workspace.step_of(path)} again") from error
    if len(broken := rows[~np.isfinite(scale)]):
        raise ValueError(
            f"{path}: {len(broken)} images are not finite, {data.paths(broken)[0]} the first: run the step "
            f"{workspace.step_of(path)} again"
        )
    return QuantizedPerturbations(data, rows, scale, levels)
