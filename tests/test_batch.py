import numpy as np
import pytest
import torch

from tasks.attacks.batch import N_BISECTIONS, bisect_to_boundary, shrink
from tasks.attacks.sweep import run_sweep
from tests.nets import linear_batch, linear_case, nothing_found

EPS = np.array([0.25, 0.5, 1, 2, 4, 8, 16, 32])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_perturbations_shrink_to_the_distance_of_the_decision_boundary(norm: str) -> None:
    batch, expected = linear_batch(norm, EPS)
    norms = shrink(batch, run_sweep(batch, 20, 0.25, 0))
    model, _, _, margins = linear_case()
    exact = margins / model.dual(norm)
    broken = expected >= 0
    assert broken.sum() == 36
    assert (norms[~broken] == 0).all()
    assert (norms[broken] >= exact[broken] * (1 - 1e-4)).all()
    # to 1/256 of a perturbation of at most twice the distance, since radii double; the value range clips l2 balls
    assert norms[broken] == pytest.approx(exact[broken], rel=0.02)
    nothing = shrink(batch, nothing_found(batch, np.full(40, len(EPS))))
    assert np.isinf(nothing).all()


def test_bisection_ends_at_a_misclassified_image_next_to_the_boundary() -> None:
    model, images, labels, margins = linear_case()
    rows = np.flatnonzero(margins > 0)
    inner, true = torch.from_numpy(images[rows]), torch.from_numpy(labels[rows])
    direction = torch.sign(model.weights).reshape(inner.shape[1:]) * torch.where(true == 1, -1, 1)[:, None, None, None]
    outer = inner + 0.4 * direction
    assert (model(outer).argmax(dim=1) != true).all()
    found = bisect_to_boundary(model, inner, true, outer)
    assert (model(found).argmax(dim=1) != true).all()
    sizes = (found - inner).abs().amax(dim=(1, 2, 3)).numpy()
    exact = margins[rows] / model.dual("linf")
    assert (sizes >= exact * (1 - 1e-4)).all()
    assert (sizes <= exact + 0.4 / 2**N_BISECTIONS + 1e-5).all()


def test_the_smallest_radius_that_contains_a_perturbation_allows_for_rounding() -> None:
    batch, _ = linear_batch("linf", EPS)
    rows = np.array([3, 5, 7])
    sizes = np.array([1 / 255, 1.01 / 255, 33 / 255], dtype=np.float32)[:, None, None, None]
    assert batch.smallest_index(rows, batch.images[rows] + sizes).tolist() == [2, 3, len(EPS)]
