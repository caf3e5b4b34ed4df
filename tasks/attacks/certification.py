"""Certified radii of randomized smoothing (Cohen et al. 2019, arXiv 1902.02918)."""

import logging
from statistics import NormalDist
from typing import Any

import art
import numpy as np
import pyarrow as pa
import torch
from scipy.stats import binomtest
from torch import nn

from tasks.attacks.art_estimator import numpy_seeded
from tasks.attacks.gradient.norm_ball import radius
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import choose_stratified, load_prepared
from tasks.defences.targets import load_target
from tasks.models.compute import configure_torch, device_of
from tasks.params import Params, RandomizedSmoothing
from tasks.records.tables import CERTIFIED_RADII, write_records
from tasks.tracking import Tracker

ABSTAIN = -1
"""Prediction where no class has a significant majority."""
N_CLASS_SAMPLES = 100
"""Noisy copies that select the most likely class (n0 in the paper); other copies then bound its probability."""
NOISE_BATCH_SIZE = 128
"""Noisy copies of one forward pass."""

log = logging.getLogger(__name__)


def certify_target(
    workspace: Workspace, params: Params, tracker: Tracker, name: str, settings: RandomizedSmoothing
) -> None:
    """Write the certified radius of some of the attacked images, one row for each; see ``CERTIFIED_RADII``."""
    device = configure_torch(params.compute)
    data = load_prepared(workspace)
    rows = choose_stratified(data, data.indices("test"), params.attack.max_images, params.seed)
    rows = choose_stratified(data, rows, settings.certification.max_images, params.seed)
    base = load_target(workspace, name, device).get_submodule("classifier")
    prediction, radii = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
    for start in range(0, len(rows), params.attack.batch_size):
        part = slice(start, start + params.attack.batch_size)
        images, seed = data.floats(rows[part]), [params.seed, int(rows[start])]
        prediction[part], radii[part] = certified(base, images, len(data.classes), settings, seed)
        log.info("certified %d of %d images", min(part.stop, len(rows)), len(rows))
    table = {
        **data.identity(rows),
        "target": [name] * len(rows),
        "prediction": prediction,
        "certified_eps": radii / radius(1, "l2", data.pixels[0].size),
        "largest_eps": [largest_radius(settings) / radius(1, "l2", data.pixels[0].size)] * len(rows),
    }
    write_records(pa.table(table, schema=CERTIFIED_RADII), workspace.certified_radii(name))
    tracker.artifact(workspace.certified_radii(name))


def largest_radius(settings: RandomizedSmoothing) -> float:
    """Return the largest L2 radius that the noisy copies can certify, in units of the value range.

    If all n copies agree, the lower confidence bound of the probability of the class is alpha^(1/n), and the radius
    std * Phi^-1(alpha^(1/n)).
    """
    certification = settings.certification
    return settings.std * NormalDist().inv_cdf(certification.alpha ** (1 / certification.n_samples))


def certified(
    base: nn.Module, images: np.ndarray, n_classes: int, settings: RandomizedSmoothing, seed: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of the smoothed classifier and their certified L2 radii: algorithm CERTIFY, as implemented in ART.

    Args:
        base: classifier of single noisy images, ``(N, C, H, W)`` in [0, 1] to logits. Noisy images are clipped to this
            range first; the clipping is a part of the classifier that is smoothed.
        images: float32 ``(N, C, H, W)``.
        n_classes: of the classifier.
        settings: noise and certification.
        seed: of the noise.

    Returns:
        Classes, -1 for abstentions, int64 ``(N,)``; radii in units of the value range, 0 for abstentions, ``(N,)``.
    """
    smoothing: Any = art.estimators.certification.randomized_smoothing.PyTorchRandomizedSmoothing

    class Smoothed(smoothing):  # type: ignore[misc]  # ART is untyped
        def _lower_confidence_bound(self, n_class_samples: int, n_total_samples: int) -> float:
            # the same Clopper-Pearson bound as statsmodels, which ART needs for this alone
            interval = binomtest(int(n_class_samples), n_total_samples).proportion_ci(1 - 2 * self.alpha, "exact")
            return float(interval.low)

    smoothed = Smoothed(
        model=nn.Sequential(nn.Hardtanh(0, 1), base).eval(),
        loss=nn.CrossEntropyLoss(),
        input_shape=images.shape[1:],
        nb_classes=n_classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if device_of(base).type == "cuda" else "cpu",
        sample_size=N_CLASS_SAMPLES,
        scale=settings.std,
        alpha=settings.certification.alpha,
    )
    with numpy_seeded(np.random.SeedSequence(seed).generate_state(4)), torch.inference_mode():
        classes, radii = smoothed.certify(images, settings.certification.n_samples, batch_size=NOISE_BATCH_SIZE)
    return classes.astype(np.int64), radii.astype(np.float64)
