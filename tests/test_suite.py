from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.gradient.balls import Balls, radius
from tasks.attacks.hop_skip_jump import hop_skip_jump
from tasks.attacks.suite import Broken, Case, by_labels, by_scores, shortened, swept, white_box
from tests.nets import N_PIXELS, SIDE, Linear, ThreeClasses, linear_case

EPS = np.array([0.25, 0.5, 1, 2, 4, 8, 16, 32])


def linear(norm: str = "linf") -> tuple[Case, np.ndarray]:
    """Images of a linear classifier, and the index of the smallest radius that breaks each."""
    model, images, labels, margins = linear_case()
    radii = np.array([radius(eps, norm, N_PIXELS) for eps in EPS])
    case = Case(model, images, labels, 2, radii, Balls(norm, (0.0, 1.0)), 16, 0, np.arange(40) + 100)
    return case, np.where(margins < 0, -1, np.searchsorted(radii, margins / model.dual(norm)))


def three() -> Case:
    model = ThreeClasses()
    images = np.random.default_rng(0).uniform(size=(60, 1, SIDE, SIDE)).astype(np.float32)
    labels = model(torch.from_numpy(images)).argmax(dim=1).numpy()
    labels[::10] = (labels[::10] + 1) % 3
    return Case(model, images, labels, 3, EPS / 255, Balls("linf", (0.0, 1.0)), 16, 0, np.arange(60))


def unbroken(case: Case, at: np.ndarray) -> Broken:
    return Broken(at, np.full(len(at), "before", dtype=object), case.images)


def assert_breaks(case: Case, broken: Broken) -> None:
    """Every finding lies in its ball, and is misclassified."""
    found = (broken.at >= 0) & (broken.at < len(case.radii))
    changes = (broken.adversarial - case.images)[found].reshape(found.sum(), -1)
    sizes = np.abs(changes).max(axis=1) if case.balls.norm == "linf" else np.linalg.norm(changes, axis=1)
    assert (sizes <= case.radii[broken.at[found]] + 1e-5).all()
    seen = case.target(torch.from_numpy(broken.adversarial[found])).argmax(dim=1).numpy()
    assert (seen != case.labels[found]).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_classifier_white_box_attacks_find_the_smallest_radius_alone(norm: str) -> None:
    case, expected = linear(norm)
    nothing_known = unbroken(case, np.where(expected < 0, -1, len(EPS)))
    broken = white_box(case, nothing_known, 20)
    assert broken.at.tolist() == expected.tolist()
    assert set(broken.by[expected >= 0]) <= {"apgd_ce", "apgd_margin", "deepfool"}
    assert (broken.by[expected < 0] == "before").all()
    assert_breaks(case, broken)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_an_attack_found_is_shortened_to_the_distance_of_the_boundary(norm: str) -> None:
    case, expected = linear(norm)
    found = swept(case, 20, 0.25, 0)
    sizes = shortened(case, found)
    model, _, _, margins = linear_case()
    exact = margins / model.dual(norm)
    broken = expected >= 0
    assert broken.sum() == 36
    assert (sizes[~broken] == 0).all()
    assert (sizes[broken] >= exact[broken] * (1 - 1e-4)).all()
    # a 256th of a perturbation of at most twice the distance, since radii double; l2 balls are cut by the value range
    assert sizes[broken] == pytest.approx(exact[broken], rel=0.02)
    nothing = shortened(case, unbroken(case, np.full(40, len(EPS))))
    assert np.isinf(nothing).all()


def test_white_box_attacks_leave_what_is_the_smallest_already() -> None:
    case, expected = linear()
    broken = white_box(case, unbroken(case, expected), 20)
    assert broken.at.tolist() == expected.tolist()
    assert (broken.by == "before").all()


def test_three_classes_meet_the_difference_of_logits_ratios_too() -> None:
    case = three()
    at = swept(case, 2, 0.25, 0).at
    # an ill sweep: everything one radius too far
    worse = np.where((at >= 0) & (at < len(EPS)), at + 1, at)
    broken = white_box(case, unbroken(case, worse), 20)
    assert (broken.at <= at).all()
    assert {"apgd_ce", "before"} <= set(broken.by)
    asked = []

    class Watched(ThreeClasses):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            asked.append(len(images))
            return super().forward(images)

    watched = replace(case, target=Watched())
    white_box(watched, unbroken(case, broken.at), 5)
    # three losses, each on at most every image that can still fall, and DeepFool
    assert sum(asked) > 3 * (broken.at > 0).sum()


@pytest.mark.parametrize("begin", [0, 3, 7])
def test_scores_alone_find_the_same_from_wherever_they_begin(begin: int) -> None:
    case, expected = linear()
    broken = by_scores(case, np.where(expected < 0, -1, begin), 300)
    assert (broken.at >= expected).all()
    assert ((broken.at - expected)[(expected >= 0) & (expected < len(EPS) - 1)] <= 1).all()
    assert ((broken.at == -1) == (expected == -1)).all()
    assert_breaks(case, broken)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_labels_alone_come_near(norm: str) -> None:
    case, expected = linear(norm)
    chosen = np.arange(0, 40, 3)
    broken = by_labels(case, chosen, expected < 0, 800)
    assert (broken.at >= expected).all()
    tried = np.isin(np.arange(40), chosen) & (expected >= 0)
    assert ((broken.at - expected)[tried] <= 1).all()
    assert (broken.at[~np.isin(np.arange(40), chosen) & (expected >= 0)] == len(EPS)).all()
    assert_breaks(case, broken)


class Coarse(nn.Module):
    """A classifier behind few grey levels: its boundary is a staircase."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.n_asked = model, 0

    def forward(self, images: Tensor) -> Tensor:
        self.n_asked += len(images)
        logits: Tensor = self.model((images * 15).round() / 15)
        return logits


def test_on_a_staircase_labels_alone_end_with_the_queries_that_are_allowed() -> None:
    case, expected = linear()
    coarse = Coarse(case.target).eval()
    seen = coarse(torch.from_numpy(case.images)).argmax(dim=1).numpy()
    rows = np.flatnonzero((expected >= 0) & (seen == case.labels))[:3]
    begin = case.images[[np.flatnonzero(seen != case.labels[row])[0] for row in rows]]
    coarse.n_asked = 0
    found = hop_skip_jump(coarse, case.images[rows], case.labels[rows], begin, 2, "linf", (0.0, 1.0), 150, 0)
    assert coarse.n_asked <= 3 * 150
    before, after = (np.abs(moved - case.images[rows]).max(axis=(1, 2, 3)) for moved in (begin, found))
    assert (after < before).all()
    assert (coarse(torch.from_numpy(found)).argmax(dim=1).numpy() != case.labels[rows]).all()


def test_labels_alone_leave_a_start_that_is_no_finding_as_it_is() -> None:
    case, _ = linear()
    coarse = Coarse(case.target).eval()
    row, begin = np.flatnonzero(coarse(torch.from_numpy(case.images)).argmax(dim=1).numpy() == 1)[:2]
    of_row, start, label = case.images[[row]], case.images[[begin]], np.ones(1, dtype=np.int64)
    coarse.n_asked = 0
    assert np.array_equal(hop_skip_jump(coarse, of_row, label, start, 2, "linf", (0.0, 1.0), 150, 0), start)
    assert coarse.n_asked <= 150


def test_labels_alone_find_nothing_where_all_images_are_of_one_class() -> None:
    case, expected = linear()
    of_one = np.flatnonzero((expected >= 0) & (case.labels == 1))
    alike = replace(case, images=case.images[of_one], labels=case.labels[of_one], rows=of_one)
    broken = by_labels(alike, np.arange(len(of_one)), np.zeros(len(of_one), dtype=bool), 100)
    assert (broken.at == len(EPS)).all()


class Wavering(Linear):
    """The linear classifier, but one look in five says the other class, whatever the image."""

    n_draws = 2

    def __init__(self, model: Linear) -> None:
        super().__init__(model.weights.numpy(), float(model.bias))
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        turned = torch.rand(len(images), generator=self.generator) < 0.2
        return torch.where(turned[:, None], logits.flip(1), logits)


def test_a_lucky_look_at_a_random_target_is_not_taken_for_a_broken_image() -> None:
    sound, expected = linear()
    model = sound.target
    assert isinstance(model, Linear)
    case = replace(sound, target=Wavering(model), radii=sound.radii[:1])
    holds = expected > 0
    assert holds.sum() > 25
    at = swept(case, 20, 0.25, 1).at
    asked = by_scores(case, np.zeros(40, dtype=int), 40).at
    assert (at[holds] == 1).mean() > 0.9
    assert (asked[holds] == 1).mean() > 0.9

    class Trusting(Wavering):
        n_draws = 1

    # who believes every look takes them all for broken
    assert (swept(replace(case, target=Trusting(model)), 20, 0.25, 1).at[holds] == 1).mean() < 0.2


class Noisy(Linear):
    """The linear classifier, on images with noise: only near its boundary does it waver."""

    n_draws = 2

    def __init__(self, model: Linear) -> None:
        super().__init__(model.weights.numpy(), float(model.bias))
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images + 0.002 * torch.randn(images.shape, generator=self.generator))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_labels_alone_come_near_on_a_random_target_and_the_same_way_twice(norm: str) -> None:
    sound, expected = linear(norm)
    model = sound.target
    assert isinstance(model, Linear)
    chosen = np.flatnonzero(expected > 0)[:12]
    found, again = (by_labels(replace(sound, target=Noisy(model)), chosen, expected < 0, 800) for _ in range(2))
    assert np.array_equal(found.adversarial, again.adversarial)
    assert found.at.tolist() == again.at.tolist()
    assert (found.at[chosen] < len(EPS)).all()
    assert np.median(found.at[chosen] - expected[chosen]) <= 1
    # every look at what broke them, not a lucky one
    labels, adversarial = torch.from_numpy(sound.labels[chosen]), torch.from_numpy(found.adversarial[chosen])
    looks = torch.stack([Noisy(model)(adversarial).argmax(dim=1) != labels for _ in range(20)])
    assert looks.float().mean() > 0.8
