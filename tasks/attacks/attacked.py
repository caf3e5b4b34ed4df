"""One target and its attacked images, which all parts of an attack share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import nn

from tasks.attacks.batch import AttackBatch
from tasks.attacks.gradient.losses import NonFiniteLogits
from tasks.attacks.gradient.norm_ball import NormBall, radius
from tasks.attacks.predictions import Predictions
from tasks.core.checkpoints import Checkpoints
from tasks.core.digests import digest_of_arrays
from tasks.dataset.prepared import Prepared, choose_stratified
from tasks.defences.randomness import AveragedPredictions, as_attacked, random_modules
from tasks.defences.shifted import Shifted
from tasks.models.compute import device_of
from tasks.params import UNDEFENDED, Attack, Precision
from tasks.records.expected import append_expected, expected_columns
from tasks.records.operating_points import OperatingPoint
from tasks.records.perturbation_norms import check_adversarial
from tasks.records.tables import build_records
from tasks.records.vocabulary import ART_REFERENCE, AS_TRAINED, PGD_FIXED_DRAWS


@dataclass(frozen=True)
class Attacked:
    """A target, the images that it is attacked on, the settings, and the checkpoints."""

    target: str
    """``undefended``, or the name of a defence."""
    model: nn.Module
    """As trained: takes images and returns logits ``(N, K)``; in evaluation mode, parameters frozen."""
    data: Prepared
    settings: Attack
    precision: Precision
    seed: int
    test_rows: np.ndarray
    """Rows of all test images in the prepared table, rising."""
    rows: np.ndarray
    """Rows of the attacked images, rising."""
    clean: Predictions
    """Predictions on all test images, unchanged."""
    operating_points: list[OperatingPoint]
    """The first is ``as_trained``."""
    checkpoints: Checkpoints
    plugins: Path = Path("plugins")
    """Folder with Python modules of the user."""

    @property
    def saved_eps(self) -> tuple[float, ...]:
        """The eps whose adversarial images are saved; all for the undefended classifier, since they are transferred."""
        return self.settings.eps if self.target == UNDEFENDED else self.settings.analysed_eps

    @property
    def is_random(self) -> bool:
        """Return whether the target draws random numbers."""
        return bool(random_modules(self.model))

    @property
    def batch_size(self) -> int:
        """Images of one gradient; of a random target fewer, since a gradient averages several predictions."""
        attacked = as_attacked(self.model)
        n_predictions = attacked.n_predictions if isinstance(attacked, AveragedPredictions) else 1
        return max(self.settings.batch_size // n_predictions, 1)

    def crafted_images(self) -> dict[str, np.ndarray]:
        """Rows of the images that each attack at fixed eps attacks: ours and ART's, and ART's reference for ours.

        On a random target, PGD also runs with the same draws at every step.
        """
        settings = self.settings
        part = choose_stratified(self.data, self.rows, settings.max_art_reference_images, self.seed)
        references = {name: part for name, ours in ART_REFERENCE.items() if ours in settings.saved_attacks}
        fixed = [PGD_FIXED_DRAWS] if self.is_random and "pgd" in settings.saved_attacks else []
        ours = [*settings.saved_attacks, *settings.eight_bit_attacks, *fixed]
        return dict.fromkeys([*ours, *settings.art_attacks, *settings.plugin_attacks], self.rows) | references

    @property
    def searched_points(self) -> dict[tuple[float, ...], OperatingPoint]:
        """Operating points with different biases. Of points with equal biases, the last, which is searched for all."""
        return {point.biases: point for point in self.operating_points}

    @property
    def ball(self) -> NormBall:
        """Norm and value range of the attacks."""
        return NormBall(self.settings.norm, self.data.value_range)

    def radius(self, eps: float) -> float:
        """Radius of the ball in units of the value range."""
        return radius(eps, self.settings.norm, self.data.pixels[0].size)

    def at(self, point: OperatingPoint) -> nn.Module:
        """The model at an operating point."""
        return (
            self.model
            if point.name == AS_TRAINED
            else Shifted(self.model, point.biases).to(device_of(self.model)).eval()
        )

    def batch(self, rows: np.ndarray, point: OperatingPoint | None = None) -> AttackBatch:
        """Some of the images, with the model at an operating point; ``as_trained`` if None is given."""
        return AttackBatch(
            model=as_attacked(self.at(point or self.operating_points[0])),
            images=self.data.floats(rows),
            labels=self.data.labels(rows),
            n_classes=len(self.data.classes),
            radii=np.array([self.radius(eps) for eps in self.settings.eps]),
            ball=self.ball,
            batch_size=self.batch_size,
            seed=self.seed,
            image_ids=rows,
        )

    def curve(self, threat_model: str, attack: str) -> dict[str, str]:
        """Columns of records that identify a curve."""
        return {"target": self.target, "threat_model": threat_model, "attack": attack, "norm": self.settings.norm}

    def records(
        self,
        rows: np.ndarray,
        threat_model: str,
        attack: str,
        eps: float,
        predictions: Predictions,
        rounded: Predictions,
        norms: dict[str, np.ndarray],
        surrogate: str = "",
    ) -> pa.Table:
        """Records of images at one eps; ``rounded`` are the predictions on the images rounded to 8 bits.

        ``surrogate`` is the classifier that transferred images were crafted on.
        """
        records = build_records(
            self.data.identity(rows),
            self.curve(threat_model, attack) | {"surrogate": surrogate},
            eps,
            self.radius(eps),
            predictions.logits,
            self.clean.logits[np.searchsorted(self.test_rows, rows)],
            rounded.logits,
            norms,
            predictions.reconstruction_error,
        )
        if predictions.selection is None or predictions.fresh is None or rounded.fresh is None:
            return records
        samples = predictions.selection, predictions.fresh, rounded.fresh
        return append_expected(records, expected_columns(*samples, self.data.labels(rows), self.operating_points))

    def check(self, eps: float, adversarial: np.ndarray, norms: np.ndarray, rows: np.ndarray) -> None:
        """Assert that adversarial images lie in their ball and in the value range."""
        paths = list(self.data.paths(rows))
        check_adversarial(adversarial, norms, eps, self.radius(eps), self.data.value_range, paths)

    @contextmanager
    def naming_images(self, rows: np.ndarray, attack: str) -> Iterator[None]:
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


def digest_of_images(data: Prepared, rows: np.ndarray) -> list[str]:
    """Identity of images in a checkpoint: pixels, and all columns that the records of a part have."""
    columns = data.identity(rows)
    paths = columns.pop("path")
    return [digest_of_arrays(data.pixels[rows], *columns.values()), *paths]
