"""Export of a target as one file for ``torch.export.load``, which needs none of this project's code."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from tasks.core.durable import rename_durably
from tasks.dataset.prepared import as_floats
from tasks.defences.preprocessing import BPDA, AdditiveGaussianNoise
from tasks.serving.bundle import BUNDLE, EXAMPLES, load_bundle, read_bundle

EXPORT_TOLERANCE = 1e-5
"""Maximum difference between a logit of the file and of the target."""


def export_target(bundle: Path, path: Path) -> float:
    """Write the target of a bundle as a ``torch.export`` program for any number of images, with ``bundle.json`` inside.

    ``torch.export.load(path).module()`` takes float32 ``(N, C, H, W)`` in the value range and returns logits
    ``(N, K)``, on a CPU.

    Args:
        bundle: folder of the bundle.
        path: path of the new file, ``*.pt2``.

    Returns:
        The largest difference between a logit of the file and of the target, over batches of 1 to 8 example images.

    Raises:
        ValueError: a layer of the target runs outside torch or draws at random, or a logit differs by more than
            ``EXPORT_TOLERANCE``.
    """
    about, target = read_bundle(bundle), load_bundle(bundle).cpu().to(memory_format=torch.contiguous_format)
    if outside := [module for module in target.modules() if isinstance(module, AdditiveGaussianNoise | BPDA)]:
        raise ValueError(
            f"{about.target} cannot be exported: {', '.join(map(str, outside))} runs outside torch or draws at random. "
            "Serve the model instead: mlflow models serve"
        )
    images = torch.from_numpy(as_floats(np.load(bundle / EXAMPLES, allow_pickle=False)))
    # the file gets its name once it is verified
    with tempfile.TemporaryDirectory(prefix="partial-", dir=path.parent) as folder, torch.no_grad():
        # an example with one image would fix the batch size at 1
        pair = torch.cat([images, images])[:2]
        program = torch.export.export(target, (pair,), dynamic_shapes=({0: torch.export.Dim("n_images")},))
        partial = Path(folder) / path.name
        torch.export.save(program, partial, extra_files={BUNDLE.name: (bundle / BUNDLE).read_text(encoding="utf-8")})
        exported = torch.export.load(partial).module()
        counts = range(1, len(images) + 1)
        # torch's max keeps a NaN, Python's does not
        difference = float(torch.stack([(exported(images[:n]) - target(images[:n])).abs().max() for n in counts]).max())
        if not difference <= EXPORT_TOLERANCE:
            raise ValueError(
                f"the exported program of {about.target} is wrong: a logit differs by {difference:.2g}. At most "
                f"{EXPORT_TOLERANCE:g} is allowed. {path} is not written; serve the model instead: mlflow models serve"
            )
        rename_durably(partial, path)
    return difference
