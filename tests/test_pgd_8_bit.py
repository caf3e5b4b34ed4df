"""The attack on 8-bit values."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tasks.attacks.pgd_8_bit import pgd_8_bit
from tasks.attacks.predictions import round_to_8_bits
from tasks.params import Params, ParamsError
from tests.nets import SIDE, Linear, ThreeClasses


def eight_bit_images(n: int) -> np.ndarray:
    levels = np.random.default_rng(0).integers(0, 256, (n, 1, SIDE, SIDE))
    return levels.astype(np.float32) / np.float32(255)


@pytest.mark.parametrize("n_random_starts", [0, 2])
def test_images_equal_their_own_rounding_and_lie_in_the_ball_of_whole_levels(
    n_random_starts: int, params_with: Callable[..., Params]
) -> None:
    settings = params_with({"attack.pgd.n_random_starts": n_random_starts, "attack.pgd.relative_step_size": 0.3}).attack
    images, model, eps = eight_bit_images(12), ThreeClasses(), (0.5, 1.0, 2.5, 4.0)
    batch = torch.from_numpy(images)
    crafted = list(pgd_8_bit(model, batch, model(batch).argmax(dim=1), eps, settings.pgd, 0, np.arange(12)))
    assert np.array_equal(crafted[0].numpy(), images)
    for value, adversarial in zip(eps, crafted, strict=True):
        assert np.array_equal(round_to_8_bits(adversarial.numpy()), adversarial.numpy())
        changes = np.abs(np.rint(255 * adversarial.numpy()) - np.rint(255 * images))
        assert changes.max() == np.floor(value)
    assert 0 <= crafted[-1].min() <= crafted[-1].max() <= 1


def test_a_linear_classifier_is_broken_at_the_first_whole_level_at_which_it_can_be(
    params_with: Callable[..., Params],
) -> None:
    pgd = params_with({"attack.pgd.n_random_starts": 0}).attack.pgd
    # 64 pixels of 100 levels; class 1 above a mean of 97.5 levels, which takes 3 levels
    model = Linear(np.full(SIDE * SIDE, 255 / SIDE**2), -97.5)
    images, labels = torch.full((2, 1, SIDE, SIDE), 100 / 255), torch.ones(2, dtype=torch.int64)
    crafted = pgd_8_bit(model, images, labels, (2.0, 2.9, 3.0), pgd, 0, np.arange(2))
    assert [model(adversarial).argmax(dim=1).tolist() for adversarial in crafted] == [[1, 1], [1, 1], [0, 0]]


def test_it_is_an_option_for_l_infinity_balls(params_with: Callable[..., Params]) -> None:
    attacks = ["fgsm", "pgd", "pgd_8_bit"]
    assert "pgd_8_bit" not in params_with({}).attack.attacks
    settings = params_with({"attack.attacks": attacks}).attack
    assert (settings.saved_attacks, settings.eight_bit_attacks) == (("fgsm", "pgd"), ("pgd_8_bit",))
    with pytest.raises(ParamsError, match="pgd_8_bit needs norm linf, not l2"):
        params_with({"attack.attacks": attacks, "attack.norm": "l2"})
