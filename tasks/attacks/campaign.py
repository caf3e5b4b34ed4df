"""All attacks on one target: what steps that attack write, whatever the target is."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from tasks import paths
from tasks.attacks.ball import Balls, radius
from tasks.attacks.kept import as_kept, kept_path, load_kept, merge_perturbations, save_perturbations
from tasks.attacks.shards import Shards, digest_of_code
from tasks.attacks.suite import Observation, craft, observe
from tasks.attacks.sweep import pgd_sweep
from tasks.dataset.prepared import Prepared, choose_stratified, load_prepared
from tasks.defences.targets import load_target
from tasks.evaluation.perturbations import check_adversarial, perturbation_norms
from tasks.evaluation.records import CLEAN, build_records, build_smallest_eps, write_records
from tasks.models.compute import device_of, set_up
from tasks.models.digests import digest_of_arrays, digest_of_model
from tasks.params import Attack, Params
from tasks.paths import UNDEFENDED
from tasks.tracking import Tracker

SWEPT_BATCHES = 4
"""Batches whose images are swept together, so that others take the place of those that fall."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Campaign:
    """What every part of the attack on one target works on."""

    settings: Attack
    seed: int
    data: Prepared
    name: str
    """Of the target."""
    target: nn.Module
    test_rows: np.ndarray
    """Rows of all test images, rising."""
    rows: np.ndarray
    """Rows of those that are attacked, rising."""
    clean: Observation
    """What the target makes of all test images as they are."""

    @property
    def kept_eps(self) -> tuple[float, ...]:
        """At which adversarial images are kept; those of the bare classifier are all transferred to defences."""
        return self.settings.eps if self.name == UNDEFENDED else self.settings.kept_eps

    def radius(self, eps: float) -> float:
        """Of the ball, in units of the value range."""
        return radius(eps, self.settings.norm, self.data.pixels[0].size)


def attack_target(params: Params, tracker: Tracker, name: str, checkpoints: Path) -> None:
    """Attack a target end to end (``adaptive``), a defended one also by what was crafted without it (``transfer``).

    What is transferred is what the step ``attack`` kept. A stronger PGD looks for the smallest eps that breaks each
    image, end to end.

    The work on the target itself is cut in shards: some images, attacked at every eps. Each finished one is kept until
    the step has finished, so that a killed attack goes on where it was.

    Args:
        params: all parameters.
        tracker: hears of the data set and of the records.
        name: ``undefended``, or that of a defence.
        checkpoints: where shards are kept.

    Raises:
        ValueError: there are no test images, or those of the step ``attack`` were others.
        FileNotFoundError: a model, or what is to be transferred, is missing.
    """
    tracker.dataset(paths.PREPARE, "prepared", "attack")
    campaign = set_up_campaign(params, name)
    settings, data, rows = campaign.settings, campaign.data, campaign.rows
    tables = [clean_records(campaign)]
    if name != UNDEFENDED:
        tables += [transfer(campaign, kind, eps) for kind in settings.attacks for eps in settings.eps]

    batches = in_parts(rows, settings.batch_size)
    swept = in_parts(rows, SWEPT_BATCHES * settings.batch_size)
    shards = Shards(
        checkpoints,
        len(settings.attacks) * len(batches) + len(swept),
        code=digest_of_code(),
        settings=settings.model_dump(mode="json", include={"norm", "eps", "batch_size"}),
        seed=params.seed,
        compute=[str(device_of(campaign.target)), params.compute.threads],
        target=[name, digest_of_model(campaign.target)],
    )

    def digest_of_images(part: np.ndarray) -> list[str]:
        return [digest_of_arrays(part, data.pixels[part], data.labels(part)), *data.table["path"].iloc[part]]

    for kind in settings.attacks:
        parts = [
            shards.finish(
                f"{kind} on {name}, {len(batch)} images at {len(settings.eps)} eps",
                partial(craft_batch, campaign, kind, batch),
                attack=kind,
                how=settings.model_dump(mode="json", include={"mode", "pgd", "keep_eps"}),
                images=digest_of_images(batch),
            )
            for batch in batches
        ]
        records = pa.concat_tables(pq.read_table(part / "records.parquet") for part in parts)
        tables.append(records.sort_by([("eps", "ascending"), ("image", "ascending")]))
        for eps in campaign.kept_eps:
            kept_path(name, kind, eps).parent.mkdir(exist_ok=True)
            merge_perturbations([part / f"eps{eps:g}.npz" for part in parts], kept_path(name, kind, eps))
    parts = [
        shards.finish(
            f"sweep on {name}, {len(part)} images",
            partial(sweep, campaign, part),
            sweep=[settings.sweep.model_dump(mode="json"), settings.pgd.relative_step],
            images=digest_of_images(part),
        )
        for part in swept
    ]
    smallest = pa.concat_tables(pq.read_table(part / "smallest_eps.parquet") for part in parts)

    write_records(pa.concat_tables(tables), paths.records(name))
    write_records(smallest, paths.smallest_eps(name))
    tracker.artifact(paths.records(name))
    tracker.artifact(paths.smallest_eps(name))


def set_up_campaign(params: Params, name: str) -> Campaign:
    """Load the target and choose the images; clean accuracy is wanted of every test image, however few are attacked."""
    settings = params.attack
    device = set_up(params.compute)
    if device.type == "mps" and settings.mode == "reference":
        log.info("ART knows no mps device: attacking on the CPU")
        device = torch.device("cpu")
    data = load_prepared()
    test_rows = data.indices("test")
    if len(test_rows) == 0:
        raise ValueError("no test images to attack: raise prepare.split.test_fraction")
    rows = choose_stratified(data, test_rows, settings.max_images, params.seed)
    target = load_target(name, device)
    seed_random_defences(params.seed)
    batches = [observe(target, data.floats(batch)) for batch in in_parts(test_rows, settings.batch_size)]
    return Campaign(settings, params.seed, data, name, target, test_rows, rows, joined(batches))


def transfer(campaign: Campaign, kind: str, eps: float) -> pa.Table:
    """Records of what the target makes of the images that were crafted on the undefended classifier."""
    seed_random_defences(campaign.seed)
    kept = load_kept(campaign.data, UNDEFENDED, kind, eps)
    if not np.array_equal(kept.rows, campaign.rows):
        raise ValueError(f"{kept_path(UNDEFENDED, kind, eps)} is of other images: run the step attack again")
    observed, norms = [], []
    for start in range(0, len(kept.rows), campaign.settings.batch_size):
        part = slice(start, start + campaign.settings.batch_size)
        adversarial = kept.images(part)
        observed.append(observe(campaign.target, adversarial))
        norms.append(perturbation_norms(campaign.data.floats(kept.rows[part]), adversarial))
    log.info("%s at eps %g crafted on %s, seen by %s", kind, eps, UNDEFENDED, campaign.name)
    of_all = {norm: np.concatenate([of_batch[norm] for of_batch in norms]) for norm in norms[0]}
    return records_of(campaign, kept.rows, "transfer", kind, eps, joined(observed), of_all)


def craft_batch(campaign: Campaign, kind: str, rows: np.ndarray, folder: Path) -> None:
    """Craft adversarial examples of a batch at every eps, and write what the target makes of them to ``folder``.

    They are rounded to what is kept on disk first, so that records are of the very images that others will read.
    """
    settings, data, target = campaign.settings, campaign.data, campaign.target
    seed_random_defences(campaign.seed, rows)
    images, labels = data.floats(rows), data.labels(rows)
    n_classes = len(data.classes)
    crafted = craft(target, images, labels, n_classes, kind, settings, data.value_range, campaign.seed, rows)
    found = []
    for eps, exact in zip(settings.eps, crafted, strict=True):
        kept = as_kept(data, rows, images, exact, settings.norm)
        adversarial = kept.images()
        norms = perturbation_norms(images, adversarial)
        check_adversarial(adversarial, norms[settings.norm], eps, campaign.radius(eps), data.value_range)
        found.append(records_of(campaign, rows, "adaptive", kind, eps, observe(target, adversarial), norms))
        if eps in campaign.kept_eps:
            save_perturbations(folder / f"eps{eps:g}.npz", kept)
    write_records(pa.concat_tables(found), folder / "records.parquet")


def sweep(campaign: Campaign, rows: np.ndarray, folder: Path) -> None:
    """Look for the smallest eps that breaks each image, end to end through the target; write it to ``folder``."""
    settings, data = campaign.settings, campaign.data
    seed_random_defences(campaign.seed, rows)
    images, labels = data.floats(rows), data.labels(rows)
    radii = np.array([campaign.radius(eps) for eps in settings.eps])
    found = pgd_sweep(
        campaign.target,
        images,
        labels,
        radii,
        Balls(settings.norm, data.value_range),
        settings.batch_size,
        settings.sweep.n_steps,
        settings.pgd.relative_step,
        settings.sweep.n_restarts,
        campaign.seed,
        rows,
    )
    norms = perturbation_norms(images, found.adversarial)[settings.norm]
    for index, eps in enumerate(settings.eps):
        if (at := found.broken_at == index).any():
            check_adversarial(found.adversarial[at], norms[at], eps, radii[index], data.value_range)
    smallest_eps = np.array([0.0, *settings.eps, np.inf])[found.broken_at + 1]
    image_paths = data.table["path"].to_numpy(dtype=object)[rows]
    table = build_smallest_eps(rows, image_paths, labels, campaign.name, settings.norm, smallest_eps)
    write_records(table, folder / "smallest_eps.parquet")


def clean_records(campaign: Campaign) -> pa.Table:
    """What the target makes of all test images as they are."""
    unchanged = {"linf": np.zeros(len(campaign.test_rows)), "l2": np.zeros(len(campaign.test_rows))}
    return records_of(campaign, campaign.test_rows, "none", CLEAN, 0.0, campaign.clean, unchanged)


def records_of(
    campaign: Campaign,
    rows: np.ndarray,
    threat_model: str,
    attack: str,
    eps: float,
    observed: Observation,
    norms: dict[str, np.ndarray],
) -> pa.Table:
    """Records of images at one point of one of the target's curves."""
    return build_records(
        rows,
        campaign.data.table["path"].to_numpy(dtype=object)[rows],
        campaign.data.labels(rows),
        {"target": campaign.name, "threat_model": threat_model, "attack": attack, "norm": campaign.settings.norm},
        eps,
        campaign.radius(eps),
        observed.logits,
        campaign.clean.logits[np.searchsorted(campaign.test_rows, rows)],
        norms,
        observed.reconstruction_error,
    )


def seed_random_defences(seed: int, rows: np.ndarray | None = None) -> None:
    """Let what defences draw, from numpy's global generator, depend on the seed and the images of the shard alone."""
    first = [] if rows is None else [int(rows[0])]
    np.random.seed(np.random.SeedSequence([seed, *first]).generate_state(4))


def joined(parts: list[Observation]) -> Observation:
    """Observations of batches, one after the other, as one."""
    errors = [part.reconstruction_error for part in parts if part.reconstruction_error is not None]
    return Observation(np.concatenate([part.logits for part in parts]), np.concatenate(errors) if errors else None)


def in_parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows cut in runs of at most ``size``."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
