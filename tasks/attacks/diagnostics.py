"""Probes: small experiments on a target, from which the checks tell whether its numbers can be believed."""

import numpy as np
import torch
from torch import nn

from tasks.attacks.gradient.descent import loss_gradient
from tasks.attacks.suite import Case
from tasks.attacks.sweep import pgd_sweep
from tasks.defences.preprocessing import WithoutGradient
from tasks.defences.purified import Purified
from tasks.models.compute import device_of

HUGE_EPS = 127.5
"""In 1/255: in an L-infinity ball of half the value range any image can become uniform grey; an L2 ball is as large in
the root mean square of its changes."""
N_STEPS = 20
"""Of PGD on the margin, as the sweep makes them; a step is a quarter of the radius."""
N_PASSES = 5
"""Of the same images, whose logits must be the same."""
NOISE = 10**6
"""Number of the random start that is the noise: no attack restarts so often."""
BROKEN_DEFENCE = 4
"""Bits of a pixel: known to be broken once the attacker goes around the gradients that are not there (Athalye et al.
2018, arXiv 1802.00420)."""

Probes = dict[tuple[str, float], np.ndarray]
"""Name of a probe and eps (0: of the images as they are) -> what was found for each image, float64 ``(N,)``."""


def probe(case: Case, eps: tuple[float, ...], huge_radius: float) -> Probes:
    """What a target does under a huge perturbation and under mere noise, and what its gradients and outputs are like.

    Args:
        case: target and N images, with the radii of the grid.
        eps: of the grid, ``(R,)``.
        huge_radius: of ``HUGE_EPS``, in units of the value range.

    Returns:
        - ``huge``, at ``HUGE_EPS``: 1 where the image is still right after PGD, else 0;
        - ``noise``, at each eps: 1 where it is right at a random point of the ball, evenly drawn, else 0;
        - ``zero_gradient``: share of its pixels where the cross-entropy has no gradient;
        - ``finite_gradient``: 1 where that gradient is finite everywhere, else 0;
        - ``spread``: largest difference of a logit over five passes;
        - ``steady``: 1 where all five predict the same class, else 0;
        - ``probabilities``: 1 where the outputs lie in [0, 1] and add up to 1, else 0.
    """
    batches = range(0, len(case.images), case.batch_size)
    parts = [_of_batch(case, eps, slice(start, start + case.batch_size)) for start in batches]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {("huge", HUGE_EPS): withstands(case, case.target, huge_radius), **found}


def probe_broken_defence(case: Case, eps: float, radius: float) -> Probes:
    """The positive control: a defence that is known to be broken, before the target, must fall to PGD on the margin.

    Args:
        case: the undefended classifier and N images.
        eps: that the defence meets.
        radius: of the same, in units of the value range.

    Returns:
        ``broken_defence``, at the eps: 1 where the image is still right, else 0.
    """
    n_levels = 2**BROKEN_DEFENCE - 1
    rounding = WithoutGradient(lambda images: (np.rint(images * n_levels) / n_levels, None), "rounding")
    defended = Purified(rounding, case.target).eval()
    return {("broken_defence", eps): withstands(case, defended, radius)}


def withstands(case: Case, target: nn.Module, radius: float) -> np.ndarray:
    """1 where a target is right after PGD in the ball of a radius, with a restart; else 0; float64 ``(N,)``."""
    radii, n_restarts = np.array([radius]), 1
    how = case.batch_size, N_STEPS, 0.25, n_restarts, case.seed, case.rows
    found = pgd_sweep(target, case.images, case.labels, radii, case.balls, *how)
    withstood: np.ndarray = found.broken_at == len(radii)
    return withstood.astype(np.float64)


def _of_batch(case: Case, eps: tuple[float, ...], part: slice) -> Probes:
    device = device_of(case.target)
    images, labels = (torch.from_numpy(of[part]).to(device) for of in (case.images, case.labels))
    gradients = loss_gradient(case.target, images, labels)
    with torch.inference_mode():
        passes = torch.stack([case.target(images) for _ in range(N_PASSES)])
        outputs = passes[0]
        in_range = ((outputs >= 0) & (outputs <= 1)).all(dim=1)
        found = {
            ("zero_gradient", 0.0): (gradients == 0).float().mean(dim=(1, 2, 3)),
            ("finite_gradient", 0.0): gradients.isfinite().all(dim=(1, 2, 3)),
            ("spread", 0.0): (passes.amax(dim=0) - passes.amin(dim=0)).amax(dim=1),
            ("steady", 0.0): (passes.argmax(dim=2) == outputs.argmax(dim=1)).all(dim=0),
            ("probabilities", 0.0): in_range & ((outputs.sum(dim=1) - 1).abs() < 1e-4),
        }
        for value, radius in zip(eps, case.radii.tolist(), strict=True):
            number = np.full(len(images), NOISE)
            noisy = case.balls.random_starts(images, radius, case.seed, case.rows[part], number)
            found["noise", value] = case.target(noisy).argmax(dim=1) == labels
    return {name: values.cpu().numpy().astype(np.float64) for name, values in found.items()}
