"""Simulated active learning: in each cycle an oracle labels the queried images, and a classifier is trained on them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from tasks.core.checkpoints import Checkpoints
from tasks.core.digests import digest_of_arrays
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared, as_floats, choose_stratified, load_prepared
from tasks.labelling.acquisition import entropy, predict_probabilities, select_query
from tasks.labelling.downsampling import downsample
from tasks.labelling.initial_set import choose_initial_set
from tasks.labelling.learner import CODE, Learner, build_learner
from tasks.labelling.names import ALL_LABELS
from tasks.labelling.oracle import assign_labels, can_label
from tasks.models.compute import configure_torch
from tasks.models.files import save_model
from tasks.params import ActiveLearning, Params, PseudoLabelOracle


@dataclass(frozen=True)
class CycleResult:
    """The labelled set after a cycle, and the classifier that was trained on it."""

    acquisition: str
    """Name of the acquisition function; empty in the initial cycle, which all functions share."""
    seed: int
    """Number of the repetition, from 0."""
    cycle: int
    """0: the initial cycle, without a query."""
    rows: np.ndarray
    """Labelled set as rows of the prepared table, in the order of the queries, int64 ``(n,)``."""
    assigned_labels: np.ndarray
    """Labels that the oracle assigned to them, int64 ``(n,)``."""
    adversarial_augmentation: np.ndarray
    """PGD examples of the last m images of the labelled set, uint8 ``(m, C, H, W)``."""
    folder: Path
    """Checkpoint of the cycle: classifier, query, predictions and pool statistics."""

    def extended(self, query: pd.DataFrame, adversarial_augmentation: np.ndarray, folder: Path) -> "CycleResult":
        """Return the next cycle, whose labelled set contains the queried images."""
        return replace(
            self,
            cycle=self.cycle + 1,
            rows=np.append(self.rows, query["image"]),
            assigned_labels=np.append(self.assigned_labels, query["assigned_label"]),
            adversarial_augmentation=adversarial_augmentation,
            folder=folder,
        )


@dataclass(frozen=True)
class LabellingSimulation:
    """Simulated labelling of the training images with every acquisition function and seed."""

    learner: Learner
    data: Prepared
    pixels: np.ndarray
    """All images, downsampled, uint8 ``(N, C, H, W)``."""
    train: np.ndarray
    """Rows of the training images: the labelled set and the pool."""
    validation: np.ndarray
    """Rows of the validation images, which select the epoch of the reference and stop its training."""
    test: np.ndarray
    """Rows of the test images."""
    attacked: np.ndarray
    """Positions in ``test`` of the images that are attacked."""
    checkpoints: Checkpoints
    """Checkpoints of finished cycles."""
    training_checkpoints: Checkpoints
    """Checkpoint of the current training."""

    @property
    def settings(self) -> ActiveLearning:
        """The section ``active_learning``."""
        return self.learner.settings

    def run(self) -> list[CycleResult]:
        """Return the cycles of all seeds and acquisition functions; cycles with a checkpoint are not computed again.

        Raises:
            ValueError: no image was queried.
        """
        seeds = range(self.settings.n_seeds)
        initial_sets = [
            choose_initial_set(self.data, self.train, self.settings, self._derive_seed(seed)) for seed in seeds
        ]
        if all(len(rows) == len(self.train) for rows in initial_sets):
            raise ValueError(
                f"active_learning.initial_set leaves no image in the pool: all {len(self.train)} training images are "
                "labelled at the start. At least one must have no label. Lower active_learning.initial_set.fraction."
            )
        results: list[CycleResult] = []
        for seed, rows in zip(seeds, initial_sets, strict=True):
            initial = self.initial_cycle("", seed, rows)
            for acquisition in self.settings.compared_functions:
                results += self.run_acquisition(acquisition, initial)
            results.append(self.initial_cycle(ALL_LABELS, seed, self.train))
        if not any(result.cycle for result in results):
            oracle = self.settings.oracle
            assert isinstance(oracle, PseudoLabelOracle)
            raise ValueError(
                f"active_learning.oracle.confidence_threshold {oracle.confidence_threshold:g}: no prediction for the "
                "pool reached it, so no image was queried. Lower it, or raise active_learning.initial_set.fraction."
            )
        return results

    def run_acquisition(self, acquisition: str, initial: CycleResult) -> list[CycleResult]:
        """Return the initial cycle and at most ``n_cycles`` cycles after it.

        The run ends early if the pool or the budget is used up, or if the oracle labels no image.
        """
        results = [replace(initial, acquisition=acquisition)]
        for _ in range(self.settings.n_cycles):
            previous = results[-1]
            n = self._query_size(len(previous.rows), len(initial.rows))
            if not n:
                break
            result = self.next_cycle(previous, n)
            if len(result.rows) == len(previous.rows):
                break
            results.append(result)
        return results

    def initial_cycle(self, acquisition: str, seed: int, rows: np.ndarray) -> CycleResult:
        """Return a cycle without a query: the classifier that is trained on the true labels of these rows."""
        result = CycleResult(acquisition, seed, 0, rows, self.data.labels(rows), self.pixels[:0], Path())
        return replace(result, folder=self._load_or_compute(result, 0, partial(self._train_and_evaluate, result, None)))

    def next_cycle(self, previous: CycleResult, n: int) -> CycleResult:
        """Query ``n`` images at most, and train on the extended labelled set."""
        compute = partial(self._query_and_train, previous, n)
        folder = self._load_or_compute(previous, previous.cycle + 1, compute)
        copies = np.load(folder / "adversarial_augmentation.npy", allow_pickle=False)
        return previous.extended(pd.read_parquet(folder / "query.parquet"), copies, folder)

    def _load_or_compute(self, run: CycleResult, cycle: int, compute: Callable[[Path], None]) -> Path:
        description = f"{run.acquisition or 'initial set'}, seed {run.seed}, cycle {cycle}"
        ingredients = {"acquisition": run.acquisition, "seed": run.seed, "cycle": cycle}
        return self.checkpoints.get_or_compute(description, compute, **ingredients)

    def _query_size(self, n_labelled: int, n_initial: int) -> int:
        """Return the size of the next query: its share of the training images, limited by the pool and the budget."""
        share = max(1, round(self.settings.query_fraction * len(self.train)))
        budget = self.settings.budget - (n_labelled - n_initial) if self.settings.budget else share
        return min(share, len(self.train) - n_labelled, budget)

    def _query_and_train(self, previous: CycleResult, n: int, folder: Path) -> None:
        """Write the query and, if the oracle labels an image, the classifier of the extended labelled set."""
        model = self.learner.load(previous.folder / "model.safetensors")
        seed = self._derive_seed(previous.seed, previous.cycle + 1)
        query = self._query(model, previous, n, seed)
        query.to_parquet(folder / "query.parquet", index=False)
        copies = previous.adversarial_augmentation
        if self.settings.adversarial_augmentation and len(query):
            pixels, labels = self.pixels[query["image"]], query["assigned_label"].to_numpy()
            copies = np.concatenate([copies, self.learner.attack_images(model, pixels, labels, seed)])
        np.save(folder / "adversarial_augmentation.npy", copies)
        if len(query):
            self._train_and_evaluate(previous.extended(query, copies, folder), model, folder)

    def _query(self, model: nn.Module, previous: CycleResult, n: int, seed: int) -> pd.DataFrame:
        """Return one row for each queried image, the highest score first, with the label that the oracle assigns."""
        oracle = self.settings.oracle
        rows = np.setdiff1d(self.train, previous.rows)
        pool = self.learner.pool(model, self.pixels[rows], self.pixels[previous.rows], seed)
        candidates = np.flatnonzero(can_label(oracle, pool.probabilities))
        chosen, scores = np.empty(0, dtype=np.int64), np.empty(0)
        if len(candidates):
            restricted = pool if len(candidates) == len(rows) else replace(pool, images=pool.images[candidates])
            chosen, scores = select_query(previous.acquisition, restricted, min(n, len(candidates)))
        rows, probabilities = rows[candidates[chosen]], pool.probabilities[candidates[chosen]]
        labels, predicted = self.data.labels(rows), probabilities.argmax(axis=1)
        assigned = assign_labels(oracle, rows, labels, predicted, self.data.classes, self._derive_seed(previous.seed))
        columns = {"image": rows, "label": labels, "assigned_label": assigned, "prediction": predicted}
        return pd.DataFrame(columns | {"confidence": probabilities.max(axis=1, initial=0), "score": scores})

    def _train_and_evaluate(self, result: CycleResult, previous: nn.Module | None, folder: Path) -> None:
        """Write a classifier, its predictions on the test images, and statistics of the pool."""
        pixels = np.concatenate([self.pixels[result.rows], result.adversarial_augmentation])
        n_without_copy = len(result.rows) - len(result.adversarial_augmentation)
        labels = np.append(result.assigned_labels, result.assigned_labels[n_without_copy:])
        seed = self._derive_seed(result.seed, result.cycle)
        held_out = None
        if result.acquisition == ALL_LABELS:
            held_out = self.pixels[self.validation], self.data.labels(self.validation)
        model, n_epochs = self.learner.train(pixels, labels, previous, seed, self.training_checkpoints, held_out)
        save_model(folder / "model.safetensors", model)
        true_labels = self.data.labels(self.test)
        predictions = self.learner.evaluate(model, self.pixels[self.test], true_labels, self.attacked)
        predictions.insert(0, "label", true_labels)
        predictions.insert(0, "image", self.test)
        predictions.to_parquet(folder / "predictions.parquet", index=False)
        pool = np.setdiff1d(self.train, result.rows)
        mean_pool_entropy = float("nan")
        if len(pool):
            images = as_floats(self.pixels[pool])
            mean_pool_entropy = float(
                entropy(predict_probabilities(model, images, self.learner.attack.batch_size)).mean()
            )
        counts = {"n_labelled": len(result.rows), "n_epochs": n_epochs, "n_pool": len(pool)}
        statistics = counts | {"mean_pool_entropy": mean_pool_entropy}
        pd.DataFrame([statistics]).to_parquet(folder / "pool.parquet", index=False)

    def _derive_seed(self, *numbers: int) -> int:
        """Return a seed for a repetition, or for a cycle of it; it is the same for all acquisition functions."""
        return int(np.random.SeedSequence([self.learner.seed, *numbers]).generate_state(1)[0])


def build_simulation(workspace: Workspace, params: Params) -> LabellingSimulation:
    """Return the simulation of the section ``active_learning`` on the prepared images of a workspace."""
    settings, device = params.active_learning, configure_torch(params.compute)
    data = load_prepared(workspace)
    train, validation, test = (data.indices(split) for split in ("train", "validation", "test"))
    pixels = downsample(data.pixels, settings.downsampling_factor)
    learner = build_learner(params, data, pixels[train], device)
    attacked = np.searchsorted(test, choose_stratified(data, test, settings.max_attacked_images, params.seed))
    folder = workspace.checkpoint_folder("simulate_labelling")
    checkpoints = Checkpoints(
        folder,
        CODE,
        settings.n_seeds * (2 + len(settings.compared_functions) * settings.n_cycles),
        device=str(device),
        data=digest_of_arrays(pixels, data.labels(), data.table["group"].to_numpy(), train, validation, test),
        parameters=params.of_step("simulate_labelling"),
    )
    training_checkpoints = Checkpoints(folder / "training", CODE, parameters=params.of_step("simulate_labelling"))
    return LabellingSimulation(
        learner, data, pixels, train, validation, test, attacked, checkpoints, training_checkpoints
    )


def result_tables(results: list[CycleResult]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return queries, test predictions and pool statistics; each row has its acquisition function, seed and cycle."""

    def concatenate(file: str, results: list[CycleResult]) -> pd.DataFrame:
        tables = []
        for result in results:
            table = pd.read_parquet(result.folder / file)
            for column in ("cycle", "seed", "acquisition"):
                table.insert(0, column, getattr(result, column))
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    queries = concatenate("query.parquet", [result for result in results if result.cycle])
    return queries, concatenate("predictions.parquet", results), concatenate("pool.parquet", results)
