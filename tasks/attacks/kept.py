"""Adversarial images on disk: a byte for each pixel."""

import zipfile
from pathlib import Path

import numpy as np

from tasks import paths
from tasks.dataset.prepared import Prepared

LEVELS = 127


def kept_path(surrogate: str, attack: str, eps: float) -> Path:
    """Where the adversarial images of one crafting are kept."""
    return paths.PERTURBATIONS / f"{surrogate}-{attack}-eps{eps:g}.npz"


def save_perturbations(path: Path, rows: np.ndarray, images: np.ndarray, adversarial: np.ndarray) -> None:
    """Write perturbations as int8 ``q`` ``(N, 1, H, W)`` with ``rows`` ``(N,)`` and ``scale`` ``(N,)``.

    A perturbation is ``q * scale``, where ``scale`` is the image's largest change / 127. So a pixel is off by at most
    1/254 of that largest change (0.4 %), the largest change is kept, and the l2 norm is off by at most 1/254 of the
    largest change times the root of the number of pixels.

    Args:
        path: ends in ``.npz``.
        rows: rows of the prepared data set's table, ``(N,)``.
        images: unchanged, float32 ``(N, 1, H, W)``.
        adversarial: float32 ``(N, 1, H, W)``.
    """
    perturbations = adversarial - images
    scale = np.abs(perturbations).max(axis=(1, 2, 3)) / np.float32(LEVELS)
    # an image that was left as it is has scale 0, and zeros whatever it is divided by
    divisor = np.where(scale > 0, scale, np.float32(1))[:, None, None, None]
    levels = np.rint(perturbations / divisor).astype(np.int8)
    np.savez_compressed(path, rows=rows, scale=scale, q=levels)


def merge_perturbations(parts: list[Path], path: Path) -> None:
    """Write the perturbations of several files, one after the other, as one file of the same kind.

    Parts go through memory one at a time, and the same parts give the same bytes.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as merged:
        for name in ("rows", "scale", "q"):
            shapes, dtypes = [], []
            for part in parts:
                with np.load(part, allow_pickle=False) as kept:
                    shapes.append(kept[name].shape)
                    dtypes.append(kept[name].dtype)
            header = {
                "descr": np.lib.format.dtype_to_descr(dtypes[0]),
                "fortran_order": False,
                "shape": (sum(shape[0] for shape in shapes), *shapes[0][1:]),
            }
            entry = zipfile.ZipInfo(f"{name}.npy")
            # an entry does not take it from its file
            entry.compress_type = zipfile.ZIP_DEFLATED
            with merged.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for part in parts:
                    with np.load(part, allow_pickle=False) as kept:
                        member.write(kept[name].tobytes())


def load_adversarial(data: Prepared, surrogate: str, attack: str, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the prepared table ``(N,)`` and their adversarial images, float32 ``(N, 1, H, W)`` in the value range.

    They differ from those behind the records by the rounding that :func:`save_perturbations` describes.

    Raises:
        FileNotFoundError: the images of this eps were not kept.
    """
    path = kept_path(surrogate, attack, eps)
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: add {eps:g} to attack.keep_eps and run the step attack")
    with np.load(path, allow_pickle=False) as kept:
        rows, scale, levels = kept["rows"], kept["scale"], kept["q"]
    perturbations = levels.astype(np.float32) * scale[:, None, None, None]
    return rows, np.clip(data.floats(rows) + perturbations, *data.value_range, dtype=np.float32)
