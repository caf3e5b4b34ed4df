"""Searches for the smallest eps that breaks each image, at every operating point: parts of an attack.

The white-box searches run in the stages of an effort level (:mod:`tasks.attacks.effort`), each on the survivors of the
stage before, with a checkpoint after each. Square then attacks the survivors. To measure their power, black-box attacks
also run on a part of all images without the result of the white-box attacks.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.attacks.attacked import Attacked, digest_of_images
from tasks.attacks.batch import AttackBatch, MinimumEps, improve, shrink
from tasks.attacks.effort import EFFORTS, Stage, doubled
from tasks.attacks.found_images import better_scores, expected_scores, rounded_index, rounded_index_of
from tasks.attacks.hop_skip_jump import run_hop_skip_jump
from tasks.attacks.predictions import seed_random_defences
from tasks.attacks.square import run_square, square_attempt
from tasks.attacks.suite import run_stage
from tasks.dataset.prepared import choose_stratified
from tasks.params import Attack
from tasks.records.expected import append_expected
from tasks.records.operating_points import OperatingPoint
from tasks.records.perturbation_norms import perturbation_norms
from tasks.records.tables import build_minimum_eps, write_records
from tasks.records.vocabulary import HOP_SKIP_JUMP, SQUARE, SQUARE_ON_SURVIVORS, SUITE, SUITE_DOUBLED, VALIDATION_SWEEP


def stages_of(settings: Attack, is_compared: bool) -> list[tuple[str, Stage]]:
    """Stages of the white-box searches, each with the name of its result in the tables; empty for no result.

    Each stage continues from the result of the stage before. The result of the last stage of the effort is the suite.
    At the operating point at which targets are compared, one more stage doubles the steps and starts of the sweep and
    of the last stage: a check compares the two.
    """
    stages = EFFORTS[settings.effort]
    named = [("", stage) for stage in stages[:-1]] + [(SUITE, stages[-1])]
    return [*named, (SUITE_DOUBLED, doubled(stages))] if is_compared else named


def black_box_searches(settings: Attack) -> dict[str, list[int]]:
    """Numbers of queries of each stage by black-box attack. Square is for L-infinity balls."""
    stages = EFFORTS[settings.effort]
    queries = {SQUARE: [stage.square_queries for stage in stages if settings.norm == "linf"]}
    queries[HOP_SKIP_JUMP] = [stage.hop_skip_jump_queries for stage in stages]
    return {attack: [n for n in numbers if n] for attack, numbers in queries.items() if any(numbers)}


def search(attacked: Attacked, point: OperatingPoint, rows: np.ndarray) -> dict[str, Path]:
    """Part: all searches on some images at one operating point, one after the other; returns their checkpoints."""
    settings, finished, done = attacked.settings, dict[str, Path](), list[Stage]()
    identity = {"operating_point": [point.name, *point.biases], "images": digest_of_images(attacked.data, rows)}
    where = f"{attacked.target}, {point.name}, {len(rows)} images"
    stages = stages_of(settings, is_compared=point == attacked.operating_points[-1])
    before: Path | None = None
    for name, stage in stages:
        done.append(stage)
        before = attacked.checkpoints.get_or_compute(
            f"{stage.name} stage of the white-box suite on {where}",
            partial(_write_stage, attacked, point, name, stage, rows, before),
            search=[asdict(each) for each in done],
            step_size=settings.pgd.relative_step_size,
            **identity,
        )
        if name:
            finished[name] = before
    black_box = black_box_searches(settings)
    if SQUARE in black_box:
        finished[SQUARE_ON_SURVIVORS] = attacked.checkpoints.get_or_compute(
            f"square on the survivors of {where}",
            partial(_write_square_on_survivors, attacked, point, black_box[SQUARE], rows, finished[SUITE]),
            search=[asdict(stage) for _, stage in stages],
            step_size=settings.pgd.relative_step_size,
            survivors=True,
            **identity,
        )
    sample = choose_stratified(attacked.data, attacked.rows, settings.max_black_box_images, attacked.seed)
    chosen = np.flatnonzero(np.isin(rows, sample))
    for attack, queries in black_box.items() if len(chosen) else ():
        finished[attack] = attacked.checkpoints.get_or_compute(
            f"{attack} on {where}",
            partial(_write_queries, attacked, point, attack, queries, rows, chosen),
            search=[attack, *queries],
            chosen=chosen.tolist(),
            **identity,
        )
    return finished


def sweep_validation_images(attacked: Attacked, rows: np.ndarray) -> dict[str, Path]:
    """Part: the sweep of the lowest effort on some validation images, as trained; returns its checkpoint.

    The choice among targets uses its result, so it is the same at every effort.
    """
    lowest = asdict(EFFORTS["quick"][0])
    sweep = Stage("validation", **{name: value for name, value in lowest.items() if name.startswith("sweep_")})
    folder = attacked.checkpoints.get_or_compute(
        f"sweep of {attacked.target} on {len(rows)} validation images",
        partial(_write_stage, attacked, attacked.operating_points[0], VALIDATION_SWEEP, sweep, rows, None),
        search=[asdict(sweep)],
        step_size=attacked.settings.pgd.relative_step_size,
        images=digest_of_images(attacked.data, rows),
    )
    return {VALIDATION_SWEEP: folder}


def _write_stage(
    attacked: Attacked,
    point: OperatingPoint,
    name: str,
    stage: Stage,
    rows: np.ndarray,
    before: Path | None,
    folder: Path,
) -> None:
    """Write the smallest eps at which the white-box attacks of a stage and the stages before break each image."""
    settings, batch = attacked.settings, attacked.batch(rows, point)
    seed_random_defences(batch.model, attacked.seed, rows)
    grid = np.array([0.0, *settings.eps, np.inf])
    earlier, table = None, None
    if before:
        table = pq.read_table(before / "minimum_eps.parquet")
        index = np.searchsorted(grid, table["minimum_eps"].to_numpy()) - 1
        # the adversarial images of earlier stages are not kept
        earlier = MinimumEps(index, table["found_by"].to_numpy(), batch.images)
    with attacked.naming_images(rows, name or stage.name):
        found = run_stage(batch, earlier, stage, settings.pgd.relative_step_size, attacked.precision)
    _write(attacked, point, "adaptive", name, batch, found, np.arange(len(rows)), table, folder)


def _write_square_on_survivors(
    attacked: Attacked, point: OperatingPoint, queries: Sequence[int], rows: np.ndarray, suite: Path, folder: Path
) -> None:
    """Write the smallest eps at which Square breaks the images that survive the suite; infinite for the others."""
    batch, table = attacked.batch(rows, point), pq.read_table(suite / "minimum_eps.parquet")
    seed_random_defences(batch.model, attacked.seed, rows)
    grid = np.array([0.0, *attacked.settings.eps, np.inf])
    index = np.searchsorted(grid, table["minimum_eps"].to_numpy()) - 1
    found = MinimumEps(index, np.full(len(rows), SQUARE, dtype=object), batch.images)
    with attacked.naming_images(rows, SQUARE_ON_SURVIVORS):
        for n_queries in queries:
            found = improve(batch, found, SQUARE, partial(square_attempt, batch, n_queries))
    by_square = np.where((found.index < index) | (index < 0), found.index, len(batch.radii))
    result = MinimumEps(by_square, found.found_by, found.adversarial)
    _write(attacked, point, "adaptive", SQUARE_ON_SURVIVORS, batch, result, np.arange(len(rows)), None, folder)


def _write_queries(
    attacked: Attacked,
    point: OperatingPoint,
    attack: str,
    queries: Sequence[int],
    rows: np.ndarray,
    chosen: np.ndarray,
    folder: Path,
) -> None:
    """Write the smallest eps at which a black-box attack with any of some numbers of queries breaks chosen images."""
    batch = attacked.batch(rows, point)
    seed_random_defences(batch.model, attacked.seed, rows)
    with attacked.naming_images(rows, attack):
        is_wrong = batch.misclassified_unchanged()
        found = MinimumEps(np.where(is_wrong, -1, len(batch.radii)), np.full(len(rows), attack), batch.images)
        for n_queries in queries:
            if attack == SQUARE:
                again = run_square(batch, found.index, n_queries, chosen)
            else:
                assert attack == HOP_SKIP_JUMP, attack
                again = run_hop_skip_jump(batch, chosen, is_wrong, n_queries)
            found = _smaller(found, again)
    _write(attacked, point, "black_box", attack, batch, found, chosen, None, folder)


def _smaller(first: MinimumEps, second: MinimumEps) -> MinimumEps:
    """The result with the smaller radius of each image."""
    better = second.index < first.index
    index = np.where(better, second.index, first.index)
    adversarial = np.where(better[:, None, None, None], second.adversarial, first.adversarial)
    return MinimumEps(index, first.found_by, adversarial)


def _write(
    attacked: Attacked,
    point: OperatingPoint,
    threat_model: str,
    attack: str,
    batch: AttackBatch,
    found: MinimumEps,
    chosen: np.ndarray,
    before: pa.Table | None,
    folder: Path,
) -> None:
    """Check and write the results of some rows; ``before`` are the results of the earlier stages on the same rows."""
    settings, grid = attacked.settings, np.array([0.0, *attacked.settings.eps, np.inf])
    minimum = (shrink(batch, found) / attacked.radius(1))[chosen]
    scores = expected_scores(batch, found) if attacked.is_random else {}
    rounded = rounded_index_of(found, scores) if scores else rounded_index(batch, found)
    rounded = grid[rounded + 1][chosen]
    if before is not None:
        minimum = np.fmin(minimum, before["minimum_perturbation"].to_numpy())
        rounded = np.fmin(rounded, before["minimum_eps_8bit"].to_numpy())
    adversarial, index = found.adversarial[chosen], found.index[chosen]
    rows = batch.image_ids[chosen]
    norms = perturbation_norms(batch.images[chosen], adversarial)[settings.norm]
    for number, eps in enumerate(settings.eps):
        if (here := index == number).any():
            attacked.check(eps, adversarial[here], norms[here], rows[here])
    table = build_minimum_eps(
        attacked.data.identity(rows),
        attacked.curve(threat_model, attack) | {"operating_point": point.name},
        grid[index + 1],
        found.found_by[chosen],
        minimum,
        rounded,
    )
    scores = {name: values[chosen] for name, values in scores.items()}
    if scores and before is not None:
        shape = len(chosen), len(settings.eps)
        earlier = {name: pc.list_flatten(before[name]).to_numpy().reshape(shape) for name in scores}
        scores = better_scores(earlier, scores)
    write_records(append_expected(table, scores), folder / "minimum_eps.parquet")
