"""Attacks at every eps of the grid, and the transfer of their adversarial images: parts of an attack."""

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from tasks.attacks.art_attacks import craft_by_art
from tasks.attacks.attacked import Attacked, digest_of_images
from tasks.attacks.gradient.fgsm import fgsm
from tasks.attacks.gradient.pgd import pgd
from tasks.attacks.pgd_8_bit import pgd_8_bit
from tasks.attacks.plugin_attacks import craft_by_plugin
from tasks.attacks.predictions import concatenate, predict_attacked, seed_random_defences
from tasks.attacks.surrogates import TRANSFERRED
from tasks.core.digests import digest_of_folder
from tasks.core.workspace import Workspace
from tasks.defences.randomness import AveragedPredictions, as_attacked, with_fixed_draws
from tasks.models.compute import device_of
from tasks.models.loading import surrogate_names
from tasks.params import UNDEFENDED
from tasks.records.adversarial_images import QuantizedPerturbations, quantize, read_perturbations, save_perturbations
from tasks.records.perturbation_norms import perturbation_norms
from tasks.records.tables import write_records
from tasks.records.vocabulary import ART_REFERENCE, PGD_8_BIT, PGD_FIXED_DRAWS

log = logging.getLogger(__name__)


def craft(attacked: Attacked, attack: str, rows: np.ndarray) -> dict[str, Path]:
    """Part: one attack on one batch at every eps; returns the folder of its checkpoint."""
    settings = attacked.settings
    row = settings.art_attacks.get(attack) or settings.plugin_attacks.get(attack)
    code = digest_of_folder(attacked.plugins) if attack in settings.plugin_attacks else None
    folder = attacked.checkpoints.get_or_compute(
        f"{attack} on {attacked.target}, {len(rows)} images at {len(settings.eps)} eps",
        partial(_write_crafted, attacked, attack, rows),
        attack=[attack, row and row.model_dump(mode="json"), code],
        crafting=settings.model_dump(mode="json", include={"pgd", "saved_eps"}),
        images=digest_of_images(attacked.data, rows),
        points=[[point.name, *point.biases] for point in attacked.operating_points] if attacked.is_random else None,
    )
    return {attack: folder}


def transfer_records(attacked: Attacked, workspace: Workspace) -> Iterable[pa.Table]:
    """Records of a target on the adversarial images of all surrogates.

    The surrogates of a defence are the undefended classifier and the independent ones. The undefended classifier has
    only the independent ones.

    Raises:
        FileNotFoundError: the perturbations to transfer are missing.
        ValueError: they are of other images.
    """
    from_undefended = () if attacked.target == UNDEFENDED else attacked.settings.saved_attacks
    sources = [(UNDEFENDED, attack, workspace.perturbation_file) for attack in from_undefended]
    sources += [(name, TRANSFERRED, workspace.transferred_file) for name in surrogate_names(workspace)]
    for surrogate, attack, path_of in sources:
        for eps in attacked.settings.eps:
            path = path_of(surrogate, attack, eps)
            crafted = read_perturbations(workspace, attacked.data, path, eps)
            if not np.array_equal(crafted.rows, attacked.rows):
                raise ValueError(f"{path} holds other images. Run the step attack again")
            yield _transfer(attacked, crafted, surrogate, attack, eps)


def _write_crafted(attacked: Attacked, attack: str, rows: np.ndarray, folder: Path) -> None:
    """Write records and perturbations of one attack on one batch at every eps.

    Records are of the quantized perturbations, so that later steps read exactly the recorded images.
    """
    data, settings, model = attacked.data, attacked.settings, attacked.model
    seed_random_defences(model, attacked.seed, rows)
    images, labels = data.floats(rows), data.labels(rows)
    tables = []
    for eps, exact in zip(settings.eps, _craft_batch(attacked, attack, images, labels, rows), strict=True):
        perturbations = quantize(data, rows, images, exact, settings.norm)
        # rounding to the stored levels would move the images off the 256 grey levels
        adversarial = exact if attack == PGD_8_BIT else perturbations.images()
        norms = perturbation_norms(images, adversarial)
        attacked.check(eps, adversarial, norms[settings.norm], rows)
        predictions, rounded = predict_attacked(model, adversarial)
        tables.append(attacked.records(rows, "adaptive", attack, eps, predictions, rounded, norms))
        if attack in settings.saved_attacks and eps in attacked.saved_eps:
            save_perturbations(folder / f"eps{eps:g}.npz", perturbations)
    write_records(pa.concat_tables(tables), folder / "records.parquet")


def _craft_batch(
    attacked: Attacked, attack: str, images: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> Iterator[np.ndarray]:
    """Adversarial images ``(N, C, H, W)`` at each eps; untargeted, against the true labels."""
    model, settings = as_attacked(attacked.model), attacked.settings
    radii, seed = [attacked.radius(eps) for eps in settings.eps], np.array([attacked.seed, rows[0]])
    if attack in ART_REFERENCE or attack in settings.art_attacks:
        n_classes, value_range = len(attacked.data.classes), attacked.data.value_range
        yield from craft_by_art(model, images, labels, n_classes, attack, radii, settings, value_range, seed)
        return
    if attack in settings.plugin_attacks:
        yield from craft_by_plugin(
            model, images, labels, settings.plugin_attacks[attack], radii, attacked.ball, seed, attacked.plugins
        )
        return
    device = device_of(model)
    batch = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    if attack == "fgsm":
        crafted = fgsm(model, *batch, radii, attacked.ball)
    elif attack == PGD_8_BIT:
        crafted = pgd_8_bit(model, *batch, settings.eps, settings.pgd, attacked.seed, rows)
    else:
        assert attack in ("pgd", PGD_FIXED_DRAWS), attack
        if attack == PGD_FIXED_DRAWS:
            assert isinstance(model, AveragedPredictions)
            model = with_fixed_draws(model)
        crafted = pgd(model, *batch, radii, attacked.ball, settings.pgd, attacked.seed, rows)
    for adversarial in crafted:
        yield adversarial.cpu().numpy()


def _transfer(attacked: Attacked, crafted: QuantizedPerturbations, surrogate: str, attack: str, eps: float) -> pa.Table:
    """Records of the target on adversarial images of a surrogate."""
    model, data = attacked.model, attacked.data
    seed_random_defences(model, attacked.seed)
    predictions, rounded, norms = [], [], []
    for start in range(0, len(crafted.rows), attacked.settings.batch_size):
        part = slice(start, start + attacked.settings.batch_size)
        adversarial = crafted.images(part)
        predicted = predict_attacked(model, adversarial)
        predictions.append(predicted[0])
        rounded.append(predicted[1])
        norms.append(perturbation_norms(data.floats(crafted.rows[part]), adversarial))
    log.info("%s at eps %g transferred from %s to %s", attack, eps, surrogate, attacked.target)
    both = {norm: np.concatenate([of_batch[norm] for of_batch in norms]) for norm in norms[0]}
    of_all = concatenate(predictions), concatenate(rounded)
    return attacked.records(crafted.rows, "transfer", attack, eps, *of_all, both, surrogate)
