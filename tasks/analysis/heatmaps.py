"""Where a classifier looks: Grad-CAM heat maps, and how far an attack moves them."""

import numpy as np
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.nn import functional as F

TOP_SHARE = 0.1
"""Of the places: the hottest ones, whose overlap is measured."""


class Heatmaps:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391), by Captum.

    Args:
        model: takes images ``(N, 1, H, W)``, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        layer: of the model, whose output is a map ``(N, C, h, w)``.
    """

    def __init__(self, model: nn.Module, layer: nn.Module) -> None:
        self._grad_cam = LayerGradCam(model, layer)
        self._layer = layer

    def __call__(self, images: Tensor, classes: Tensor) -> np.ndarray:
        """Evidence for a class at each place, float32 ``(N, h, w)``, at least 0; all 0 where nothing speaks for it.

        Args:
            images: float32 ``(N, 1, H, W)``.
            classes: what is explained for each image, int64 ``(N,)``.
        """
        # parameters are frozen and images need no gradient: it begins at the layer, and what lies before costs no more
        # than a forward pass; a copy, since what follows may write into it
        begin = self._layer.register_forward_hook(lambda _module, _inputs, maps: maps.detach().requires_grad_().clone())
        try:
            with torch.enable_grad():
                maps = self._grad_cam.attribute(images.detach(), classes, relu_attributions=True)
        finally:
            begin.remove()
        evidence: np.ndarray = maps.detach()[:, 0].cpu().numpy()
        return evidence


def heatmap_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pearson's correlation over the places of two heat maps, float64 ``(N,)`` in [-1, 1].

    0 where one of them is the same everywhere, NaN where both are.

    Args:
        maps: ``(N, h, w)``.
        others: of the same images, ``(N, h, w)``.
    """
    first, second = (_centred(each) for each in (maps, others))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    correlation = np.divide(products, norms, out=np.zeros(len(maps)), where=norms > 0)
    return _defined(correlation, maps, others)


def top_iou(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of the hottest tenth of two heat maps, float64 ``(N,)`` in [0, 1].

    The tenth is of the places of the map itself, rounded, at least one; of equally hot places the first count. A map
    that is the same everywhere has no hottest place: 0 where one of them is so, NaN where both are.

    Args:
        maps: ``(N, h, w)``.
        others: of the same images, ``(N, h, w)``.
    """
    n_places = maps[0].size
    n_top = max(1, round(TOP_SHARE * n_places))
    tops = []
    for each in (maps, others):
        hottest = np.argsort(-each.reshape(len(each), -1), axis=1, kind="stable")[:, :n_top]
        top = np.zeros((len(each), n_places), dtype=bool)
        np.put_along_axis(top, hottest, True, axis=1)
        tops.append(top)
    both, either = (tops[0] & tops[1]).sum(axis=1), (tops[0] | tops[1]).sum(axis=1)
    return _defined(np.where(is_blank(maps) | is_blank(others), 0.0, both / either), maps, others)


def is_blank(maps: np.ndarray) -> np.ndarray:
    """Whether a heat map ``(h, w)`` is the same everywhere, bool ``(N,)``."""
    flat = maps.reshape(len(maps), -1)
    blank: np.ndarray = flat.max(axis=1) == flat.min(axis=1)
    return blank


def upsampled(maps: np.ndarray, side: int) -> np.ndarray:
    """Heat maps ``(N, h, w)`` bilinearly brought to ``(N, side, side)``, the hottest place 1; blank maps are 0."""
    fine = F.interpolate(torch.from_numpy(maps)[:, None], size=(side, side), mode="bilinear", align_corners=False)
    largest = fine.amax(dim=(1, 2, 3), keepdim=True)
    shown: np.ndarray = (fine / torch.where(largest > 0, largest, 1)).clamp(0, 1)[:, 0].numpy()
    return shown


def _defined(agreement: np.ndarray, maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.where(is_blank(maps) & is_blank(others), np.nan, agreement)


def _centred(maps: np.ndarray) -> np.ndarray:
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    # a map that is the same everywhere must centre to exactly 0
    return np.where(is_blank(maps)[:, None], 0.0, flat - flat.mean(axis=1, keepdims=True))
