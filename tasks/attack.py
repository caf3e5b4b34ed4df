"""Step ``attack``: adversarial examples for every target, threat model, attack and eps, as tidy records."""

import logging
import shutil
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tasks import paths
from tasks.attacks.kept import kept_path, save_perturbations
from tasks.attacks.shards import digest_of_arrays, digest_of_code, digest_of_model, shard_name, writing
from tasks.attacks.suite import Observation, craft, observe, radius, seed_of
from tasks.dataset.prepared import Prepared, load_prepared
from tasks.defences import UNDEFENDED
from tasks.defences.targets import load_targets
from tasks.evaluation.perturbations import check_adversarial, perturbation_norms
from tasks.evaluation.records import CLEAN, THREAT_MODELS, build_records, write_records
from tasks.models.compute import set_up
from tasks.params import Params
from tasks.tracking import Tracker

SHARDS = paths.checkpoint_folder("attack")

log = logging.getLogger(__name__)


def attack(params: Params, tracker: Tracker) -> None:
    """Craft adversarial examples once for each surrogate, attack and eps; record what every target makes of them.

    The undefended classifier is attacked end to end (``adaptive``); an attack on it that is transferred to it would be
    the same one. A defence is attacked by what was crafted on the undefended classifier (``transfer``) and end to end
    through itself (``adaptive``).

    Each finished (surrogate, attack, eps) is kept in ``checkpoints/attack`` until the step has finished, so that a
    killed attack goes on where it was.
    """
    settings = params.attack
    device = set_up(params.compute)
    if device.type == "mps":
        log.info("ART knows no mps device: attacking on the CPU")
        device = torch.device("cpu")
    data = load_prepared()
    tracker.dataset(paths.PREPARE, "prepared", "attack")
    rows = choose_images(data, settings.max_images, params.seed)
    images, labels = data.floats(rows), data.labels(rows)
    targets = {
        name: target.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
        for name, target in load_targets().items()
    }
    # clean accuracy is wanted of every test image, however few are attacked
    test_rows = data.indices("test")
    clean = {name: observe(target, data.floats(test_rows), settings.batch_size) for name, target in targets.items()}
    attacked = np.searchsorted(test_rows, rows)

    def records_of(
        target: str, threat_model: str, kind: str, eps: float, observed: Observation, norms: dict[str, np.ndarray]
    ) -> pa.Table:
        of_all = kind == CLEAN
        recorded = test_rows if of_all else rows
        return build_records(
            recorded,
            data.table["path"].to_numpy(dtype=object)[recorded],
            data.labels(recorded),
            {"target": target, "threat_model": threat_model, "attack": kind, "norm": settings.norm},
            eps,
            radius(eps, settings.norm, images[0].size),
            observed.logits,
            clean[target].logits if of_all else clean[target].logits[attacked],
            norms,
            observed.reconstruction_error,
        )

    unchanged = {"linf": np.zeros(len(test_rows)), "l2": np.zeros(len(test_rows))}
    tables = {
        (name, "none", CLEAN, 0.0): records_of(name, "none", CLEAN, 0.0, observed, unchanged)
        for name, observed in clean.items()
    }

    digests = {name: digest_of_model(target) for name, target in targets.items()}
    same_for_all = {
        "code": digest_of_code(),
        "images": digest_of_arrays(rows, data.pixels[rows], labels),
        "paths": data.table["path"].iloc[rows].tolist(),
        "settings": settings.model_dump(mode="json", include={"norm", "pgd", "batch_size"}),
        "seed": params.seed,
        "compute": [str(device), params.compute.threads],
    }
    paths.PERTURBATIONS.mkdir(parents=True)
    craftings = [(name, kind, eps) for name in targets for kind in settings.attacks for eps in settings.eps]
    for n_done, (surrogate, kind, eps) in enumerate(craftings, start=1):
        began = time.monotonic()
        # what is crafted on the bare classifier is what transfers to every defence in front of it
        threats = dict.fromkeys(targets, "transfer") if surrogate == UNDEFENDED else {}
        threats[surrogate] = "adaptive"
        keep = eps in settings.keep_eps
        shard = SHARDS / shard_name(
            **same_for_all,
            surrogate=surrogate,
            attack=kind,
            eps=eps,
            threats=threats,
            targets={name: digests[name] for name in threats},
            keep=keep,
        )
        resumed = shard.exists()
        if not resumed:
            seed = seed_of(params.seed, surrogate, kind, eps)
            adversarial = craft(
                targets[surrogate], images, labels, len(data.classes), kind, eps, settings, data.value_range, seed
            )
            norms = perturbation_norms(images, adversarial)
            size = radius(eps, settings.norm, images[0].size)
            check_adversarial(adversarial, norms[settings.norm], eps, size, data.value_range)
            with writing(shard) as folder:
                for name, threat_model in threats.items():
                    observed = observe(targets[name], adversarial, settings.batch_size)
                    records = records_of(name, threat_model, kind, eps, observed, norms)
                    write_records(records, folder / f"{name}.parquet")
                if keep:
                    save_perturbations(folder / "perturbations.npz", rows, images, adversarial)
        for name, threat_model in threats.items():
            tables[name, threat_model, kind, eps] = pq.read_table(shard / f"{name}.parquet")
        if keep:
            shutil.copyfile(shard / "perturbations.npz", kept_path(surrogate, kind, eps))
        accuracy = np.mean(tables[surrogate, "adaptive", kind, eps]["correct"].to_numpy())
        log.info(
            "%d/%d  %s on %s, eps %g: robust accuracy %.1f %%, %s",
            n_done,
            len(craftings),
            kind,
            surrogate,
            eps,
            100 * accuracy,
            "kept from a run before" if resumed else f"{time.monotonic() - began:.0f} s",
        )

    def place(curve_point: tuple[str, str, str, float]) -> tuple[int, int, int, float]:
        target, threat_model, kind, eps = curve_point
        kinds = (CLEAN, *settings.attacks)
        return list(targets).index(target), THREAT_MODELS.index(threat_model), kinds.index(kind), eps

    write_records(pa.concat_tables(tables[point] for point in sorted(tables, key=place)))
    tracker.artifact(paths.RECORDS)


def choose_images(data: Prepared, max_images: int, seed: int) -> np.ndarray:
    """Rows of the test images to attack, rising, int64 ``(n,)``: all, or ``max_images`` in the classes' proportions.

    With the same seed, fewer images are a part of more.

    Raises:
        ValueError: there are no test images, or fewer are wanted than there are classes.
    """
    rows = data.indices("test")
    if len(rows) == 0:
        raise ValueError("no test images to attack: raise prepare.split.test_fraction")
    if max_images == 0 or max_images >= len(rows):
        return rows
    if max_images < len(data.classes):
        raise ValueError(
            f"attack.max_images: {max_images} images can't stand for {len(data.classes)} classes; "
            f"at least {len(data.classes)}, or 0 for all"
        )
    rows = np.random.default_rng(seed).permutation(rows)
    labels = data.labels(rows)
    # how far along its class an image is, in [0, 1): the first of all classes come before any second
    progress = np.empty(len(rows))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        progress[members] = np.arange(len(members)) / len(members)
    return np.sort(rows[np.argsort(progress, kind="stable")[:max_images]])


if __name__ == "__main__":
    from tasks.runner import main

    main(attack)
