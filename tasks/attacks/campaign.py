"""The attack on one target: what every part of it works on, and what the parts do."""

import logging
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from tasks.attacks.crafting import Observation, craft, observe
from tasks.attacks.gradient.balls import Balls, radius
from tasks.attacks.gradient.descent import NotFinite
from tasks.attacks.probes import HUGE_EPS, probe, probe_broken_defence
from tasks.attacks.suite import Broken, Case, by_labels, by_scores, shortened, swept, white_box
from tasks.core.checkpoints import Shards, digest_of_code
from tasks.core.digests import digest_of_arrays, digest_of_model
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared, choose_stratified, load_prepared
from tasks.defences.preprocessing import Noise
from tasks.defences.targets import load_target
from tasks.models.compute import set_up
from tasks.params import UNDEFENDED, Attack, Params, Precision
from tasks.records.adversarial_images import as_kept, kept_path, load_kept, save_perturbations
from tasks.records.perturbation_norms import check_adversarial, perturbation_norms
from tasks.records.tables import build_probes, build_records, build_smallest_eps, write_records
from tasks.records.vocabulary import CLEAN, SQUARE, SUITE, SWEEP

HOP_SKIP_JUMP = "hop_skip_jump"
WHITE_BOX = (SWEEP, SUITE)
"""Searches that see everything; the others ask for scores or labels alone."""

SEARCHED_BATCHES = 4
"""Batches, at most, that a part of the searches holds: others take the place of images that fall."""
FEWEST_PARTS = 4
"""Parts, at least, that images are cut in, so that workers can share them.

Searches of a few hundred images then have fewer images a pass: as much work on a CPU, more calls on a GPU.
"""
FEWEST_IMAGES = 16
"""Images that a part holds, at least, where it is cut for workers."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Campaign:
    """What every part of the attack on one target works on."""

    settings: Attack
    precision: Precision
    seed: int
    data: Prepared
    name: str
    """Of the target."""
    target: nn.Module
    test_rows: np.ndarray
    """Rows of all test images, rising."""
    rows: np.ndarray
    """Rows of those that are attacked, rising."""
    batches: list[np.ndarray]
    """These rows, as they are attacked at once."""
    large_batches: list[np.ndarray]
    """These rows, as they are searched together."""
    shards: Shards
    """Where finished parts are kept."""
    clean: Observation
    """What the target makes of all test images as they are."""
    milliseconds: float
    """That a look at an image took in the median batch: prediction and reconstruction error."""

    @property
    def kept_eps(self) -> tuple[float, ...]:
        """At which adversarial images are kept; those of the bare classifier are all transferred to defences."""
        return self.settings.eps if self.name == UNDEFENDED else self.settings.kept_eps

    def radius(self, eps: float) -> float:
        """Of the ball, in units of the value range."""
        return radius(eps, self.settings.norm, self.data.pixels[0].size)

    @contextmanager
    def naming_images(self, rows: np.ndarray, attack: str) -> Iterator[None]:
        """Say of which of these rows' images a logit is not finite, and what it met."""
        try:
            yield
        except NotFinite as error:
            # what was asked about is the image with a small change
            path = self.data.nearest_path(rows, error.image)
            raise ValueError(
                f"{error}, {path} the first; target {self.name}, attack {attack}. Train the models again, with a lower "
                "learning rate"
            ) from error


def set_up_campaign(workspace: Workspace, params: Params, name: str) -> Campaign:
    """Load the target, choose the images, and look at what it makes of all test images, however few are attacked.

    Args:
        workspace: where inputs are read and outputs written.
        params: all parameters.
        name: ``undefended``, or that of a defence.

    Raises:
        ValueError: there are no test images.
        FileNotFoundError: a model is missing.
    """
    settings = params.attack
    device = set_up(params.compute)
    if device.type == "mps" and settings.mode == "reference":
        log.info("ART knows no mps device: attacking on the CPU")
        device = torch.device("cpu")
    data = load_prepared(workspace)
    test_rows = data.indices("test")
    if len(test_rows) == 0:
        raise ValueError("no test images to attack: raise prepare.split.test_fraction")
    rows = choose_stratified(data, test_rows, settings.max_images, params.seed)
    target = load_target(workspace, name, device)
    batches = in_parts(rows, settings.batch_size)
    large_batches = in_parts(rows, SEARCHED_BATCHES * settings.batch_size)
    step = ("attack",) if name == UNDEFENDED else ("attack_defence", name)
    shards = Shards(
        workspace.checkpoint_folder(*step),
        1 + len(settings.attacks) * len(batches) + (1 + len(searches_of(settings))) * len(large_batches),
        code=digest_of_code(),
        settings=settings.model_dump(mode="json", include={"norm", "eps", "batch_size"}),
        seed=params.seed,
        compute=[str(device), params.compute.threads, params.compute.precision],
        target=[name, digest_of_model(target)],
    )
    looked = shards.finish(
        f"{name}, {len(test_rows)} images as they are",
        partial(look, target, params.seed, data, test_rows, settings.batch_size),
        look=True,
        images=digest_of_images(data, test_rows),
    )
    errors = looked / "reconstruction_error.npy"
    clean = Observation(
        np.load(looked / "logits.npy", allow_pickle=False),
        np.load(errors, allow_pickle=False) if errors.is_file() else None,
    )
    milliseconds = float(np.load(looked / "milliseconds.npy", allow_pickle=False))
    return Campaign(
        settings,
        params.compute.precision,
        params.seed,
        data,
        name,
        target,
        test_rows,
        rows,
        batches,
        large_batches,
        shards,
        clean,
        milliseconds,
    )


def searches_of(settings: Attack) -> list[str]:
    """Attacks that look for the smallest eps that breaks each image, in the order in which one goes on from another."""
    suite = settings.suite
    wanted = {SWEEP: 1, SUITE: suite.n_steps, SQUARE: suite.n_queries, HOP_SKIP_JUMP: suite.n_label_queries}
    return [attack for attack, effort in wanted.items() if effort]


def look(target: nn.Module, seed: int, data: Prepared, rows: np.ndarray, batch_size: int, folder: Path) -> None:
    """Write what a target makes of images as they are, and how long that takes, to ``folder``."""
    seed_random_defences(target, seed)
    observed, milliseconds = [], []
    for batch in np.array_split(rows, math.ceil(len(rows) / batch_size)):
        images = data.floats(batch)
        began = time.perf_counter()
        observed.append(observe(target, images))
        milliseconds.append(1000 * (time.perf_counter() - began) / len(batch))
    of_all = joined(observed)
    np.save(folder / "logits.npy", of_all.logits)
    if of_all.reconstruction_error is not None:
        np.save(folder / "reconstruction_error.npy", of_all.reconstruction_error)
    np.save(folder / "milliseconds.npy", statistics.median(milliseconds))


def digest_of_images(data: Prepared, rows: np.ndarray) -> list[str]:
    """What makes a shard one of these images: rows, pixels, labels and paths."""
    return [digest_of_arrays(rows, data.pixels[rows], data.labels(rows)), *data.table["path"].iloc[rows]]


def transfer(workspace: Workspace, campaign: Campaign, kind: str, eps: float) -> pa.Table:
    """Records of what the target makes of the images that were crafted on the undefended classifier."""
    seed_random_defences(campaign.target, campaign.seed)
    kept = load_kept(workspace, campaign.data, UNDEFENDED, kind, eps)
    if not np.array_equal(kept.rows, campaign.rows):
        raise ValueError(f"{kept_path(workspace, UNDEFENDED, kind, eps)} is of other images: run the step attack again")
    observed, rounded, norms = [], [], []
    for start in range(0, len(kept.rows), campaign.settings.batch_size):
        part = slice(start, start + campaign.settings.batch_size)
        adversarial = kept.images(part)
        observed.append(observe(campaign.target, adversarial))
        rounded.append(observe(campaign.target, in_8_bits(adversarial)))
        norms.append(perturbation_norms(campaign.data.floats(kept.rows[part]), adversarial))
    log.info("%s at eps %g crafted on %s, seen by %s", kind, eps, UNDEFENDED, campaign.name)
    of_all = {norm: np.concatenate([of_batch[norm] for of_batch in norms]) for norm in norms[0]}
    return records_of(campaign, kept.rows, "transfer", kind, eps, joined(observed), joined(rounded), of_all)


def craft_batch(campaign: Campaign, kind: str, rows: np.ndarray, folder: Path) -> None:
    """Craft adversarial examples of a batch at every eps, and write what the target makes of them to ``folder``.

    They are rounded to what is kept on disk first, so that records are of the very images that others will read.
    """
    settings, data, target = campaign.settings, campaign.data, campaign.target
    seed_random_defences(campaign.target, campaign.seed, rows)
    images, labels = data.floats(rows), data.labels(rows)
    n_classes = len(data.classes)
    crafted = craft(target, images, labels, n_classes, kind, settings, data.value_range, campaign.seed, rows)
    found = []
    for eps, exact in zip(settings.eps, crafted, strict=True):
        kept = as_kept(data, rows, images, exact, settings.norm)
        adversarial = kept.images()
        norms = perturbation_norms(images, adversarial)
        ball = eps, campaign.radius(eps), data.value_range
        check_adversarial(adversarial, norms[settings.norm], *ball, list(data.paths(rows)))
        observed, rounded = observe(target, adversarial), observe(target, in_8_bits(adversarial))
        found.append(records_of(campaign, rows, "adaptive", kind, eps, observed, rounded, norms))
        if eps in campaign.kept_eps:
            save_perturbations(folder / f"eps{eps:g}.npz", kept)
    write_records(pa.concat_tables(found), folder / "records.parquet")


def search(campaign: Campaign, attack: str, rows: np.ndarray, before: pa.Table | None, folder: Path) -> None:
    """Look for the smallest eps that breaks each image, end to end through the target; write it to ``folder``.

    Args:
        campaign: target, data and settings.
        attack: ``sweep``, ``suite``, ``square`` or ``hop_skip_jump``.
        rows: of the images in the prepared table, ``(N,)``.
        before: what white-box attacks have found of these images; None for the sweep, which comes first.
        folder: to write to.
    """
    settings, data, case = campaign.settings, campaign.data, case_of(campaign, rows)
    seed_random_defences(campaign.target, campaign.seed, rows)
    grid, chosen = np.array([0.0, *settings.eps, np.inf]), np.arange(len(rows))
    with campaign.naming_images(rows, attack):
        if before is None:
            assert attack == SWEEP, attack
            how = settings.sweep
            broken = swept(case, how.n_steps, settings.pgd.relative_step, how.n_restarts, campaign.precision)
        else:
            at = np.searchsorted(grid, before["smallest_eps"].to_numpy()) - 1
            if attack == SUITE:
                found_by = before["found_by"].to_numpy()
                broken = white_box(case, Broken(at, found_by, case.images), settings.suite.n_steps)
            elif attack == SQUARE:
                broken = by_scores(case, at, settings.suite.n_queries)
            else:
                assert attack == HOP_SKIP_JUMP, attack
                tried = choose_stratified(data, campaign.rows, settings.suite.max_label_images, campaign.seed)
                chosen = np.flatnonzero(np.isin(rows, tried))
                broken = by_labels(case, chosen, at < 0, settings.suite.n_label_queries)
        minimal = shortened(case, broken)[chosen] / campaign.radius(1)

    images, adversarial, at = case.images[chosen], broken.adversarial[chosen], broken.at[chosen]
    norms, image_paths = perturbation_norms(images, adversarial)[settings.norm], data.paths(rows[chosen])
    for index, eps in enumerate(settings.eps):
        if (here := at == index).any():
            ball = eps, case.radii[index], data.value_range
            check_adversarial(adversarial[here], norms[here], *ball, list(image_paths[here]))
    if before is not None and attack in WHITE_BOX:
        # an attack that adds nothing gives back no image
        minimal = np.fmin(minimal, before["minimal_eps"].to_numpy())
    table = build_smallest_eps(
        rows[chosen],
        image_paths,
        case.labels[chosen],
        {
            "target": campaign.name,
            "threat_model": "adaptive" if attack in WHITE_BOX else "black_box",
            "attack": attack,
            "norm": settings.norm,
        },
        grid[at + 1],
        broken.by[chosen],
        minimal,
    )
    write_records(table, folder / "smallest_eps.parquet")


def probe_part(campaign: Campaign, rows: np.ndarray, folder: Path) -> None:
    """Look what the target does where one knows what it should do, for the checks; write it to ``folder``."""
    settings, data, case = campaign.settings, campaign.data, case_of(campaign, rows)
    seed_random_defences(campaign.target, campaign.seed, rows)
    with campaign.naming_images(rows, "probes"):
        found = probe(case, settings.eps, campaign.radius(HUGE_EPS))
        if campaign.name == UNDEFENDED:
            found |= probe_broken_defence(case, settings.eps[-1], campaign.radius(settings.eps[-1]))
    write_records(build_probes(rows, data.paths(rows), campaign.name, found), folder / "probes.parquet")


def case_of(campaign: Campaign, rows: np.ndarray) -> Case:
    """Some images and the target, as searches and probes take them."""
    settings, data = campaign.settings, campaign.data
    return Case(
        target=campaign.target,
        images=data.floats(rows),
        labels=data.labels(rows),
        n_classes=len(data.classes),
        radii=np.array([campaign.radius(eps) for eps in settings.eps]),
        balls=Balls(settings.norm, data.value_range),
        batch_size=settings.batch_size,
        seed=campaign.seed,
        rows=rows,
    )


def clean_records(campaign: Campaign) -> pa.Table:
    """What the target makes of all test images as they are."""
    unchanged = {"linf": np.zeros(len(campaign.test_rows)), "l2": np.zeros(len(campaign.test_rows))}
    # pixels have 8 bits as they are
    observed = rounded = campaign.clean
    return records_of(campaign, campaign.test_rows, "none", CLEAN, 0.0, observed, rounded, unchanged)


def records_of(
    campaign: Campaign,
    rows: np.ndarray,
    threat_model: str,
    attack: str,
    eps: float,
    observed: Observation,
    rounded: Observation,
    norms: dict[str, np.ndarray],
) -> pa.Table:
    """Records of images at one point of one of the target's curves."""
    return build_records(
        rows,
        campaign.data.paths(rows),
        campaign.data.labels(rows),
        {"target": campaign.name, "threat_model": threat_model, "attack": attack, "norm": campaign.settings.norm},
        eps,
        campaign.radius(eps),
        observed.logits,
        campaign.clean.logits[np.searchsorted(campaign.test_rows, rows)],
        rounded.logits,
        norms,
        observed.reconstruction_error,
    )


def seed_random_defences(target: nn.Module, seed: int, rows: np.ndarray | None = None) -> None:
    """Let what a target draws depend on the seed and the images of the shard alone."""
    first = [] if rows is None else [int(rows[0])]
    for module in target.modules():
        if isinstance(module, Noise):
            module.reseed([seed, *first])


def in_8_bits(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] rounded to the 256 levels that pixels have on disk, float32 ``(N, 1, H, W)``."""
    rounded: np.ndarray = np.rint(images * np.float32(255)) / np.float32(255)
    return rounded


def joined(parts: list[Observation]) -> Observation:
    """Observations of batches, one after the other, as one."""
    errors = [part.reconstruction_error for part in parts if part.reconstruction_error is not None]
    return Observation(np.concatenate([part.logits for part in parts]), np.concatenate(errors) if errors else None)


def in_parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows cut in parts of nearly the same size, at most ``size`` each; in four, where each then holds 16 or more."""
    as_many_as_full = math.ceil(len(rows) / size)
    return np.array_split(rows, max(as_many_as_full, min(FEWEST_PARTS, len(rows) // FEWEST_IMAGES)))
