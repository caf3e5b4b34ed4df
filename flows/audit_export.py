"""Export of the adversarial examples of an audit, for checks by other tools."""

import csv
from pathlib import Path

import numpy as np

from tasks.attacks.predictions import predict, seed_random_defences
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.defences.targets import load_target
from tasks.models.compute import configure_torch
from tasks.params import Params
from tasks.records.adversarial_images import read_perturbations

COLUMNS = ("file", "index", "path", "attack", "eps", "linf", "label", "prediction")


def export_examples(workspace: Workspace, params: Params, target: str, folder: Path) -> int:
    """Write the saved adversarial examples of a target, and a table of them.

    A file ``ATTACK-epsEPS.npy`` has float32 images ``(N, C, H, W)`` in [0, 1]; ``unchanged.npy`` has the images without
    perturbation. ``adversarial_examples.csv`` has a row for each image: file, index in the file, path of the image,
    attack, eps and the norm ``linf`` in 1/255, and the names of the class and of the predicted class. The predictions
    are computed on the images in the file.

    Args:
        workspace: of the audit; its attacks have run.
        params: of the audit.
        target: the audited target.
        folder: new folder.

    Returns:
        The number of adversarial examples.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, model = load_prepared(workspace), load_target(workspace, target, configure_torch(params.compute))
    seed_random_defences(model, params.seed)
    rows = []
    attacked: set[int] = set()
    size = params.attack.batch_size
    for attack in params.attack.saved_attacks:
        for eps in params.attack.analysed_eps:
            stored = read_perturbations(workspace, data, workspace.perturbation_file(target, attack, eps), eps)
            images = stored.images()
            batches = [images[start : start + size] for start in range(0, len(images), size)]
            predicted = np.concatenate([predict(model, batch).logits.argmax(1) for batch in batches])
            linf = 255 * np.abs(images - data.floats(stored.rows)).max(axis=(1, 2, 3))
            file = f"{attack}-eps{eps:g}.npy"
            np.save(folder / file, images)
            attacked.update(map(int, stored.rows))
            table = data.table.iloc[stored.rows]
            rows += [
                (file, index, path, attack, f"{eps:g}", f"{norm:.4f}", name, data.classes[prediction])
                for index, (path, name, norm, prediction) in enumerate(
                    zip(table["path"], table["class"], linf, predicted, strict=True)
                )
            ]
    np.save(folder / "unchanged.npy", data.floats(np.array(sorted(attacked))))
    with (folder / "adversarial_examples.csv").open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return len(rows)
