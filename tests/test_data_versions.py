"""Differences between two versions of a data set."""

from pathlib import Path

import pandas as pd
import pytest

from tasks.dataset.data_versions import (
    NUMERIC_COLUMNS,
    distribution_drift,
    image_changes,
    read_reference,
    write_reference,
)


def manifest(*rows: tuple[str, str, float]) -> pd.DataFrame:
    """Manifest with paths, hashes and means; the other numeric columns are constant."""
    table = pd.DataFrame(rows, columns=["path", "sha256", "mean"])
    table["class"] = table["path"].str.partition("/")[0]
    return table.assign(**{column: 100 for column in NUMERIC_COLUMNS if column != "mean"})


FIRST = manifest(("a/1", "x", 0.1), ("a/2", "y", 0.2), ("b/1", "z", 0.3), ("b/2", "w", 0.4))


def test_equal_versions_have_no_changes() -> None:
    changes = image_changes(FIRST, FIRST)
    assert changes.to_dict("list") == {
        "class": ["a", "b"],
        "n_before": [2, 2],
        "n_after": [2, 2],
        "n_added": [0, 0],
        "n_removed": [0, 0],
        "n_changed": [0, 0],
    }
    assert (distribution_drift(FIRST, FIRST)["ks_statistic"] == 0).all()


def test_added_removed_and_changed_images_are_counted_by_class() -> None:
    second = manifest(("a/1", "x", 0.1), ("a/2", "other", 0.2), ("a/3", "new", 0.2), ("b/2", "w", 0.4), ("c/1", "v", 1))
    changes = image_changes(FIRST, second).set_index("class")
    assert changes.loc["a"].to_dict() == {"n_before": 2, "n_after": 3, "n_added": 1, "n_removed": 0, "n_changed": 1}
    assert changes.loc["b"].to_dict() == {"n_before": 2, "n_after": 1, "n_added": 0, "n_removed": 1, "n_changed": 0}
    assert changes.loc["c"].to_dict() == {"n_before": 0, "n_after": 1, "n_added": 1, "n_removed": 0, "n_changed": 0}


def test_shifted_distribution_has_the_expected_statistic_and_quantiles() -> None:
    before = manifest(*((f"a/{i}", str(i), i) for i in range(100)))
    after = manifest(*((f"a/{i}", str(i), i + 25) for i in range(100)))
    found = distribution_drift(before, after).set_index(["column", "class"]).loc[("mean", "all classes")]
    assert found["ks_statistic"] == 0.25
    assert found["p_value"] < 0.01
    assert found["q50_after"] - found["q50_before"] == 25
    assert found["q05_before"] == pytest.approx(4.95)


def test_drift_is_computed_for_each_class() -> None:
    second = FIRST.assign(mean=[0.1, 0.2, 0.7, 0.8])
    found = distribution_drift(FIRST, second).set_index(["column", "class"])["ks_statistic"]
    assert found["mean", "a"] == 0
    assert found["mean", "b"] == 1
    assert found["mean", "all classes"] == 0.5


def test_version_without_images_is_rejected() -> None:
    with pytest.raises(ValueError, match="manifest of the later version has no images"):
        distribution_drift(FIRST, FIRST.iloc[:0])


def test_reference_is_read_as_it_was_written(tmp_path: Path) -> None:
    first = FIRST.assign(path=["NA/1", "NA/2", "1/1", "1/2"], mean=1 / 3, **{"class": ["NA", "NA", "1", "1"]})
    write_reference(first, tmp_path / "reference.csv")
    back = read_reference(tmp_path / "reference.csv")
    pd.testing.assert_frame_equal(back, first[back.columns], check_dtype=False)
    assert not distribution_drift(back, first)["ks_statistic"].any()
    assert not image_changes(back, first)[["n_added", "n_removed", "n_changed"]].to_numpy().any()


@pytest.mark.parametrize(
    ("text", "message"),
    [("path,class\na/1,a\n", "missing columns: sha256"), ("", "No columns"), ("{", "missing columns: path")],
)
def test_invalid_reference_is_rejected_with_the_command_to_write_it(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "reference.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"reference\.csv: {message}.*data_changes --keep"):
        read_reference(tmp_path / "reference.csv")
