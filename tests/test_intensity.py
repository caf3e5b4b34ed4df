import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp, wasserstein_distance

from tasks.analysis.intensity import (
    histogram_table,
    histograms,
    intensity_distances,
    level_fractions,
    radial_power,
    ring_frequencies,
)
from tasks.statistics.groups import GroupJackknife

CLASSES = ["non-COVID", "COVID"]
SCALE = np.float32(255)


def eight_bit(n_images: int, low: int = 0, high: int = 256, seed: int = 0) -> np.ndarray:
    levels = np.random.default_rng(seed).integers(low, high, size=(n_images, 1, 16, 16))
    return levels.astype(np.float32) / SCALE


def distances(clean: np.ndarray, changed: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    alone = GroupJackknife(np.arange(len(clean)))
    table = intensity_distances(histograms(clean), histograms(changed), labels, CLASSES, alone)
    return table.set_index(["class", "metric"])


def test_grey_levels_are_at_the_centres_of_bins() -> None:
    levels = np.arange(256, dtype=np.float32).reshape(1, 1, 16, 16) / SCALE
    for shift in (-0.1, 0, 0.1):
        counts = histograms(np.clip(levels + np.float32(shift / 255), 0, 1))
        assert counts.shape == (1, 1021)
        assert np.flatnonzero(counts[0]).tolist() == list(range(0, 1021, 4))
    # a quarter of a grey level is the next bin
    assert np.flatnonzero(histograms(levels[..., :15, :] + np.float32(0.25 / 255))[0]).tolist() == list(
        range(1, 960, 4)
    )


def test_each_image_has_a_histogram() -> None:
    images = np.stack([np.zeros((1, 4, 4)), np.ones((1, 4, 4))]).astype(np.float32)
    counts = histograms(images)
    assert counts[0, 0] == counts[1, 1020] == 16
    assert counts.sum() == 32


@pytest.mark.parametrize("wrong", [-0.01, 1.01, np.nan])
def test_pixels_outside_the_range_raise_an_error(wrong: float) -> None:
    images = np.full((2, 1, 4, 4), 0.5, dtype=np.float32)
    images[1, 0, 0, 0] = wrong
    with pytest.raises(ValueError, match="pixels of image 1 of a batch are in"):
        histograms(images)


def test_level_fractions_are_fractions_of_the_pixels() -> None:
    images = eight_bit(3)
    fractions = level_fractions(histograms(images))
    levels = np.rint(images * 255).astype(int).ravel()
    assert fractions == pytest.approx(np.bincount(levels, minlength=256) / len(levels))
    half_way = np.full((1, 1, 2, 2), 10.5 / 255, dtype=np.float32)
    assert level_fractions(histograms(half_way))[10:12].tolist() == [0.5, 0.5]
    quarter = np.full((1, 1, 2, 2), 10.75 / 255, dtype=np.float32)
    assert level_fractions(histograms(quarter))[11] == 1


def test_classes_without_images_have_no_histogram() -> None:
    table = histogram_table(histograms(eight_bit(3)), np.zeros(3, dtype=int), CLASSES)
    assert table.groupby("class")["pixel_fraction"].sum().to_dict() == pytest.approx({"all": 1, "non-COVID": 1})
    assert table["grey_level"].tolist() == [*range(256)] * 2


def test_the_wasserstein_distance_of_a_shift_is_the_shift() -> None:
    clean = eight_bit(4, low=20, high=200)
    table = distances(clean, clean + np.float32(2.25 / 255), np.array([0, 1, 0, 1]))
    moved = table.xs("wasserstein_distance", level="metric")
    assert moved["value"].to_numpy() == pytest.approx(2.25, abs=1e-4)
    assert list(moved.index) == ["all", *CLASSES]


def test_distances_equal_scipy() -> None:
    clean, changed = eight_bit(5), eight_bit(5, low=30, seed=1)
    labels = np.array([0, 1, 1, 0, 1])
    table = distances(clean, changed, labels)
    for name, of in [("all", labels >= 0), ("non-COVID", labels == 0), ("COVID", labels == 1)]:
        before, after = (np.rint(images[of] * 255).ravel() for images in (clean, changed))
        assert table.loc[(name, "wasserstein_distance"), "value"] == pytest.approx(wasserstein_distance(before, after))
        assert table.loc[(name, "ks_statistic"), "value"] == pytest.approx(ks_2samp(before, after).statistic)


def test_the_distance_of_equal_images_is_zero() -> None:
    clean = eight_bit(12)
    table = distances(clean, clean.copy(), np.arange(12) % 2)
    assert (table["value"] == 0).all()
    ks = table.loc[("all", "ks_statistic")]
    # 12 groups may miss a share of 26 % with another value
    assert (ks["low"], ks["high"]) == (0, pytest.approx(1 - 0.025 ** (1 / 12)))
    assert table.xs("wasserstein_distance", level="metric")[["low", "high"]].isna().all(axis=None)


def test_the_interval_reflects_the_spread_between_images() -> None:
    clean = eight_bit(60, low=20, high=200)
    shifts = np.random.default_rng(1).normal(3, 1, size=(60, 1, 1, 1)).astype(np.float32)
    table = distances(clean, clean + shifts / SCALE, np.arange(60) % 2)
    for name, of in [("all", slice(None)), ("non-COVID", slice(0, None, 2)), ("COVID", slice(1, None, 2))]:
        value, low, high = table.loc[(name, "wasserstein_distance")]
        # all pixels of an image have the same shift, so the distance is the mean shift
        mean, half = shifts[of].mean(), 1.96 * shifts[of].std() / np.sqrt(len(shifts[of]))
        assert (value, low, high) == pytest.approx((mean, mean - half, mean + half), abs=0.08)


def test_the_distance_of_a_class_without_images_is_undefined() -> None:
    table = distances(eight_bit(3), eight_bit(3, seed=1), np.zeros(3, dtype=int))
    assert table.loc["COVID"].isna().all(axis=None)
    pd.testing.assert_frame_equal(table.loc["all"], table.loc["non-COVID"])


@pytest.mark.parametrize("shape", [(64, 64), (48, 81)])
def test_the_power_of_a_grating_is_in_the_ring_of_its_frequency(shape: tuple[int, int]) -> None:
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    # 8 periods down and 12 across
    grating = np.cos(2 * np.pi * (8 * rows / height + 12 * columns / width)).astype(np.float32)
    power = radial_power(grating[None, None])[0]
    ring = int(np.hypot(8 / height, 12 / width) * 2 * 16)
    assert power[ring] > 1
    assert np.delete(power, ring) == pytest.approx(0, abs=1e-6)
    frequency = np.hypot(8 / height, 12 / width)
    assert abs(ring_frequencies()[ring] - frequency) <= 0.5 / 16 / 2


def test_the_power_of_white_noise_is_its_variance_in_every_ring() -> None:
    noise = np.random.default_rng(0).normal(scale=0.1, size=(50, 1, 64, 64)).astype(np.float32)
    power = radial_power(noise)
    assert power.shape == (50, 16)
    assert power.mean(axis=0) == pytest.approx(0.01, rel=0.15)


@given(height=st.integers(32, 41), width=st.integers(32, 41), seed=st.integers(0, 99))
def test_rings_equal_means_over_the_full_transform_up_to_half_a_cycle(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).normal(size=(1, 1, height, width)).astype(np.float32)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    density = np.abs(np.fft.fft2(image[0, 0])) ** 2 / image.size
    # Parseval's theorem for the reference
    assert density.mean() == pytest.approx(np.square(image).mean(), rel=1e-5)
    edges = np.linspace(0, 0.5, 17)
    for ring, found in enumerate(radial_power(image)[0]):
        last = radius <= 0.5 + 1e-12 if ring == 15 else radius < edges[ring + 1] - 1e-12
        assert found == pytest.approx(density[(radius >= edges[ring] - 1e-12) & last].mean(), rel=1e-4)
