"""The attack on one target: its images, its parts and its outputs."""

import logging
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import nn

from tasks.attacks.art_attacks import check_art_attacks
from tasks.attacks.attacked import Attacked, digest_of_images
from tasks.attacks.diagnostics import UNBOUNDED_EPS, run_diagnostics, run_positive_control
from tasks.attacks.fixed_eps import craft, transfer_records
from tasks.attacks.gradient.losses import N_SELECTION_SAMPLES
from tasks.attacks.predictions import Predictions, concatenate, predict, seed_random_defences
from tasks.attacks.searches import search, sweep_validation_images
from tasks.attacks.surrogates import craft_on_surrogate, load_surrogates, save_transferred
from tasks.core.checkpoints import Checkpoints
from tasks.core.digests import digest_of_model
from tasks.core.files import write_json
from tasks.core.made_with import digest_of_text, inputs_of_attack
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared, choose_stratified, load_prepared
from tasks.defences.operating_points import choose_operating_points
from tasks.defences.randomness import random_modules
from tasks.defences.targets import load_target
from tasks.models.compute import configure_torch
from tasks.models.cost import prediction_cost
from tasks.params import UNDEFENDED, Params
from tasks.records.adversarial_images import merge_perturbations
from tasks.records.expected import N_FRESH_SAMPLES
from tasks.records.operating_points import write_operating_points
from tasks.records.tables import PARAMETERS, build_diagnostics, check_inputs_of_attack, write_records
from tasks.records.vocabulary import CLEAN, HOP_SKIP_JUMP, SEARCHES, SUITE_DOUBLED, VALIDATION_SWEEP
from tasks.tracking import Tracker

CODE = ("attacks", "core/files.py", "dataset/prepared.py", "defences", "models", "records")
"""Packages that can change the result of an attack."""

MAX_SEARCH_BATCHES = 4
"""Maximum number of batches in one part of the searches; large parts keep batches full while images are broken."""
MIN_PARTS = 4
"""Minimum number of parts that the images are split into, so that workers can share them."""
MIN_IMAGES_PER_PART = 16
"""Minimum number of images of a part where the images are split for workers."""

Part = Callable[[], dict[str, Path]]
"""Computes one part, or finds its checkpoints; returns the checkpoint folders by attack (or ``diagnostics``)."""

DIAGNOSTICS = "diagnostics"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttackRun:
    """The attack on one target."""

    attacked: Attacked
    surrogates: dict[str, nn.Module]
    """Independent surrogates that are attacked as well, by name; none for a defence."""
    validation_rows: np.ndarray
    """Rows of the validation images that the sweep attacks, rising."""
    latency_ms: float
    """Median time of a prediction per image, in milliseconds."""

    @classmethod
    def load(cls, workspace: Workspace, params: Params, target: str) -> "AttackRun":
        """Load the target, choose the images, and predict all test and validation images unchanged.

        Args:
            workspace: where the prepared data, the models and the checkpoints are.
            params: all parameters.
            target: ``undefended``, or the name of a defence.

        Raises:
            ValueError: there are no test images, or no validation images.
            FileNotFoundError: a model is missing.
        """
        settings, device, data = params.attack, configure_torch(params.compute), load_prepared(workspace)
        test_rows = data.indices("test")
        check_art_attacks(settings)
        if len(test_rows) == 0:
            raise ValueError("no test images to attack. Raise prepare.split.test_fraction")
        if not len(validation_rows := data.indices("validation")):
            raise ValueError("no validation images to choose among targets. Raise prepare.split.validation_fraction")
        rows = choose_stratified(data, test_rows, settings.max_images, params.seed)
        model = load_target(workspace, target, device)
        step = ("attack",) if target == UNDEFENDED else ("attack_defence", target)
        checkpoints = Checkpoints(
            workspace.checkpoint_folder(*step),
            CODE,
            settings=settings.model_dump(mode="json", include={"norm", "eps", "batch_size"}),
            seed=params.seed,
            compute=[str(device), params.compute.threads, params.compute.precision],
            target=[target, digest_of_model(model)],
        )

        def unchanged(rows: np.ndarray, split: str) -> tuple[Predictions, float]:
            """Predictions on images of a split, and the median time of a prediction per image, in milliseconds."""
            folder = checkpoints.get_or_compute(
                f"{target}, {len(rows)} {split} images unchanged",
                partial(_save_clean_predictions, model, params.seed, data, rows, settings.batch_size),
                clean=True,
                images=digest_of_images(data, rows),
            )
            found = {path.stem: np.load(path, allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
            milliseconds = float(found.pop("milliseconds"))
            return Predictions(**({"reconstruction_error": None} | found)), milliseconds

        clean, latency_ms = unchanged(test_rows, "test")
        points = choose_operating_points(
            unchanged(validation_rows, "validation")[0].logits,
            data.labels(validation_rows),
            data.identity(validation_rows)["group"],
            data.positive,
            settings.fixed_sensitivity,
            params.seed,
        )
        swept = choose_stratified(data, validation_rows, settings.max_validation_images, params.seed)
        attacked = Attacked(
            target,
            model,
            data,
            settings,
            params.compute.precision,
            params.seed,
            test_rows,
            rows,
            clean,
            points,
            checkpoints,
            workspace.plugins,
        )
        surrogates = load_surrogates(workspace, device) if target == UNDEFENDED else {}
        return cls(attacked, surrogates, swept, latency_ms)

    def parts(self) -> list[Part]:
        """All parts, the longest first; each can be computed by another worker."""
        attacked, settings = self.attacked, self.attacked.settings
        large = _split(attacked.rows, MAX_SEARCH_BATCHES * settings.batch_size)
        crafting = {
            attack: [partial(craft, attacked, attack, batch) for batch in _split(rows, attacked.batch_size)]
            for attack, rows in attacked.crafted_images().items()
        }
        return [
            *(partial(search, attacked, point, rows) for point in attacked.searched_points.values() for rows in large),
            *(part for attack, parts in crafting.items() if attack != "fgsm" for part in parts),
            *(
                partial(craft_on_surrogate, attacked, name, surrogate, digest, rows)
                for name, surrogate in self.surrogates.items()
                for digest in [digest_of_model(surrogate)]
                for rows in _split(attacked.rows, settings.batch_size)
            ),
            *(partial(self._diagnose, rows) for rows in large),
            *(
                partial(sweep_validation_images, attacked, rows)
                for rows in _split(self.validation_rows, MAX_SEARCH_BATCHES * settings.batch_size)
            ),
            *crafting.get("fgsm", []),
        ]

    def execute(self, workspace: Workspace, tracker: Tracker) -> None:
        """Compute all parts that have no checkpoint yet, and write the outputs of the step.

        Args:
            workspace: where the outputs are written and, for a defence, where the perturbations of the undefended
                classifier are.
            tracker: logs the cost and the outputs.

        Raises:
            FileNotFoundError: the perturbations to transfer are missing.
            ValueError: they are of other images.
        """
        attacked, settings, target = self.attacked, self.attacked.settings, self.attacked.target
        # first, since they fail early if logits are not finite or perturbations are missing
        if target != UNDEFENDED:
            check_inputs_of_attack(workspace, UNDEFENDED)
        parameters = digest_of_text(f"{attacked.seed} {settings.model_dump_json()}")
        made_with = inputs_of_attack(workspace, target) | {PARAMETERS: parameters}
        records = [self._clean_records()]
        records += transfer_records(attacked, workspace) if target != UNDEFENDED else []
        finished: dict[str, list[Path]] = defaultdict(list)
        for number, part in enumerate(parts := self.parts(), start=1):
            for attack, folder in part().items():
                finished[attack].append(folder)
            log.info("attack on %s: %d of %d parts", target, number, len(parts))
        for attack in attacked.crafted_images():
            crafted = _concatenate(finished[attack], "records.parquet")
            records.append(crafted.sort_by([("eps", "ascending"), ("image", "ascending")]))
            for eps in attacked.saved_eps if attack in settings.saved_attacks else ():
                path = workspace.perturbation_file(target, attack, eps)
                path.parent.mkdir(exist_ok=True)
                merge_perturbations([folder / f"eps{eps:g}.npz" for folder in finished[attack]], path)
        if target == UNDEFENDED:
            save_transferred(attacked, workspace, {name: finished[name] for name in self.surrogates})
            records += transfer_records(attacked, workspace)
        write_records(pa.concat_tables(records), workspace.records(target), made_with)
        write_records(self._searched(finished), workspace.minimum_eps(target))
        swept = _concatenate(finished[VALIDATION_SWEEP], "minimum_eps.parquet")
        write_records(swept, workspace.validation_minimum_eps(target))
        write_records(_concatenate(finished[DIAGNOSTICS], "diagnostics.parquet"), workspace.diagnostics(target))
        write_operating_points(attacked.operating_points, workspace.operating_points(target))
        cost = prediction_cost(attacked.model, attacked.data.floats(attacked.rows[:1]))
        write_json(cost, workspace.cost(target))
        tracker.metrics({f"cost/{key}": value for key, value in cost.items()})
        tracker.metrics({"cost/latency_ms": self.latency_ms})
        for path_of in (workspace.records, workspace.minimum_eps, workspace.diagnostics, workspace.operating_points):
            tracker.artifact(path_of(target))

    def _searched(self, finished: dict[str, list[Path]]) -> pa.Table:
        """The results of all searches at every operating point."""
        tables, points = [], self.attacked.operating_points
        for attack in (*SEARCHES, HOP_SKIP_JUMP):
            if folders := finished[attack]:
                found = _concatenate(folders, "minimum_eps.parquet")
                for point in points if attack != SUITE_DOUBLED else points[-1:]:
                    searched = self.attacked.searched_points[point.biases].name
                    rows = found.filter(pc.equal(found["operating_point"], searched))
                    name = pa.array([point.name] * len(rows), pa.string())
                    tables.append(rows.set_column(rows.column_names.index("operating_point"), "operating_point", name))
        return pa.concat_tables(tables)

    def _diagnose(self, rows: np.ndarray) -> dict[str, Path]:
        """Part: the diagnostics of some images."""
        folder = self.attacked.checkpoints.get_or_compute(
            f"diagnostics of {self.attacked.target}, {len(rows)} images",
            partial(self._write_diagnostics, rows),
            diagnostics=True,
            images=digest_of_images(self.attacked.data, rows),
        )
        return {DIAGNOSTICS: folder}

    def _write_diagnostics(self, rows: np.ndarray, folder: Path) -> None:
        """Write the diagnostics of some images."""
        attacked, eps = self.attacked, self.attacked.settings.eps
        batch = attacked.batch(rows)
        seed_random_defences(batch.model, attacked.seed, rows)
        with attacked.naming_images(rows, DIAGNOSTICS):
            found = run_diagnostics(batch, eps, attacked.radius(UNBOUNDED_EPS))
            if attacked.target == UNDEFENDED:
                found |= run_positive_control(batch, eps[-1], attacked.radius(eps[-1]))
        diagnostics = build_diagnostics(rows, attacked.data.paths(rows), attacked.target, found)
        write_records(diagnostics, folder / "diagnostics.parquet")

    def _clean_records(self) -> pa.Table:
        """Records of all test images unchanged, which have 8 bits already."""
        attacked = self.attacked
        zero = {"linf": np.zeros(len(attacked.test_rows)), "l2": np.zeros(len(attacked.test_rows))}
        return attacked.records(attacked.test_rows, "none", CLEAN, 0.0, attacked.clean, attacked.clean, zero)


def _save_clean_predictions(
    model: nn.Module, seed: int, data: Prepared, rows: np.ndarray, batch_size: int, folder: Path
) -> None:
    """Write the predictions on unchanged images, and the median time of a prediction per image."""
    seed_random_defences(model, seed)
    n_samples = N_SELECTION_SAMPLES + N_FRESH_SAMPLES if random_modules(model) else 1
    predictions, milliseconds = [], []
    for batch in np.array_split(rows, math.ceil(len(rows) / batch_size)):
        images = data.floats(batch)
        began = time.perf_counter()
        predictions.append(predict(model, images, n_selection=N_SELECTION_SAMPLES))
        milliseconds.append(1000 * (time.perf_counter() - began) / len(batch) / n_samples)
    for name, values in vars(concatenate(predictions)).items():
        if values is not None:
            np.save(folder / f"{name}.npy", values)
    np.save(folder / "milliseconds.npy", statistics.median(milliseconds))


def _split(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Split rows into parts of at most ``size`` and nearly equal size; into at least four parts of 16 or more rows."""
    n_full = math.ceil(len(rows) / size)
    return np.array_split(rows, max(n_full, min(MIN_PARTS, len(rows) // MIN_IMAGES_PER_PART)))


def _concatenate(folders: list[Path], name: str) -> pa.Table:
    """The tables of this name in several folders as one table."""
    return pa.concat_tables(pq.read_table(folder / name) for folder in folders)
