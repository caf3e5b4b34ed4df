"""Robust accuracy over a grid of eps: the sweep compared with ART, torchattacks and foolbox.

Run ``python -m tests.benchmarks.sweep`` in a folder where the pipeline has run (its ``data/`` is read). All libraries
attack the same model with frozen weights, with the same images, batch size, eps, steps and step size. Their time is
measured until the robust accuracy at every eps is known; libraries take turns in every repeat. PGD makes 40 steps of
eps/4 from one random start (the sweep has a warm start: see ``tasks/attacks/sweep.py``). If the processor supports
bfloat16 products, the sweep also runs with bfloat16 gradients.

The adversarially trained model is the classifier of the pipeline after some epochs of FGSM training from random starts
(Wong et al. 2020, arXiv 2001.03994) on the same training images.

Goals: PGD at least 5 times as fast as the fastest other library on the undefended classifier and at least 2.5 times on
the adversarially trained one, FGSM at least 4 times; not weaker: at each eps at most one more image stays correct; time
at most 1.1 of the time of the forward and backward passes of the sweep alone.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import torch
import torchattacks
from art.attacks.evasion import FastGradientMethod
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier
from torch import nn
from torch.nn import functional as F

from tasks.attacks.art_sweep import EpsilonSweep
from tasks.attacks.gradient.losses import loss_gradient
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared, load_prepared
from tasks.defences.targets import load_target
from tasks.models.compute import autocast, configure_torch, supports_bfloat16
from tasks.params import UNDEFENDED, Compute, Precision
from tests.benchmarks.machine import describe, machine, write_json

EPS = [value / 255 for value in (0.25, 0.5, 1, 2, 4, 8, 16)]
BATCH = 16
N_STEPS = {"pgd": 40, "fgsm": 0}
RELATIVE_STEP = 0.25

PRECISIONS: list[Precision] = ["float32", "bfloat16"] if supports_bfloat16(torch.device("cpu")) else ["float32"]

Correct = list[int]
"""Images that stay classified correctly, for each eps."""


def main() -> None:
    """Measure, print, and write JSON if a path is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32, help="test images that all libraries attack")
    parser.add_argument("--more", type=int, default=96, help="test images for the overhead over the required passes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--more-repeats", type=int, default=3, help="repeats of the sweep and its required passes")
    parser.add_argument("--only-limit", action="store_true", help="skip the other libraries")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of adversarial training")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    # all libraries use the threads and the allocator of the steps
    configure_torch(Compute(threads=2, device="cpu", precision="float32"))
    data = load_prepared(Workspace())
    rows = np.random.default_rng(0).permutation(data.indices("test"))[: arguments.more]
    images, labels = data.floats(rows), data.labels(rows)
    few = slice(0, arguments.images)
    undefended, trained = (load_target(Workspace(), UNDEFENDED, torch.device("cpu")) for _ in range(2))
    models = {UNDEFENDED: undefended, "adversarially trained": adversarially_trained(trained, data, arguments.epochs)}
    facts = machine("torch", "numpy", "adversarial-robustness-toolbox", "torchattacks", "foolbox")
    print(describe(facts))
    counts = {"images": arguments.images, "images over required passes": len(rows)}
    found: dict[str, Any] = {"machine": facts, "phantoms": data.is_phantom, **counts}
    for name, model in models.items():
        model = model.to(memory_format=torch.channels_last)
        for attack in N_STEPS:
            figures: dict[str, Any] = {}
            if not arguments.only_limit:
                figures = compare(model, images[few], labels[few], len(data.classes), attack, arguments.repeats)
            figures["over required passes"] = over_required_passes(
                model, images, labels, len(data.classes), attack, arguments.more_repeats
            )
            found[f"{attack}, {name}"] = figures
            print(f"{attack}, {name}", json.dumps(figures, indent=2), flush=True)
    write_json(arguments.json, found)


def compare(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, n_classes: int, attack: str, repeats: int
) -> dict[str, Any]:
    """Median seconds of every library, their ratios, and the number of images that stay correct."""
    estimator = estimator_of(model, images, n_classes)
    libraries: dict[str, Callable[[], Correct]] = {
        "art": lambda: by_art(estimator, images, labels, n_classes, attack),
        "torchattacks": lambda: by_torchattacks(model, images, labels, attack),
        "foolbox": lambda: by_foolbox(model, images, labels, attack),
    }
    others = list(libraries)
    sweeps = {f"sweep, {precision}": sweep_of(estimator, attack, precision) for precision in precisions_of(attack)}
    libraries |= {name: partial(by_sweep, sweep, images, labels) for name, sweep in sweeps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in libraries}
    correct: dict[str, Correct] = {}
    for _ in range(repeats):
        for name, library in libraries.items():
            began = time.perf_counter()
            correct[name] = library()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = min(others, key=lambda name: medians[name])
    strongest = [min(correct[name][index] for name in others) for index in range(len(EPS))]
    return {
        "fastest other": fastest,
        "times as fast as the fastest other": {name: round(medians[fastest] / medians[name], 2) for name in sweeps},
        "seconds": {name: round(value, 2) for name, value in medians.items()},
        "correct of each": correct,
        "images more than the strongest other": {
            name: max(mine - least for mine, least in zip(correct[name], strongest, strict=True)) for name in sweeps
        },
    }


def over_required_passes(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, n_classes: int, attack: str, repeats: int
) -> dict[str, Any]:
    """Time of a sweep divided by the time of its passes alone, median and all repeats."""
    figures: dict[str, Any] = {}
    for precision in precisions_of(attack):
        recorded = Recorded(model)
        sweep_of(estimator_of(recorded, images, n_classes), attack, precision).sweep(images, labels)
        ours = sweep_of(estimator_of(model, images, n_classes), attack, precision)
        same, full = [], []
        for _ in range(repeats):
            before = time_passes(model, images, labels, recorded.passes, precision)
            began = time.perf_counter()
            found = ours.sweep(images, labels)
            seconds = time.perf_counter() - began
            # passes before and after the sweep, since the speed of the machine may change
            after = time_passes(model, images, labels, recorded.passes, precision)
            gradient, forward, of_all = np.mean([before, after], axis=0)
            same.append(seconds / of_all)
            full.append(seconds / (found.n_gradient * gradient + found.n_forward * forward))
        figures[f"sweep, {precision}"] = {
            "time over the same passes": round(statistics.median(same), 3),
            "of each round": [round(ratio, 3) for ratio in same],
            "time over as many passes in full batches": round(statistics.median(full), 3),
            "gradients an image": round(found.n_gradient / len(images), 1),
            "further forward passes an image": round(found.n_forward / len(images), 1),
        }
    return figures


def precisions_of(attack: str) -> list[Precision]:
    """Precisions of the gradients of the sweep; FGSM computes only one gradient, in float32."""
    return PRECISIONS if attack == "pgd" else ["float32"]


def estimator_of(model: nn.Module, images: np.ndarray, n_classes: int) -> PyTorchClassifier:
    """Return the model as a classifier of ART."""
    loss = nn.CrossEntropyLoss()
    return PyTorchClassifier(model, loss, images.shape[1:], n_classes, clip_values=(0.0, 1.0), device_type="cpu")


def sweep_of(estimator: PyTorchClassifier, attack: str, precision: Precision) -> EpsilonSweep:
    """Return the sweep with the settings that all libraries share."""
    shared: dict[str, Any] = {"eps": EPS, "max_iter": N_STEPS[attack], "relative_step_size": RELATIVE_STEP}
    return EpsilonSweep(estimator, **shared, batch_size=BATCH, precision=precision)


def by_sweep(sweep: EpsilonSweep, images: np.ndarray, labels: np.ndarray) -> Correct:
    """Attack with the sweep."""
    found = sweep.sweep(images, labels)
    return [int((found.index > index).sum()) for index in range(len(EPS))]


def by_art(estimator: Any, images: np.ndarray, labels: np.ndarray, n_classes: int, attack: str) -> Correct:
    """Attack with ART in a loop over eps."""
    one_hot = np.eye(n_classes, dtype=np.float32)[labels]
    correct = []
    for eps in EPS:
        if attack == "fgsm":
            crafter: Any = FastGradientMethod(estimator, eps=eps, batch_size=BATCH)
        else:
            crafter = ProjectedGradientDescentPyTorch(
                estimator,
                eps=eps,
                eps_step=RELATIVE_STEP * eps,
                max_iter=N_STEPS[attack],
                num_random_init=1,
                batch_size=BATCH,
                verbose=False,
            )
        adversarial = crafter.generate(images, y=one_hot)
        predicted = estimator.predict(adversarial, batch_size=BATCH).argmax(axis=1)
        correct.append(int((predicted == labels).sum()))
    return correct


def by_torchattacks(model: nn.Module, images: np.ndarray, labels: np.ndarray, attack: str) -> Correct:
    """Attack with torchattacks in a loop over eps."""
    correct = []
    for eps in EPS:
        crafter: Any = torchattacks.FGSM(model, eps=eps)
        if attack == "pgd":
            crafter = torchattacks.PGD(model, eps=eps, alpha=RELATIVE_STEP * eps, steps=N_STEPS[attack])
        n_correct = 0
        for batch, target in in_batches(images, labels):
            adversarial = crafter(batch, target)
            with torch.inference_mode():
                n_correct += int((model(adversarial).argmax(dim=1) == target).sum())
        correct.append(n_correct)
    return correct


def by_foolbox(model: nn.Module, images: np.ndarray, labels: np.ndarray, attack: str) -> Correct:
    """Attack with foolbox and its list of epsilons."""
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    crafter: Any = foolbox.attacks.LinfFastGradientAttack()
    if attack == "pgd":
        crafter = foolbox.attacks.LinfPGD(rel_stepsize=RELATIVE_STEP, steps=N_STEPS[attack])
    broken = np.zeros(len(EPS), dtype=int)
    for batch, target in in_batches(images, labels):
        _, _, success = crafter(wrapped, batch, target, epsilons=EPS)
        broken += success.sum(dim=1).numpy()
    return [len(images) - int(n_broken) for n_broken in broken]


class Recorded(nn.Module):
    """A model that records the number of images of every pass, and whether a gradient was required."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes: list[tuple[int, bool]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes.append((len(images), images.requires_grad))
        logits: torch.Tensor = self.model(images)
        return logits


def time_passes(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, passes: list[tuple[int, bool]], precision: Precision
) -> tuple[float, float, float]:
    """Seconds of passes: of a gradient per image in full batches, of a forward pass per image, and of all passes."""
    batch, target = torch.from_numpy(images[:BATCH]), torch.from_numpy(labels[:BATCH])
    seconds: dict[tuple[int, bool], list[float]] = defaultdict(list)
    for size, with_gradient in passes:
        began = time.perf_counter()
        if with_gradient:
            variable = batch[:size].detach().requires_grad_()
            with autocast(precision, batch.device):
                logits = model(variable).float()
            torch.autograd.grad(F.cross_entropy(logits, target[:size], reduction="sum"), variable)
        else:
            with torch.inference_mode():
                model(batch[:size])
        seconds[size, with_gradient].append(time.perf_counter() - began)
    forward = {
        size: statistics.mean(each) / size for (size, with_gradient), each in seconds.items() if not with_gradient
    }
    gradient = statistics.mean(seconds[BATCH, True]) / BATCH
    return gradient, forward[max(forward)] if forward else 0.0, sum(map(sum, seconds.values()))


def in_batches(images: np.ndarray, labels: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tensors in batches of the size that all libraries share."""
    return [
        (torch.from_numpy(images[start : start + BATCH]), torch.from_numpy(labels[start : start + BATCH]))
        for start in range(0, len(images), BATCH)
    ]


def adversarially_trained(model: nn.Module, data: Prepared, epochs: int, eps: float = 4 / 255) -> nn.Module:
    """Train the classifier with FGSM from random starts; return it in evaluation mode with frozen weights."""
    torch.manual_seed(0)
    rows, rng = data.indices("train"), np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.requires_grad_(True).parameters(), lr=3e-4)
    for _ in range(epochs):
        order = rng.permutation(rows)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            images, labels = torch.from_numpy(data.floats(batch)), torch.from_numpy(data.labels(batch))
            model.eval()
            start_points = (images + torch.empty_like(images).uniform_(-eps, eps)).clamp(0, 1)
            moved = start_points + 1.25 * eps * loss_gradient(model, start_points, labels).sign()
            adversarial = torch.clamp(moved, images - eps, images + eps).clamp(0, 1)
            model.train()
            loss = F.cross_entropy(model(adversarial), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation
            optimizer.step()
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
