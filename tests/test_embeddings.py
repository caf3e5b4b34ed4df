import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from tasks.analysis.embeddings import N_COMPONENTS, embedding_table, pca, tsne


def blobs(n: int = 60, d: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of clean images in two clusters, and of adversarial versions at a distance from both."""
    rng = np.random.default_rng(seed)
    clean = rng.standard_normal((n, d)) + 8 * (np.arange(n) % 2)[:, None] * (np.arange(d) < 5)
    adversarial = clean + 0.1 * rng.standard_normal((n, d)) + 30 * (np.arange(d) == 7)
    return clean.astype(np.float32), adversarial.astype(np.float32)


def embed(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    return tsne(pca(clean, adversarial, N_COMPONENTS), seed=0)


def test_components_equal_scikit_learn_up_to_the_sign() -> None:
    clean, adversarial = blobs()
    coordinates = pca(clean, adversarial, n_components=4)
    expected = PCA(4, svd_solver="full").fit_transform(np.concatenate([clean, adversarial]).astype(np.float64))
    assert np.abs(coordinates) == pytest.approx(np.abs(expected), abs=1e-3)


def test_signs_do_not_depend_on_the_sign_and_order_of_the_features() -> None:
    clean, adversarial = blobs()
    coordinates = pca(clean, adversarial, 2)
    turned = pca(-clean[:, ::-1], -adversarial[:, ::-1], 2)
    assert turned == pytest.approx(coordinates, abs=1e-3)
    assert (coordinates.max(axis=0) == np.abs(coordinates).max(axis=0)).all()


def test_components_without_variance_are_zero() -> None:
    clean, adversarial = blobs(n=2, d=9)
    coordinates = pca(clean, adversarial, n_components=6)
    assert coordinates.shape == (4, 6)
    assert (coordinates[:, 3:] == 0).all()


def test_equal_features_have_zero_coordinates() -> None:
    same = np.ones((3, 5), dtype=np.float32)
    assert (pca(same, same, 2) == 0).all()


def test_tsne_preserves_neighbourhoods_and_is_deterministic() -> None:
    clean, adversarial = blobs()
    coordinates = embed(clean, adversarial)
    both = np.concatenate([clean, adversarial])
    assert coordinates.shape == (120, 2)
    assert trustworthiness(both, coordinates, n_neighbors=10) > 0.8
    label, origin = np.tile(np.arange(60) % 2, 2), np.repeat([0, 1], 60)
    cluster = 2 * origin + label
    centres = np.array([coordinates[cluster == each].mean(axis=0) for each in range(4)])
    nearest = ((coordinates[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == cluster).all()
    assert (coordinates == embed(clean, adversarial)).all()


@pytest.mark.parametrize("n", [2, 3, 10])
def test_tsne_works_for_few_images(n: int) -> None:
    coordinates = embed(*blobs(n=n))
    assert coordinates.shape == (2 * n, 2)
    assert np.isfinite(coordinates).all()


def test_tsne_of_equal_features_is_finite() -> None:
    same = np.ones((5, 4), dtype=np.float32)
    assert np.isfinite(embed(same, same)).all()


def test_tsne_of_one_image_raises_an_error() -> None:
    with pytest.raises(ValueError, match="too few images for t-SNE: 1"):
        embed(*blobs(n=1))


def test_features_that_are_not_finite_raise_an_error() -> None:
    clean, adversarial = blobs()
    adversarial[0, 0] = np.nan
    with pytest.raises(ValueError, match="features contain NaN or infinite values"):
        pca(clean, adversarial, 2)


def test_the_table_has_both_versions_of_every_image_for_both_methods() -> None:
    clean, adversarial = blobs(n=10)
    rows, labels = np.arange(20, 30), np.arange(10) % 2
    table = embedding_table(clean, adversarial, rows, labels, seed=0)
    for (_, _), group in table.groupby(["method", "image_kind"]):
        assert group["image"].tolist() == rows.tolist()
        assert group["label"].tolist() == labels.tolist()
    assert table.groupby(["method", "image_kind"]).ngroups == 4
