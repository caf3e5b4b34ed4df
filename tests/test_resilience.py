import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from tasks.analysis.resilience import image_quality, quality_estimates, recovery_correlation, removed_energy_fraction
from tasks.statistics.groups import GroupJackknife
from tasks.statistics.intervals import CORRELATION


def images_of(n_images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n_images, 1, 20, 24)).astype(np.float32)


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Equations 13 to 16 of Wang et al. 2004, window by window."""
    distance = np.arange(11) - 5
    window = np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            a, b = (image[row : row + 11, column : column + 11].astype(np.float64) for image in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            variance_a, variance_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            values.append(luminance * (2 * covariance + c2) / (variance_a + variance_b + c2))
    return float(np.mean(values))


def test_quality_of_images_with_a_known_error() -> None:
    originals = np.full((2, 1, 16, 16), 0.5, dtype=np.float32)
    images = originals + np.array([0.1, 0.01], dtype=np.float32).reshape(2, 1, 1, 1)
    quality = image_quality(images, originals)
    assert quality["mse"] == pytest.approx([1e-2, 1e-4], rel=1e-5)
    # two constant images differ in luminance only
    assert quality["ssim"][0] == pytest.approx((2 * 0.6 * 0.5 + 1e-4) / (0.36 + 0.25 + 1e-4), abs=3e-4)


def test_quality_of_equal_images_is_perfect() -> None:
    images = images_of(2)
    quality = image_quality(images, images.copy())
    assert quality["mse"].tolist() == [0, 0]
    assert quality["ssim"].tolist() == [1, 1]


@pytest.mark.parametrize("strength", [0.01, 0.3, 1.0])
def test_structural_similarity_equals_its_definition(strength: float) -> None:
    originals = images_of(2)
    images = np.clip(originals + strength * (images_of(2, seed=1) - 0.5), 0, 1)
    expected = [slow_ssim(x[0], y[0]) for x, y in zip(images, originals, strict=True)]
    found = image_quality(images, originals)["ssim"]
    assert found.dtype == np.float64
    assert found == pytest.approx(expected, abs=1e-5)


def test_inverted_images_have_negative_similarity() -> None:
    images = images_of(1)
    assert image_quality(1 - images, images)["ssim"][0] < -0.5


def test_images_of_other_or_too_small_shapes_raise_an_error() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2, 1, 20, 24\) and \(3, 1, 20, 24\)"):
        image_quality(images_of(2), images_of(3))
    small = np.zeros((1, 1, 10, 32), dtype=np.float32)
    with pytest.raises(ValueError, match=r"too small for SSIM: 10 x 32 pixels\. At least 11 x 11"):
        image_quality(small, small)


def test_the_signal_to_noise_ratio_is_that_of_the_mean_error() -> None:
    mse = np.array([0.0, 1e-2, 1e-4, 1e-3] * 3)
    estimates = quality_estimates(mse, np.array([1, 0.5, 0.9, 0.8] * 3), GroupJackknife(np.arange(12)))
    assert estimates["mse"].value == pytest.approx(mse.mean())
    assert estimates["ssim"].value == pytest.approx(0.8)
    psnr = estimates["psnr"]
    assert psnr == pytest.approx(-10 * np.log10([estimates["mse"][i] for i in (0, 2, 1)]))
    assert psnr.low < psnr.value < psnr.high < np.inf


def test_removed_energy_fraction_of_known_purifiers() -> None:
    perturbation = images_of(4) - 0.5
    perturbation[3] = 0
    scale = np.array([0, 0.5, 2, 1], dtype=np.float32).reshape(4, 1, 1, 1)
    fractions = removed_energy_fraction(perturbation, perturbation * scale)
    assert fractions[:3] == pytest.approx([1, 0.75, -3])
    assert np.isnan(fractions[3])


@given(images=st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=3, max_size=40))
def test_correlation_equals_scipy_for_all_images_and_without_each_group(images: list[tuple[int, bool]]) -> None:
    mse, recovered = (np.array(column) for column in zip(*images, strict=True))
    jackknife = GroupJackknife(np.arange(len(images)))
    expected = []
    for kept in jackknife.counts > 0:
        is_constant = len(set(mse[kept])) == 1 or len(set(recovered[kept])) == 1
        expected.append(np.nan if is_constant else spearmanr(mse[kept], recovered[kept]).statistic)
    value, low, high = recovery_correlation(mse, recovered, jackknife)
    assert value == pytest.approx(expected[0], abs=1e-9, nan_ok=True)
    bounds = jackknife.interval(np.array(expected), CORRELATION)
    assert (low, high) == pytest.approx(tuple(map(float, bounds)), abs=1e-6, nan_ok=True)


def test_correlation_is_strong_if_the_loss_determines_recovery_and_near_zero_for_random_recovery() -> None:
    rng = np.random.default_rng(0)
    mse, alone = rng.random(200), GroupJackknife(np.arange(200))
    decisive = recovery_correlation(mse, mse < np.median(mse), alone)
    assert decisive.high < -0.8
    chance = recovery_correlation(mse, rng.random(200) < 0.5, alone)
    assert -0.3 < chance.low < 0 < chance.high < 0.3


@pytest.mark.parametrize("n_images", [0, 2])
def test_correlation_of_fewer_than_three_images_is_nan(n_images: int) -> None:
    alone = GroupJackknife(np.arange(n_images))
    estimate = recovery_correlation(np.arange(n_images) / 10, np.arange(n_images) > 0, alone)
    assert np.isnan(estimate).all()
