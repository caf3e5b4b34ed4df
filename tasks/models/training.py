"""The training loop that every network shares: resumable, reproducible, free of host synchronisation in its steps."""

import copy
import hashlib
import inspect
import json
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

from tasks.core.digests import digest_of_arrays, digest_of_model
from tasks.models.compute import in_precision
from tasks.models.seeding import draws_globally, torch_seeded
from tasks.params import Precision, Training

Objective = Callable[[nn.Module, Tensor, Tensor, torch.Generator, float], dict[str, Tensor]]
"""``(model, images, labels, generator, progress) -> {"loss": scalar, other metrics: scalars}``, means over the batch.

Images are float32 ``(B, 1, H, W)`` in [0, 1], labels int64 ``(B,)``. Randomness comes from the generator alone, but
for what is drawn inside the network; ``model.training`` tells whether to augment. ``progress`` is the share of the
epochs that are done once this one is, in (0, 1].
"""

Seen = Callable[[Tensor, torch.Generator], Tensor]
"""Images ``(B, 1, H, W)`` in [0, 1] to what a network is shown of them; randomness comes from the generator alone."""


def as_they_are(images: Tensor, _generator: torch.Generator) -> Tensor:
    """The images themselves."""
    return images


EVALUATION_BATCH = 128
STATISTICS_IMAGES = 512
"""Training images on which batch-norm statistics are measured after each epoch."""

log = logging.getLogger(__name__)


class TrainingDiverged(ValueError):
    """The loss is no longer finite."""


class UncompiledAdam(torch.optim.Adam):
    """Torch's Adam, bit by bit, without what imports torch's compiler (a second) to keep it away from the methods."""

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


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
    checkpoint: Path,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
    *others: nn.Module,
    seen: Seen = as_they_are,
) -> tuple[nn.Module, pd.DataFrame]:
    """Train with Adam and keep the best epoch.

    The best epoch has the highest validation accuracy, if the objective tells one, and then the lowest validation loss.

    What is evaluated and kept is an exponential moving average of the weights (Polyak averaging) whose batch-norm
    statistics are measured anew on training images, as the network sees them: the running statistics of batches of 16
    lag so far behind the weights that a naive loop falls to chance now and then.

    Args:
        model: network to begin with; it is changed.
        objective: loss and metrics of a batch.
        pixels: uint8 ``(N, 1, H, W)``, may be memory-mapped; scaled to [0, 1] here.
        labels: int64 ``(N,)``.
        rows: row numbers of ``train`` and ``validation``.
        settings: epochs, batch size, learning rate and the like.
        seed: of the order of images and of the objective's randomness.
        device: where to train.
        precision: of convolutions and matrix products in steps; the averaged weights are measured in float32.
        checkpoint: file that is written after every epoch, and from which a killed training goes on.
        on_epoch: called after every epoch with its number from 1 and its metrics.
        others: networks that the objective uses, by which a checkpoint is known too.
        seen: what the objective shows the network of images, where that is far from the images.

    Returns:
        The kept network in evaluation mode on the CPU, and the history: a row an epoch with ``epoch``,
        ``train_*`` and ``validation_*`` metrics, ``learning_rate``, and ``best`` (1 for the epoch that was kept).

    Raises:
        TrainingDiverged: a loss is not finite; the checkpoint is that of the epoch before.
        ValueError: the checkpoint is damaged.
    """
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    averaged = copy.deepcopy(model).requires_grad_(False)
    weights: list[Tensor] = list(model.parameters())
    averages: list[Tensor] = list(averaged.parameters())
    n_steps = 0
    optimizer = UncompiledAdam(model.parameters(), lr=settings.learning_rate, fused=True)
    batches = _Batches(pixels, labels, device)
    fingerprint = _fingerprint(settings, seed, precision, pixels, labels, rows, [model, *others])
    history: list[dict[str, Any]] = []
    best = copy.deepcopy(averaged.state_dict())
    a_batch, _ = next(batches.full(rows["train"], settings.batch_size))
    is_random = draws_globally(averaged, seen(a_batch, torch.Generator(device).manual_seed(0)))

    if state := _load_checkpoint(checkpoint, fingerprint):
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
            # one tensor for all: a small one of each step would lie between large ones, and the heap would grow
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
            update_bn((seen(images, generator) for images, _ in batches.all(measured, EVALUATION_BATCH)), averaged)
            validation_metrics = evaluate(averaged, objective, batches, rows["validation"])
            # the last step of an epoch may have been the one that went too far
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
                "fingerprint": fingerprint,
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
    """Means of the objective's metrics over the given rows; the same randomness at every call."""
    model.eval()
    generator = torch.Generator(batches.device).manual_seed(0)
    sums = _Sums()
    with torch.no_grad():
        for images, labels in batches.all(rows, EVALUATION_BATCH):
            # judged by what the last epochs are trained for
            sums.add(objective(model, images, labels, generator, 1.0), len(images))
    return sums.means()


class _Batches:
    """Batches of float images from uint8 pixels that stay where they are (a memory map on the CPU)."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, device: torch.device) -> None:
        self.device = device
        self.labels = torch.tensor(labels, device=device)
        # on an accelerator the whole set is resident: 50 kB an image at 224 x 224
        self.resident = None if device.type == "cpu" else torch.from_numpy(np.array(pixels)).to(device)
        self.pixels = pixels

    def all(self, rows: np.ndarray, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        # sent once for all batches: at every copy to an accelerator the host waits for what is queued there
        index = torch.from_numpy(rows).to(self.device)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            chosen = torch.from_numpy(self.pixels[rows[part]]) if self.resident is None else self.resident[index[part]]
            yield chosen.float().div_(255), self.labels[index[part]]

    def full(self, rows: np.ndarray, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one size; the rest of an epoch is left out, as batch norm wants, unless it is all there is."""
        yield from self.all(rows[: max(len(rows) // size, 1) * size], size)


class _Sums:
    """Means over an epoch, summed where the tensors are, so that no step waits for the host."""

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
    # a short memory at first, so that the initial weights are soon forgotten
    share = 1 - min(decay, (1 + n_steps) / (10 + n_steps)) if n_steps else 1.0
    torch._foreach_lerp_(averages, weights, share)


def _learning_rate(settings: Training, epoch: int) -> float:
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / settings.epochs))


def _stalled(history: list[dict[str, Any]], patience: int) -> bool:
    return bool(patience and history) and len(history) - 1 - _best_epoch(history) >= patience


def _best_epoch(history: list[dict[str, Any]]) -> int:
    """Index of the epoch that is kept, the earliest of equals."""
    return min(range(len(history)), key=lambda epoch: _rank(history[epoch]))


def _rank(row: dict[str, Any]) -> tuple[float, float]:
    """Smaller is better."""
    return -row.get("validation_accuracy", 0.0), row["validation_loss"]


def _diverged(what: str, epoch: int, settings: Training, checkpoint: Path) -> TrainingDiverged:
    kept = f"{checkpoint} keeps the state after epoch {epoch - 1}" if epoch > 1 else "no epoch before it is kept"
    return TrainingDiverged(
        f"{what} of epoch {epoch} of {settings.epochs}; lower learning_rate ({settings.learning_rate:g}). {kept}; with "
        "other settings training begins anew, with the same it would end here again"
    )


def _fingerprint(
    settings: Training,
    seed: int,
    precision: Precision,
    pixels: np.ndarray,
    labels: np.ndarray,
    rows: dict[str, np.ndarray],
    networks: list[nn.Module],
) -> str:
    """What a checkpoint must share with a training that goes on from it."""
    images = digest_of_arrays(pixels, labels, rows["train"], rows["validation"])
    how = [type(settings).__name__, settings.model_dump(mode="json"), seed, precision]
    named = [*how, images, *map(digest_of_model, networks)]
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        is_ours = state["fingerprint"] == fingerprint
    except Exception as error:
        # files that are damaged, or hold more than tensors and numbers, make torch raise nearly anything
        raise ValueError(
            f"{path} is damaged, or no checkpoint of a training ({type(error).__name__}): delete it, and training "
            "begins anew"
        ) from error
    return state if is_ours else None


def _describe(row: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in {"epoch", "learning_rate"})
