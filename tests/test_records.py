from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.core.workspace import Workspace
from tasks.records.perturbation_norms import ball_excess, check_adversarial, perturbation_norms
from tasks.records.tables import build_records, read_records, schema, write_records

CURVE = {"target": "autoencoder", "threat_model": "adaptive", "attack": "pgd", "norm": "linf"}


def three_images(**changes: Any) -> Any:
    values = {
        "rows": np.array([3, 5, 8]),
        "image_paths": np.array(["COVID/a (1).png", "COVID/b.png", "non-COVID/c.png"], dtype=object),
        "labels": np.array([1, 1, 0]),
        "curve": CURVE,
        "eps": 2.0,
        "radius": 2 / 255,
        "logits": np.array([[2, 1, 0], [0, 3, 1], [0, 1, -1]], dtype=np.float32),
        "clean_logits": np.array([[0, 1, 0], [0, 3, 1], [0, 1, -1]], dtype=np.float32),
        "logits_8bit": np.array([[0, 2, 1], [0, 1, 3], [0, 1, -1]], dtype=np.float32),
        "norms": {"linf": np.full(3, 2 / 255), "l2": np.array([0.1, 0.2, 0.3])},
        "reconstruction_error": np.array([0.01, 0.02, 0.03]),
    }
    return build_records(**(values | changes))


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where records of the bare classifier and of one defence go."""
    monkeypatch.chdir(tmp_path)
    for target in ("undefended", "autoencoder"):
        Workspace().attack_folder(target).mkdir(parents=True)


def test_records_come_back_as_they_were_written() -> None:
    write_records(three_images(), Workspace().records("undefended"))
    frame = read_records(Workspace(), [])
    assert list(frame.columns) == schema(3).names
    assert frame["image"].tolist() == [3, 5, 8]
    assert frame["path"].tolist() == ["COVID/a (1).png", "COVID/b.png", "non-COVID/c.png"]
    assert np.stack(frame["logits"]).tolist() == [[2, 1, 0], [0, 3, 1], [0, 1, -1]]
    assert frame["prediction"].tolist() == [0, 1, 1]
    assert frame["margin"].tolist() == [-1, 2, -1]
    assert frame["correct"].tolist() == [False, True, False]
    assert frame["clean_correct"].tolist() == [True, True, False]
    assert frame["correct_8bit"].tolist() == [True, False, False]
    assert frame["l2"].tolist() == [0.1, 0.2, 0.3]
    assert frame["reconstruction_error"].tolist() == [0.01, 0.02, 0.03]
    assert set(frame["eps"]) == {2.0}
    assert set(frame["target"]) == {"autoencoder"}


def test_success_counts_only_images_that_were_classified_correctly() -> None:
    # the first is turned wrong, the second withstands, the third was wrong before
    assert three_images()["success"].to_pylist() == [True, False, False]


def test_reconstruction_error_is_null_without_a_purifier() -> None:
    records = three_images(reconstruction_error=None)
    assert records["reconstruction_error"].null_count == 3
    write_records(records, Workspace().records("undefended"))
    assert read_records(Workspace(), [])["reconstruction_error"].isna().all()


def test_records_of_all_targets_come_one_after_the_other() -> None:
    write_records(three_images(reconstruction_error=None), Workspace().records("undefended"))
    write_records(three_images(), Workspace().records("autoencoder"))
    assert (
        read_records(Workspace(), ["autoencoder"])["reconstruction_error"].isna().tolist() == [True] * 3 + [False] * 3
    )


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_records(three_images(), tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused_by_name(broken: float) -> None:
    logits = np.array([[2, 1, 0], [0, broken, 1], [broken, 1, -1]], dtype=np.float32)
    with pytest.raises(ValueError, match=r"2 of 3 images .* COVID/b.png .* autoencoder.* adaptive.* pgd.* eps 2"):
        three_images(logits=logits)


def test_missing_records_name_the_step() -> None:
    with pytest.raises(FileNotFoundError, match="run the step attack first"):
        read_records(Workspace(), ["autoencoder"])
    write_records(three_images(), Workspace().records("undefended"))
    with pytest.raises(FileNotFoundError, match="run the step attack_defence@autoencoder first"):
        read_records(Workspace(), ["autoencoder"])


def test_norms_of_known_perturbations() -> None:
    images = np.full((2, 1, 2, 2), 0.5, dtype=np.float32)
    adversarial = images + np.array([[0.25, 0, 0, 0], [-0.25, 0.25, 0.25, -0.25]], dtype=np.float32).reshape(
        images.shape
    )
    norms = perturbation_norms(images, adversarial)
    assert norms["linf"].tolist() == [0.25, 0.25]
    assert norms["l2"].tolist() == [0.25, 0.5]


def test_excess_is_in_units_of_a_pixel_for_both_norms() -> None:
    assert ball_excess(np.array([0.011]), 2.55, 0.01) == pytest.approx([0.001])
    # l2 of 100 pixels: radius 0.01 * 10; a norm of 0.11 is 0.001 too far in root-mean-square
    assert ball_excess(np.array([0.11]), 2.55, 0.1) == pytest.approx([0.001])
    assert ball_excess(np.array([0.005]), 2.55, 0.01)[0] < 0


@pytest.mark.parametrize("value", [-2e-6, 1 + 2e-6, np.nan])
def test_an_adversarial_example_outside_the_value_range_is_refused(value: float) -> None:
    adversarial = np.full((1, 1, 2, 2), value, dtype=np.float32)
    with pytest.raises(AssertionError, match="leave the value range"):
        check_adversarial(adversarial, np.array([0.0]), 1.0, 1 / 255, (0.0, 1.0))


@pytest.mark.parametrize("norm", [1 / 255 + 2e-6, np.nan])
def test_a_perturbation_outside_the_ball_is_refused(norm: float) -> None:
    adversarial = np.full((2, 1, 2, 2), 0.5, dtype=np.float32)
    check_adversarial(adversarial, np.array([1 / 255, 1 / 255 + 5e-7]), 1.0, 1 / 255, (0.0, 1.0))
    with pytest.raises(AssertionError, match="leave the ball of eps 1"):
        check_adversarial(adversarial, np.array([1 / 255, norm]), 1.0, 1 / 255, (0.0, 1.0))
