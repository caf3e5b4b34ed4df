"""Fit of mean and std, with which an imported classifier returns the outputs of the original one."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tasks.models.imported import ImportedClassifier

COMMON_STATISTICS = (
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.5,), (0.5,)),
    ((0.449,), (0.226,)),
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
)
"""Common mean and std of images in [0, 1]: ImageNet's, one half, those of grey ImageNet, and CLIP's."""
N_ITERATIONS = 60
"""Iterations of L-BFGS from each start."""
GOOD_FIT = 1e-3
"""Difference from the reference at which no further start is tried."""


def fit_mean_and_std(
    model: ImportedClassifier,
    images: Tensor,
    difference: Callable[[Tensor], float],
    outputs: np.ndarray,
    is_probability: bool,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Fit mean and std of each channel to reference outputs by L-BFGS, from common values.

    Args:
        model: has gradients.
        images: float32 ``(n, C, H, W)`` in [0, 1].
        difference: of logits ``(n, K)`` from the reference.
        outputs: of the reference, ``(n, K)`` or ``(n, 1)``.
        is_probability: the reference outputs are probabilities.

    Returns:
        Mean and std of each channel in the unit of ``input.value_range``, ``(C,)`` each; None if no gradient is finite.
    """
    low, high = model.input.value_range
    plain = model.redeclared(input={"mean": None, "std": None})
    with torch.no_grad():
        inputs = plain.to_input(images)
    wanted = torch.from_numpy(outputs).float()

    def logits_of(mean: Tensor, std: Tensor) -> Tensor:
        changed = (inputs - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
        return plain.to_logits(plain.run(changed))

    n_channels, width = inputs.shape[1], high - low
    own = (float(inputs.mean()), max(float(inputs.std()), 1e-6 * width))
    known = [pair for pair in COMMON_STATISTICS if len(pair[0]) in (1, n_channels)]
    starts = [(np.array(mean) * width + low, np.array(std) * width) for mean, std in known]
    starts += [(np.array([own[0]]), np.array([own[1]])), (np.array([0.0]), np.array([1.0]))]
    if model.input.mean is not None or model.input.std is not None:
        starts.append((np.array(model.input.mean or (0.0,)), np.array(model.input.std or (1.0,))))
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    tried: list[tuple[float, Tensor, Tensor]] = []
    for start in starts:
        first, second = (torch.from_numpy(np.broadcast_to(each, (n_channels,)).copy()).float() for each in start)
        with torch.no_grad():
            tried.append((difference(logits_of(first, second)), first, second))
    # a common value that is right needs no fit
    for found, mean, std in sorted(tried, key=lambda each: each[0]):
        if found > GOOD_FIT:
            mean, std = _minimise(logits_of, mean, std, width, wanted, is_probability)
            with torch.no_grad():
                found = difference(logits_of(mean, std))
        if np.isfinite(found) and (best is None or found < best[0]):
            best = found, mean.double().numpy(), std.double().numpy()
        if best is not None and best[0] <= GOOD_FIT:
            break
    return None if best is None else best[1:]


def _minimise(
    logits_of: Callable[[Tensor, Tensor], Tensor],
    mean: Tensor,
    std: Tensor,
    width: float,
    wanted: Tensor,
    is_probability: bool,
) -> tuple[Tensor, Tensor]:
    """Mean and std after L-BFGS from a start."""
    shift = (mean / width).clone().requires_grad_()
    log_scale = (std / width).log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([shift, log_scale], max_iter=N_ITERATIONS, line_search_fn="strong_wolfe")
    spread = wanted.std().clamp_min(1e-6)

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = logits_of(shift * width, log_scale.exp() * width)
        if wanted.shape[1] == 1:
            positive = (logits[:, 1] - logits[:, 0])[:, None]
            error = (positive.sigmoid() if is_probability else positive) - wanted
        elif is_probability:
            error = logits.softmax(dim=1) - wanted
        else:
            error = logits - logits.mean(dim=1, keepdim=True) - (wanted - wanted.mean(dim=1, keepdim=True))
        loss = (error / spread).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation
        return loss

    try:
        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch's annotation
    except RuntimeError as error:
        # the line search has left the range of float32; its last finite numbers are no fit, but no failure either
        if "overflow" not in str(error):
            raise
        return mean, std
    return (shift * width).detach(), (log_scale.exp() * width).detach()
