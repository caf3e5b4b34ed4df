"""The classifier of active learning: how it is built, trained, attacked and evaluated."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tasks.attacks.gradient.norm_ball import NormBall, radius
from tasks.attacks.gradient.pgd import pgd
from tasks.attacks.sweep import pgd_sweep
from tasks.core.checkpoints import Checkpoints
from tasks.dataset.prepared import Prepared, as_floats
from tasks.labelling.acquisition import Pool, predict_probabilities
from tasks.labelling.dropout import Dropout, set_dropout_generator
from tasks.models.classifier import build_classifier, check_image_size
from tasks.models.features import classification_head
from tasks.models.files import load_model
from tasks.models.objectives import classification_objective
from tasks.models.seeding import build_seeded
from tasks.models.training import fit
from tasks.params import ActiveLearning, Attack, Params, Precision, TrainClassifier

CODE = (
    *("attacks/batch.py", "attacks/deepfool.py", "attacks/gradient", "attacks/sweep.py", "dataset/prepared.py"),
    *("defences/randomness.py", "labelling", "models", "records/perturbation_norms.py"),
)
"""Packages and modules that can change a classifier, its predictions or a query; parts of every checkpoint."""
N_SELECTION_IMAGES = 128
"""Labelled images, at most, that select the best epoch of a cycle; labels of validation images would count."""


@dataclass(frozen=True)
class Learner:
    """Settings of the classifier, which are the same in all cycles.

    Args:
        settings: the section ``active_learning``.
        classifier: architecture and augmentation.
        attack: settings of PGD, and the batch size.
        ball: norm and value range of the attacks.
        radius: of the attacks, in units of the value range.
        n_classes: K.
        mean: of the training pixels, in [0, 1].
        std: standard deviation of the training pixels.
        channel_argument: of the classifier; see :class:`tasks.dataset.prepared.Prepared`.
        device: of all computations.
        precision: of the training.
        seed: of the attacks on test images.
    """

    settings: ActiveLearning
    classifier: TrainClassifier
    attack: Attack
    ball: NormBall
    radius: float
    n_classes: int
    mean: float
    std: float
    channel_argument: dict[str, int]
    device: torch.device
    precision: Precision
    seed: int

    def build(self, pretrained: bool) -> nn.Module:
        """Return the classifier of ``train_classifier`` with :class:`Dropout` before its head."""
        model = build_classifier(
            self.classifier.architecture, self.n_classes, self.mean, self.std, pretrained, **self.channel_argument
        )
        head = classification_head(model)
        name = next(name for name, module in model.named_modules() if module is head)
        model.set_submodule(name, nn.Sequential(Dropout(self.settings.dropout), head))
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Dropout):
                model.set_submodule(name, Dropout(module.p))
        return model

    def load(self, path: Path) -> nn.Module:
        """Return a saved classifier on the device, in evaluation mode, parameters frozen."""
        return load_model(path, partial(self.build, pretrained=False)).to(self.device)

    def train(
        self,
        pixels: np.ndarray,
        labels: np.ndarray,
        previous: nn.Module | None,
        seed: int,
        checkpoints: Checkpoints,
        held_out: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[nn.Module, int]:
        """Train a classifier; keep the epoch with the best accuracy on ``N_SELECTION_IMAGES`` of the images.

        Args:
            pixels: uint8 ``(n, C, H, W)``.
            labels: that the oracle assigned, int64 ``(n,)``.
            previous: classifier of the cycle before, for a warm start; it is changed. Without it, or if
                ``warm_start_epochs`` is 0, the training starts from initial weights.
            seed: of the training and of random initial weights.
            checkpoints: from which a killed training resumes; their folder is deleted after the training.
            held_out: images and labels that select the best epoch of the reference, which is trained with
                ``reference_training``. If there are no such images, labelled images select the epoch. None: a training
                of a cycle.

        Returns:
            The classifier on the device, in evaluation mode, parameters frozen, and its number of epochs.
        """
        training = self.settings.training if held_out is None else self.settings.reference_training
        if previous is not None and self.settings.warm_start_epochs:
            model = previous.requires_grad_(True)
            training = training.model_copy(update={"epochs": self.settings.warm_start_epochs})
        else:
            model = build_seeded(partial(self.build, self.classifier.pretrained), seed)
        rows = np.arange(len(labels))
        selection = np.random.default_rng(seed).permutation(rows)[:N_SELECTION_IMAGES]
        if held_out is not None and len(held_out[1]):
            selection = len(rows) + np.arange(len(held_out[1]))
            pixels, labels = (np.concatenate(parts) for parts in zip((pixels, labels), held_out, strict=True))
        cross_entropy = classification_objective(self.classifier.augmentation)

        def objective(
            model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float
        ) -> dict[str, Tensor]:
            # the averaged weights keep no generator: batch norm is measured in training mode, without dropout
            if model.training:
                set_dropout_generator(model, generator)
            return cross_entropy(model, images, labels, generator, progress)

        splits = {"train": rows, "validation": selection}
        how = training, seed, self.device, self.precision, checkpoints
        model, history = fit(model, objective, pixels, labels, splits, *how)
        shutil.rmtree(checkpoints.folder)
        return model.to(self.device), len(history)

    def attack_images(self, model: nn.Module, pixels: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
        """Return PGD examples rounded to 8 bits, uint8 ``(n, C, H, W)``."""
        adversarial = np.empty_like(pixels)
        for start in range(0, len(pixels), self.attack.batch_size):
            part = slice(start, start + self.attack.batch_size)
            images = torch.from_numpy(as_floats(pixels[part])).to(self.device)
            targets = torch.tensor(labels[part], device=self.device)
            rows = np.arange(len(labels))[part]
            (perturbed,) = pgd(model, images, targets, [self.radius], self.ball, self.attack.pgd, seed, rows)
            adversarial[part] = (perturbed.cpu().numpy() * 255).round().astype(np.uint8)
        return adversarial

    def evaluate(self, model: nn.Module, pixels: np.ndarray, labels: np.ndarray, attacked: np.ndarray) -> pd.DataFrame:
        """Return one row for each image: ``prediction``, ``confidence``, and ``robust_correct``.

        ``robust_correct`` is 1 for a correct prediction with and without PGD, 0 otherwise, and NaN for an image that
        was not attacked.

        Args:
            model: on the device, in evaluation mode.
            pixels: uint8 ``(n, C, H, W)``.
            labels: true labels, int64 ``(n,)``.
            attacked: positions of the images to attack, ascending.
        """
        images = as_floats(pixels)
        probabilities = predict_probabilities(model, images, self.attack.batch_size)
        sweep = pgd_sweep(
            model,
            images[attacked],
            labels[attacked],
            np.array([self.radius]),
            self.ball,
            self.attack.batch_size,
            self.attack.pgd.n_steps,
            self.attack.pgd.relative_step_size,
            self.attack.pgd.n_random_starts,
            self.seed,
            attacked,
        )
        robust_correct = np.full(len(labels), np.nan)
        robust_correct[attacked] = sweep.index == 1
        predictions = {"prediction": probabilities.argmax(axis=1), "confidence": probabilities.max(axis=1)}
        return pd.DataFrame(predictions | {"robust_correct": robust_correct})

    def pool(self, model: nn.Module, pixels: np.ndarray, labelled: np.ndarray, seed: int) -> Pool:
        """Return the pool for the acquisition functions.

        Args:
            model: on the device, in evaluation mode.
            pixels: images without a label, uint8 ``(N, C, H, W)``.
            labelled: images of the labelled set, uint8 ``(M, C, H, W)``.
            seed: of the choice.
        """
        images = as_floats(pixels), as_floats(labelled)
        return Pool(
            model, *images, self.ball, self.radius, self.settings.n_dropout_samples, self.attack.batch_size, seed
        )


def build_learner(params: Params, data: Prepared, pixels: np.ndarray, device: torch.device) -> Learner:
    """Return a learner by the section ``active_learning``, for images of the size of ``pixels``.

    Args:
        params: all parameters.
        data: the prepared data set.
        pixels: downsampled training images, uint8 ``(n, C, H, W)``.
        device: of all computations.

    Raises:
        ValueError: the classifier does not accept images of this size.
    """
    settings, images = params.active_learning, as_floats(pixels)
    learner = Learner(
        settings,
        params.train_classifier,
        params.attack,
        NormBall(params.attack.norm, data.value_range),
        radius(settings.eps, params.attack.norm, pixels[0].size),
        len(data.classes),
        float(images.mean()),
        float(images.std()),
        data.channel_argument,
        device,
        params.compute.precision,
        params.seed,
    )
    architecture, (n_channels, height, width) = params.train_classifier.architecture, pixels.shape[1:]
    reduced = "active_learning.downsampling_factor"
    check_image_size("train_classifier.architecture", architecture, (height, width), reduced, n_channels)
    return learner
