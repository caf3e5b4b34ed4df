from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.core.workspace import Workspace
from tasks.outcomes.attack_outputs import read_records
from tasks.records.perturbation_norms import ball_excess, check_adversarial, perturbation_norms
from tasks.records.tables import build_records, schema, write_records

CURVE = {"target": "autoencoder", "threat_model": "adaptive", "attack": "pgd", "norm": "linf"}


def three_images(**changes: Any) -> Any:
    values = {
        "images": {
            "image": np.array([3, 5, 8]),
            "path": np.array(["COVID/a (1).png", "COVID/b.png", "non-COVID/c.png"], dtype=object),
            "label": np.array([1, 1, 0]),
            "group": np.array([0, 0, 4]),
        },
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


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with folders for the records of the undefended classifier and of one defence."""
    workspace = Workspace(tmp_path)
    for target in ("undefended", "autoencoder"):
        workspace.attack_folder(target).mkdir(parents=True)
    return workspace


def test_records_are_read_as_they_were_written(workspace: Workspace) -> None:
    write_records(three_images(), workspace.records("undefended"))
    frame = read_records(workspace, [])
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
    # the first is broken, the second survives, the third is misclassified unchanged
    assert three_images()["success"].to_pylist() == [True, False, False]


def test_reconstruction_error_is_null_without_a_purifier(workspace: Workspace) -> None:
    records = three_images(reconstruction_error=None)
    assert records["reconstruction_error"].null_count == 3
    write_records(records, workspace.records("undefended"))
    assert read_records(workspace, [])["reconstruction_error"].isna().all()


def test_records_of_all_targets_are_read_in_the_order_of_the_targets(workspace: Workspace) -> None:
    write_records(three_images(reconstruction_error=None), workspace.records("undefended"))
    write_records(three_images(), workspace.records("autoencoder"))
    is_null = read_records(workspace, ["autoencoder"])["reconstruction_error"].isna()
    assert is_null.tolist() == [True] * 3 + [False] * 3


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_records(three_images(), tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_the_error_about_non_finite_logits_names_image_target_attack_and_eps(broken: float) -> None:
    logits = np.array([[2, 1, 0], [0, broken, 1], [broken, 1, -1]], dtype=np.float32)
    with pytest.raises(ValueError, match=r"2 of 3 images .* COVID/b.png .* autoencoder.* adaptive.* pgd.* eps 2"):
        three_images(logits=logits)


def test_the_error_about_missing_records_names_the_step(workspace: Workspace) -> None:
    with pytest.raises(FileNotFoundError, match="Run the step attack first"):
        read_records(workspace, ["autoencoder"])
    write_records(three_images(), workspace.records("undefended"))
    with pytest.raises(FileNotFoundError, match="Run the step attack_defence@autoencoder first"):
        read_records(workspace, ["autoencoder"])


def test_norms_of_known_perturbations() -> None:
    images = np.full((2, 1, 2, 2), 0.5, dtype=np.float32)
    adversarial = images + np.array([[0.25, 0, 0, 0], [-0.25, 0.25, 0.25, -0.25]], dtype=np.float32).reshape(
        images.shape
    )
    norms = perturbation_norms(images, adversarial)
    assert norms["linf"].tolist() == [0.25, 0.25]
    assert norms["l2"].tolist() == [0.25, 0.5]


def test_ball_excess_is_in_units_of_a_pixel_for_both_norms() -> None:
    assert ball_excess(np.array([0.011]), 2.55, 0.01) == pytest.approx([0.001])
    # l2 of 100 pixels: radius 0.01 * 10; a norm of 0.11 exceeds it by 0.001 in root-mean-square
    assert ball_excess(np.array([0.11]), 2.55, 0.1) == pytest.approx([0.001])
    assert ball_excess(np.array([0.005]), 2.55, 0.01)[0] < 0


@pytest.mark.parametrize("value", [-2e-6, 1 + 2e-6, np.nan])
def test_an_adversarial_example_outside_the_value_range_raises_an_error(value: float) -> None:
    adversarial = np.full((1, 1, 2, 2), value, dtype=np.float32)
    with pytest.raises(AssertionError, match="leave the value range"):
        check_adversarial(adversarial, np.array([0.0]), 1.0, 1 / 255, (0.0, 1.0))


@pytest.mark.parametrize("norm", [1 / 255 + 2e-6, np.nan])
def test_a_perturbation_outside_the_ball_raises_an_error(norm: float) -> None:
    adversarial = np.full((2, 1, 2, 2), 0.5, dtype=np.float32)
    check_adversarial(adversarial, np.array([1 / 255, 1 / 255 + 5e-7]), 1.0, 1 / 255, (0.0, 1.0))
    with pytest.raises(AssertionError, match="leave the ball of eps 1"):
        check_adversarial(adversarial, np.array([1 / 255, norm]), 1.0, 1 / 255, (0.0, 1.0))
