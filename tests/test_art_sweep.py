from typing import Any

import numpy as np
import pytest
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.defences.postprocessor import ReverseSigmoid
from art.estimators.classification import PyTorchClassifier
from art.utils import compute_success
from torch import nn

from tasks.attacks.evasion import EpsilonSweep
from tests.nets import SIDE, ThreeClasses, linear_case

EPS = tuple(value / 255 for value in (0.5, 1, 2, 4, 8, 16))


def estimator(model: nn.Module, n_classes: int, **more: Any) -> PyTorchClassifier:
    settings = {"clip_values": (0.0, 1.0), "device_type": "cpu"} | more
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, SIDE, SIDE), n_classes, **settings)


@pytest.mark.parametrize("max_iter", [0, 20])
def test_in_arts_world_it_breaks_as_much_as_arts_own_attack_at_the_largest_eps(max_iter: int) -> None:
    classifier = estimator(ThreeClasses(), 3)
    images = np.random.default_rng(0).uniform(size=(60, 1, SIDE, SIDE)).astype(np.float32)
    labels = np.eye(3, dtype=np.float32)[classifier.predict(images).argmax(axis=1)]
    ours = EpsilonSweep(classifier, eps=EPS, max_iter=max_iter, batch_size=16).generate(images, labels)
    if max_iter:
        stock: Any = ProjectedGradientDescent(
            classifier, eps=EPS[-1], eps_step=EPS[-1] / 4, max_iter=max_iter, verbose=False
        )
    else:
        stock = FastGradientMethod(classifier, eps=EPS[-1])
    rates = [compute_success(classifier, images, labels, made) for made in (ours, stock.generate(images, labels))]
    assert 0 < rates[1] <= rates[0] + 1 / 60
    assert np.abs(ours - images).max() <= EPS[-1] + 1e-6


def test_labels_may_be_numbers_one_hot_or_what_the_classifier_predicts() -> None:
    model, images, labels, _ = linear_case()
    attack = EpsilonSweep(estimator(model, 2), eps=EPS, max_iter=5)
    by_number = attack.sweep(images, labels)
    by_one_hot = attack.sweep(images, np.eye(2, dtype=np.float32)[labels])
    assert by_number.broken_at.tolist() == by_one_hot.broken_at.tolist()
    assert (by_number.broken_at == -1).sum() == 4
    assert (attack.sweep(images).broken_at == -1).sum() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": 1}, "norm: 1 is none of"),
        ({"eps": ()}, "eps: positive radii that rise"),
        ({"eps": (0.2, 0.1)}, "eps: positive radii that rise"),
        ({"max_iter": -1}, "max_iter and num_random_init must be at least 0"),
        ({"batch_size": 0}, "batch_size at least 1"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpsilonSweep(estimator(linear_case()[0], 2), **arguments)


def test_an_estimator_that_it_would_attack_wrongly_is_refused() -> None:
    model = linear_case()[0]
    for mean, std in ((0.5, 0.5), (np.full((1, 1, 1), 0.5, np.float32), np.full((1, 1, 1), 0.5, np.float32))):
        with pytest.raises(ValueError, match="preprocessing would be passed by"):
            EpsilonSweep(estimator(model, 2, preprocessing=(mean, std)))
    with pytest.raises(ValueError, match="postprocessing would be passed by"):
        EpsilonSweep(estimator(model, 2, postprocessing_defences=ReverseSigmoid()))
    with pytest.raises(ValueError, match="clip_values must say"):
        EpsilonSweep(estimator(model, 2, clip_values=None))


def test_images_that_are_not_what_the_estimator_says_are_refused() -> None:
    model, images, labels, _ = linear_case()
    attack = EpsilonSweep(estimator(model, 2))
    for wrong in (images * 255, images.reshape(len(images), -1)):
        for given in (labels, None):
            with pytest.raises(ValueError, match=r"images \(N, C, H, W\) with values from 0 to 1"):
                attack.sweep(wrong, given)


@pytest.mark.parametrize("norm", [np.inf, "inf", 2])
def test_one_eps_norms_restarts_and_seeds_are_taken_as_art_takes_them(norm: Any) -> None:
    model, images, labels, margins = linear_case()
    kind = "l2" if norm == 2 else "linf"
    size = float(np.median(margins[margins > 0])) / model.dual(kind)
    attack = EpsilonSweep(estimator(model, 2), norm=norm, eps=size, max_iter=40, num_random_init=2, seed=3)
    expected = np.where(margins < 0, -1, margins / model.dual(kind) > size)
    assert attack.sweep(images, labels).broken_at.tolist() == expected.astype(int).tolist()


def test_what_generate_does_not_know_is_refused() -> None:
    model, images, labels, _ = linear_case()
    with pytest.raises(ValueError, match=r"takes x and y, not \['mask'\]"):
        EpsilonSweep(estimator(model, 2)).generate(images, labels, mask=None)
