"""Comparisons over seeds: coverage and error rates where both seeds and groups vary."""

import numpy as np
import pytest

from tasks.statistics.intervals import MIN_SEEDS
from tasks.statistics.seeds import compare_over_seeds


def draw_differences(
    rng: np.random.Generator, n_groups: int, over_groups: float, over_seeds: float, mean: float = 0.0
) -> np.ndarray:
    """Differences (seed, image) with effects of groups of 4 images, of seeds, and of each image of a seed."""
    of_groups = np.repeat(over_groups * rng.normal(size=n_groups), 4)
    of_seeds = over_seeds * rng.normal(size=(MIN_SEEDS, 1))
    return np.clip(mean + of_groups + of_seeds + 0.05 * rng.normal(size=(MIN_SEEDS, 4 * n_groups)), -1, 1)


@pytest.mark.parametrize(("over_groups", "over_seeds"), [(0.2, 0.01), (0.05, 0.05), (0.01, 0.1)])
def test_the_interval_for_new_groups_and_seeds_covers_the_true_difference(
    over_groups: float, over_seeds: float
) -> None:
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(12), 4)
    found = [compare_over_seeds(draw_differences(rng, 12, over_groups, over_seeds), groups) for _ in range(400)]
    covered = np.mean([each.of_all_seeds.low <= 0 <= each.of_all_seeds.high for each in found])
    # two standard errors below 93 %
    assert covered >= 0.905
    assert np.mean([each.p_value < 0.05 for each in found]) <= 0.095


def test_the_interval_by_group_alone_does_not_cover_where_seeds_vary() -> None:
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(12), 4)
    found = [compare_over_seeds(draw_differences(rng, 12, 0.01, 0.1), groups).of_these_seeds for _ in range(200)]
    assert np.mean([each.low <= 0 <= each.high for each in found]) < 0.7


def test_a_difference_that_is_large_compared_with_both_variations_is_found() -> None:
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(12), 4)
    found = compare_over_seeds(draw_differences(rng, 12, 0.05, 0.02, mean=0.2), groups)
    assert found.p_value < 1e-4
    assert 0.1 < found.of_all_seeds.low < 0.2 < found.of_all_seeds.high < 0.3


@pytest.mark.parametrize(
    ("n_seeds", "n_groups", "value"), [(MIN_SEEDS - 1, 12, None), (MIN_SEEDS, 4, None), (MIN_SEEDS, 12, 0.1)]
)
def test_there_is_no_test_with_few_seeds_few_groups_or_without_variation(
    n_seeds: int, n_groups: int, value: float | None
) -> None:
    rng = np.random.default_rng(0)
    differences = rng.uniform(-0.5, 0.5, (n_seeds, 4 * n_groups)) if value is None else np.full((n_seeds, 48), value)
    found = compare_over_seeds(differences, np.repeat(np.arange(n_groups), 4))
    assert np.isnan([*found.of_all_seeds, found.p_value]).all()
