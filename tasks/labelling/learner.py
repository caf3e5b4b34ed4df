"""What is learned from the labels that there are, and how well."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tasks.attacks.gradient.balls import Balls, radius
from tasks.attacks.gradient.descent import pgd
from tasks.attacks.sweep import pgd_sweep
from tasks.dataset.prepared import Prepared, as_floats
from tasks.labelling.acquisition import Pool, probabilities
from tasks.labelling.dropout import Dropout, draw_from
from tasks.models.classifier import build_classifier
from tasks.models.features import head_of
from tasks.models.files import load_model
from tasks.models.objectives import classification
from tasks.models.seeding import build_seeded, torch_seeded
from tasks.models.training import fit
from tasks.params import ActiveLearning, Attack, Params, Precision, TrainClassifier

N_JUDGED = 128
"""Labelled images, at most, on which the epoch that is kept is chosen: no label is spent on a validation set."""


@dataclass(frozen=True)
class Learner:
    """A classifier to be, and all that is the same whatever it learns from.

    Args:
        settings: how it learns.
        classifier: what it is, and how its images are augmented.
        attack: how it is attacked.
        balls: of all attacks.
        radius: of all attacks, in units of the value range.
        n_classes: K.
        mean: of the training pixels, in [0, 1].
        std: of the training pixels.
        device: where to compute.
        precision: in which it learns.
        seed: of attacks on test images.
    """

    settings: ActiveLearning
    classifier: TrainClassifier
    attack: Attack
    balls: Balls
    radius: float
    n_classes: int
    mean: float
    std: float
    device: torch.device
    precision: Precision
    seed: int

    def build(self, pretrained: bool) -> nn.Module:
        """The classifier of ``train_classifier``, with dropout before its head that draws from its own generator."""
        model = build_classifier(self.classifier.architecture, self.n_classes, self.mean, self.std, pretrained)
        head = head_of(model)
        name = next(name for name, module in model.named_modules() if module is head)
        model.set_submodule(name, nn.Sequential(Dropout(self.settings.dropout), head))
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Dropout):
                model.set_submodule(name, Dropout(module.p))
        return model

    def load(self, path: Path) -> nn.Module:
        """A saved classifier, on its device, in evaluation mode, frozen."""
        return load_model(path, partial(self.build, pretrained=False)).to(self.device)

    def taught(
        self, pixels: np.ndarray, labels: np.ndarray, before: nn.Module | None, seed: int, checkpoint: Path
    ) -> nn.Module:
        """A classifier trained on these images; of its epochs the one that fits ``N_JUDGED`` of them best is kept.

        Args:
            pixels: uint8 ``(n, 1, H, W)``.
            labels: int64 ``(n,)``, as the oracle told them.
            before: what it goes on from; without it, or if cycles begin anew, it begins with random weights.
            seed: of the training, and of random weights.
            checkpoint: file from which a killed training goes on.

        Returns:
            The network on its device, in evaluation mode, parameters frozen.
        """
        training = self.settings.training
        if before is not None and self.settings.warm_start_epochs:
            model = before.requires_grad_(True)
            training = training.model_copy(update={"epochs": self.settings.warm_start_epochs})
        else:
            model = build_seeded(partial(self.build, self.classifier.pretrained), seed)
        rows = np.arange(len(labels))
        judged = np.random.default_rng(seed).permutation(rows)[:N_JUDGED]
        classify = classification(self.classifier.augmentation)

        def objective(
            model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float
        ) -> dict[str, Tensor]:
            # averaged weights, whose batch-norm statistics are measured in training mode, drop nothing
            if model.training:
                draw_from(generator, model)
            return classify(model, images, labels, generator, progress)

        splits = {"train": rows, "validation": judged}
        how = training, seed, self.device, self.precision, checkpoint
        model, _ = fit(model, objective, pixels, labels, splits, *how)
        checkpoint.unlink()
        return model.to(self.device)

    def attacked(self, model: nn.Module, pixels: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
        """Images under PGD as 8-bit files would keep them, uint8 ``(n, 1, H, W)``."""
        attacked = np.empty_like(pixels)
        for start in range(0, len(pixels), self.attack.batch_size):
            part = slice(start, start + self.attack.batch_size)
            images = torch.from_numpy(as_floats(pixels[part])).to(self.device)
            of_images = torch.tensor(labels[part], device=self.device)
            rows = np.arange(len(labels))[part]
            (moved,) = pgd(model, images, of_images, [self.radius], self.balls, self.attack.pgd, seed, rows)
            attacked[part] = (moved.cpu().numpy() * 255).round().astype(np.uint8)
        return attacked

    def tested(self, model: nn.Module, pixels: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> pd.DataFrame:
        """What the classifier makes of images, a row each: ``predicted``, ``confidence``, and ``robust``.

        ``robust`` is 1 where it is right and stays so under PGD, 0 where not, and NaN where nobody attacked.

        Args:
            model: on its device, in evaluation mode.
            pixels: uint8 ``(n, 1, H, W)``.
            labels: true classes, int64 ``(n,)``.
            chosen: numbers of those that are attacked, rising.
        """
        numbers, batch_size = self.attack.pgd, self.attack.batch_size
        images = as_floats(pixels)
        shares = probabilities(model, images, batch_size)
        sweep = pgd_sweep(
            model,
            images[chosen],
            labels[chosen],
            np.array([self.radius]),
            self.balls,
            batch_size,
            numbers.n_steps,
            numbers.relative_step,
            numbers.n_restarts,
            self.seed,
            chosen,
        )
        robust = np.full(len(labels), np.nan)
        robust[chosen] = sweep.broken_at == 1
        return pd.DataFrame({"predicted": shares.argmax(axis=1), "confidence": shares.max(axis=1), "robust": robust})

    def pool(self, model: nn.Module, pixels: np.ndarray, labelled: np.ndarray, seed: int) -> Pool:
        """What acquisition functions see.

        Args:
            model: on its device, in evaluation mode.
            pixels: uint8 ``(N, 1, H, W)``, without labels.
            labelled: uint8 ``(M, 1, H, W)``.
            seed: of the choice.
        """
        images = as_floats(pixels), as_floats(labelled)
        return Pool(model, *images, self.balls, self.radius, self.settings.n_passes, self.attack.batch_size, seed)


def learner_of(params: Params, data: Prepared, pixels: np.ndarray, device: torch.device) -> Learner:
    """A learner by the section ``active_learning``; its classifier takes images of this size.

    Args:
        params: all parameters.
        data: the prepared data set.
        pixels: training images in the size that is learned from, uint8 ``(n, 1, H, W)``.
        device: where to compute.

    Raises:
        ValueError: the classifier can't take images that small.
    """
    settings, known = params.active_learning, as_floats(pixels)
    learner = Learner(
        settings,
        params.train_classifier,
        params.attack,
        Balls(params.attack.norm, data.value_range),
        radius(settings.eps, params.attack.norm, pixels[0].size),
        len(data.classes),
        float(known.mean()),
        float(known.std()),
        device,
        params.compute.precision,
        params.seed,
    )
    try:
        with torch_seeded(params.seed):
            learner.build(pretrained=False).train()(torch.zeros(2, 1, *pixels.shape[2:]))
    except Exception as error:
        # networks refuse small images in many ways
        raise ValueError(
            f"active_learning.shrink {settings.shrink}: train_classifier.architecture "
            f"{params.train_classifier.architecture!r} can't take images of {pixels.shape[3]} x {pixels.shape[2]} "
            f"pixels ({error}); shrink less, or choose another architecture"
        ) from error
    return learner


def shrunk(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Images with squares of pixels averaged, uint8 ``(N, 1, H / factor, W / factor)``.

    Args:
        pixels: uint8 ``(N, 1, H, W)``, may be memory-mapped.
        factor: side of a square, which divides H and W.
    """
    n, _, height, width = pixels.shape
    small = np.empty((n, 1, height // factor, width // factor), dtype=np.uint8)
    for row in range(n):
        squares = pixels[row].reshape(1, height // factor, factor, width // factor, factor)
        small[row] = squares.mean(axis=(2, 4)).round().astype(np.uint8)
    return small
