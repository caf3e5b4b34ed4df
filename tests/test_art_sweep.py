from typing import Any

import numpy as np
import pytest
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.defences.postprocessor import ReverseSigmoid
from art.estimators.classification import PyTorchClassifier
from art.utils import compute_success
from torch import nn

from tasks.attacks.art_sweep import EpsilonSweep
from tests.nets import SIDE, ThreeClasses, linear_case

EPS = tuple(value / 255 for value in (0.5, 1, 2, 4, 8, 16))


def estimator(model: nn.Module, n_classes: int, **more: Any) -> PyTorchClassifier:
    settings = {"clip_values": (0.0, 1.0), "device_type": "cpu"} | more
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, SIDE, SIDE), n_classes, **settings)


@pytest.mark.parametrize("max_iter", [0, 20])
def test_the_success_rate_is_at_least_that_of_the_attack_of_art_at_the_largest_eps(max_iter: int) -> None:
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
    rates = [
        compute_success(classifier, images, labels, adversarial)
        for adversarial in (ours, stock.generate(images, labels))
    ]
    assert 0 < rates[1] <= rates[0] + 1 / 60
    assert np.abs(ours - images).max() <= EPS[-1] + 1e-6


def test_labels_are_class_numbers_or_one_hot_and_default_to_the_predictions() -> None:
    model, images, labels, _ = linear_case()
    attack = EpsilonSweep(estimator(model, 2), eps=EPS, max_iter=5)
    by_number = attack.sweep(images, labels)
    by_one_hot = attack.sweep(images, np.eye(2, dtype=np.float32)[labels])
    assert by_number.index.tolist() == by_one_hot.index.tolist()
    assert (by_number.index == -1).sum() == 4
    assert (attack.sweep(images).index == -1).sum() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": 1}, r"norm: 1. Allowed: \["),
        ({"precision": "float16"}, "precision: 'float16'. Allowed: "),
        ({"eps": ()}, r"eps: \[\]. Positive, finite, rising radii are allowed"),
        ({"eps": (0.2, 0.1)}, r"eps: \[0.2, 0.1\]. Positive, finite, rising radii are allowed"),
        ({"max_iter": -1}, "max_iter -1, .* Allowed: max_iter and num_random_init at least 0"),
        ({"batch_size": 0}, "batch_size 0, .* batch_size at least 1"),
    ],
)
def test_impossible_arguments_raise_an_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpsilonSweep(estimator(linear_case()[0], 2), **arguments)


def test_estimators_with_processing_outside_the_model_raise_an_error() -> None:
    model = linear_case()[0]
    for mean, std in ((0.5, 0.5), (np.full((1, 1, 1), 0.5, np.float32), np.full((1, 1, 1), 0.5, np.float32))):
        with pytest.raises(ValueError, match="it has preprocessing, which this attack would ignore"):
            EpsilonSweep(estimator(model, 2, preprocessing=(mean, std)))
    with pytest.raises(ValueError, match="it has postprocessing, which this attack would ignore"):
        EpsilonSweep(estimator(model, 2, postprocessing_defences=ReverseSigmoid()))
    with pytest.raises(ValueError, match=r"clip_values None\. Two numbers are needed"):
        EpsilonSweep(estimator(model, 2, clip_values=None))


def test_images_outside_the_value_range_of_the_estimator_raise_an_error() -> None:
    model, images, labels, _ = linear_case()
    attack = EpsilonSweep(estimator(model, 2))
    for wrong in (images * 255, images.reshape(len(images), -1)):
        for given in (labels, None):
            with pytest.raises(ValueError, match=r"Images \(N, C, H, W\) with values from 0 to 1"):
                attack.sweep(wrong, given)


@pytest.mark.parametrize("norm", [np.inf, "inf", 2])
def test_norms_one_eps_restarts_and_seeds_are_accepted_as_by_art(norm: Any) -> None:
    model, images, labels, margins = linear_case()
    kind = "l2" if norm == 2 else "linf"
    size = float(np.median(margins[margins > 0])) / model.dual(kind)
    attack = EpsilonSweep(estimator(model, 2), norm=norm, eps=size, max_iter=40, num_random_init=2, seed=3)
    expected = np.where(margins < 0, -1, margins / model.dual(kind) > size)
    assert attack.sweep(images, labels).index.tolist() == expected.astype(int).tolist()


def test_unknown_arguments_of_generate_raise_an_error() -> None:
    model, images, labels, _ = linear_case()
    with pytest.raises(ValueError, match=r"unknown arguments \['mask'\]. Only x and y are allowed"):
        EpsilonSweep(estimator(model, 2)).generate(images, labels, mask=None)
