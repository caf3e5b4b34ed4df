"""Images/s of training, compared with an ordinary training loop and with the optimiser step alone.

Three loops train the same network on the same phantoms with Adam and batches of 16:

- ours: ``fit`` with the objectives of the two steps, as the pipeline calls it;
- (a) ordinary: PNG files, ImageFolder and transforms of torchvision (grey, resize, flip, translate), a DataLoader with
  two workers, float32, ``loss.item()`` in every step; for the autoencoder, Gaussian noise is added to each batch. It
  runs with the default number of threads of torch and with ours; the faster one is reported;
- (b) bare: forward, backward and optimiser step on one resident batch, in both memory formats; the faster one is
  reported.

"training" is the pass over the training images alone; "epoch" includes, for (a), the pass over the validation images,
and for ours also the batch-norm statistics of the averaged weights and the checkpoint.

One long ``fit`` runs; after each of its epochs follow an epoch of (a) and as many bare steps, since the speed of the
machine may change. Ratios are taken within a round, and their medians over the rounds are reported.

If the processor supports bfloat16 products, ours and (b) run again in that precision; (a) stays in float32.

Goals: ours at least 2 times (a), over whole epochs; at least 0.9 of (b), in training.

    python -m tests.benchmarks.training [--json PATH] [--network NAME] [--rounds N] [--patients N]
"""

import argparse
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from tasks.core.checkpoints import Checkpoints
from tasks.dataset.images import read_image
from tasks.dataset.phantom import write_phantoms
from tasks.models import objectives
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.compute import autocast, configure_torch, supports_bfloat16
from tasks.models.training import fit
from tasks.params import Params, Precision, Training, load_params
from tests.benchmarks.machine import ROOT, describe, machine, write_json

GOALS = {"epoch, ours / (a) ordinary": 2.0, "training, ours / (b) bare": 0.9}
WORKERS = 2
NOISE = 0.05
"""Standard deviation of the noise of the ordinary loop."""

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""``(model, inputs, labels, originals) -> loss``."""


def classification(model: nn.Module, inputs: Tensor, labels: Tensor, originals: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs), labels)


def reconstruction(model: nn.Module, inputs: Tensor, labels: Tensor, originals: Tensor) -> Tensor:
    return F.mse_loss(model(inputs), originals)


class Ordinary:
    """The training loop of tutorials."""

    def __init__(self, folder: Path, rows: dict[str, np.ndarray], params: Params, model: nn.Module, loss: Loss) -> None:
        settings = params.train_classifier if loss is classification else params.train_autoencoder
        (side, _), moved = params.prepare.image_size, params.train_classifier.augmentation.translation
        grey = [transforms.Grayscale(), transforms.Resize((side, side))]
        random = [
            transforms.RandomHorizontalFlip(params.train_classifier.augmentation.horizontal_flip_probability),
            transforms.RandomAffine(0, translate=(moved, moved)),
        ]
        chosen = {"train": grey + random if loss is classification else grey, "validation": grey}
        self.loaders = {
            split: DataLoader(
                Subset(
                    datasets.ImageFolder(str(folder), transforms.Compose([*steps, transforms.ToTensor()])),
                    rows[split].tolist(),
                ),
                batch_size=settings.batch_size,
                shuffle=split == "train",
                num_workers=WORKERS,
            )
            for split, steps in chosen.items()
        }
        self.model, self.loss = model, loss
        self.optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)

    def epoch(self) -> tuple[float, float]:
        """Seconds of the training pass and of the epoch."""
        began = time.perf_counter()
        self.model.train()
        running = 0.0
        for images, labels in self.loaders["train"]:
            self.optimizer.zero_grad()
            loss = self.loss(self.model, self.spoil(images), labels, images)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation
            self.optimizer.step()
            running += loss.item()
        trained = time.perf_counter()
        self.model.eval()
        with torch.no_grad():
            for images, labels in self.loaders["validation"]:
                running += self.loss(self.model, self.spoil(images), labels, images).item()
        return trained - began, time.perf_counter() - began

    def spoil(self, images: Tensor) -> Tensor:
        if self.loss is classification:
            return images
        return (images + NOISE * torch.randn_like(images)).clamp(0, 1)


class Bare:
    """Forward, backward and optimiser step on one resident batch."""

    def __init__(
        self, images: Tensor, labels: Tensor, model: nn.Module, loss: Loss, memory_format: Any, precision: Precision
    ) -> None:
        self.model = model.train().to(memory_format=memory_format)
        self.images, self.labels = images.contiguous(memory_format=memory_format), labels
        self.loss, self.precision = loss, precision
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
        self.seconds_of(3)

    def seconds_of(self, n_steps: int) -> float:
        began = time.perf_counter()
        for _ in range(n_steps):
            self.optimizer.zero_grad()
            with autocast(self.precision, self.images.device):
                loss = self.loss(self.model, self.images, self.labels, self.images)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation
            self.optimizer.step()
        return time.perf_counter() - began


def draw(folder: Path, params: Params, n_patients: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Draw phantoms as PNG files in ``folder/<class>``; return pixels and labels as of ``prepare``, and a split."""
    settings = params.acquire
    write_phantoms(
        folder,
        settings.classes,
        settings.positive_class,
        n_patients,
        settings.phantom.n_slices_per_patient,
        params.seed,
    )
    samples = datasets.ImageFolder(str(folder)).samples
    side, _ = params.prepare.image_size
    pixels = np.lib.format.open_memmap(
        folder.parent / "pixels.npy", mode="w+", dtype=np.uint8, shape=(len(samples), 1, side, side)
    )
    for row, (path, _) in enumerate(samples):
        square = Image.fromarray(read_image(Path(path), math.inf).pixels).resize(
            (side, side), Image.Resampling.BILINEAR
        )
        pixels[row, 0] = np.asarray(square)
    pixels.flush()
    order = np.random.default_rng(params.seed).permutation(len(samples))
    n_validation = round(len(samples) * params.prepare.split.validation_fraction)
    rows = {"train": np.sort(order[n_validation:]), "validation": np.sort(order[:n_validation])}
    return (
        np.load(folder.parent / "pixels.npy", mmap_mode="r", allow_pickle=False),
        np.array([label for _, label in samples], dtype=np.int64),
        rows,
    )


def compare(
    network: str, precision: Precision, params: Params, n_rounds: int, n_patients: int, folder: Path
) -> dict[str, list[float]]:
    """Images/s of every loop in every round without the first, which is a warm-up."""
    pixels, labels, rows = draw(folder / "images", params, n_patients)
    n_images = len(rows["train"])
    settings: Training
    if network == "classifier":
        settings, objective = (
            params.train_classifier,
            objectives.classification_objective(params.train_classifier.augmentation),
        )
        loss = classification
    else:
        settings, objective = params.train_autoencoder, objectives.denoising_objective(params.train_autoencoder)
        loss = reconstruction

    def build() -> nn.Module:
        if network == "classifier":
            return build_classifier("cnn", len(params.acquire.classes), 0.5, 0.25)
        return build_autoencoder("plain")

    own_threads = torch.get_num_threads()
    device = configure_torch(params.compute)
    n_steps = n_images // settings.batch_size
    batch = torch.from_numpy(pixels[rows["train"][: settings.batch_size]]).float() / 255
    batch_labels = torch.from_numpy(labels[rows["train"][: settings.batch_size]])
    # each loop trains a network of its own in all rounds
    ordinary = {
        n_threads: Ordinary(folder / "images", rows, params, build(), loss)
        for n_threads in sorted({own_threads, params.compute.threads})
    }
    bare = {
        name: Bare(batch, batch_labels, build(), loss, memory_format, precision)
        for name, memory_format in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last))
    }

    speeds: dict[str, list[float]] = defaultdict(list)
    begun_steps: list[float] = []
    began = time.perf_counter()

    def timed(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float
    ) -> dict[str, Tensor]:
        if model.training:
            begun_steps.append(time.perf_counter())
        return objective(model, images, labels, generator, progress)

    def after_epoch(number: int, metrics: dict[str, float]) -> None:
        nonlocal began
        # the time between the begin of the first and of the last step is that of all steps but one
        step = (begun_steps[-1] - begun_steps[0]) / (len(begun_steps) - 1)
        speeds["training, ours"].append(settings.batch_size / step)
        speeds["epoch, ours"].append(n_images / (time.perf_counter() - began))
        for n_threads, loop in ordinary.items():
            torch.set_num_threads(n_threads)
            seconds, epoch_seconds = loop.epoch()
            speeds[f"training, (a) ordinary, {n_threads} threads"].append(n_images / seconds)
            speeds[f"epoch, (a) ordinary, {n_threads} threads"].append(n_images / epoch_seconds)
        torch.set_num_threads(params.compute.threads)
        for name, steps in bare.items():
            speeds[f"training, (b) bare, {name}"].append(n_steps * settings.batch_size / steps.seconds_of(n_steps))
        print(f"{network}, {precision}: round {number} of {n_rounds + 1}", flush=True)
        begun_steps.clear()
        began = time.perf_counter()

    rounds = settings.model_copy(update={"epochs": n_rounds + 1})
    checkpoints = Checkpoints(folder / "checkpoints", ("models",))
    fit(build(), timed, pixels, labels, rows, rounds, params.seed, device, precision, checkpoints, after_epoch)
    return {"images": [n_images], **{name: values[1:] for name, values in speeds.items()}}


def ratios(speeds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Ours divided by the fastest variant of each other loop, in every round."""

    def of(prefix: str) -> list[float]:
        variants = [values for name, values in speeds.items() if name.startswith(prefix)]
        return max(variants, key=median)

    def over(first: str, second: str) -> list[float]:
        return [ours / other for ours, other in zip(of(first), of(second), strict=True)]

    return {
        "epoch, ours / (a) ordinary": over("epoch, ours", "epoch, (a)"),
        "training, ours / (a) ordinary": over("training, ours", "training, (a)"),
        "training, ours / (b) bare": over("training, ours", "training, (b)"),
        "epoch, ours / (b) bare": over("epoch, ours", "training, (b)"),
    }


def lines_of(network: str, speeds: dict[str, list[float]]) -> Iterator[str]:
    def row(name: str, values: list[float], digits: int, note: str = "") -> str:
        shown = f"{median(values):8.{digits}f}  ({min(values):.{digits}f} to {max(values):.{digits}f})"
        return f"  {name:42} {shown}{note}"

    n_images = int(speeds["images"][0])
    yield f"{network}: ratios, median (range) over {len(speeds['epoch, ours'])} rounds of {n_images} phantoms"
    for name, values in ratios(speeds).items():
        goal = GOALS.get(name)
        yield row(name, values, 2, f"  goal {goal}: {'met' if median(values) >= goal else 'MISSED'}" if goal else "")
    yield f"{network}: images/s"
    for name, values in speeds.items():
        if name != "images":
            yield row(name, values, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Images/s of training, of an ordinary loop and of the bare step.")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--network", choices=("classifier", "autoencoder"), help="one of the two (default: both)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patients", type=int, help="phantom patients of 7 slices (default: as in params.yaml)")
    arguments = parser.parse_args()
    params = load_params(ROOT / "params.yaml")
    # the goals are for machines without an accelerator
    params = params.model_copy(update={"compute": params.compute.model_copy(update={"device": "cpu"})})
    n_patients = arguments.patients or params.acquire.phantom.n_patients

    facts = machine("torch", "torchvision", "pillow", "numpy")
    print(describe(facts), flush=True)
    figures: dict[str, Any] = {"machine": facts, "threads": params.compute.threads}
    precisions: list[Precision] = ["float32"]
    if supports_bfloat16(torch.device("cpu")):
        precisions.append("bfloat16")
    for network in [arguments.network] if arguments.network else ["classifier", "autoencoder"]:
        for precision in precisions:
            with tempfile.TemporaryDirectory() as folder:
                speeds = compare(network, precision, params, arguments.rounds, n_patients, Path(folder))
            print("\n".join(lines_of(f"{network}, {precision}", speeds)), flush=True)
            figures[f"{network}, {precision}"] = {"ratios": ratios(speeds), "images_per_second": speeds}
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
