"""The attack on one target: what is attacked, in which parts, where finished parts are kept, and what is written."""

import logging
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from tasks.attacks.batch import AttackBatch, MinimumEps, shrink
from tasks.attacks.diagnostics import UNBOUNDED_EPS, run_diagnostics, run_positive_control
from tasks.attacks.gradient.fgsm import fgsm
from tasks.attacks.gradient.losses import NonFiniteLogits
from tasks.attacks.gradient.norm_ball import NormBall, radius
from tasks.attacks.gradient.pgd import pgd
from tasks.attacks.hop_skip_jump import run_hop_skip_jump
from tasks.attacks.predictions import Predictions, concatenate, predict, round_to_8_bits, seed_random_defences
from tasks.attacks.square import run_square
from tasks.attacks.suite import run_suite
from tasks.attacks.sweep import run_sweep
from tasks.core.checkpoints import Checkpoints
from tasks.core.digests import digest_of_arrays, digest_of_model
from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared, choose_stratified, load_prepared
from tasks.defences.targets import load_target
from tasks.models.compute import configure_torch
from tasks.models.cost import prediction_cost
from tasks.params import UNDEFENDED, Attack, Params, Precision
from tasks.records.adversarial_images import (
    QuantizedPerturbations,
    load_perturbations,
    merge_perturbations,
    quantize,
    save_perturbations,
)
from tasks.records.perturbation_norms import check_adversarial, perturbation_norms
from tasks.records.tables import build_diagnostics, build_minimum_eps, build_records, write_records
from tasks.records.vocabulary import CLEAN, HOP_SKIP_JUMP, SQUARE, SUITE, SWEEP
from tasks.tracking import Tracker

WHITE_BOX_SEARCHES = (SWEEP, SUITE)
"""Searches that use gradients; the other searches use scores or labels alone."""
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

    target: str
    """``undefended``, or the name of a defence."""
    model: nn.Module
    data: Prepared
    settings: Attack
    precision: Precision
    seed: int
    test_rows: np.ndarray
    """Rows of all test images in the prepared table, rising."""
    rows: np.ndarray
    """Rows of the attacked images, rising."""
    checkpoints: Checkpoints
    clean: Predictions
    """Predictions on all test images, unchanged."""
    latency_ms: float
    """Median time of a prediction per image, in milliseconds."""

    @classmethod
    def load(cls, workspace: Workspace, params: Params, target: str) -> "AttackRun":
        """Load the target, choose the images, and predict all test images unchanged.

        Args:
            workspace: where the prepared data, the models and the checkpoints are.
            params: all parameters.
            target: ``undefended``, or the name of a defence.

        Raises:
            ValueError: there are no test images.
            FileNotFoundError: a model is missing.
        """
        settings, device, data = params.attack, configure_torch(params.compute), load_prepared(workspace)
        test_rows = data.indices("test")
        if len(test_rows) == 0:
            raise ValueError("no test images to attack. Raise prepare.split.test_fraction")
        rows = choose_stratified(data, test_rows, settings.max_images, params.seed)
        model = load_target(workspace, target, device)
        step = ("attack",) if target == UNDEFENDED else ("attack_defence", target)
        n_search_parts = len(_split(rows, MAX_SEARCH_BATCHES * settings.batch_size))
        checkpoints = Checkpoints(
            workspace.checkpoint_folder(*step),
            CODE,
            1
            + len(settings.attacks) * len(_split(rows, settings.batch_size))
            + (1 + len(_searches(settings))) * n_search_parts,
            settings=settings.model_dump(mode="json", include={"norm", "eps", "batch_size"}),
            seed=params.seed,
            compute=[str(device), params.compute.threads, params.compute.precision],
            target=[target, digest_of_model(model)],
        )
        folder = checkpoints.get_or_compute(
            f"{target}, {len(test_rows)} images unchanged",
            partial(_save_clean_predictions, model, params.seed, data, test_rows, settings.batch_size),
            clean=True,
            images=_digest_of_images(data, test_rows),
        )
        errors = folder / "reconstruction_error.npy"
        clean = Predictions(
            np.load(folder / "logits.npy", allow_pickle=False),
            np.load(errors, allow_pickle=False) if errors.is_file() else None,
        )
        latency_ms = float(np.load(folder / "milliseconds.npy", allow_pickle=False))
        precision, seed = params.compute.precision, params.seed
        return cls(target, model, data, settings, precision, seed, test_rows, rows, checkpoints, clean, latency_ms)

    @property
    def saved_eps(self) -> tuple[float, ...]:
        """The eps whose adversarial images are saved; all for the bare classifier, since they are transferred."""
        return self.settings.eps if self.target == UNDEFENDED else self.settings.analysed_eps

    def parts(self) -> list[Part]:
        """All parts, the longest first; each can be computed by another worker."""
        batches = _split(self.rows, self.settings.batch_size)
        large = _split(self.rows, MAX_SEARCH_BATCHES * self.settings.batch_size)
        crafting = {
            attack: [partial(self._craft, attack, rows) for rows in batches] for attack in self.settings.attacks
        }
        return [
            *(partial(self._search, rows) for rows in large),
            *crafting.get("pgd", []),
            *(partial(self._diagnose, rows) for rows in large),
            *crafting.get("fgsm", []),
        ]

    def execute(self, workspace: Workspace, tracker: Tracker) -> None:
        """Compute all parts that have no checkpoint yet, and write the outputs of the step.

        Args:
            workspace: where the outputs are written and, for a defence, where the perturbations of the bare classifier
                are.
            tracker: logs the cost and the outputs.

        Raises:
            FileNotFoundError: the perturbations to transfer are missing.
            ValueError: they are of other images.
        """
        # first, since they fail early if logits are not finite or perturbations are missing
        records = [self._clean_records(), *self._transfer_records(workspace)]
        finished: dict[str, list[Path]] = defaultdict(list)
        for part in self.parts():
            for attack, folder in part().items():
                finished[attack].append(folder)
        for attack in self.settings.attacks:
            crafted = _concatenate(finished[attack], "records.parquet")
            records.append(crafted.sort_by([("eps", "ascending"), ("image", "ascending")]))
            for eps in self.saved_eps:
                path = workspace.perturbation_file(self.target, attack, eps)
                path.parent.mkdir(exist_ok=True)
                merge_perturbations([folder / f"eps{eps:g}.npz" for folder in finished[attack]], path)
        searched = [folder for attack in _searches(self.settings) for folder in finished[attack]]
        write_records(pa.concat_tables(records), workspace.records(self.target))
        write_records(_concatenate(searched, "minimum_eps.parquet"), workspace.minimum_eps(self.target))
        write_records(_concatenate(finished[DIAGNOSTICS], "diagnostics.parquet"), workspace.diagnostics(self.target))
        cost = prediction_cost(self.model, self.data.floats(self.rows[:1]))
        write_json(cost, workspace.cost(self.target))
        tracker.metrics({f"cost/{key}": value for key, value in cost.items()})
        tracker.metrics({"cost/latency_ms": self.latency_ms})
        for path_of in (workspace.records, workspace.minimum_eps, workspace.diagnostics):
            tracker.artifact(path_of(self.target))

    def _craft(self, attack: str, rows: np.ndarray) -> dict[str, Path]:
        """Part: one attack on one batch at every eps."""
        folder = self.checkpoints.get_or_compute(
            f"{attack} on {self.target}, {len(rows)} images at {len(self.settings.eps)} eps",
            partial(self._write_crafted, attack, rows),
            attack=attack,
            crafting=self.settings.model_dump(mode="json", include={"pgd", "saved_eps"}),
            images=_digest_of_images(self.data, rows),
        )
        return {attack: folder}

    def _diagnose(self, rows: np.ndarray) -> dict[str, Path]:
        """Part: the diagnostics of some images."""
        folder = self.checkpoints.get_or_compute(
            f"diagnostics of {self.target}, {len(rows)} images",
            partial(self._write_diagnostics, rows),
            diagnostics=True,
            images=_digest_of_images(self.data, rows),
        )
        return {DIAGNOSTICS: folder}

    def _search(self, rows: np.ndarray) -> dict[str, Path]:
        """Part: all searches for the smallest eps that breaks each of some images, one after the other."""
        settings, finished = self.settings, dict[str, Path]()
        effort: dict[str, Any] = {
            SWEEP: [settings.sweep.model_dump(mode="json"), settings.pgd.relative_step_size],
            SUITE: settings.suite.model_dump(mode="json"),
            SQUARE: settings.square.model_dump(mode="json"),
            HOP_SKIP_JUMP: settings.hop_skip_jump.model_dump(mode="json"),
        }
        before: list[str] = []
        for attack in _searches(settings):
            known = pq.read_table(finished[before[-1]] / "minimum_eps.parquet") if before else None
            finished[attack] = self.checkpoints.get_or_compute(
                f"{attack} on {self.target}, {len(rows)} images",
                partial(self._write_search, attack, rows, known),
                search={each: effort[each] for each in [*before, attack]},
                images=_digest_of_images(self.data, rows),
            )
            before += [attack] if attack in WHITE_BOX_SEARCHES else []
        return finished

    def _write_crafted(self, attack: str, rows: np.ndarray, folder: Path) -> None:
        """Write records and perturbations of one attack on one batch at every eps.

        Records are of the quantized perturbations, so that later steps read exactly the recorded images.
        """
        seed_random_defences(self.model, self.seed, rows)
        images, labels = self.data.floats(rows), self.data.labels(rows)
        tables = []
        for eps, exact in zip(self.settings.eps, self._craft_batch(attack, images, labels, rows), strict=True):
            perturbations = quantize(self.data, rows, images, exact, self.settings.norm)
            adversarial = perturbations.images()
            norms = perturbation_norms(images, adversarial)
            self._check(eps, adversarial, norms[self.settings.norm], rows)
            predictions, rounded = predict(self.model, adversarial), predict(self.model, round_to_8_bits(adversarial))
            tables.append(self._records(rows, "adaptive", attack, eps, predictions, rounded, norms))
            if eps in self.saved_eps:
                save_perturbations(folder / f"eps{eps:g}.npz", perturbations)
        write_records(pa.concat_tables(tables), folder / "records.parquet")

    def _craft_batch(
        self, attack: str, images: np.ndarray, labels: np.ndarray, rows: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Adversarial images ``(N, C, H, W)`` at each eps; untargeted, against the true labels."""
        device = next(self.model.parameters()).device
        batch = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
        radii, ball = [self._radius(eps) for eps in self.settings.eps], self._ball
        if attack == "fgsm":
            crafted = fgsm(self.model, *batch, radii, ball)
        else:
            assert attack == "pgd", attack
            crafted = pgd(self.model, *batch, radii, ball, self.settings.pgd, self.seed, rows)
        for adversarial in crafted:
            yield adversarial.cpu().numpy()

    def _write_search(self, attack: str, rows: np.ndarray, before: pa.Table | None, folder: Path) -> None:
        """Write the smallest eps at which one attack breaks each image.

        Args:
            attack: ``sweep``, ``suite``, ``square`` or ``hop_skip_jump``.
            rows: of the images in the prepared table, ``(N,)``.
            before: result of the white-box searches before; None for the sweep, which is the first.
            folder: where to write.
        """
        settings, batch = self.settings, self._batch(rows)
        seed_random_defences(self.model, self.seed, rows)
        grid, chosen = np.array([0.0, *settings.eps, np.inf]), np.arange(len(rows))
        with self._naming_images(rows, attack):
            if before is None:
                assert attack == SWEEP, attack
                sweep = settings.sweep
                found = run_sweep(
                    batch, sweep.n_steps, settings.pgd.relative_step_size, sweep.n_restarts, self.precision
                )
            else:
                index = np.searchsorted(grid, before["minimum_eps"].to_numpy()) - 1
                if attack == SUITE:
                    earlier = MinimumEps(index, before["found_by"].to_numpy(), batch.images)
                    found = run_suite(batch, earlier, settings.suite.n_steps)
                elif attack == SQUARE:
                    found = run_square(batch, index, settings.square.n_queries)
                else:
                    assert attack == HOP_SKIP_JUMP, attack
                    sample = choose_stratified(self.data, self.rows, settings.hop_skip_jump.max_images, self.seed)
                    chosen = np.flatnonzero(np.isin(rows, sample))
                    found = run_hop_skip_jump(batch, chosen, index < 0, settings.hop_skip_jump.n_queries)
            minimum = shrink(batch, found)[chosen] / self._radius(1)

        adversarial, index = found.adversarial[chosen], found.index[chosen]
        norms = perturbation_norms(batch.images[chosen], adversarial)[settings.norm]
        for number, eps in enumerate(settings.eps):
            if (here := index == number).any():
                self._check(eps, adversarial[here], norms[here], rows[chosen][here])
        if before is not None and attack in WHITE_BOX_SEARCHES:
            # an attack that finds nothing smaller returns no image to shrink
            minimum = np.fmin(minimum, before["minimum_perturbation"].to_numpy())
        table = build_minimum_eps(
            rows[chosen],
            self.data.paths(rows[chosen]),
            batch.labels[chosen],
            self._curve("adaptive" if attack in WHITE_BOX_SEARCHES else "black_box", attack),
            grid[index + 1],
            found.found_by[chosen],
            minimum,
        )
        write_records(table, folder / "minimum_eps.parquet")

    def _write_diagnostics(self, rows: np.ndarray, folder: Path) -> None:
        """Write the diagnostics of some images."""
        batch = self._batch(rows)
        seed_random_defences(self.model, self.seed, rows)
        with self._naming_images(rows, DIAGNOSTICS):
            found = run_diagnostics(batch, self.settings.eps, self._radius(UNBOUNDED_EPS))
            if self.target == UNDEFENDED:
                largest = self.settings.eps[-1]
                found |= run_positive_control(batch, largest, self._radius(largest))
        write_records(
            build_diagnostics(rows, self.data.paths(rows), self.target, found), folder / "diagnostics.parquet"
        )

    def _clean_records(self) -> pa.Table:
        """Records of all test images unchanged, which have 8 bits already."""
        zero = {"linf": np.zeros(len(self.test_rows)), "l2": np.zeros(len(self.test_rows))}
        return self._records(self.test_rows, "none", CLEAN, 0.0, self.clean, self.clean, zero)

    def _transfer_records(self, workspace: Workspace) -> Iterable[pa.Table]:
        """Records of a defence on the adversarial images of the bare classifier; none for the bare classifier."""
        if self.target == UNDEFENDED:
            return
        for attack in self.settings.attacks:
            for eps in self.settings.eps:
                crafted = load_perturbations(workspace, self.data, UNDEFENDED, attack, eps)
                if not np.array_equal(crafted.rows, self.rows):
                    path = workspace.perturbation_file(UNDEFENDED, attack, eps)
                    raise ValueError(f"{path} holds other images. Run the step attack again")
                yield self._transfer(crafted, attack, eps)

    def _transfer(self, crafted: QuantizedPerturbations, attack: str, eps: float) -> pa.Table:
        """Records of the target on adversarial images of the bare classifier."""
        seed_random_defences(self.model, self.seed)
        predictions, rounded, norms = [], [], []
        for start in range(0, len(crafted.rows), self.settings.batch_size):
            part = slice(start, start + self.settings.batch_size)
            adversarial = crafted.images(part)
            predictions.append(predict(self.model, adversarial))
            rounded.append(predict(self.model, round_to_8_bits(adversarial)))
            norms.append(perturbation_norms(self.data.floats(crafted.rows[part]), adversarial))
        log.info("%s at eps %g transferred from %s to %s", attack, eps, UNDEFENDED, self.target)
        both = {norm: np.concatenate([of_batch[norm] for of_batch in norms]) for norm in norms[0]}
        return self._records(
            crafted.rows, "transfer", attack, eps, concatenate(predictions), concatenate(rounded), both
        )

    def _records(
        self,
        rows: np.ndarray,
        threat_model: str,
        attack: str,
        eps: float,
        predictions: Predictions,
        rounded: Predictions,
        norms: dict[str, np.ndarray],
    ) -> pa.Table:
        """Records of images at one eps; ``rounded`` are the predictions on the images rounded to 8 bits."""
        return build_records(
            rows,
            self.data.paths(rows),
            self.data.labels(rows),
            self._curve(threat_model, attack),
            eps,
            self._radius(eps),
            predictions.logits,
            self.clean.logits[np.searchsorted(self.test_rows, rows)],
            rounded.logits,
            norms,
            predictions.reconstruction_error,
        )

    def _curve(self, threat_model: str, attack: str) -> dict[str, str]:
        return {"target": self.target, "threat_model": threat_model, "attack": attack, "norm": self.settings.norm}

    def _batch(self, rows: np.ndarray) -> AttackBatch:
        return AttackBatch(
            model=self.model,
            images=self.data.floats(rows),
            labels=self.data.labels(rows),
            n_classes=len(self.data.classes),
            radii=np.array([self._radius(eps) for eps in self.settings.eps]),
            ball=self._ball,
            batch_size=self.settings.batch_size,
            seed=self.seed,
            image_ids=rows,
        )

    @property
    def _ball(self) -> NormBall:
        return NormBall(self.settings.norm, self.data.value_range)

    def _radius(self, eps: float) -> float:
        """Radius of the ball in units of the value range."""
        return radius(eps, self.settings.norm, self.data.pixels[0].size)

    def _check(self, eps: float, adversarial: np.ndarray, norms: np.ndarray, rows: np.ndarray) -> None:
        """Assert that adversarial images lie in their ball and in the value range."""
        paths = list(self.data.paths(rows))
        check_adversarial(adversarial, norms, eps, self._radius(eps), self.data.value_range, paths)

    @contextmanager
    def _naming_images(self, rows: np.ndarray, attack: str) -> Iterator[None]:
        """Name the image, the target and the attack in the error about logits that are not finite."""
        try:
            yield
        except NonFiniteLogits as error:
            # the image that the model received differs from the file by a small perturbation
            path = self.data.nearest_path(rows, error.image)
            raise ValueError(
                f"{error}, {path} the first; target {self.target}, attack {attack}. Train the models again, with a "
                "lower learning rate"
            ) from error


def _searches(settings: Attack) -> list[str]:
    """Attacks that search for the smallest eps, in the order in which each builds on the one before."""
    effort = {
        SWEEP: 1,
        SUITE: settings.suite.n_steps,
        SQUARE: settings.square.n_queries,
        HOP_SKIP_JUMP: settings.hop_skip_jump.n_queries,
    }
    return [attack for attack, n in effort.items() if n]


def _save_clean_predictions(
    model: nn.Module, seed: int, data: Prepared, rows: np.ndarray, batch_size: int, folder: Path
) -> None:
    """Write the predictions on unchanged images, and the median time of a prediction per image."""
    seed_random_defences(model, seed)
    predictions, milliseconds = [], []
    for batch in np.array_split(rows, math.ceil(len(rows) / batch_size)):
        images = data.floats(batch)
        began = time.perf_counter()
        predictions.append(predict(model, images))
        milliseconds.append(1000 * (time.perf_counter() - began) / len(batch))
    clean = concatenate(predictions)
    np.save(folder / "logits.npy", clean.logits)
    if clean.reconstruction_error is not None:
        np.save(folder / "reconstruction_error.npy", clean.reconstruction_error)
    np.save(folder / "milliseconds.npy", statistics.median(milliseconds))


def _digest_of_images(data: Prepared, rows: np.ndarray) -> list[str]:
    """Identity of images in a checkpoint: rows, pixels, labels and paths."""
    return [digest_of_arrays(rows, data.pixels[rows], data.labels(rows)), *data.table["path"].iloc[rows]]


def _split(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Split rows into parts of at most ``size`` and nearly equal size; into at least four parts of 16 or more rows."""
    n_full = math.ceil(len(rows) / size)
    return np.array_split(rows, max(n_full, min(MIN_PARTS, len(rows) // MIN_IMAGES_PER_PART)))


def _concatenate(folders: list[Path], name: str) -> pa.Table:
    """The tables of this name in several folders as one table."""
    return pa.concat_tables(pq.read_table(folder / name) for folder in folders)
