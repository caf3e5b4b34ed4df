"""Step ``attack``: adversarial examples for every target, threat model, attack and eps, as tidy records."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import nn

from tasks import paths
from tasks.attacks.ball import Balls, radius
from tasks.attacks.kept import kept_path, merge_perturbations, save_perturbations
from tasks.attacks.shards import Shards, digest_of_arrays, digest_of_code, digest_of_model
from tasks.attacks.suite import Observation, craft, observe
from tasks.attacks.sweep import pgd_sweep
from tasks.dataset.prepared import Prepared, choose_stratified, load_prepared
from tasks.defences.targets import load_targets
from tasks.evaluation.perturbations import check_adversarial, perturbation_norms
from tasks.evaluation.records import CLEAN, THREAT_MODELS, build_records, build_smallest_eps, write_records
from tasks.models.compute import set_up
from tasks.params import Attack, Params
from tasks.paths import UNDEFENDED
from tasks.tracking import Tracker

SHARDS = paths.checkpoint_folder("attack")
SWEPT_BATCHES = 4
"""Batches whose images are swept together, so that others take the place of those that fall."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scene:
    """What every part of the step works on."""

    settings: Attack
    seed: int
    data: Prepared
    targets: dict[str, nn.Module]
    test_rows: np.ndarray
    """Rows of all test images."""
    clean: dict[str, Observation]
    """What each target makes of all test images as they are."""

    def radius(self, eps: float) -> float:
        """Of the ball, in units of the value range."""
        return radius(eps, self.settings.norm, self.data.pixels[0].size)


def attack(params: Params, tracker: Tracker) -> None:
    """Attack every target, and record what it makes of each adversarial example.

    The undefended classifier is attacked end to end (``adaptive``); an attack on it that is transferred to it would be
    the same one. A defence is attacked by what was crafted on the undefended classifier (``transfer``) and end to end
    through itself (``adaptive``). Then a stronger PGD looks for the smallest eps that breaks each image, adaptive.

    The work is cut in shards: some images, attacked at every eps. Each finished one is kept in ``checkpoints/attack``
    until the step has finished, so that a killed attack goes on where it was.
    """
    settings = params.attack
    device = set_up(params.compute)
    if device.type == "mps" and settings.mode == "reference":
        log.info("ART knows no mps device: attacking on the CPU")
        device = torch.device("cpu")
    data = load_prepared()
    tracker.dataset(paths.PREPARE, "prepared", "attack")
    # clean accuracy is wanted of every test image, however few are attacked
    test_rows = data.indices("test")
    if len(test_rows) == 0:
        raise ValueError("no test images to attack: raise prepare.split.test_fraction")
    rows = choose_stratified(data, test_rows, settings.max_images, params.seed)
    targets = {
        name: target.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
        for name, target in load_targets().items()
    }
    clean = {name: observe_all(target, data, test_rows, settings.batch_size) for name, target in targets.items()}
    scene = Scene(settings, params.seed, data, targets, test_rows, clean)

    of_clean = [clean_records(scene, name) for name in targets]

    batches = in_parts(rows, settings.batch_size)
    crafted = [(name, kind, batch) for name in targets for kind in settings.attacks for batch in batches]
    swept = [(name, part) for name in targets for part in in_parts(rows, SWEPT_BATCHES * settings.batch_size)]
    shards = Shards(
        SHARDS,
        len(crafted) + len(swept),
        code=digest_of_code(),
        settings=settings.model_dump(mode="json", include={"norm", "eps", "batch_size"}),
        seed=params.seed,
        compute=[str(device), params.compute.threads],
        targets={name: digest_of_model(target) for name, target in targets.items()},
    )

    def digest_of_images(part: np.ndarray) -> list[str]:
        return [digest_of_arrays(part, data.pixels[part], data.labels(part)), *data.table["path"].iloc[part]]

    crafted_shards = [
        shards.finish(
            f"{kind} on {name}, {len(batch)} images at {len(settings.eps)} eps",
            partial(craft_batch, scene, name, kind, batch),
            attack=[name, kind],
            how=settings.model_dump(mode="json", include={"mode", "pgd", "keep_eps"}),
            images=digest_of_images(batch),
        )
        for name, kind, batch in crafted
    ]
    swept_shards = [
        shards.finish(
            f"sweep on {name}, {len(part)} images",
            partial(sweep, scene, name, part),
            sweep=name,
            how=[settings.sweep.model_dump(mode="json"), settings.pgd.relative_step],
            images=digest_of_images(part),
        )
        for name, part in swept
    ]

    of_crafted = [pq.read_table(shard / "records.parquet") for shard in crafted_shards]
    records = in_order(pa.concat_tables(of_clean + of_crafted), list(targets), [CLEAN, *settings.attacks])
    write_records(records, paths.RECORDS)
    write_records(
        pa.concat_tables(pq.read_table(shard / "smallest_eps.parquet") for shard in swept_shards), paths.SMALLEST_EPS
    )
    paths.PERTURBATIONS.mkdir()
    for name in targets:
        for kind in settings.attacks:
            parts = [shard for shard, work in zip(crafted_shards, crafted, strict=True) if work[:2] == (name, kind)]
            for eps in settings.kept_eps:
                merge_perturbations([part / f"eps{eps:g}.npz" for part in parts], kept_path(name, kind, eps))
    tracker.artifact(paths.RECORDS)
    tracker.artifact(paths.SMALLEST_EPS)


def craft_batch(scene: Scene, surrogate: str, kind: str, rows: np.ndarray, folder: Path) -> None:
    """Craft adversarial examples of a batch at every eps, and write what targets make of them to ``folder``."""
    settings, data = scene.settings, scene.data
    # what is crafted on the bare classifier is what transfers to every defence in front of it
    threats = dict.fromkeys(scene.targets, "transfer") if surrogate == UNDEFENDED else {}
    threats[surrogate] = "adaptive"
    images, labels = data.floats(rows), data.labels(rows)
    n_classes = len(data.classes)
    crafted = craft(
        scene.targets[surrogate], images, labels, n_classes, kind, settings, data.value_range, scene.seed, rows
    )
    found = []
    for eps, adversarial in zip(settings.eps, crafted, strict=True):
        norms = perturbation_norms(images, adversarial)
        check_adversarial(adversarial, norms[settings.norm], eps, scene.radius(eps), data.value_range)
        for name, threat_model in threats.items():
            observed = observe(scene.targets[name], adversarial)
            found.append(records_of(scene, rows, (name, threat_model, kind), eps, observed, norms))
        if eps in settings.kept_eps:
            save_perturbations(folder / f"eps{eps:g}.npz", rows, images, adversarial)
    write_records(pa.concat_tables(found), folder / "records.parquet")


def sweep(scene: Scene, name: str, rows: np.ndarray, folder: Path) -> None:
    """Look for the smallest eps that breaks each image, end to end through the target; write it to ``folder``."""
    settings, data = scene.settings, scene.data
    images, labels = data.floats(rows), data.labels(rows)
    radii = np.array([scene.radius(eps) for eps in settings.eps])
    found = pgd_sweep(
        scene.targets[name],
        images,
        labels,
        radii,
        Balls(settings.norm, data.value_range),
        settings.batch_size,
        settings.sweep.n_steps,
        settings.pgd.relative_step,
        settings.sweep.n_restarts,
        scene.seed,
        rows,
    )
    norms = perturbation_norms(images, found.adversarial)[settings.norm]
    for index, eps in enumerate(settings.eps):
        if (at := found.broken_at == index).any():
            check_adversarial(found.adversarial[at], norms[at], eps, radii[index], data.value_range)
    smallest_eps = np.array([0.0, *settings.eps, np.inf])[found.broken_at + 1]
    image_paths = data.table["path"].to_numpy(dtype=object)[rows]
    table = build_smallest_eps(rows, image_paths, labels, name, settings.norm, smallest_eps)
    write_records(table, folder / "smallest_eps.parquet")


def clean_records(scene: Scene, target: str) -> pa.Table:
    """What a target makes of all test images as they are."""
    unchanged = {"linf": np.zeros(len(scene.test_rows)), "l2": np.zeros(len(scene.test_rows))}
    return records_of(scene, scene.test_rows, (target, "none", CLEAN), 0.0, scene.clean[target], unchanged)


def records_of(
    scene: Scene,
    rows: np.ndarray,
    curve: tuple[str, str, str],
    eps: float,
    observed: Observation,
    norms: dict[str, np.ndarray],
) -> pa.Table:
    """Records of images at one point of the curve (target, threat model, attack)."""
    names = dict(zip(("target", "threat_model", "attack"), curve, strict=True))
    return build_records(
        rows,
        scene.data.table["path"].to_numpy(dtype=object)[rows],
        scene.data.labels(rows),
        names | {"norm": scene.settings.norm},
        eps,
        scene.radius(eps),
        observed.logits,
        scene.clean[curve[0]].logits[np.searchsorted(scene.test_rows, rows)],
        norms,
        observed.reconstruction_error,
    )


def in_order(records: pa.Table, targets: list[str], kinds: list[str]) -> pa.Table:
    """Records by target, threat model, attack, eps and image."""
    ranks = [
        pc.index_in(records[column].combine_chunks(), pa.array(names)).to_numpy()
        for column, names in (("target", targets), ("threat_model", list(THREAT_MODELS)), ("attack", kinds))
    ]
    # the last key is the first to sort by
    keys = [records["image"].to_numpy(), records["eps"].to_numpy(), *reversed(ranks)]
    return records.take(pa.array(np.lexsort(keys)))


def observe_all(target: nn.Module, data: Prepared, rows: np.ndarray, batch_size: int) -> Observation:
    """What a target makes of these rows' images, read and sent forward batch by batch."""
    parts = [observe(target, data.floats(batch)) for batch in in_parts(rows, batch_size)]
    errors = [part.reconstruction_error for part in parts if part.reconstruction_error is not None]
    return Observation(np.concatenate([part.logits for part in parts]), np.concatenate(errors) if errors else None)


def in_parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows cut in runs of at most ``size``."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


if __name__ == "__main__":
    from tasks.runner import main

    main(attack)
