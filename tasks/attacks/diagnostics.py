"""Diagnostics for the checks: small experiments on a target whose correct outcome is known."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks.batch import AttackBatch
from tasks.attacks.gradient.losses import logit_margin, loss_gradient
from tasks.attacks.sweep import logits_and_margin_gradient, run_sweep
from tasks.defences.preprocessing import BPDA
from tasks.defences.purified import Purified
from tasks.defences.randomness import random_modules
from tasks.models.compute import device_of

UNBOUNDED_EPS = 127.5
"""In 1/255: in an L-infinity ball of half the value range, any image can become uniform grey."""
N_STEPS = 20
"""Steps of PGD on the margin; the step size is a quarter of the radius."""
N_PASSES = 5
"""Passes over the same images, whose logits must be equal."""
GRADIENT_EPS = (0.25, 1.0, 4.0)
"""In 1/255: sizes of one step against the gradient. A smooth target is almost linear at the smallest; rounding to few
grey levels has no effect there and a mean effect at the largest."""
POSITIVE_CONTROL_BITS = 4
"""Bits of a pixel: a defence that BPDA is known to break (Athalye et al. 2018, arXiv 1802.00420)."""

Diagnostics = dict[tuple[str, float], np.ndarray]
"""Name of a diagnostic and eps (0: unchanged images) -> a value for each image, float64 ``(N,)``."""


def run_diagnostics(batch: AttackBatch, eps: tuple[float, ...], unbounded_radius: float) -> Diagnostics:
    """Measure the response of a target to an unbounded attack and to noise, its gradients and its outputs.

    Args:
        batch: model and N images, with the radii of the grid.
        eps: grid, ``(R,)``.
        unbounded_radius: radius of ``UNBOUNDED_EPS``, in units of the value range.

    Returns:
        - ``unbounded_attack``, at ``UNBOUNDED_EPS``: 1 where the image is still classified correctly after PGD, else 0;
        - ``random_noise``, at each eps: 1 where it is correct at a random point of the ball, else 0;
        - ``margin_drop``, at ``GRADIENT_EPS``: decrease of the margin by one step against its gradient;
        - ``margin_drop_by_gradient``: the decrease of a linear function with this gradient;
        - ``zero_gradient``: fraction of the pixels at which the gradient of the cross-entropy is zero;
        - ``finite_gradient``: 1 where that gradient is finite everywhere, else 0;
        - ``max_logit_difference``: largest difference of a logit between passes. A pass over a random target is an
          average of several predictions, as attacks use it;
        - ``batch_difference``: largest difference of a logit between the image in a batch and the image alone, divided
          by the largest logit of the image, or by 1. Not for a random target: its outputs differ anyway;
        - ``repeatable_prediction``: 1 where all passes predict the same class, else 0;
        - ``outputs_are_probabilities``: 1 where the outputs lie in [0, 1] and add up to 1, else 0.
    """
    starts = range(0, len(batch.images), batch.batch_size)
    parts = [_one_pass_diagnostics(batch, eps, slice(start, start + batch.batch_size)) for start in starts]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {("unbounded_attack", UNBOUNDED_EPS): robust_correct(batch, batch.model, unbounded_radius), **found}


def run_positive_control(batch: AttackBatch, eps: float, radius: float) -> Diagnostics:
    """Put a defence that is known to be broken in front of the model, and attack both.

    Args:
        batch: the undefended classifier and N images.
        eps: of the attack.
        radius: the same in units of the value range.

    Returns:
        ``positive_control``, at the eps: 1 where the image is still classified correctly, else 0.
    """
    n_levels = 2**POSITIVE_CONTROL_BITS - 1
    rounding = BPDA(lambda images: (np.rint(images * n_levels) / n_levels, None), "rounding")
    defended = Purified(rounding, batch.model).eval()
    return {("positive_control", eps): robust_correct(batch, defended, radius)}


def robust_correct(batch: AttackBatch, model: nn.Module, radius: float) -> np.ndarray:
    """Attack a model in the ball of one radius by PGD with a restart; 1 where it is still correct, float64 ``(N,)``."""
    one_radius = replace(batch, model=model, radii=np.array([radius]))
    survived: np.ndarray = run_sweep(one_radius, N_STEPS, relative_step_size=0.25, n_restarts=1).index == 1
    return survived.astype(np.float64)


def _one_pass_diagnostics(batch: AttackBatch, eps: tuple[float, ...], part: slice) -> Diagnostics:
    device = device_of(batch.model)
    images, labels = (torch.from_numpy(of[part]).to(device) for of in (batch.images, batch.labels))
    gradients = loss_gradient(batch.model, images, labels)
    with torch.inference_mode():
        passes = torch.stack([batch.model(images) for _ in range(N_PASSES)])
        outputs = passes[0]
        in_range = ((outputs >= 0) & (outputs <= 1)).all(dim=1)
        found = {
            ("zero_gradient", 0.0): (gradients == 0).float().mean(dim=(1, 2, 3)),
            ("finite_gradient", 0.0): gradients.isfinite().all(dim=(1, 2, 3)),
            ("max_logit_difference", 0.0): (passes.amax(dim=0) - passes.amin(dim=0)).amax(dim=1),
            ("repeatable_prediction", 0.0): (passes.argmax(dim=2) == outputs.argmax(dim=1)).all(dim=0),
            ("outputs_are_probabilities", 0.0): in_range & ((outputs.sum(dim=1) - 1).abs() < 1e-4),
        }
        if not random_modules(batch.model):
            alone = torch.cat([batch.model(image[None]) for image in images])
            difference = (alone - outputs).abs().amax(dim=1)
            found["batch_difference", 0.0] = difference / outputs.abs().amax(dim=1).clamp_min(1.0)
        for value, radius in zip(eps, batch.radii.tolist(), strict=True):
            ids, first = batch.image_ids[part], np.zeros(len(images), dtype=np.int64)
            noisy = batch.ball.random_starts(images, radius, batch.seed, "random_noise", ids, first)
            found["random_noise", value] = batch.model(noisy).argmax(dim=1) == labels
    found |= _margin_drops(batch, images, labels, batch.radii[0].item() / eps[0])
    return {name: values.cpu().numpy().astype(np.float64) for name, values in found.items()}


def _margin_drops(batch: AttackBatch, images: Tensor, labels: Tensor, unit: float) -> dict[tuple[str, float], Tensor]:
    """Decrease of the margin by one step, and as predicted by the gradient; ``unit`` is the radius of eps 1."""
    logits, downhill = logits_and_margin_gradient(batch.model, images, labels)
    # where the gradient is not finite it predicts nothing, and the diagnostic finite_gradient reports it
    downhill = downhill.nan_to_num(0.0, 0.0, 0.0)
    drops = {}
    with torch.inference_mode():
        steepest = batch.ball.steepest(downhill)
        for eps in GRADIENT_EPS:
            changed = batch.ball.project(images + unit * eps * steepest, images, torch.tensor(unit * eps))
            drops["margin_drop", eps] = logit_margin(logits, labels) - logit_margin(batch.model(changed), labels)
            drops["margin_drop_by_gradient", eps] = ((changed - images) * downhill).sum(dim=(1, 2, 3))
    return drops
