"""Judgement of differences of accuracy over many curves and eps, corrected for their number."""

import numpy as np

from tasks.evaluation.check_inputs import judge_excess
from tasks.statistics.paired import PairedComparison, compare_paired

groups = np.repeat(np.arange(40), 3)


def excess(n_better: int) -> PairedComparison:
    """Compare on 40 groups: the first is better in some groups, and both are equal in the others."""
    second = groups >= 20
    return compare_paired(second | (groups < n_better), second, groups)


def test_an_excess_that_is_significant_alone_is_a_warning_among_many_comparisons() -> None:
    slight = excess(7)
    assert slight.p_value < 0.05 < 30 * slight.p_value
    assert slight.difference.low > 0
    assert judge_excess([(slight, "here")], "accuracy rises").status == "FAIL"
    many = [(slight, "here")] + [(excess(0), "elsewhere")] * 29
    found = judge_excess(many, "accuracy rises")
    assert (found.status, "not significantly" in found.explanation) == ("WARN", True)


def test_a_clear_excess_fails_among_many_comparisons() -> None:
    many = [(excess(15), "here")] + [(excess(7), "there")] + [(excess(0), "elsewhere")] * 200
    found = judge_excess(many, "accuracy rises")
    assert found.status == "FAIL"
    assert found.explanation.endswith("significantly: here")
