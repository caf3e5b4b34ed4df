"""Computer-drawn phantoms."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.dataset.phantom import OTHER_DISEASES, Disease, draw_patient, write_phantoms
from tasks.params import Params
from tasks.tracking import digest_of


def image_paths(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.png"))


def test_every_slice_is_written_and_half_of_the_patients_are_positive(tmp_path: Path) -> None:
    write_phantoms(tmp_path, ("healthy", "ill"), "ill", n_patients=5, n_slices=2, seed=0)
    patients = {cls: {name.split("_")[1] for name in image_paths(tmp_path / cls)} for cls in ("healthy", "ill")}
    assert {cls: len(found) for cls, found in patients.items()} == {"healthy": 3, "ill": 2}
    assert patients["healthy"] | patients["ill"] == {f"{number:03d}" for number in range(5)}
    assert all(name.endswith(("_slice_00.png", "_slice_01.png")) for name in image_paths(tmp_path))
    assert len(image_paths(tmp_path)) == 10


def test_images_are_8_bit_grey_of_different_sizes(tmp_path: Path) -> None:
    write_phantoms(tmp_path, ("healthy", "ill"), "ill", n_patients=6, n_slices=1, seed=0)
    images = [Image.open(file) for file in tmp_path.rglob("*.png")]
    assert {image.mode for image in images} == {"L"}
    assert all(180 <= image.width <= 420 and 100 <= image.height < image.width for image in images)
    assert len({image.size for image in images}) == 6


def test_equal_seeds_give_equal_bytes_and_another_seed_gives_other_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_phantoms(tmp_path / name, ("healthy", "ill"), "ill", n_patients=2, n_slices=2, seed=seed)
    assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b") != digest_of(tmp_path / "c")


def test_a_patient_depends_only_on_the_random_generator() -> None:
    first = draw_patient(Disease("none"), 2, np.random.default_rng([0, 7]))
    again = draw_patient(Disease("none"), 2, np.random.default_rng([0, 7]))
    np.testing.assert_array_equal(first, again)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    small = [Image.fromarray(pixels).resize((32, 32)) for pixels in (first, second)]
    return float(np.corrcoef(*(np.asarray(image).ravel() for image in small))[0, 1])


def test_adjacent_slices_are_similar_and_different_patients_are_not(params_with) -> None:
    params: Params = params_with()
    patients = [draw_patient(Disease("pneumonia"), 4, np.random.default_rng(seed)) for seed in range(8)]
    within = [correlation(slices[i], slices[i + 1]) for slices in patients for i in range(3)]
    between = [correlation(first[3], second[0]) for first, second in pairwise(patients)]
    assert min(within) > params.validate_.same_group_correlation
    assert np.median(between) < params.validate_.same_group_correlation
    assert max(within) < 0.999


@pytest.mark.parametrize("name", ["pneumonia", "nodules", "effusion", "emphysema"])
def test_every_slice_of_an_ill_patient_shows_the_disease(name: str) -> None:
    """Every slice changes if the patient is drawn without the lesions."""
    from tasks.dataset import phantom

    original = phantom._lesions
    for seed in range(3):
        ill = draw_patient(Disease(name), 5, np.random.default_rng(seed))
        with pytest.MonkeyPatch.context() as patch:

            def without_lesions(disease: Disease, *rest: object) -> list[object]:
                original(disease, *rest)
                return []

            if name == "effusion":
                patch.setattr(phantom, "soft_mask", lambda values, edge_width: np.zeros_like(values))
            else:
                patch.setattr(phantom, "_lesions", without_lesions)
            healthy = draw_patient(Disease(name), 5, np.random.default_rng(seed))
        changed = [(abs(a.astype(int) - b) > 3).mean() for a, b in zip(ill, healthy, strict=True)]
        assert min(changed) > 0.0005, f"slice {np.argmin(changed)} of seed {seed} shows nothing"


def test_more_than_two_classes_are_drawn(tmp_path: Path) -> None:
    write_phantoms(tmp_path, ("a", "b", "c", "d"), "b", n_patients=6, n_slices=1, seed=0)
    assert [len(image_paths(tmp_path / cls)) for cls in "abcd"] == [1, 3, 1, 1]


def test_too_few_patients_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"acquire\.phantom\.n_patients is too small for 4 classes: 4\. At least 6"):
        write_phantoms(tmp_path, ("a", "b", "c", "d"), "a", n_patients=4, n_slices=1, seed=0)
    assert not list(tmp_path.iterdir())


def test_more_classes_than_diseases_are_rejected(tmp_path: Path) -> None:
    classes = tuple(f"class {number}" for number in range(len(OTHER_DISEASES) + 3))
    with pytest.raises(ValueError, match=r"acquire\.classes has too many classes for phantoms: 12\. At most 11"):
        write_phantoms(tmp_path, classes, classes[0], n_patients=100, n_slices=1, seed=0)
