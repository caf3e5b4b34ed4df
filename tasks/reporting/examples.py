"""Images that the report shows: some of each class, and one of each class under attack."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from tasks import paths
from tasks.attacks.kept import load_kept
from tasks.dataset.prepared import Prepared
from tasks.evaluation.records import CLEAN
from tasks.paths import UNDEFENDED

N_PER_CLASS = 4
MAX_CLASSES = 4
"""Classes shown at most, so that the page stays small."""


@dataclass(frozen=True)
class Examples:
    """Grey images in rows and columns."""

    images: np.ndarray
    """float32 ``(R, C, H, W)`` in [0, 1]."""
    rows: list[str]
    columns: list[str]
    """C titles, or none."""
    captions: list[list[str]]
    """R lists of C texts to stand below the images, or none."""


def of_classes(data: Prepared) -> Examples:
    """Test images of each class, spread evenly over its rows."""
    test = data.indices("test")
    labels = data.labels(test)
    of_class = [test[labels == label] for label in range(min(len(data.classes), MAX_CLASSES))]
    n_columns = min(N_PER_CLASS, *(len(rows) for rows in of_class))
    chosen = [rows[np.linspace(0, len(rows) - 1, n_columns).round().astype(int)] for rows in of_class]
    images = np.stack([data.floats(rows)[:, 0] for rows in chosen])
    return Examples(images, list(data.classes[:MAX_CLASSES]), columns=[], captions=[])


def of_attack(data: Prepared, records: pd.DataFrame, attack: str, eps: float) -> Examples:
    """A row a class: clean, adversarial, the perturbation amplified about mid grey, and both images denoised.

    The adversarial images are those crafted on the undefended classifier. A class is shown by its first test image
    that the attack turns wrong (else by its first). Captions are the predictions.

    Args:
        data: the prepared data set.
        records: records of the step ``attack``.
        attack: ``fgsm``, ``pgd``, ...
        eps: in 1/255.

    Raises:
        FileNotFoundError: the images of this attack and ε were not kept (``attack.keep_eps``).
    """
    import torch

    from tasks.models.autoencoder import build_autoencoder
    from tasks.models.files import load_model

    def seen(target: str, threat_model: str, attack: str, eps: float) -> pd.DataFrame:
        """Records of one point, by image."""
        values = {"target": target, "threat_model": threat_model, "attack": attack, "eps": eps}
        return records[(records[list(values)] == pd.Series(values)).all(axis=1)].set_index("image")

    kept = load_kept(data, UNDEFENDED, attack, eps)
    rows = kept.rows
    success = seen(UNDEFENDED, "adaptive", attack, eps)["success"].loc[rows].to_numpy()
    members = [np.flatnonzero(data.labels(rows) == label) for label in range(min(len(data.classes), MAX_CLASSES))]
    # argmax is the first success, or the first of all without one
    positions = [positions[np.argmax(success[positions])] for positions in members if len(positions)]
    chosen = rows[positions]
    clean, attacked = data.floats(chosen), kept.images(np.array(positions))
    with torch.inference_mode():
        autoencoder = load_model(paths.AUTOENCODER, build_autoencoder)
        denoised = [autoencoder(torch.from_numpy(images)).numpy() for images in (clean, attacked)]
    factor = max(1, int(0.5 / max(float(np.abs(attacked - clean).max()), 1e-6)))
    perturbation = np.clip(0.5 + factor * (attacked - clean), 0, 1)

    def predictions(target: str, threat_model: str, attack: str, eps: float) -> list[str]:
        labels = seen(target, threat_model, attack, eps)["prediction"].loc[chosen]
        return [f"predicted {data.classes[label]}" for label in labels]

    columns = {
        "clean": predictions(UNDEFENDED, "none", CLEAN, 0.0),
        "adversarial": predictions(UNDEFENDED, "adaptive", attack, eps),
        f"perturbation × {factor}": ["mid grey: unchanged"] * len(chosen),
        "clean, denoised": predictions("autoencoder", "none", CLEAN, 0.0),
        "adversarial, denoised": predictions("autoencoder", "transfer", attack, eps),
    }
    return Examples(
        images=np.stack([clean, attacked, perturbation, *denoised], axis=1)[:, :, 0],
        rows=[data.classes[label] for label in data.labels(chosen)],
        columns=list(columns),
        captions=[list(captions) for captions in zip(*columns.values(), strict=True)],
    )
