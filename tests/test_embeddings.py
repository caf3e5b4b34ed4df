import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from tasks.analysis.embeddings import N_COMPONENTS, pca, tsne


def blobs(n: int = 60, d: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clean images in two clusters, and their adversarial versions a third one away."""
    rng = np.random.default_rng(seed)
    clean = rng.standard_normal((n, d)) + 8 * (np.arange(n) % 2)[:, None] * (np.arange(d) < 5)
    adversarial = clean + 0.1 * rng.standard_normal((n, d)) + 30 * (np.arange(d) == 7)
    return clean.astype(np.float32), adversarial.astype(np.float32)


def embed(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    return tsne(pca(clean, adversarial, N_COMPONENTS)[0], seed=0)


def test_components_equal_those_of_scikit_learn_but_for_signs() -> None:
    clean, adversarial = blobs()
    coordinates, shares = pca(clean, adversarial, n_components=4)
    theirs = PCA(4, svd_solver="full")
    expected = theirs.fit_transform(np.concatenate([clean, adversarial]).astype(np.float64))
    assert np.abs(coordinates) == pytest.approx(np.abs(expected), abs=1e-3)
    assert shares == pytest.approx(theirs.explained_variance_ratio_, abs=1e-6)


def test_signs_do_not_depend_on_how_the_features_are_turned() -> None:
    clean, adversarial = blobs()
    coordinates, _ = pca(clean, adversarial)
    turned, _ = pca(-clean[:, ::-1], -adversarial[:, ::-1])
    assert turned == pytest.approx(coordinates, abs=1e-3)
    assert (coordinates.max(axis=0) == np.abs(coordinates).max(axis=0)).all()


def test_components_that_do_not_exist_are_zero() -> None:
    clean, adversarial = blobs(n=2, d=9)
    coordinates, shares = pca(clean, adversarial, n_components=6)
    assert coordinates.shape == (4, 6)
    assert (coordinates[:, 3:] == 0).all()
    assert shares.sum() == pytest.approx(1)


def test_equal_features_have_no_variance_to_share() -> None:
    same = np.ones((3, 5), dtype=np.float32)
    coordinates, shares = pca(same, same)
    assert (coordinates == 0).all()
    assert np.isnan(shares).all()


def test_tsne_keeps_neighbours_and_repeats_itself() -> None:
    clean, adversarial = blobs()
    coordinates = embed(clean, adversarial)
    both = np.concatenate([clean, adversarial])
    assert coordinates.shape == (120, 2)
    # neighbours in the picture are neighbours in the features, twin pairs and clusters above all
    assert trustworthiness(both, coordinates, n_neighbors=10) > 0.8
    label, origin = np.tile(np.arange(60) % 2, 2), np.repeat([0, 1], 60)
    cluster = 2 * origin + label
    centres = np.array([coordinates[cluster == each].mean(axis=0) for each in range(4)])
    nearest = ((coordinates[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == cluster).all()
    assert (coordinates == embed(clean, adversarial)).all()


@pytest.mark.parametrize("n", [2, 3, 10])
def test_few_images_have_a_tsne_too(n: int) -> None:
    coordinates = embed(*blobs(n=n))
    assert coordinates.shape == (2 * n, 2)
    assert np.isfinite(coordinates).all()


def test_equal_features_do_not_break_tsne() -> None:
    same = np.ones((5, 4), dtype=np.float32)
    assert np.isfinite(embed(same, same)).all()


def test_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        embed(*blobs(n=1))


def test_features_that_are_not_finite_are_refused() -> None:
    clean, adversarial = blobs()
    adversarial[0, 0] = np.nan
    for method in (pca, embed):
        with pytest.raises(ValueError, match="features must be finite"):
            method(clean, adversarial)
