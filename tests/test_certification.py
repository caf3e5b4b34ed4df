from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from tasks.attack import attack
from tasks.attack_defence import attack_defence
from tasks.attacks.certification import ABSTAIN, certified
from tasks.core.workspace import Workspace
from tasks.params import Params, RandomizedSmoothing
from tasks.tracking import Tracker
from tasks.train_defence import train_defence
from tests.small_workspace import SIDE, SMALL

SMOOTHED = SMALL | {
    "attack.eps": [4],
    "attack.attacks": ["pgd"],
    "attack.max_images": 9,
    "attack.max_art_reference_images": 3,
    "attack.max_black_box_images": 3,
    "attack.max_validation_images": 3,
    "selected_defences": ["autoencoder", "randomized_smoothing"],
    "defences.randomized_smoothing.std": 0.05,
    "defences.randomized_smoothing.n_eot_samples": 2,
    "defences.randomized_smoothing.training.epochs": 2,
    "defences.randomized_smoothing.certification.n_samples": 100,
    "defences.randomized_smoothing.certification.max_images": 8,
}


class FirstPixel(nn.Module):
    """Class 1 where the first pixel is brighter than one half; the other pixels have no effect."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.5))

    def forward(self, images: Tensor) -> Tensor:
        score = images[:, 0, 0, 0] - self.threshold
        return torch.stack([-score, score], dim=1)


def settings_of(params: Params) -> RandomizedSmoothing:
    settings = params.defences["randomized_smoothing"]
    assert isinstance(settings, RandomizedSmoothing)
    return settings


def test_radii_of_a_linear_classifier_equal_the_distances_of_the_boundary(params_with: Callable[..., Params]) -> None:
    n_samples = 10_000
    changes = {
        "defences.randomized_smoothing.std": 0.2,
        "defences.randomized_smoothing.n_eot_samples": 200,
        "defences.randomized_smoothing.certification.n_samples": n_samples,
    }
    images = np.full((4, 1, 2, 2), 0.5, dtype=np.float32)
    distances = np.array([0.1, -0.2, 0.3, 0.0])
    images[:, 0, 0, 0] += distances
    classes, radii = certified(FirstPixel(), images, 2, settings_of(params_with(changes)), [3])
    assert classes[:3].tolist() == [1, 0, 1]
    # Cohen et al. 2019, equation 3: for a linear boundary the radius is the distance, up to the confidence bound
    assert radii[:3] == pytest.approx(np.abs(distances[:3]), abs=0.02)
    assert (radii[:3] < np.abs(distances[:3])).all()
    assert classes[3] == ABSTAIN
    assert radii[3] == 0


def test_the_radius_is_bounded_by_the_number_of_samples(params_with: Callable[..., Params]) -> None:
    settings = settings_of(params_with({"defences.randomized_smoothing.std": 0.05}))
    images = np.ones((1, 1, 2, 2), dtype=np.float32)
    classes, radii = certified(FirstPixel(), images, 2, settings, [0])
    assert classes.tolist() == [1]
    # if all of n samples agree, the probability is at least failure ** (1 / n)
    lowest = settings.certification.alpha ** (1 / settings.certification.n_samples)
    assert radii[0] == pytest.approx(0.05 * norm.ppf(lowest), rel=1e-6)


def test_noisy_images_are_clipped_to_the_value_range_before_classification(params_with: Callable[..., Params]) -> None:
    class InRange(nn.Module):
        """Class 1 where all pixels lie in [0, 1]."""

        def __init__(self) -> None:
            super().__init__()
            self.zero = nn.Parameter(torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            inside = ((images >= 0) & (images <= 1)).all(dim=(1, 2, 3)).float()
            return torch.stack([1 - inside, inside], dim=1) + self.zero

    settings = settings_of(params_with({"defences.randomized_smoothing.std": 0.5}))
    classes, radii = certified(InRange(), np.full((1, 1, 4, 4), 0.9, dtype=np.float32), 2, settings, [0])
    assert classes.tolist() == [1]
    assert radii[0] > 0.5


def test_the_step_certifies_some_of_the_attacked_images(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    params = params_with(SMOOTHED)
    workspace.attack.mkdir()
    attack(workspace, params, Tracker())
    for step in ("train_defence", "attack_defence"):
        workspace.step_folder(step, "randomized_smoothing").mkdir(parents=True)
    train_defence(workspace, params, Tracker(), "randomized_smoothing")
    attack_defence(workspace, params, Tracker(), "randomized_smoothing")
    first = workspace.certified_radii("randomized_smoothing").read_bytes()
    found = pd.read_parquet(workspace.certified_radii("randomized_smoothing"))
    assert list(found) == ["image", "path", "label", "group", "target", "prediction", "certified_eps", "largest_eps"]
    assert len(found) == 8
    attacked = pd.read_parquet(workspace.minimum_eps("randomized_smoothing"))["image"]
    assert set(found["image"]) < set(attacked)
    assert found["prediction"].isin([-1, 0, 1, 2]).all()
    assert ((found["certified_eps"] == 0) == (found["prediction"] == ABSTAIN)).all()
    assert (found["certified_eps"] > 0).any()
    # a root-mean-square change of 0.05 times the largest quantile that 100 samples certify
    assert found["largest_eps"].to_numpy() == pytest.approx(0.05 * norm.ppf(0.001 ** (1 / 100)) * 255 / SIDE)
    assert (found["certified_eps"] <= found["largest_eps"] + 1e-6).all()

    attack_defence(workspace, params, Tracker(), "randomized_smoothing")
    assert workspace.certified_radii("randomized_smoothing").read_bytes() == first
