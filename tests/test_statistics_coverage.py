"""Coverage of intervals and type-I error of tests in small simulations; docs/evidence/statistics.md has large ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.simulations import coverage
from tests.simulations.candidates import METHODS, percentile_bootstrap, wilson_of_images
from tests.simulations.coverage import auroc_cell, balanced_cell, pair_cell, rate_cell, ratio_cell
from tests.simulations.draws import SIZES, draw_pairs, draw_scores, draw_sizes, draw_successes

TOLERANCE = 2.0
"""Points; three standard errors of a coverage of 95 % with 1000 repetitions."""


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("icc", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("n_groups", [12, 25, 50, 100])
def test_the_interval_of_a_rate_covers_the_true_rate(n_groups: int, icc: float, rate: float) -> None:
    found = rate_cell(rng(), 1000, n_groups, icc, rate)
    assert found["coverage"] >= 93 - TOLERANCE
    if rate in (0.2, 0.5) and n_groups > 12:
        assert found["coverage"] <= 97 + TOLERANCE
    assert found["too_few_groups"] < (20 if n_groups == 12 else 1)


def test_the_simulation_shows_that_other_methods_do_not_cover() -> None:
    assert rate_cell(rng(), 500, 50, 0.3, 0.5, method=wilson_of_images)["coverage"] < 60
    assert rate_cell(rng(), 500, 50, 0.6, 0.05, method=percentile_bootstrap)["coverage"] < 85


def test_the_interval_of_an_auroc_covers_the_true_auroc() -> None:
    assert auroc_cell(rng(), 300, 25, 0.3, 0.9)["coverage"] >= 93 - 2 * TOLERANCE


@pytest.mark.parametrize(("n_groups", "icc"), [(24, 0.0), (50, 0.3), (100, 0.6)])
def test_the_paired_test_and_interval_hold_their_level(n_groups: int, icc: float) -> None:
    null = pair_cell(rng(), 1000, n_groups, icc, 0.9, 0.9)
    assert null["rejected"] <= 6 + TOLERANCE
    assert null["coverage"] >= 93 - TOLERANCE
    worse = pair_cell(rng(), 1000, n_groups, icc, 0.8, 0.9)
    assert worse["coverage"] >= 93 - TOLERANCE
    # worse by exactly the margin: the nominal error of non-inferiority is 2.5 %
    assert worse["interval_above"] <= 2.5 + TOLERANCE
    assert worse["rejected"] > 4 * null["rejected"]


@pytest.mark.parametrize(("n_groups", "icc"), [(25, 0.0), (50, 0.3), (100, 0.6)])
def test_balanced_accuracies_their_differences_and_ratios_are_covered(n_groups: int, icc: float) -> None:
    equal = balanced_cell(rng(), 1000, n_groups, icc, (0.9, 0.9), (0.9, 0.9))
    unequal = balanced_cell(rng(), 1000, n_groups, icc, (0.9, 0.9), (0.8, 0.8))
    for found in (equal, unequal):
        assert min(found["coverage_of_accuracy"], found["coverage_of_difference"]) >= 93 - TOLERANCE
    assert equal["rejected"] <= 6 + TOLERANCE
    assert unequal["rejected"] > 4 * equal["rejected"]
    # without the rule near 1, the interval of the last ratio covers 88 to 95 %
    for accuracies in ((0.9, 0.5, 0.5), (0.9, 0.3, 0.7), (0.9, 0.1, 0.85)):
        assert ratio_cell(rng(), 1000, n_groups, icc, *accuracies)["coverage"] >= 93 - TOLERANCE


def test_drawn_outcomes_have_the_given_rate_and_correlation() -> None:
    sizes = draw_sizes(rng(), (20_000, 1))
    assert sizes.mean() == pytest.approx(sum(size * n for size, n in SIZES.items()) / 148, rel=0.03)
    pairs = np.full((200_000, 1), 2)
    successes = draw_successes(rng(), pairs, 0.2, 0.3)
    assert successes.mean() / 2 == pytest.approx(0.2, abs=0.005)
    # probability that both images are a success
    assert (successes == 2).mean() == pytest.approx(0.2**2 + 0.3 * 0.2 * 0.8, abs=0.004)


def test_drawn_scores_and_pairs_have_the_given_accuracies() -> None:
    groups = np.arange(20_000)
    positive = groups % 2 == 0
    scores = draw_scores(rng(), groups, positive, 0.9, 0.6)
    n_better = np.searchsorted(np.sort(scores[~positive]), scores[positive]).mean()
    assert n_better / 10_000 == pytest.approx(0.9, abs=0.01)
    for icc in (0.0, 0.6):
        sizes = np.full((50_000, 1), 4)
        gains, losses = draw_pairs(rng(), sizes, 0.9, 0.7, icc)
        assert (gains - losses).sum() / sizes.sum() == pytest.approx(0.2, abs=0.01)


def test_the_command_writes_tables_between_markers_and_as_csv(tmp_path: Path) -> None:
    names = ["rates", "auroc", "pairs", "power"]
    document = tmp_path / "statistics.md"
    text = "".join(f"<!-- simulation: {name} -->\nold\n<!-- end simulation -->\n" for name in names)
    document.write_text(f"# Statistics\n\n{text}", encoding="utf-8")
    coverage.main(["--repetitions", "3", "--output", str(tmp_path), "--only", ",".join(names)])
    written = document.read_text(encoding="utf-8")
    assert "old" not in written
    # pairs has a table of coverage and one of rejections
    assert written.count("\n| --- |") == 5
    assert "of 126 cells meet the goal" in written
    rates = pd.read_csv(tmp_path / "statistics" / "rates.csv")
    assert list(rates) == [
        *("n_groups", "icc", "rate", "coverage", "interval_above", "interval_below", "too_few_groups", "width")
    ]
    with pytest.raises(ValueError, match="no marker for asymmetric"):
        coverage.main(["--repetitions", "3", "--output", str(tmp_path), "--only", "asymmetric"])


def test_the_same_command_gives_the_same_numbers() -> None:
    cells = [cell for cell in coverage.method_cells() if cell[0]["n_groups"] == 12][: 2 * len(METHODS)]
    pd.testing.assert_frame_equal(coverage.simulate(iter(cells), 20), coverage.simulate(iter(cells), 20))


def test_an_unknown_table_ends_the_command() -> None:
    with pytest.raises(SystemExit, match=r"--only: medians\. Allowed are methods, rates"):
        coverage.main(["--only", "medians"])
