from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from flows.attack_limits import max_gradients, max_queries, n_losses
from tasks.attacks.batch import AttackBatch, MinimumEps
from tasks.attacks.effort import EFFORTS, STAGES, Stage, doubled
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.attacks.suite import run_stage
from tasks.attacks.sweep import repeat_sweep, run_sweep
from tasks.defences.preprocessing import BPDA, MedianFilter
from tasks.defences.purified import Purified
from tasks.defences.randomness import as_attacked
from tasks.evaluation import attack_checks
from tasks.evaluation.check_inputs import CheckInputs, CheckOutcome
from tests.nets import (
    SIDE,
    RandomLabels,
    ThreeClasses,
    assert_adversarial,
    linear_batch,
    nothing_found,
    three_class_batch,
)

EPS = np.array([0.25, 0.5, 1, 2, 4, 8, 16, 32])
LEVELS = dict(EFFORTS)
"""The real levels; a fixture replaces them while a test runs."""
EACH_ATTACK = Stage("suite", apgd_steps=20, apgd_restarts=1, fmn_steps=20, fmn_restarts=1)
SHORT = Stage("short", 5, 1, True, 5, 2, 5, 2, 5, 3, other_backward_passes=True)


class Counted(nn.Module):
    """A model that counts the gradients and the forward passes of images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.n_gradients, self.n_forward = model, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad and torch.is_grad_enabled():
            self.n_gradients += len(images)
        else:
            self.n_forward += len(images)
        logits: Tensor = self.model(images)
        return logits


def unknown(batch: AttackBatch, expected: np.ndarray) -> MinimumEps:
    """A result in which no image is broken, except those that are misclassified unchanged."""
    return nothing_found(batch, np.where(expected < 0, -1, len(batch.radii)))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_suite_finds_the_smallest_radius_on_a_linear_classifier_without_a_sweep(norm: str) -> None:
    batch, expected = linear_batch(norm, EPS)
    found = run_stage(batch, unknown(batch, expected), EACH_ATTACK, 0.25)
    assert found.index.tolist() == expected.tolist()
    assert set(found.found_by[expected >= 0]) <= {"apgd_margin", "fmn"}
    assert (found.found_by[expected < 0] == "before").all()
    assert_adversarial(batch, found)


class WithHead(nn.Module):
    """A linear classifier, whose feature is the score."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear, self.head = linear, nn.Linear(1, 2, bias=False).requires_grad_(False)
        self.head.weight.copy_(torch.tensor([[0.0], [1.0]]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.linear(images)[:, 1:])
        return logits


@pytest.mark.parametrize("field", ["apgd", "feature", "fmn"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_each_attack_alone_finds_the_smallest_radius_on_a_linear_classifier(norm: str, field: str) -> None:
    batch, expected = linear_batch(norm, EPS)
    stage = {
        "apgd": Stage("one", apgd_steps=20, apgd_restarts=1),
        "feature": Stage("one", feature_steps=20, feature_restarts=1),
        "fmn": Stage("one", fmn_steps=20, fmn_restarts=1),
    }[field]
    batch = replace(batch, model=WithHead(batch.model))
    found = run_stage(batch, unknown(batch, expected), stage, 0.25)
    assert found.index.tolist() == expected.tolist()
    assert set(found.found_by[(expected >= 0) & (expected < len(EPS))]) == {
        {"apgd": "apgd_margin", "feature": "feature_loss", "fmn": "fmn"}[field]
    }
    assert_adversarial(batch, found)


def test_results_that_are_already_the_smallest_keep_their_name() -> None:
    batch, expected = linear_batch("linf", EPS)
    found = run_stage(batch, nothing_found(batch, expected), EACH_ATTACK, 0.25)
    assert found.index.tolist() == expected.tolist()
    assert (found.found_by == "before").all()
    # FMN gives the adversarial images that an earlier stage did not keep
    assert_adversarial(batch, found)


def test_the_attack_on_features_breaks_a_model_whose_logits_have_no_gradient() -> None:
    batch, expected = linear_batch("linf", EPS)

    class RoundedLogits(WithHead):
        def forward(self, images: Tensor) -> Tensor:
            return (1000 * super().forward(images)).round()

    batch, before = replace(batch, model=RoundedLogits(batch.model)), unknown(batch, expected)
    by_margin = run_stage(
        batch, before, Stage("margin", apgd_steps=20, apgd_restarts=3, fmn_steps=20, fmn_restarts=3), 0.25
    )
    by_features = run_stage(batch, before, Stage("features", feature_steps=20, feature_restarts=1), 0.25)
    # random starts break an image now and then
    assert (by_margin.index > expected)[expected >= 0].mean() > 0.9
    assert (by_features.index == expected).all()
    assert_adversarial(batch, by_features)


def test_targeted_losses_break_a_model_whose_runner_up_class_misleads() -> None:
    class Decoy(nn.Module):
        """Class 2 is the runner-up but never wins; class 1 wins after a small change."""

        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1), requires_grad=False)

        def forward(self, images: Tensor) -> Tensor:
            mean = images.mean(dim=(1, 2, 3))
            other = images.square().mean(dim=(1, 2, 3)).sqrt()
            return torch.stack(
                [torch.ones_like(mean), 0.5 + 40 * (mean - 0.5), 0.999 - 0.01 * (other - 0.5).abs()], dim=1
            )

    images = np.full((4, 1, SIDE, SIDE), 0.5, dtype=np.float32)
    radii = np.array([4, 8, 16]) / 255
    batch = AttackBatch(
        Decoy(), images, np.zeros(4, dtype=np.int64), 3, radii, NormBall("linf", (0.0, 1.0)), 4, 0, np.arange(4)
    )
    before = nothing_found(batch, np.full(4, 3))
    found = run_stage(batch, before, Stage("targets", apgd_steps=10, apgd_restarts=1), 0.25)
    # class 1 wins where the mean rises by 0.0125 or 3.2 / 255
    assert (found.index == 0).all()
    # the margin leads to class 2
    by_margin = run_sweep(batch, 10, 0.25, 0)
    assert (by_margin.index == 3).all()


def test_other_backward_passes_break_a_target_whose_own_gradient_points_the_wrong_way() -> None:
    batch, expected = linear_batch("linf", EPS)

    class Backwards(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return -images

    misleading = BPDA(lambda images: (images, None), "misleading", Backwards())
    batch = replace(batch, model=Purified(misleading, batch.model).eval())
    own = Stage("own", apgd_steps=10, apgd_restarts=1, fmn_steps=20, fmn_restarts=1)
    found = run_stage(batch, unknown(batch, expected), own, 0.25)
    assert (found.index[expected >= 0] > expected[expected >= 0]).all()
    found = run_stage(batch, unknown(batch, expected), replace(own, other_backward_passes=True), 0.25)
    assert found.index.tolist() == expected.tolist()
    assert set(found.found_by[expected >= 0]) <= {"apgd_margin_identity", "fmn_identity"}


def test_with_three_classes_all_losses_of_autoattack_are_used() -> None:
    batch = three_class_batch(EPS)
    index = run_sweep(batch, 2, 0.25, 0).index
    # a weak sweep: every result is one radius too large
    worse = np.where((index >= 0) & (index < len(EPS)), index + 1, index)
    found = run_stage(batch, nothing_found(batch, worse), EACH_ATTACK, 0.25)
    assert (found.index <= index).all()
    assert {"apgd_ce", "before"} <= set(found.found_by)
    model = Counted(ThreeClasses())
    run_stage(
        replace(batch, model=model), nothing_found(batch, found.index), Stage("s", apgd_steps=5, apgd_restarts=1), 0.25
    )
    # cross-entropy, DLR and two targets, each on every image that a smaller radius may break
    assert n_losses(3) == 4
    assert model.n_gradients >= 4 * 6 * (found.index > 0).sum() * 0.8
    assert n_losses(2) == 1
    assert n_losses(100) == 11


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_stage_improves_on_the_stages_before(n_classes: int) -> None:
    batch = linear_batch("linf", EPS)[0] if n_classes == 2 else three_class_batch(EPS)
    first = run_stage(batch, None, replace(SHORT, sweep_steps=1, apgd_steps=1), 0.25)
    second = run_stage(batch, first, replace(SHORT, name="second"), 0.25)
    assert (second.index <= first.index).all()
    sizes = [np.abs(found.adversarial - batch.images).max(axis=(1, 2, 3)) for found in (first, second)]
    broken = (first.index >= 0) & (first.index < len(EPS))
    assert (sizes[1][broken] <= sizes[0][broken]).all()
    assert_adversarial(batch, second)


def test_all_random_starts_of_a_level_are_different(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bytes] = []
    original: Callable[..., Tensor] = NormBall.random_starts

    def recorded(ball: NormBall, images: Tensor, radii: Tensor, *rest: object) -> Tensor:
        # of images and balls of one size, so that equal draws give equal points
        points = original(ball, torch.full_like(images, 0.5), torch.full_like(radii, 0.1), *rest)
        drawn.extend(point.numpy().tobytes() for point in points)
        return original(ball, images, radii, *rest)

    monkeypatch.setattr(NormBall, "random_starts", recorded)
    model = Purified(MedianFilter(3), ThreeClasses()).eval()
    batch = replace(three_class_batch(EPS[:1]), model=model)
    batch = replace(batch, labels=batch.model(torch.from_numpy(batch.images)).argmax(dim=1).numpy())
    found = None
    for name in ("first", "second"):
        found = run_stage(batch, found, replace(SHORT, name=name), 0.25)
    assert len(drawn) > 400
    assert len(set(drawn)) == len(drawn)


def test_no_image_takes_more_gradients_than_the_maximum() -> None:
    for batch in (linear_batch("linf", EPS)[0], three_class_batch(EPS)):
        for row in range(0, 40, 8):
            one = slice(row, row + 1)
            model = Counted(batch.model)
            alone = replace(
                batch, model=model, images=batch.images[one], labels=batch.labels[one], image_ids=batch.image_ids[one]
            )
            run_stage(alone, run_stage(alone, None, SHORT, 0.25), replace(SHORT, name="second"), 0.25)
            limit = max_gradients([SHORT, replace(SHORT, sweep_steps=0)], len(EPS), batch.n_classes)
            assert model.n_gradients <= limit
    assert max_queries(LEVELS["standard"], 7) == 7 * (25 + 1000) + 1000


def test_one_wrong_draw_of_a_random_model_does_not_count_as_a_success() -> None:
    batch, expected = linear_batch("linf", EPS)
    one_radius = replace(batch, model=as_attacked(RandomLabels(batch.model)), radii=batch.radii[:1])
    robust = expected > 0
    before = nothing_found(one_radius, np.where(expected < 0, -1, 1))
    found = run_stage(one_radius, before, replace(SHORT, sweep_steps=0), 0.25)
    assert (found.index[robust] == 1).mean() > 0.9


def test_a_higher_effort_begins_with_the_stages_of_the_lower_one() -> None:
    assert LEVELS["standard"][: len(LEVELS["quick"])] == LEVELS["quick"]
    assert LEVELS["exhaustive"][: len(LEVELS["standard"])] == LEVELS["standard"]
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    costs = [max_gradients(LEVELS[level], 7, 2) for level in ("quick", "standard", "exhaustive")]
    assert costs == sorted(set(costs))


def test_a_doubled_stage_has_twice_the_steps_and_starts_of_every_attack_and_another_name() -> None:
    first, last = STAGES[:2]
    twice = doubled([first, last])
    assert (twice.apgd_steps, twice.apgd_restarts) == (2 * last.apgd_steps, 2 * last.apgd_restarts)
    assert (twice.fmn_steps, twice.feature_restarts) == (2 * last.fmn_steps, 2 * last.feature_restarts)
    assert twice.sweep_steps == 2 * first.sweep_steps
    assert 1 + twice.sweep_restarts == 2 * (1 + first.sweep_restarts)
    assert twice.square_queries == twice.hop_skip_jump_queries == 0
    assert twice.name not in {stage.name for stage in STAGES}


class Chain(nn.Module):
    """The gradient leads along one pixel at a time: the next one has a gradient once the pixels before are bright.

    All pixels of the chain must be bright for class 1. So an attack needs at least one step for each pixel.
    """

    def __init__(self, n_pixels: int, radius: float) -> None:
        super().__init__()
        self.n_pixels, self.radius = n_pixels, nn.Parameter(torch.tensor(radius), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        changes = (images.flatten(1)[:, : self.n_pixels] - 0.5) / self.radius
        is_bright = (changes > 0.9).float().cumprod(dim=1)
        is_reached = torch.cat([torch.ones_like(is_bright[:, :1]), is_bright[:, :-1]], dim=1)
        score = (changes * is_reached).sum(dim=1) - (self.n_pixels - 0.5)
        return torch.stack([torch.zeros_like(score), score], dim=1)


def check_of_convergence(batch: AttackBatch, reported: MinimumEps, twice: MinimumEps) -> CheckOutcome:
    """The check ``more_steps`` of the accuracy of two results at the only eps."""
    before, after = ((found.index > 0).astype(float) for found in (reported, twice))
    convergence = pd.DataFrame(
        {"operating_point": "recalibrated", "group": batch.image_ids, "eps": 1.0, "before": before, "after": after}
    )
    empty, no_baseline = pd.DataFrame(), pd.Series(dtype=bool)
    of_target = CheckInputs("chain", False, 1.0, empty, empty, empty, convergence, empty, no_baseline, None)
    return attack_checks.more_steps(of_target)


@pytest.mark.parametrize(("n_pixels", "status"), [(3, "PASS"), (38, "FAIL"), (64, "PASS")])
def test_doubled_steps_reveal_an_attack_that_has_not_converged(n_pixels: int, status: str) -> None:
    images, labels = np.full((8, 1, SIDE, SIDE), 0.5, dtype=np.float32), np.zeros(8, dtype=np.int64)
    model, ball = Chain(n_pixels, 0.1), NormBall("linf", (0.0, 1.0))
    batch = AttackBatch(model, images, labels, 2, np.array([0.1]), ball, 8, 0, np.arange(8))
    stages = LEVELS["quick"]
    reported = run_stage(batch, None, stages[0], relative_step_size=1.0)
    twice = run_stage(batch, reported, doubled(stages), relative_step_size=1.0)
    assert check_of_convergence(batch, reported, twice).status == status
    # all images need as many steps: few for 3 pixels, between 20 and 40 for 38, more than 40 for 64
    assert (reported.index == (0 if n_pixels == 3 else 1)).all()
    assert (twice.index == (1 if n_pixels == 64 else 0)).all()
    assert set(twice.found_by) == {"sweep"}


def test_the_repeated_sweep_continues_in_smaller_balls_until_an_image_survives() -> None:
    batch, expected = linear_batch("linf", EPS)
    found = repeat_sweep(batch, unknown(batch, expected), "again", 5, 0.25, 1)
    assert found.index.tolist() == expected.tolist()
    assert set(found.found_by[(expected >= 0) & (expected < len(EPS))]) == {"sweep"}
    assert_adversarial(batch, found)
    model = Counted(batch.model)
    repeat_sweep(replace(batch, model=model), found, "again", 5, 0.25, 1)
    # one pass over each survivor of the smallest ball, and six for each start
    assert model.n_gradients == (expected > 0).sum() * (1 + 2 * 6)
