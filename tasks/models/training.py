"""Training loop of all networks: resumable, reproducible, and without synchronisation with the host in its steps."""

import copy
import hashlib
import io
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from tasks.core.checkpoints import Checkpoints
from tasks.core.digests import digest_of_arrays, digest_of_model
from tasks.core.durable import rename_durably, write_bytes
from tasks.core.source import check_sources
from tasks.models.compute import autocast
from tasks.models.seeding import torch_seeded, uses_global_rng
from tasks.params import Precision, Training

Objective = Callable[[nn.Module, Tensor, Tensor, torch.Generator, float], dict[str, Tensor]]
"""``(model, images, labels, generator, progress) -> {"loss": scalar, other metrics: scalars}``, means over the batch.

Images are float32 ``(N, C, H, W)`` in [0, 1], labels int64 ``(N,)``. All randomness comes from the generator, except
for dropout and the like inside the network. Images are augmented only if ``model.training``. ``progress`` is the number
of the current epoch divided by the number of epochs, in (0, 1].
"""

InputTransform = Callable[[Tensor, torch.Generator], Tensor]
"""Transform of images ``(N, C, H, W)`` in [0, 1] to the input of the network.

All randomness comes from the generator.
"""


def no_transform(images: Tensor, _generator: torch.Generator) -> Tensor:
    """Return the images unchanged."""
    return images


EVALUATION_BATCH_SIZE = 128
DIGEST_BYTES = 32
"""A checkpoint begins with the SHA-256 of the bytes that follow."""
N_BATCH_NORM_IMAGES = 512
"""Training images on which the batch-norm statistics are computed after each epoch."""

log = logging.getLogger(__name__)


class TrainingDiverged(ValueError):
    """A training or validation loss is not finite."""


def fit(
    model: nn.Module,
    objective: Objective,
    pixels: np.ndarray,
    labels: np.ndarray,
    split_rows: dict[str, np.ndarray],
    settings: Training,
    seed: int,
    device: torch.device,
    precision: Precision,
    checkpoints: Checkpoints,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
    *frozen_networks: nn.Module,
    input_transform: InputTransform = no_transform,
) -> tuple[nn.Module, pd.DataFrame]:
    """Train a network with Adam and return the weights of the best epoch.

    The best epoch has the highest validation accuracy. For equal accuracies, or if the objective returns none, it has
    the lowest validation loss.

    The evaluated and returned weights are an exponential moving average (Polyak averaging). Its batch-norm statistics
    are computed on training images after each epoch. The running statistics of small batches lag behind the weights:
    with them, the accuracy would drop to that of guessing in some epochs.

    Args:
        model: network to train; it is changed in place.
        objective: function that returns the loss and the metrics of a batch.
        pixels: uint8 ``(N, C, H, W)``, may be memory-mapped; scaled to [0, 1] here.
        labels: true classes, int64 ``(N,)``.
        split_rows: row numbers of the images of ``train`` and ``validation``.
        settings: epochs, batch size, learning rate and so on.
        seed: seed of the order of the images and of the random numbers of the objective.
        device: device of the training.
        precision: precision of convolutions and matrix products in training steps; evaluation is in float32.
        checkpoints: checkpoints of the step. The state is saved after every epoch; a killed training resumes from it.
        on_epoch: called after every epoch with its number, from 1, and its metrics.
        frozen_networks: further networks that the objective uses; they are part of the name of the checkpoint.
        input_transform: transform that the objective applies to the images before the network, if it changes their
            distribution; batch-norm statistics are computed on its output.

    Returns:
        The network of the best epoch and the history. The network is in evaluation mode, on the CPU, with frozen
        parameters. The history has a row for each epoch: ``epoch``, ``train_*`` and ``validation_*`` metrics,
        ``learning_rate``, and ``best`` (1 for the best epoch, otherwise 0).

    Raises:
        TrainingDiverged: a loss is not finite. The checkpoint then holds the state after the previous epoch.
    """
    state = _State(model.to(device=device, memory_format=torch.channels_last), settings)  # type: ignore[call-overload]  # torch's stub
    batches = _BatchLoader(pixels, labels, device)
    checkpoint = checkpoints.path(
        training=[type(settings).__name__, settings.model_dump(mode="json"), seed, precision],
        images=digest_of_arrays(pixels, labels, split_rows["train"], split_rows["validation"]),
        networks=[digest_of_model(network) for network in (model, *frozen_networks)],
    ).with_suffix(".pt")
    images, _ = next(batches.full_size_batches(split_rows["train"], settings.batch_size))
    is_random = uses_global_rng(state.averaged, input_transform(images, torch.Generator(device).manual_seed(0)))
    state.load(checkpoint)

    while not state.is_finished:
        epoch = len(state.history) + 1
        # a seed for each epoch, so that a resumed training draws the same numbers as an uninterrupted one
        epoch_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        generator = torch.Generator(device).manual_seed(epoch_seed)
        order = np.random.default_rng(epoch_seed).permutation(split_rows["train"])
        learning_rate = _learning_rate(settings, epoch)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate

        with torch_seeded(epoch_seed) if is_random else nullcontext():
            train_metrics, losses = _train_epoch(state, objective, batches, order, generator, precision)
            if not math.isfinite(train_metrics["loss"]):
                step = int((~losses.isfinite()).int().argmax())
                problem = f"the training loss is {losses[step]:g} at step {step + 1}"
                raise _divergence_error(problem, epoch, settings, checkpoint)
            batch_norm_rows = np.random.default_rng(seed).permutation(split_rows["train"])[:N_BATCH_NORM_IMAGES]
            generator.manual_seed(0)
            # batch norm needs more than one image
            if len(batch_norm_rows) % EVALUATION_BATCH_SIZE == 1:
                batch_norm_rows = batch_norm_rows[:-1]
            batch_norm_batches = batches.batches(batch_norm_rows, EVALUATION_BATCH_SIZE)
            update_bn((input_transform(images, generator) for images, _ in batch_norm_batches), state.averaged)
            validation_metrics = evaluate(state.averaged, objective, batches, split_rows["validation"])
            # the last training step of an epoch can diverge, and no training loss shows it
            if not math.isfinite(validation_metrics["loss"]):
                problem = f"the validation loss is {validation_metrics['loss']:g}"
                raise _divergence_error(problem, epoch, settings, checkpoint)

        row = {"epoch": epoch, "learning_rate": learning_rate}
        row |= {f"train_{name}": value for name, value in train_metrics.items()}
        row |= {f"validation_{name}": value for name, value in validation_metrics.items()}
        state.end_epoch(row)
        check_sources("the training")
        state.save(checkpoint)
        metrics_text = "  ".join(f"{name} {row[name]:.4f}" for name in row if name not in {"epoch", "learning_rate"})
        log.info("epoch %d/%d  %s", epoch, settings.epochs, metrics_text)
        on_epoch(epoch, {name: value for name, value in row.items() if name != "epoch"})

    model.load_state_dict(state.best)
    frame = pd.DataFrame(state.history)
    frame["best"] = (frame.index == _best_epoch(state.history)).astype(int)
    return model.eval().requires_grad_(False).cpu(), frame


class _State:
    """All that changes during a training. A checkpoint holds it after the last finished epoch."""

    def __init__(self, model: nn.Module, settings: Training) -> None:
        self.model = model
        self.settings = settings
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
        self.n_steps = 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = copy.deepcopy(self.averaged.state_dict())

    @property
    def is_finished(self) -> bool:
        """All epochs have run, or the last ``early_stopping_patience`` epochs brought no improvement."""
        n_epochs, patience = len(self.history), self.settings.early_stopping_patience
        has_stopped = patience and n_epochs and n_epochs - 1 - _best_epoch(self.history) >= patience
        return bool(n_epochs >= self.settings.epochs or has_stopped)

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Add an epoch to the history; keep the averaged weights if it is the best."""
        if all(_selection_key(row) < _selection_key(earlier) for earlier in self.history):
            self.best = copy.deepcopy(self.averaged.state_dict())
        self.history.append(row)

    def save(self, path: Path) -> None:
        """Write the checkpoint."""
        networks = {name: getattr(self, name).state_dict() for name in ("model", "averaged", "optimizer")}
        values = networks | {"n_steps": self.n_steps, "history": self.history, "best": self.best}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        # in memory first: torch's error about a full disk is no OSError
        torch.save(values, content := io.BytesIO())
        write_bytes(partial, hashlib.sha256(content.getbuffer()).digest(), content.getbuffer())
        rename_durably(partial, path)

    def load(self, path: Path) -> None:
        """Continue from the checkpoint, if there is one and it is not damaged."""
        if not path.exists():
            return
        content = path.read_bytes()
        digest, values = content[:DIGEST_BYTES], memoryview(content)[DIGEST_BYTES:]
        if hashlib.sha256(values).digest() != digest:
            log.warning("The checkpoint %s is damaged: the training starts from the beginning", path)
            return
        loaded: dict[str, Any] = torch.load(io.BytesIO(values), weights_only=True, map_location="cpu")
        for name in ("model", "averaged", "optimizer"):
            getattr(self, name).load_state_dict(loaded[name])
        self.n_steps, self.history, self.best = loaded["n_steps"], loaded["history"], loaded["best"]
        log.info("resumed after epoch %d", len(self.history))


def _train_epoch(
    state: _State,
    objective: Objective,
    batches: "_BatchLoader",
    order: np.ndarray,
    generator: torch.Generator,
    precision: Precision,
) -> tuple[dict[str, float], Tensor]:
    """Train on all images in this order.

    Returns:
        The mean metrics of the epoch, and the loss of each step, followed by zeros.
    """
    settings, model = state.settings, state.model.train()
    weights: list[Tensor] = list(model.parameters())
    averages: list[Tensor] = list(state.averaged.parameters())
    progress = (len(state.history) + 1) / settings.epochs
    # one tensor for all losses, since many small tensors between large ones fragment the heap
    means, losses = _MeanMetrics(), torch.zeros(len(order), device=batches.device)
    for step, (images, labels) in enumerate(batches.full_size_batches(order, settings.batch_size)):
        with autocast(precision, batches.device):
            metrics = objective(model, images, labels, generator, progress)
        state.optimizer.zero_grad()
        metrics["loss"].backward()  # type: ignore[no-untyped-call]  # torch's annotation
        state.optimizer.step()
        _update_ema(averages, weights, settings.ema_decay, state.n_steps)
        state.n_steps += 1
        means.update(metrics, len(images))
        losses[step] = metrics["loss"].detach()
    return means.compute(), losses


def evaluate(model: nn.Module, objective: Objective, batches: "_BatchLoader", rows: np.ndarray) -> dict[str, float]:
    """Return the mean metrics of the objective over some images, with the same random numbers at every call."""
    model.eval()
    generator = torch.Generator(batches.device).manual_seed(0)
    means = _MeanMetrics()
    with torch.no_grad():
        for images, labels in batches.batches(rows, EVALUATION_BATCH_SIZE):
            # progress 1 selects the objective of the last epoch
            means.update(objective(model, images, labels, generator, 1.0), len(images))
    return means.compute()


class _BatchLoader:
    """Loader of batches of float images from uint8 pixels.

    On the CPU the pixels stay in their memory map. An accelerator holds them all, 50 kB for an image of 224 x 224.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, device: torch.device) -> None:
        self.device = device
        self.labels = torch.tensor(labels, device=device)
        self.pixels = pixels
        self.device_pixels = None if device.type == "cpu" else torch.from_numpy(np.array(pixels)).to(device)

    def batches(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images ``(N, C, H, W)`` in [0, 1] and labels ``(N,)`` of these rows in order."""
        # copied once for all batches, since each copy to an accelerator synchronises the host
        index = torch.from_numpy(rows).to(self.device)
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            if self.device_pixels is None:
                batch = torch.from_numpy(self.pixels[rows[part]])
            else:
                batch = self.device_pixels[index[part]]
            yield batch.float().div_(255), self.labels[index[part]]

    def full_size_batches(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches, without an incomplete last batch unless it is the only one."""
        yield from self.batches(rows[: max(len(rows) // batch_size, 1) * batch_size], batch_size)


class _MeanMetrics:
    """Means of metrics over all images of an epoch; sums stay on the device, so that no step waits for the host."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.n_images = 0

    def update(self, metrics: dict[str, Tensor], n_images: int) -> None:
        for name, value in metrics.items():
            self.totals[name] = self.totals.get(name, torch.zeros((), device=value.device)) + value.detach() * n_images
        self.n_images += n_images

    def compute(self) -> dict[str, float]:
        return {name: float(total) / self.n_images for name, total in self.totals.items()}


@torch.no_grad()
def _update_ema(averages: list[Tensor], weights: list[Tensor], decay: float, n_steps: int) -> None:
    """Update the exponential moving average after a step; the first steps use a smaller decay."""
    weight_of_step = 1 - min(decay, (1 + n_steps) / (10 + n_steps)) if n_steps else 1.0
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, weight_of_step)


def _learning_rate(settings: Training, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 1."""
    if settings.learning_rate_schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / settings.epochs))


def _best_epoch(history: list[dict[str, Any]]) -> int:
    """Return the index of the best epoch; of equal epochs the earliest."""
    return min(range(len(history)), key=lambda index: _selection_key(history[index]))


def _selection_key(row: dict[str, Any]) -> tuple[float, float]:
    """Return the sort key of an epoch; the best epoch has the smallest key."""
    return -row.get("validation_accuracy", 0.0), row["validation_loss"]


def _divergence_error(problem: str, epoch: int, settings: Training, checkpoint: Path) -> TrainingDiverged:
    saved = f"{checkpoint} holds the state after epoch {epoch - 1}" if epoch > 1 else "No earlier epoch was saved"
    return TrainingDiverged(
        f"{problem} of epoch {epoch} of {settings.epochs}. {saved}. Lower learning_rate ({settings.learning_rate:g}) "
        "and run the step again; the training then starts from the beginning"
    )
