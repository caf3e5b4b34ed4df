from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.attacks.suite import run_suite
from tasks.attacks.sweep import run_sweep
from tests.nets import ThreeClasses, assert_adversarial, linear_batch, nothing_found, three_class_batch

EPS = np.array([0.25, 0.5, 1, 2, 4, 8, 16, 32])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_suite_finds_the_smallest_radius_on_a_linear_classifier_without_a_sweep(norm: str) -> None:
    batch, expected = linear_batch(norm, EPS)
    found = run_suite(batch, nothing_found(batch, np.where(expected < 0, -1, len(EPS))), 20)
    assert found.index.tolist() == expected.tolist()
    assert set(found.found_by[expected >= 0]) <= {"apgd_ce", "apgd_margin", "deepfool"}
    assert (found.found_by[expected < 0] == "before").all()
    assert_adversarial(batch, found)


def test_the_suite_keeps_results_that_are_already_the_smallest() -> None:
    batch, expected = linear_batch("linf", EPS)
    found = run_suite(batch, nothing_found(batch, expected), 20)
    assert found.index.tolist() == expected.tolist()
    assert (found.found_by == "before").all()


def test_the_difference_of_logits_ratio_is_used_with_three_classes() -> None:
    batch = three_class_batch(EPS)
    index = run_sweep(batch, 2, 0.25, 0).index
    # a weak sweep: every result is one radius too large
    worse = np.where((index >= 0) & (index < len(EPS)), index + 1, index)
    found = run_suite(batch, nothing_found(batch, worse), 20)
    assert (found.index <= index).all()
    assert {"apgd_ce", "before"} <= set(found.found_by)
    n_forwarded = []

    class Counted(ThreeClasses):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            n_forwarded.append(len(images))
            return super().forward(images)

    run_suite(replace(batch, model=Counted()), nothing_found(batch, found.index), 5)
    # three losses, each on every image that a smaller radius may break, and DeepFool
    assert sum(n_forwarded) > 3 * (found.index > 0).sum()
