"""Adversarial images on disk: a byte for each pixel."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared

LEVELS = 127


def kept_path(workspace: Workspace, surrogate: str, attack: str, eps: float) -> Path:
    """Where the adversarial images of one crafting are kept."""
    return workspace.perturbations(surrogate) / f"{attack}-eps{eps:g}.npz"


def save_perturbations(path: Path, kept: "Kept") -> None:
    """Write perturbations as int8 ``q`` ``(N, 1, H, W)`` with ``rows`` ``(N,)`` and ``scale`` ``(N,)``.

    A perturbation is ``q * scale``; ``path`` ends in ``.npz``. It is not compressed: parts are merged soon.
    """
    np.savez(path, rows=kept.rows, scale=kept.scale, q=kept.levels)


def merge_perturbations(parts: list[Path], path: Path) -> None:
    """Write the perturbations of several files, one after the other, as one file of the same kind.

    Parts go through memory one at a time, and the same parts give the same bytes.
    """
    rows = np.concatenate([_read(part, "rows") for part in parts])
    # the fastest level: the usual one takes six times as long and saves a seventh
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
    with np.load(path, allow_pickle=False) as kept:
        array: np.ndarray = kept[name]
    return array


@dataclass(frozen=True)
class Kept:
    """Adversarial images as they lie on disk; they become floats part by part."""

    data: Prepared
    rows: np.ndarray
    """Of the prepared table, ``(N,)``."""
    scale: np.ndarray
    """Change of a pixel for each level, float32 ``(N,)``."""
    levels: np.ndarray
    """int8 ``(N, 1, H, W)``."""

    def images(self, part: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Adversarial images of a part of the rows, float32 ``(n, 1, H, W)`` in the value range."""
        perturbations = self.levels[part].astype(np.float32) * self.scale[part, None, None, None]
        images: np.ndarray = self.data.floats(self.rows[part]) + perturbations
        np.clip(images, *self.data.value_range, out=images)
        return images


def as_kept(data: Prepared, rows: np.ndarray, images: np.ndarray, adversarial: np.ndarray, norm: str) -> Kept:
    """Perturbations rounded to 127 levels either way of the image's largest change.

    A pixel is off by at most 1/254 of that largest change (0.4 %). The norm does not grow, so that images stay in their
    ball: for l2 the scale is a little smaller where rounding has made a perturbation longer.

    Args:
        data: whose images they are.
        rows: of the prepared table, ``(N,)``.
        images: unchanged, float32 ``(N, 1, H, W)``.
        adversarial: float32 ``(N, 1, H, W)``.
        norm: ``linf`` or ``l2``.
    """
    perturbations = adversarial - images
    scale = np.abs(perturbations).max(axis=(1, 2, 3)) / np.float32(LEVELS)
    # an image that was left as it is has scale 0, and zeros whatever it is divided by
    divisor = np.where(scale > 0, scale, np.float32(1))[:, None, None, None]
    levels = np.rint(perturbations / divisor).astype(np.int8)
    if norm == "l2":
        exact, rounded = (
            np.linalg.norm(changes.reshape(len(rows), -1), axis=1) for changes in (perturbations, levels * divisor)
        )
        scale *= np.minimum(1, exact / np.maximum(rounded, np.finfo(np.float32).tiny))
    return Kept(data, rows, scale, levels)


def load_kept(workspace: Workspace, data: Prepared, surrogate: str, attack: str, eps: float) -> Kept:
    """The adversarial images of one crafting.

    Raises:
        FileNotFoundError: the images of this eps were not kept.
        ValueError: the file is damaged, or an image in it is not finite.
    """
    path = kept_path(workspace, surrogate, attack, eps)
    if not path.is_file():
        step = workspace.step_of(path)
        raise FileNotFoundError(f"{path} not found: add {eps:g} to attack.keep_eps and run the step {step}")
    try:
        rows, scale, levels = (_read(path, name) for name in ("rows", "scale", "q"))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: run the step {workspace.step_of(path)} again") from error
    if len(broken := rows[~np.isfinite(scale)]):
        raise ValueError(
            f"{path}: {len(broken)} images are not finite, {data.paths(broken)[0]} the first: run the step "
            f"{workspace.step_of(path)} again"
        )
    return Kept(data, rows, scale, levels)
