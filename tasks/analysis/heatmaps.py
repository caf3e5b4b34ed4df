"""Grad-CAM heat maps, and the agreement of the heat maps of two versions of an image."""

from functools import partial

import numpy as np
import pandas as pd
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.analysis.tables import estimate_rows
from tasks.statistics.groups import GroupJackknife
from tasks.statistics.intervals import CORRELATION, RATE
from tasks.statistics.resampled import resampled_mean

TOP_FRACTION = 0.1
"""Fraction of the positions with the highest values whose overlap is measured."""


class Heatmaps:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391), computed with Captum.

    Args:
        model: takes images ``(N, C, H, W)``, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        layer: layer of the model with an output of shape ``(N, C, h, w)``.
    """

    def __init__(self, model: nn.Module, layer: nn.Module) -> None:
        self._grad_cam = LayerGradCam(model, layer)
        self._layer = layer

    def __call__(self, images: Tensor, classes: Tensor) -> np.ndarray:
        """Evidence for a class at each position, float32 ``(N, h, w)``, at least 0.

        Args:
            images: float32 ``(N, C, H, W)``.
            classes: the class to explain for each image, int64 ``(N,)``.
        """
        # Neither parameters nor images require a gradient. The graph starts at the output of the layer, so earlier
        # layers cost a forward pass only. The clone is needed because later layers may write in place.
        hook = self._layer.register_forward_hook(lambda _module, _inputs, maps: maps.detach().requires_grad_().clone())
        try:
            with torch.enable_grad():
                maps = self._grad_cam.attribute(images.detach(), classes, relu_attributions=True)
        finally:
            hook.remove()
        evidence: np.ndarray = maps.detach()[:, 0].cpu().numpy()
        return evidence


def heatmap_agreement(maps: np.ndarray, reference: np.ndarray, jackknife: GroupJackknife) -> pd.DataFrame:
    """Mean agreement of heat maps with reference maps of the same images and classes.

    Rows: metric (``correlation``, ``iou``), value, low, high, n, n_blank. ``n_blank`` counts the images whose map is
    constant although the reference is not; their agreement is 0. Images whose reference is constant too are not part
    of ``n``.

    Args:
        maps: ``(N, h, w)``.
        reference: ``(N, h, w)``.
        jackknife: of the images.
    """
    undefined = is_blank(maps) & is_blank(reference)
    agreement = {
        "correlation": (heatmap_correlation(maps, reference), CORRELATION),
        "iou": (top_iou(maps, reference), RATE),
    }
    estimates = {
        metric: jackknife.estimate(partial(resampled_mean, values), bounds, [~undefined])
        for metric, (values, bounds) in agreement.items()
    }
    n_blank = int((is_blank(maps) & ~undefined).sum())
    return estimate_rows(estimates).assign(n=int((~undefined).sum()), n_blank=n_blank)


def heatmap_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pearson correlation of two heat maps over the positions, float64 ``(N,)`` in [-1, 1].

    0 where one of the two maps is constant, NaN where both are.

    Args:
        maps: ``(N, h, w)``.
        others: of the same images, ``(N, h, w)``.
    """
    first, second = (_centred(each) for each in (maps, others))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    correlation = np.divide(products, norms, out=np.zeros(len(maps)), where=norms > 0)
    return _nan_where_both_blank(correlation, maps, others)


def top_iou(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of the top 10 % of the positions of two heat maps, float64 ``(N,)`` in [0, 1].

    The number of positions is rounded and at least one; among equal values the first positions count. 0 where one of
    the two maps is constant, NaN where both are.

    Args:
        maps: ``(N, h, w)``.
        others: of the same images, ``(N, h, w)``.
    """
    n_positions = maps[0].size
    n_top = max(1, round(TOP_FRACTION * n_positions))
    tops = []
    for each in (maps, others):
        highest = np.argsort(-each.reshape(len(each), -1), axis=1, kind="stable")[:, :n_top]
        top = np.zeros((len(each), n_positions), dtype=bool)
        np.put_along_axis(top, highest, True, axis=1)
        tops.append(top)
    both, either = (tops[0] & tops[1]).sum(axis=1), (tops[0] | tops[1]).sum(axis=1)
    return _nan_where_both_blank(np.where(is_blank(maps) | is_blank(others), 0.0, both / either), maps, others)


def is_blank(maps: np.ndarray) -> np.ndarray:
    """Return which heat maps ``(N, h, w)`` are constant, bool ``(N,)``."""
    flat = maps.reshape(len(maps), -1)
    blank: np.ndarray = flat.max(axis=1) == flat.min(axis=1)
    return blank


def upsample(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolate heat maps ``(N, h, w)`` to ``(N, *size)`` and scale their maximum to 1; zero maps stay zero."""
    fine = F.interpolate(torch.from_numpy(maps)[:, None], size=size, mode="bilinear", align_corners=False)
    largest = fine.amax(dim=(1, 2, 3), keepdim=True)
    scaled: np.ndarray = (fine / torch.where(largest > 0, largest, 1)).clamp(0, 1)[:, 0].numpy()
    return scaled


def _nan_where_both_blank(agreement: np.ndarray, maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.where(is_blank(maps) & is_blank(others), np.nan, agreement)


def _centred(maps: np.ndarray) -> np.ndarray:
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    # rounding must not leave a remainder in a constant map
    return np.where(is_blank(maps)[:, None], 0.0, flat - flat.mean(axis=1, keepdims=True))
