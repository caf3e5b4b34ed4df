"""Searches for the smallest eps that breaks each image, at every operating point: parts of an attack."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.attacks.attacked import Attacked, digest_of_images
from tasks.attacks.batch import MinimumEps, shrink
from tasks.attacks.hop_skip_jump import run_hop_skip_jump
from tasks.attacks.predictions import seed_random_defences
from tasks.attacks.square import run_square
from tasks.attacks.suite import run_suite
from tasks.attacks.sweep import run_sweep
from tasks.dataset.prepared import choose_stratified
from tasks.params import Attack
from tasks.records.operating_points import OperatingPoint
from tasks.records.perturbation_norms import perturbation_norms
from tasks.records.tables import build_minimum_eps, write_records
from tasks.records.vocabulary import HOP_SKIP_JUMP, SQUARE, SUITE, SWEEP

WHITE_BOX_SEARCHES = (SWEEP, SUITE)
"""Searches that use gradients; the other searches use scores or labels alone."""


def searches(settings: Attack) -> list[str]:
    """Attacks that search for the smallest eps, in the order in which each builds on the one before."""
    effort = {
        SWEEP: 1,
        SUITE: settings.suite.n_steps,
        SQUARE: settings.square.n_queries,
        HOP_SKIP_JUMP: settings.hop_skip_jump.n_queries,
    }
    return [attack for attack, n in effort.items() if n]


def search(attacked: Attacked, point: OperatingPoint, rows: np.ndarray) -> dict[str, Path]:
    """Part: all searches on some images at one operating point, one after the other; returns their checkpoints."""
    settings, finished = attacked.settings, dict[str, Path]()
    effort: dict[str, Any] = {
        SWEEP: [settings.sweep.model_dump(mode="json"), settings.pgd.relative_step_size],
        SUITE: settings.suite.model_dump(mode="json"),
        SQUARE: settings.square.model_dump(mode="json"),
        HOP_SKIP_JUMP: settings.hop_skip_jump.model_dump(mode="json"),
    }
    before: list[str] = []
    for attack in searches(settings):
        known = pq.read_table(finished[before[-1]] / "minimum_eps.parquet") if before else None
        finished[attack] = attacked.checkpoints.get_or_compute(
            f"{attack} on {attacked.target}, {point.name}, {len(rows)} images",
            partial(_write_search, attacked, point, attack, rows, known),
            search={each: effort[each] for each in [*before, attack]},
            operating_point=[point.name, *point.biases],
            images=digest_of_images(attacked.data, rows),
        )
        before += [attack] if attack in WHITE_BOX_SEARCHES else []
    return finished


def _write_search(
    attacked: Attacked, point: OperatingPoint, attack: str, rows: np.ndarray, before: pa.Table | None, folder: Path
) -> None:
    """Write the smallest eps at which one attack breaks each image.

    Args:
        attacked: target and images.
        point: operating point of the target.
        attack: ``sweep``, ``suite``, ``square`` or ``hop_skip_jump``.
        rows: of the images in the prepared table, ``(N,)``.
        before: result of the white-box searches before; None for the sweep, which is the first.
        folder: where to write.
    """
    settings, batch = attacked.settings, attacked.batch(rows, point)
    seed_random_defences(batch.model, attacked.seed, rows)
    grid, chosen = np.array([0.0, *settings.eps, np.inf]), np.arange(len(rows))
    with attacked.naming_images(rows, attack):
        if before is None:
            assert attack == SWEEP, attack
            sweep, step = settings.sweep, settings.pgd.relative_step_size
            found = run_sweep(batch, sweep.n_steps, step, sweep.n_restarts, attacked.precision)
        else:
            index = np.searchsorted(grid, before["minimum_eps"].to_numpy()) - 1
            if attack == SUITE:
                earlier = MinimumEps(index, before["found_by"].to_numpy(), batch.images)
                found = run_suite(batch, earlier, settings.suite.n_steps)
            elif attack == SQUARE:
                found = run_square(batch, index, settings.square.n_queries)
            else:
                assert attack == HOP_SKIP_JUMP, attack
                max_images = settings.hop_skip_jump.max_images
                sample = choose_stratified(attacked.data, attacked.rows, max_images, attacked.seed)
                chosen = np.flatnonzero(np.isin(rows, sample))
                found = run_hop_skip_jump(batch, chosen, index < 0, settings.hop_skip_jump.n_queries)
        minimum = shrink(batch, found)[chosen] / attacked.radius(1)

    adversarial, index = found.adversarial[chosen], found.index[chosen]
    norms = perturbation_norms(batch.images[chosen], adversarial)[settings.norm]
    for number, eps in enumerate(settings.eps):
        if (here := index == number).any():
            attacked.check(eps, adversarial[here], norms[here], rows[chosen][here])
    if before is not None and attack in WHITE_BOX_SEARCHES:
        # an attack that finds nothing smaller returns no image to shrink
        minimum = np.fmin(minimum, before["minimum_perturbation"].to_numpy())
    threat_model = "adaptive" if attack in WHITE_BOX_SEARCHES else "black_box"
    table = build_minimum_eps(
        attacked.data.identity(rows[chosen]),
        attacked.curve(threat_model, attack) | {"operating_point": point.name},
        grid[index + 1],
        found.found_by[chosen],
        minimum,
    )
    write_records(table, folder / "minimum_eps.parquet")
