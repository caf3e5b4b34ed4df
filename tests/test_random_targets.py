"""Random targets: planted targets whose expected accuracy is known."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.attacked import Attacked
from tasks.attacks.fixed_eps import craft
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.attacks.gradient.pgd import pgd
from tasks.attacks.predictions import predict
from tasks.attacks.searches import search
from tasks.core.checkpoints import Checkpoints
from tasks.dataset.prepared import Prepared
from tasks.defences.purified import Purified
from tasks.defences.randomness import MIN_EOT_DRAWS, AveragedPredictions, RandomModule, as_attacked, with_fixed_draws
from tasks.outcomes.worst_case import worst_case_outcomes
from tasks.params import Params
from tasks.records.expected import EXPECTED, FRESH
from tasks.records.operating_points import OperatingPoint
from tasks.records.vocabulary import CLEAN, PGD_FIXED_DRAWS
from tests.conftest import set_small_effort
from tests.every_target import TARGETS, build_target
from tests.nets import SIDE, Linear, RandomLabels

N = 40
EPS = [1.0, 4.0]
SETTINGS = {"attack.eps": EPS, "attack.saved_eps": [], "analyze.eps": 4, "analyze.detector_evasion.eps": []}
POINT = OperatingPoint("as_trained", (0.0, 0.0))
FIRST_PIXEL = np.eye(1, SIDE * SIDE).ravel()


@pytest.fixture(autouse=True)
def small_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps, but as many draws as in a real run."""
    set_small_effort(monkeypatch, MIN_EOT_DRAWS)


def confident(scale: float) -> Linear:
    """Class 1 where the first pixel is brighter than 127.17 of 255 grey levels, so that no attack meets the border."""
    return Linear(scale * FIRST_PIXEL, -scale * 127.17 / 255)


def two_classes(first_pixel: tuple[int, int]) -> Prepared:
    """40 images of two classes, which differ in the grey level of the first pixel; all are test images."""
    pixels = np.full((N, 1, SIDE, SIDE), 128, dtype=np.uint8)
    labels = np.arange(N) % 2
    pixels[:, 0, 0, 0] = np.array(first_pixel)[labels]
    table = pd.DataFrame(
        {"path": [f"{i}.png" for i in range(N)], "label": labels, "group": np.arange(N), "split": "test"}
    )
    return Prepared(pixels, table, ("no", "yes"), 1, (0.0, 1.0), True)


def attacked_by(
    target: nn.Module, first_pixel: tuple[int, int], params_with: Callable[..., Params], folder: Path
) -> Attacked:
    """The attack on a target with the images of :func:`two_classes`."""
    data, params = two_classes(first_pixel), params_with(SETTINGS)
    rows, checkpoints = np.arange(N), Checkpoints(folder, ())
    clean = predict(target, data.floats(rows), n_selection=20)
    return Attacked(
        "planted", target.eval(), data, params.attack, "float32", 0, rows, rows, clean, [POINT], checkpoints
    )


def all_results(attacked: Attacked) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Records and results of the searches, as the step attack writes them."""
    zero = {"linf": np.zeros(N), "l2": np.zeros(N)}
    records = [attacked.records(attacked.rows, "none", CLEAN, 0.0, attacked.clean, attacked.clean, zero)]
    for attack, rows in attacked.crafted_images().items():
        records.append(pq.read_table(craft(attacked, attack, rows)[attack] / "records.parquet"))
    found = [pq.read_table(each / "minimum_eps.parquet") for each in search(attacked, POINT, attacked.rows).values()]
    return pa.concat_tables(records).to_pandas(), pa.concat_tables(found).to_pandas()


def worst_case(records: pd.DataFrame, minimum_eps: pd.DataFrame) -> list[float]:
    """Mean of the outcomes of the threat model adaptive at eps 0 and each eps."""
    outcomes = worst_case_outcomes(records, minimum_eps, {"planted": [POINT]})
    adaptive = outcomes[outcomes["threat_model"] == "adaptive"]
    means: list[float] = adaptive.groupby("eps")["robust_correct"].mean().tolist()
    return means


def test_a_target_that_is_right_with_probability_070_has_an_expected_accuracy_of_070(
    tmp_path: Path, params_with: Callable[..., Params]
) -> None:
    target = RandomLabels(confident(20), wrong=0.3)
    attacked = attacked_by(target, (0, 255), params_with, tmp_path)
    records, minimum_eps = all_results(attacked)
    assert worst_case(records, minimum_eps) == pytest.approx([0.7] * 3, abs=0.02)
    # the smallest of several scores on the same samples would be too small
    scores = records[FRESH].map(lambda of_points: of_points[0])
    assert scores.groupby(records["image"]).min().mean() < 0.65
    # the majority of the predictions is right, so nearly no image counts as broken
    assert np.isinf(minimum_eps["minimum_eps"]).mean() > 0.95


def test_a_target_that_the_attacks_break_has_an_expected_accuracy_near_0(
    tmp_path: Path, params_with: Callable[..., Params]
) -> None:
    # a change of 3 grey levels moves an image to the other class, and then 9 of 10 predictions are wrong
    target = RandomLabels(confident(2000), wrong=0.1)
    attacked = attacked_by(target, (125, 130), params_with, tmp_path)
    records, minimum_eps = all_results(attacked)
    assert worst_case(records, minimum_eps) == pytest.approx([0.9, 0.9, 0.1], abs=0.02)
    of_suite = minimum_eps[minimum_eps["attack"] == "suite"]
    assert (of_suite["minimum_eps"] == 4).all()
    # searches alone are scored as well
    clean = records[records["attack"].isin([CLEAN, "fgsm"])].copy()
    is_attacked = clean["attack"] == "fgsm"
    clean.loc[is_attacked, list(EXPECTED)] = clean.loc[is_attacked, list(EXPECTED)].map(lambda of: np.ones_like(of))
    assert worst_case(clean, minimum_eps)[2] == pytest.approx(0.1, abs=0.03)


def test_a_deterministic_target_has_no_samples_and_is_attacked_unchanged(
    tmp_path: Path, params_with: Callable[..., Params]
) -> None:
    target = confident(2000)
    assert as_attacked(target) is target
    attacked = attacked_by(target, (125, 130), params_with, tmp_path)
    assert attacked.batch_size == attacked.settings.batch_size
    records, minimum_eps = all_results(attacked)
    assert not set(EXPECTED) & {*records, *minimum_eps}
    assert PGD_FIXED_DRAWS not in set(records["attack"])
    assert worst_case(records, minimum_eps) == [1, 1, 0]


class NoisyGradient(RandomModule):
    """Class 1 where the mean grey level is near one half; the gradient has a random sign in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.reseed([0])

    def reseed(self, seed: Sequence[int]) -> None:
        self.generator = np.random.default_rng(seed)

    def forward(self, images: Tensor) -> Tensor:
        change = images.mean(dim=(1, 2, 3)) - self.middle
        # of this term, the value is 0 and the gradient is not
        noise = float(self.generator.choice([-1, 1])) * (change - change.detach())
        return torch.stack([torch.zeros_like(change), 0.03**2 - change**2 + noise], dim=1)


def test_a_defence_that_only_noise_in_its_gradients_protects_is_broken_with_fixed_draws(
    params_with: Callable[..., Params],
) -> None:
    settings = params_with(
        {"attack.pgd.n_steps": 20, "attack.pgd.relative_step_size": 0.05, "attack.pgd.n_random_starts": 0}
    ).attack.pgd
    images, labels = torch.full((4, 1, SIDE, SIDE), 0.5), torch.ones(4, dtype=torch.int64)
    target = NoisyGradient()
    attacked = as_attacked(target)
    assert isinstance(attacked, AveragedPredictions)

    def expected_accuracy(model: nn.Module) -> float:
        ball = NormBall("linf", (0.0, 1.0))
        (adversarial,) = pgd(model, images, labels, [0.04], ball, settings, 0, np.arange(4))
        fresh = predict(target, adversarial.numpy()).fresh
        assert fresh is not None
        return float((fresh.argmax(axis=2) == 1).mean())

    assert expected_accuracy(attacked) == 1
    assert expected_accuracy(with_fixed_draws(attacked)) == 0


@pytest.mark.parametrize("target", ["gaussian_noise", "averaged_noise"])
def test_fixed_draws_are_the_same_in_every_pass_and_for_every_image(target: str) -> None:
    attacked = as_attacked(build_target(target))
    assert isinstance(attacked, AveragedPredictions)
    images = torch.rand(4, 1, 32, 32)
    fixed = with_fixed_draws(attacked)
    torch.testing.assert_close(fixed(images), fixed(images), rtol=0, atol=0)
    torch.testing.assert_close(fixed(images)[2:], fixed(images[2:]))
    # the target itself still draws anew
    assert not torch.allclose(attacked(images), attacked(images), atol=0)


@pytest.mark.parametrize("target", TARGETS)
def test_attacks_average_at_least_20_draws_of_a_random_target_and_leave_others_alone(target: str) -> None:
    model = build_target(target)
    attacked = as_attacked(model)
    assert isinstance(attacked, AveragedPredictions) == ("noise" in target)
    if isinstance(attacked, AveragedPredictions):
        n_draws = model.n_eot_samples if isinstance(model, Purified) else 1
        assert attacked.n_predictions * n_draws >= MIN_EOT_DRAWS
        images = torch.rand(6, 1, 32, 32)
        single, averaged = (torch.stack([of(images) for _ in range(10)]) for of in (model, attacked))
        assert averaged.std(dim=0).mean() < single.std(dim=0).mean()
    else:
        assert attacked is model
