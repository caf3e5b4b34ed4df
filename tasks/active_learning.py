"""Step ``active_learning``: which choice of images to label teaches a classifier most, clean and under attack."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import entropy
from torch import nn

from tasks.core.checkpoints import Shards, digest_of_code
from tasks.core.digests import digest_of_arrays
from tasks.core.files import write_table
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared, as_floats, choose_stratified, load_prepared
from tasks.labelling.acquisition import choose, probabilities
from tasks.labelling.contact_sheet import write_contact_sheet
from tasks.labelling.learner import Learner, learner_of, shrunk
from tasks.labelling.learning_curves import ALL_LABELS, curve_table, cycle_table, plot_tables, summary_table
from tasks.labelling.oracle import answer, can_answer
from tasks.labelling.start import choose_start
from tasks.models.compute import set_up
from tasks.models.files import save_model
from tasks.params import Params
from tasks.tracking import Tracker

N_SHOWN = 12
"""Images of each query in the gallery."""


def active_learning(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Simulate labelling by every acquisition function, over all seeds; write queries, predictions and curves.

    Killed, it goes on with the cycle that it was in.
    """
    settings = params.active_learning
    tracker.dataset(workspace.prepare, "prepared", "training")
    campaign = set_out(workspace, params)
    runs = []
    for seed in range(settings.n_seeds):
        start = campaign.start(seed)
        runs += [campaign.run(name, start) for name in settings.functions]
        runs.append([campaign.all_labels(seed)])
    if not any(taught.cycle for run in runs for taught in run):
        if len(runs[0][0].rows) == len(campaign.train):
            raise ValueError("active_learning.start: the start takes all training images; lower its share")
        raise ValueError(
            "active_learning.oracle: nothing was queried, since no prediction for an image of the pool reaches the "
            "confidence from which pseudo-labels are given; lower it, or begin with more labels (active_learning.start)"
        )
    queries, tested, pools = campaign.tables([taught for run in runs for taught in run])
    cycles = cycle_table(tested, queries, pools, campaign.data.positive)
    curves, efficiency = curve_table(cycles), summary_table(cycles)

    queries.to_parquet(workspace.queries, index=False)
    tested.to_parquet(workspace.tested, index=False)
    tables = {workspace.cycles: cycles, workspace.learning_curves: curves, workspace.label_efficiency: efficiency}
    workspace.active_learning_plots.mkdir()
    for path, table in (tables | plot_tables(curves, workspace.active_learning_plots)).items():
        write_table(table, path)
    for path in tables:
        tracker.artifact(path)
    workspace.queried_images.mkdir()
    for name in settings.functions:
        sheet = workspace.queried_images / f"{name}.png"
        of_name = queries[queries["acquisition"] == name]
        if len(of_name):
            of_first_seed = of_name[of_name["seed"] == of_name["seed"].min()]
            write_contact_sheet(
                [
                    campaign.pixels[of_cycle["image"].to_numpy()[:N_SHOWN], 0]
                    for _, of_cycle in of_first_seed.groupby("cycle")
                ],
                sheet,
            )
        points = points_of(curves[curves["acquisition"] == name], efficiency[efficiency["acquisition"] == name])
        tracker.curve(f"active learning/{name}", {"acquisition": name}, points, [sheet] if len(of_name) else [])


def points_of(curve: pd.DataFrame, efficiency: pd.DataFrame) -> list[tuple[int, dict[str, float]]]:
    """Metrics of each cycle as tracking runs take them; what sums up all cycles stands at the first."""
    points = {
        int(str(cycle)): {f"learning/{metric}": value for metric, value in zip(at["metric"], at["value"], strict=True)}
        | {"learning/n_labelled": at["n_labelled"].iloc[0]}
        for cycle, at in curve.dropna(subset=["value"]).groupby("cycle")
    }
    told = efficiency.dropna(subset=["value"])
    points[0] |= {f"efficiency/{name}": value for name, value in zip(told["quantity"], told["value"], strict=True)}
    return sorted(points.items())


@dataclass(frozen=True)
class Taught:
    """A classifier, and what it was taught."""

    acquisition: str
    """Name of the function that chose the images; empty at the start, which all functions share."""
    seed: int
    cycle: int
    """0: the start."""
    rows: np.ndarray
    """Of the labelled images in the prepared table, in the order of asking, int64 ``(n,)``."""
    told: np.ndarray
    """Their labels, int64 ``(n,)``."""
    copies: np.ndarray
    """The last of these images under attack, uint8 ``(m, 1, H, W)``."""
    folder: Path
    """Holds the classifier, and what there is to tell of it."""


@dataclass(frozen=True)
class Campaign:
    """Images, their labels, and who learns from them."""

    learner: Learner
    data: Prepared
    pixels: np.ndarray
    """All images in the size that is learned from, uint8 ``(N, 1, H, W)``."""
    train: np.ndarray
    """Rows of the training images."""
    test: np.ndarray
    """Rows of the test images."""
    attacked: np.ndarray
    """Numbers of those of the test images that are attacked."""
    shards: Shards
    checkpoint: Path

    def start(self, seed: int) -> Taught:
        """The classifier of the images that are labelled at the start, which no function has chosen."""
        rows = choose_start(self.data, self.train, self.learner.settings, self.seed_of(seed))
        return self.finish(self.untaught("", seed, rows), None)

    def all_labels(self, seed: int) -> Taught:
        """The classifier of all training images with their true labels."""
        return self.finish(self.untaught(ALL_LABELS, seed, self.train), None)

    def untaught(self, acquisition: str, seed: int, rows: np.ndarray) -> Taught:
        """Images with their true labels, and no classifier yet."""
        return Taught(acquisition, seed, 0, rows, self.data.labels(rows), self.pixels[:0], Path())

    def run(self, acquisition: str, start: Taught) -> list[Taught]:
        """The start and every cycle after it; fewer than ``n_cycles`` where nothing is left to ask or to answer."""
        cycles = [replace(start, acquisition=acquisition)]
        for _ in range(self.learner.settings.n_cycles):
            before = cycles[-1]
            if not (n := self.n_to_ask(before, start)):
                break
            after = self.finish(replace(before, cycle=before.cycle + 1), before, n)
            if len(after.rows) == len(before.rows):
                break
            cycles.append(after)
        return cycles

    def n_to_ask(self, before: Taught, start: Taught) -> int:
        """Images of the next query: its share, but no more than the pool and the budget have left."""
        settings = self.learner.settings
        n_asked = len(before.rows) - len(start.rows)
        left = [len(self.train) - len(before.rows), max(1, round(settings.query * len(self.train)))]
        return min(left + ([settings.budget - n_asked] if settings.budget else []))

    def finish(self, taught: Taught, before: Taught | None, n: int = 0) -> Taught:
        """A classifier that is taught after another; kept, if it was there before a kill."""
        name = f"{taught.acquisition or 'start'}, seed {taught.seed}, cycle {taught.cycle}"
        make = partial(self.teach, taught) if before is None else partial(self.ask_and_teach, taught, before, n)
        ingredients = {"acquisition": taught.acquisition, "seed": taught.seed, "cycle": taught.cycle}
        folder = self.shards.finish(name, make, **ingredients)
        if before is None:
            return replace(taught, folder=folder)
        query = pd.read_parquet(folder / "query.parquet")
        return replace(
            taught,
            rows=np.append(taught.rows, query["image"]),
            told=np.append(taught.told, query["told"]),
            copies=np.load(folder / "copies.npy", allow_pickle=False),
            folder=folder,
        )

    def ask_and_teach(self, taught: Taught, before: Taught, n: int, folder: Path) -> None:
        """A cycle: choose from the pool, hear the labels, learn."""
        settings = self.learner.settings
        model = self.learner.load(before.folder / "model.safetensors")
        query = self.query(model, before, taught, n)
        query.to_parquet(folder / "query.parquet", index=False)
        rows, told = query["image"].to_numpy(), query["told"].to_numpy()
        copies = before.copies
        if settings.adversarial_copies and len(rows):
            seed = self.seed_of(taught.seed, taught.cycle)
            attacked = self.learner.attacked(model, self.pixels[rows], told, seed)
            copies = np.concatenate([copies, attacked])
        np.save(folder / "copies.npy", copies)
        if len(rows):
            rows, told = np.append(before.rows, rows), np.append(before.told, told)
            self.teach(replace(taught, rows=rows, told=told, copies=copies), folder, model)

    def query(self, model: nn.Module, before: Taught, taught: Taught, n: int) -> pd.DataFrame:
        """The images that a cycle asks about and what it is told, a row each, the most wanted first."""
        settings = self.learner.settings
        seed = self.seed_of(taught.seed, taught.cycle)
        rows = np.setdiff1d(self.train, before.rows)
        pool = self.learner.pool(model, self.pixels[rows], self.pixels[before.rows], seed)
        can = np.flatnonzero(can_answer(settings.oracle, pool.probabilities))
        answerable = pool if len(can) == len(rows) else replace(pool, images=pool.images[can])
        chosen, scores = np.empty(0, dtype=np.int64), np.empty(0)
        if len(can):
            chosen, scores = choose(taught.acquisition, answerable, min(n, len(can)))
        chosen = can[chosen]
        rows, shares = rows[chosen], pool.probabilities[chosen]
        predicted = shares.argmax(axis=1)
        labels = self.data.labels(rows)
        told = answer(settings.oracle, rows, labels, predicted, self.data.classes, self.seed_of(taught.seed))
        columns = {"image": rows, "label": labels, "told": told, "predicted": predicted}
        return pd.DataFrame(columns | {"confidence": shares.max(axis=1, initial=0), "score": scores})

    def teach(self, taught: Taught, folder: Path, before: nn.Module | None = None) -> None:
        """Train, and write the classifier, its predictions on the test images, and what it makes of the pool."""
        pixels = np.concatenate([self.pixels[taught.rows], taught.copies])
        # copies are of the images that were asked about last
        told = np.append(taught.told, taught.told[len(taught.told) - len(taught.copies) :])
        seed = self.seed_of(taught.seed, taught.cycle)
        model = self.learner.taught(pixels, told, before, seed, self.checkpoint)
        save_model(folder / "model.safetensors", model)
        labels = self.data.labels(self.test)
        tested = self.learner.tested(model, self.pixels[self.test], labels, self.attacked)
        tested.insert(0, "label", labels)
        tested.insert(0, "image", self.test)
        tested.to_parquet(folder / "tested.parquet", index=False)
        pool = np.setdiff1d(self.train, taught.rows)
        doubt = float("nan")
        if len(pool):
            shares = probabilities(model, as_floats(self.pixels[pool]), self.learner.attack.batch_size)
            doubt = float(entropy(shares, axis=1).mean())
        of_pool = {"n_labelled": len(taught.rows), "n_pool": len(pool), "pool_entropy": doubt}
        pd.DataFrame([of_pool]).to_parquet(folder / "pool.parquet", index=False)

    def tables(self, cycles: list[Taught]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """All queries, predictions on test images, and pools, each row with its function, seed and cycle."""

        def gather(name: str, of: list[Taught]) -> pd.DataFrame:
            parts = []
            for taught in of:
                part = pd.read_parquet(taught.folder / name)
                for column in ("cycle", "seed", "acquisition"):
                    part.insert(0, column, getattr(taught, column))
                parts.append(part)
            return pd.concat(parts, ignore_index=True)

        queries = gather("query.parquet", [taught for taught in cycles if taught.cycle])
        queries.insert(4, "path", self.data.table["path"].to_numpy()[queries["image"]])
        return queries, gather("tested.parquet", cycles), gather("pool.parquet", cycles)

    def seed_of(self, *numbers: int) -> int:
        """A seed for each run, or each cycle of a run, the same for all acquisition functions."""
        return int(np.random.SeedSequence([self.learner.seed, *numbers]).generate_state(1)[0])


def set_out(workspace: Workspace, params: Params) -> Campaign:
    """Images in the size that is learned from, and a learner."""
    settings, device = params.active_learning, set_up(params.compute)
    data = load_prepared(workspace)
    train, test = data.indices("train"), data.indices("test")
    pixels = shrunk(data.pixels, settings.shrink)
    learner = learner_of(params, data, pixels[train], device)
    chosen = choose_stratified(data, test, settings.max_images, params.seed)
    folder = workspace.checkpoint_folder("active_learning")
    shards = Shards(
        folder,
        settings.n_seeds * (2 + len(settings.functions) * settings.n_cycles),
        code=digest_of_code(),
        data=digest_of_arrays(pixels, data.labels(), data.table["group"].to_numpy(), train, test),
        params=params.model_dump(
            mode="json",
            include={
                "seed": True,
                "compute": True,
                "train_classifier": {"architecture", "pretrained", "augmentation"},
                "attack": {"norm", "pgd", "batch_size"},
                "active_learning": True,
            },
        ),
    )
    attacked = np.searchsorted(test, chosen)
    return Campaign(learner, data, pixels, train, test, attacked, shards, folder / "state.pt")


if __name__ == "__main__":
    from tasks.runner import main

    main(active_learning)
