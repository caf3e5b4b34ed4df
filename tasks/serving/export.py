"""A bundle's target as one file that needs none of this code: ``torch.export``, held against the target itself."""

from pathlib import Path

import numpy as np
import torch

from tasks.dataset.prepared import as_floats
from tasks.defences.preprocessing import Noise, WithoutGradient
from tasks.serving.bundle import BUNDLE, EXAMPLES, load_bundle, read_bundle

TOLERANCE = 1e-5
"""By which a logit may differ, at most."""


def export_target(bundle: Path, path: Path) -> float:
    """Write a bundle's target as a ``torch.export`` program for any number of images, ``bundle.json`` inside.

    ``torch.export.load(path).module()`` takes float32 ``(N, 1, H, W)`` in the value range and returns logits
    ``(N, K)``, on a CPU.

    Args:
        bundle: the target's files.
        path: of the new file, ``.pt2``.

    Returns:
        The largest difference of a logit between file and target, over 1 to 8 of the bundle's examples at a time.

    Raises:
        ValueError: the target does image processing outside torch, or draws at random; or the file says something else
            than the target.
    """
    about, target = read_bundle(bundle), load_bundle(bundle).cpu().to(memory_format=torch.contiguous_format)
    if outside := [module for module in target.modules() if isinstance(module, Noise | WithoutGradient)]:
        raise ValueError(
            f"{about.target} can't be exported: {', '.join(map(str, outside))} works with numpy, at random or by ART's "
            "code; serve it instead (mlflow models serve)"
        )
    images = torch.from_numpy(as_floats(np.load(bundle / EXAMPLES, allow_pickle=False)))
    with torch.no_grad():
        # one example image would fix the number of images at 1
        pair = torch.cat([images, images])[:2]
        program = torch.export.export(target, (pair,), dynamic_shapes=({0: torch.export.Dim("n_images")},))
        torch.export.save(program, path, extra_files={BUNDLE.name: (bundle / BUNDLE).read_text(encoding="utf-8")})
        exported = torch.export.load(path).module()
        difference = max(
            float((exported(images[:n]) - target(images[:n])).abs().max()) for n in range(1, len(images) + 1)
        )
    if not difference <= TOLERANCE:
        path.unlink()
        raise ValueError(f"{path}: a logit differs by {difference:.2g}, more than {TOLERANCE:g}, from the target's")
    return difference
