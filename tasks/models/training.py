"""The training loop of every network: resumable, reproducible, without host synchronisation in its steps."""

import copy
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
from tasks.models.compute import in_precision
from tasks.models.seeding import draws_globally, torch_seeded
from tasks.params import Precision, Training

Objective = Callable[[nn.Module, Tensor, Tensor, torch.Generator, float], dict[str, Tensor]]
"""``(model, images, labels, generator, progress) -> {"loss": scalar, other metrics: scalars}``, means over the batch.

Images are float32 ``(B, C, H, W)`` in [0, 1], labels int64 ``(B,)``. Randomness comes from the generator alone, except
for draws inside the network; images are augmented only if ``model.training``. ``progress`` is the fraction of the
epochs that is completed by the current one, in (0, 1].
"""

InputTransform = Callable[[Tensor, torch.Generator], Tensor]
"""Images ``(B, C, H, W)`` in [0, 1] to the input of the network; randomness comes from the generator alone."""


def no_transform(images: Tensor, _generator: torch.Generator) -> Tensor:
    """Return the images unchanged."""
    return images


EVALUATION_BATCH = 128
STATISTICS_IMAGES = 512
"""Training images on which the batch-norm statistics are measured after each epoch."""

log = logging.getLogger(__name__)


class TrainingDiverged(ValueError):
    """The loss is not finite."""


def fit(
    model: nn.Module,
    objective: Objective,
    pixels: np.ndarray,
    labels: np.ndarray,
    rows: dict[str, np.ndarray],
    settings: Training,
    seed: int,
    device: torch.device,
    precision: Precision,
    checkpoints: Checkpoints,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
    *others: nn.Module,
    input_transform: InputTransform = no_transform,
) -> tuple[nn.Module, pd.DataFrame]:
    """Train with Adam and keep the best epoch.

    The best epoch has the highest validation accuracy, if the objective returns one, and then the lowest validation
    loss.

    The evaluated and kept weights are an exponential moving average (Polyak averaging). Its batch-norm statistics are
    measured on training images after each epoch: running statistics of batches of 16 lag far behind the weights, and
    accuracy would then fall to chance in some epochs.

    Args:
        model: network to train; it is changed.
        objective: loss and metrics of a batch.
        pixels: uint8 ``(N, C, H, W)``, may be memory-mapped; scaled to [0, 1] here.
        labels: int64 ``(N,)``.
        rows: row numbers of ``train`` and ``validation``.
        settings: epochs, batch size, learning rate and so on.
        seed: of the order of the images and of the objective's randomness.
        device: where to train.
        precision: of convolutions and matrix products in training steps; evaluation is in float32.
        checkpoints: of the step; the state is saved after every epoch, and a killed training resumes from it.
        on_epoch: called after every epoch with its number from 1 and its metrics.
        others: further networks that the objective uses; they are part of the checkpoint's digest.
        input_transform: transform that the objective applies to the images before the network, if it changes their
            distribution; batch-norm statistics are measured on its output.

    Returns:
        The kept network in evaluation mode on the CPU, and the history: one row for each epoch with ``epoch``,
        ``train_*`` and ``validation_*`` metrics, ``learning_rate``, and ``best`` (1 for the epoch that was kept).

    Raises:
        TrainingDiverged: a loss is not finite; the checkpoint holds the epoch before.
        ValueError: the checkpoint is damaged.
    """
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    averaged = copy.deepcopy(model).requires_grad_(False)
    weights: list[Tensor] = list(model.parameters())
    averages: list[Tensor] = list(averaged.parameters())
    n_steps = 0
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    batches = _Batches(pixels, labels, device)
    checkpoint = checkpoints.path(
        training=[type(settings).__name__, settings.model_dump(mode="json"), seed, precision],
        images=digest_of_arrays(pixels, labels, rows["train"], rows["validation"]),
        networks=[digest_of_model(network) for network in (model, *others)],
    ).with_suffix(".pt")
    history: list[dict[str, Any]] = []
    best = copy.deepcopy(averaged.state_dict())
    a_batch, _ = next(batches.full(rows["train"], settings.batch_size))
    is_random = draws_globally(averaged, input_transform(a_batch, torch.Generator(device).manual_seed(0)))

    if state := _load_checkpoint(checkpoint):
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        n_steps, history, best = state["n_steps"], state["history"], state["best"]
        log.info("resumed after epoch %d", len(history))

    while len(history) < settings.epochs and not _stalled(history, settings.early_stopping):
        epoch = len(history) + 1
        # a seed for each epoch, so that a resumed training draws what an undisturbed one draws
        epoch_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        generator = torch.Generator(device).manual_seed(epoch_seed)
        order = np.random.default_rng(epoch_seed).permutation(rows["train"])
        learning_rate = _learning_rate(settings, epoch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        with torch_seeded(epoch_seed) if is_random else nullcontext():
            model.train()
            # one tensor for all losses: many small tensors between large ones would fragment the heap
            sums, losses = _Sums(), torch.zeros(len(order), device=device)
            for step, (images, batch_labels) in enumerate(batches.full(order, settings.batch_size)):
                with in_precision(precision, device):
                    metrics = objective(model, images, batch_labels, generator, epoch / settings.epochs)
                optimizer.zero_grad()
                metrics["loss"].backward()  # type: ignore[no-untyped-call]  # torch's annotation
                optimizer.step()
                _move_averages(averages, weights, settings.ema_decay, n_steps)
                n_steps += 1
                sums.add(metrics, len(images))
                losses[step] = metrics["loss"].detach()
            train_metrics = sums.means()
            if not math.isfinite(train_metrics["loss"]):
                step = int((~losses.isfinite()).int().argmax())
                raise _diverged(
                    f"the training loss is {losses[step]:g} at step {step + 1}", epoch, settings, checkpoint
                )
            measured = np.random.default_rng(seed).permutation(rows["train"])[:STATISTICS_IMAGES]
            generator.manual_seed(0)
            update_bn(
                (input_transform(images, generator) for images, _ in batches.all(measured, EVALUATION_BATCH)), averaged
            )
            validation_metrics = evaluate(averaged, objective, batches, rows["validation"])
            # the loss may diverge in the last step of an epoch
            if not math.isfinite(validation_metrics["loss"]):
                raise _diverged(f"the validation loss is {validation_metrics['loss']:g}", epoch, settings, checkpoint)

        row = {"epoch": epoch, "learning_rate": learning_rate}
        row |= {f"train_{name}": value for name, value in train_metrics.items()}
        row |= {f"validation_{name}": value for name, value in validation_metrics.items()}
        if all(_rank(row) < _rank(earlier) for earlier in history):
            best = copy.deepcopy(averaged.state_dict())
        history.append(row)
        _save_checkpoint(
            checkpoint,
            {
                "model": model.state_dict(),
                "averaged": averaged.state_dict(),
                "optimizer": optimizer.state_dict(),
                "n_steps": n_steps,
                "history": history,
                "best": best,
            },
        )
        log.info("epoch %d/%d  %s", epoch, settings.epochs, _describe(row))
        on_epoch(epoch, {name: value for name, value in row.items() if name != "epoch"})

    model.load_state_dict(best)
    frame = pd.DataFrame(history)
    frame["best"] = (frame.index == _best_epoch(history)).astype(int)
    return model.eval().requires_grad_(False).cpu(), frame


def evaluate(model: nn.Module, objective: Objective, batches: "_Batches", rows: np.ndarray) -> dict[str, float]:
    """Means of the objective's metrics over some images, with the same random numbers at every call."""
    model.eval()
    generator = torch.Generator(batches.device).manual_seed(0)
    sums = _Sums()
    with torch.no_grad():
        for images, labels in batches.all(rows, EVALUATION_BATCH):
            # progress 1: the objective of the last epoch
            sums.add(objective(model, images, labels, generator, 1.0), len(images))
    return sums.means()


class _Batches:
    """Batches of float images from uint8 pixels, which stay in their memory map if the device is the CPU."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, device: torch.device) -> None:
        self.device = device
        self.labels = torch.tensor(labels, device=device)
        # an accelerator holds the whole set: 50 kB an image at 224 x 224
        self.resident = None if device.type == "cpu" else torch.from_numpy(np.array(pixels)).to(device)
        self.pixels = pixels

    def all(self, rows: np.ndarray, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        # copied once for all batches, since each copy to an accelerator synchronises the host
        index = torch.from_numpy(rows).to(self.device)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            chosen = torch.from_numpy(self.pixels[rows[part]]) if self.resident is None else self.resident[index[part]]
            yield chosen.float().div_(255), self.labels[index[part]]

    def full(self, rows: np.ndarray, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one size; the incomplete last batch is dropped unless it is the only one."""
        yield from self.all(rows[: max(len(rows) // size, 1) * size], size)


class _Sums:
    """Means over an epoch, summed on the device so that no step waits for the host."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.n_images = 0

    def add(self, metrics: dict[str, Tensor], n_images: int) -> None:
        for name, value in metrics.items():
            self.totals[name] = self.totals.get(name, torch.zeros((), device=value.device)) + value.detach() * n_images
        self.n_images += n_images

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.n_images for name, total in self.totals.items()}


@torch.no_grad()
def _move_averages(averages: list[Tensor], weights: list[Tensor], decay: float, n_steps: int) -> None:
    # a smaller decay in the first steps, so that the initial weights lose their weight soon
    share = 1 - min(decay, (1 + n_steps) / (10 + n_steps)) if n_steps else 1.0
    torch._foreach_lerp_(averages, weights, share)


def _learning_rate(settings: Training, epoch: int) -> float:
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / settings.epochs))


def _stalled(history: list[dict[str, Any]], patience: int) -> bool:
    return bool(patience and history) and len(history) - 1 - _best_epoch(history) >= patience


def _best_epoch(history: list[dict[str, Any]]) -> int:
    """Index of the best epoch; of equal epochs the earliest."""
    return min(range(len(history)), key=lambda epoch: _rank(history[epoch]))


def _rank(row: dict[str, Any]) -> tuple[float, float]:
    """Sort key of an epoch; smaller is better."""
    return -row.get("validation_accuracy", 0.0), row["validation_loss"]


def _diverged(what: str, epoch: int, settings: Training, checkpoint: Path) -> TrainingDiverged:
    kept = f"{checkpoint} holds the state after epoch {epoch - 1}" if epoch > 1 else "No earlier epoch was saved"
    return TrainingDiverged(
        f"{what} of epoch {epoch} of {settings.epochs}. {kept}. Lower learning_rate ({settings.learning_rate:g}) and "
        "run the step again; the training then starts from the beginning"
    )


def _save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _load_checkpoint(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        # torch raises many types of exceptions for damaged files and for pickles of other objects
        raise ValueError(
            f"{path}: damaged, or not a training checkpoint ({type(error).__name__}). Delete it; the training then "
            "starts from the beginning"
        ) from error
    return state


def _describe(row: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in {"epoch", "learning_rate"})
