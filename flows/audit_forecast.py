"""A forecast of the time of a pipeline or an audit: its parts, and their known costs."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from flows.attack_limits import max_gradients, max_queries
from tasks.attacks.effort import EFFORTS, doubled
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.compute import configure_torch
from tasks.params import UNDEFENDED, Params

USUAL_FRACTION = 0.2
"""Time of the attacks on CT slices, relative to its upper bound (docs/evidence/results.md)."""
N_IMAGES = 4
"""Images of the batch whose time is measured."""


@dataclass(frozen=True)
class Costs:
    """Seconds for one image on this machine."""

    prediction: float
    """A prediction of the classifier."""
    gradient: float
    """A gradient of the classifier's loss with respect to the image."""
    surrogates: tuple[float, ...]
    """A training step of each surrogate."""
    autoencoder: float
    """A training step of the autoencoder."""


@dataclass(frozen=True)
class Part:
    """A part of an audit."""

    step: str
    work: str
    seconds: float | None
    """None if the time is not known before the step runs."""


def measure_costs(model: nn.Module | None, params: Params) -> Costs:
    """Measure the costs with one small batch.

    Args:
        model: the imported classifier; None: that of ``train_classifier``.
        params: of the pipeline.
    """
    device = configure_torch(params.compute)
    n_channels, n_classes = params.prepare.channels, len(params.acquire.classes)
    shape = N_IMAGES, n_channels, *params.prepare.image_size
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.zeros(N_IMAGES, dtype=torch.int64, device=device)
    surrogates = [
        seconds_of_gradient(
            build_classifier(each.architecture, n_classes, 0.5, 0.25, n_channels=n_channels).to(device).train(),
            images,
            labels,
        )
        for each in params.train_surrogates
    ]
    autoencoder = build_autoencoder(params.train_autoencoder.architecture, n_channels).to(device).train()
    if model is None:
        model = build_classifier(params.train_classifier.architecture, n_classes, 0.5, 0.25, n_channels=n_channels)
    model = model.to(device).eval()
    with torch.inference_mode():
        prediction = seconds_per_image(lambda: model(images))
    # gradients of a classifier that is only queried are those of the surrogates
    has_gradients = getattr(model, "has_gradients", True)
    gradient = seconds_of_gradient(model, images, labels) if has_gradients else prediction + sum(surrogates)
    return Costs(prediction, gradient, tuple(surrogates), seconds_of_gradient(autoencoder, images, None))


def seconds_of_gradient(model: nn.Module, images: torch.Tensor, labels: torch.Tensor | None) -> float:
    """Seconds for one image of a forward and a backward pass; without labels the loss is the squared error."""

    def run() -> None:
        given = images.clone().requires_grad_()
        output = model(given)
        loss = functional.mse_loss(output, images) if labels is None else functional.cross_entropy(output, labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation

    return seconds_per_image(run)


def seconds_per_image(run: Callable[[], Any]) -> float:
    """The shorter time of two calls, divided by the number of images; the first call also allocates memory."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds) / N_IMAGES


def forecast(params: Params, n_images: int, costs: Costs) -> list[Part]:
    """Parts of a pipeline in the order of the steps. An audit has an imported classifier and no active learning.

    The times of attacks are upper bounds: a search ends early for images that an attack breaks. Not counted are the
    other backward passes of image transforms, fixed draws of random targets, PGD on 8-bit images, and attacks of ART.

    Args:
        params: of the pipeline.
        n_images: number of images of all splits.
        costs: from :func:`measure_costs`.
    """
    split = params.prepare.split
    n_test = round(n_images * split.test_fraction)
    n_train = n_images - n_test - round((n_images - n_test) * split.validation_fraction)
    n_attacked = min(n_test, params.attack.max_images or n_test)
    parts = [Part("acquire, validate, prepare", f"{n_images} images", None)]
    is_trained = params.classifier.source == "train"
    if is_trained:
        epochs = params.train_classifier.epochs
        work = f"{epochs} epochs, {n_train} images"
        parts.append(Part("train_classifier", work, epochs * n_train * costs.gradient))
    for number, (surrogate, cost) in enumerate(zip(params.train_surrogates, costs.surrogates, strict=True), 1):
        work = f"surrogate {number}: {surrogate.architecture}, {surrogate.epochs} epochs, {n_train} images"
        parts.append(Part("train_surrogates", work, surrogate.epochs * n_train * cost))
    epochs = params.train_autoencoder.epochs
    work = f"{epochs} epochs, {n_train} images"
    parts.append(Part("train_autoencoder", work, epochs * n_train * costs.autoencoder))
    for name in params.selected_defences:
        training = getattr(params.defences[name], "training", None)
        if training is not None:
            adversary = getattr(params.defences[name], "adversary", None)
            n_gradients = 1 + (adversary.pgd.n_steps * max(1, adversary.pgd.n_random_starts) if adversary else 0)
            seconds = training.epochs * n_train * n_gradients * (costs.autoencoder + costs.gradient)
            parts.append(Part(f"train_defence@{name}", f"{training.epochs} epochs, {n_train} images", seconds))
    n_gradients, n_queries, n_sampled_queries = passes_of_an_image(params)
    n_sampled = min(n_attacked, params.attack.max_black_box_images or n_attacked)
    for target in (UNDEFENDED, *params.selected_defences):
        purifier = costs.autoencoder if has_autoencoder(params, target) else 0.0
        seconds = n_attacked * n_gradients * (costs.gradient + purifier)
        # a forward pass is about a third of a training step
        n_predictions = n_attacked * n_queries + n_sampled * n_sampled_queries
        seconds += n_predictions * (costs.prediction + purifier / 3)
        step = "attack" if target == UNDEFENDED else f"attack_defence@{target}"
        work = f"{n_attacked} images, at most {n_gradients} gradients and {n_queries} queries each"
        parts.append(Part(step, work, seconds))
    if is_trained:
        n_trained = trained_images(params, n_train)
        cost = costs.gradient / params.active_learning.downsampling_factor**2
        parts.append(Part("simulate_labelling", f"trainings on {n_trained} images in all", n_trained * cost))
    return [*parts, Part("evaluate, analyze, report", f"{n_attacked} images", None)]


def has_autoencoder(params: Params, target: str) -> bool:
    """Return whether an autoencoder is before the classifier of a target. A plug-in counts as one."""
    defence = params.defences.get(target)
    if defence is None or getattr(defence, "applied_before", "") == "classifier":
        return False
    return defence.kind not in ("adversarial_training", "randomized_smoothing", "trades")


def trained_images(params: Params, n_train: int) -> int:
    """Largest number of images that all trainings of the active learning take together, once for each epoch."""
    settings = params.active_learning
    first, query = (round(share * n_train) for share in (settings.initial_set.fraction, settings.query_fraction))
    sizes = [min(first + cycle * query, n_train) for cycle in range(1, settings.n_cycles + 1)]
    of_cycles = (settings.warm_start_epochs or settings.training.epochs) * sum(sizes)
    of_functions = len(settings.compared_functions) * of_cycles
    return settings.n_seeds * (
        settings.training.epochs * first + of_functions + settings.reference_training.epochs * n_train
    )


def passes_of_an_image(params: Params) -> tuple[int, int, int]:
    """Largest numbers of passes that the attacks on a target spend on one image.

    Returns:
        Gradients; queries of Square, if the image survives; queries for the power of black-box attacks, if the image is
        in their sample.
    """
    settings, n_classes = params.attack, len(params.acquire.classes)
    stages, n_radii = EFFORTS[settings.effort], len(settings.eps)
    # as trained, recalibrated and, for two classes, at a fixed sensitivity; only one of them doubles the effort
    n_points = 3 if n_classes == 2 else 2
    n_searched = n_points * max_gradients(stages, n_radii, n_classes)
    n_searched += max_gradients([doubled(stages)], n_radii, n_classes)
    n_crafted = n_radii * (1 + settings.pgd.n_steps * max(1, settings.pgd.n_random_starts))
    n_square = sum(stage.square_queries for stage in stages) * n_radii if settings.norm == "linf" else 0
    return n_searched + n_crafted, n_points * n_square, n_points * max_queries(stages, n_radii)


def forecast_text(parts: list[Part]) -> str:
    """The parts as a table with their times, the sum of the known times, and the usual sum."""
    rows = [(part.step, part.work, "not known" if part.seconds is None else duration(part.seconds)) for part in parts]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{step:<{widths[0]}}  {work:<{widths[1]}}  {seconds}" for step, work, seconds in rows]
    known = [part for part in parts if part.seconds is not None]
    most = sum(part.seconds or 0 for part in known)
    usual = sum((part.seconds or 0) * (USUAL_FRACTION if "attack" in part.step else 1) for part in known)
    lines.append(
        f"Known parts together: at most {duration(most)}, usually about {duration(usual)}. Times of attacks are upper "
        f"bounds; on CT slices they took {100 * USUAL_FRACTION:.0f} % of them."
    )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    for limit, unit, divisor in ((100, "s", 1), (6000, "min", 60)):
        if seconds < limit:
            return f"{seconds / divisor:.1f} {unit}"
    return f"{seconds / 3600:.1f} h"
