"""Local optimality of the white-box suite, compared with adv-lib, torchattacks and foolbox.

Run ``python -m tests.benchmarks.optimality --targets undefended autoencoder`` in a folder where the pipeline has run
(its ``data/`` is read). Install ``tests/benchmarks/requirements.txt`` first, as ``make bench`` does. All attacks run on
the same images against the same frozen model.

Local optimality is that of AttackBench (Cina et al., AAAI 2025): the area between the clean accuracy and the curve of
accuracy against the size of the perturbation, relative to the same area for the smallest perturbation of each image
over all attacks, ours included. 1 is optimal. Every other attack takes at least as many gradients for each image as our
suite took in all; an attack at one eps shares them over the grid.

Goals: ours is at least 0.99, and at no eps of the grid it leaves more images correct than the strongest other attack.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import foolbox
import numpy as np
import torch
import torchattacks
from torch import Tensor, nn

from tasks.attacks.batch import AttackBatch, MinimumEps, shrink
from tasks.attacks.effort import EFFORTS
from tasks.attacks.gradient.norm_ball import NormBall, radius
from tasks.attacks.predictions import seed_random_defences
from tasks.attacks.suite import run_stage
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.defences.targets import load_target
from tasks.models.compute import configure_torch
from tasks.params import Compute
from tests.benchmarks.machine import describe, machine, write_json

EPS = (0.25, 0.5, 1, 2, 4, 8, 16)
BATCH = 16
RELATIVE_STEP = 0.25
ORDERS = {"linf": math.inf, "l2": 2}

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""``(model, images, labels) -> adversarial images`` of one batch."""


def main() -> None:
    """Measure, print, and write JSON if a path is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["undefended", "autoencoder"])
    parser.add_argument("--norm", choices=ORDERS, default="linf")
    parser.add_argument("--effort", choices=EFFORTS, default="standard")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only-ours", action="store_true", help="skip the other libraries")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    configure_torch(Compute(threads=arguments.threads, device="cpu", precision="float32"))
    data = load_prepared(Workspace())
    rows = np.sort(np.random.default_rng(0).permutation(data.indices("test"))[: arguments.images])
    images, labels = data.floats(rows), data.labels(rows)
    facts = machine("torch", "adv-lib", "torchattacks", "foolbox")
    print(describe(facts))
    found: dict[str, Any] = {"machine": facts, "phantoms": data.is_phantom, "eps": EPS}
    found |= {"norm": arguments.norm, "effort": arguments.effort, "images": len(rows), "image size": images.shape[-1]}
    for name in arguments.targets:
        model = load_target(Workspace(), name, torch.device("cpu"))
        found[name] = compare(model, images, labels, rows, len(data.classes), arguments)
        print(name, json.dumps(found[name], indent=2), flush=True)
    write_json(arguments.json, found)


def compare(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, rows: np.ndarray, n_classes: int, arguments: Any
) -> dict[str, Any]:
    """Optimality, images that stay correct at each eps, gradients and seconds of each attack."""
    norm, counted = arguments.norm, Counted(model).eval()
    radii = np.array([radius(eps, norm, images[0].size) for eps in EPS])
    ball = NormBall(norm, (0.0, 1.0))
    batch = AttackBatch(counted, images, labels, n_classes, radii, ball, BATCH, 0, rows)
    distances, figures = {}, dict[str, dict[str, Any]]()
    seed_random_defences(model, 0, rows)
    state: MinimumEps | None = None
    nearest, began = np.full(len(rows), np.inf), time.perf_counter()
    for stage in EFFORTS[arguments.effort]:
        state = run_stage(batch, state, stage, RELATIVE_STEP)
        nearest = np.fmin(nearest, shrink(batch, state))
        name = f"ours, after stage {stage.name}"
        distances[name], figures[name] = nearest, counted.passes.per_image(len(rows), time.perf_counter() - began)
    n_gradients = math.ceil(counted.passes.n_gradients / len(rows))
    for name, attack in ({} if arguments.only_ours else other_attacks(norm, n_gradients, radii.tolist())).items():
        counted, began = Counted(model).eval(), time.perf_counter()
        torch.manual_seed(0)
        distances[name] = distances_of(counted, attack, images, labels, norm)
        figures[name] = counted.passes.per_image(len(rows), time.perf_counter() - began)
        print(name, figures[name], flush=True)
    best = np.min(list(distances.values()), axis=0)
    for name, distance in distances.items():
        figures[name]["optimality"] = round(optimality(distance, best), 4)
        figures[name]["correct"] = [int((distance > size * (1 + 1e-5)).sum()) for size in radii]
    return figures


def other_attacks(norm: str, n_gradients: int, radii: list[float]) -> dict[str, Attack]:
    """Attacks of other libraries, each with at least this number of gradients."""
    # adv-lib imports visdom for plots, which are not drawn here
    sys.modules.setdefault("visdom", ModuleType("visdom"))
    from adv_lib.attacks import apgd, ddn, fab, fmn, pdpgd

    order, share = ORDERS[norm], math.ceil(n_gradients / len(radii))
    attacks: dict[str, Attack] = {
        "adv-lib FMN": lambda *given: fmn(*given, norm=order, steps=n_gradients),
        "adv-lib FAB": lambda *given: fab(*given, norm=order, n_iter=n_gradients),
        "adv-lib PDPGD": lambda *given: pdpgd(*given, norm=order, num_steps=n_gradients),
        "adv-lib APGD at each eps": lambda model, images, labels: smallest(
            model,
            images,
            labels,
            [apgd(model, images, labels, size, order, n_iter=share, loss_function="ce") for size in radii],
        ),
    }
    if norm == "l2":
        attacks["adv-lib DDN"] = lambda *given: ddn(*given, steps=n_gradients)
        attacks["torchattacks PGD at each eps"] = lambda model, images, labels: smallest(
            model, images, labels, [torchattacks.PGDL2(model, size, size / 4, share)(images, labels) for size in radii]
        )
        attacks["foolbox DDN"] = partial_foolbox(foolbox.attacks.DDNAttack(steps=n_gradients))
        return attacks
    attacks["torchattacks APGD at each eps"] = lambda model, images, labels: smallest(
        model, images, labels, [torchattacks.APGD(model, "Linf", size, share)(images, labels) for size in radii]
    )
    attacks["foolbox FMN"] = partial_foolbox(foolbox.attacks.LInfFMNAttack(steps=n_gradients))
    attacks["foolbox PGD at each eps"] = partial_foolbox(
        foolbox.attacks.LinfPGD(rel_stepsize=RELATIVE_STEP, steps=share), radii
    )
    return attacks


def partial_foolbox(attack: Any, radii: list[float] | None = None) -> Attack:
    """An attack of foolbox: of minimal norm, or at each of some radii."""

    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        _, adversarial, _ = attack(wrapped, images, labels, epsilons=radii)
        return smallest(model, images, labels, adversarial) if radii else adversarial

    return run


def smallest(model: nn.Module, images: Tensor, labels: Tensor, adversarial: list[Tensor]) -> Tensor:
    """The first misclassified adversarial image at rising radii, for each image; the last one if there is none."""
    chosen = adversarial[-1]
    for candidate in reversed(adversarial):
        with torch.no_grad():
            wrong = model(candidate).argmax(dim=1) != labels
        chosen = torch.where(wrong[:, None, None, None], candidate, chosen)
    return chosen


def distances_of(model: nn.Module, attack: Attack, images: np.ndarray, labels: np.ndarray, norm: str) -> np.ndarray:
    """Norms of the perturbations, ``(N,)``; 0 for images that are misclassified unchanged, infinite after a failure."""
    parts = []
    for start in range(0, len(images), BATCH):
        batch, target = (torch.from_numpy(of[start : start + BATCH]) for of in (images, labels))
        adversarial = attack(model, batch, target).detach()
        with torch.no_grad():
            wrong = model(adversarial).argmax(dim=1) != target
            unchanged = model(batch).argmax(dim=1) != target
        sizes = torch.linalg.vector_norm((adversarial - batch).flatten(1), ORDERS[norm], dim=1)
        parts.append(torch.where(unchanged, 0, torch.where(wrong, sizes, torch.inf)).numpy())
    return np.concatenate(parts)


def optimality(distances: np.ndarray, best: np.ndarray) -> float:
    """Local optimality of an attack: see the head of this file.

    Args:
        distances: smallest perturbation of each image by the attack, ``(N,)``; infinite where it found none.
        best: smallest perturbation of each image by any attack, ``(N,)``.
    """
    # the area below a curve of accuracy is the mean of the distances
    largest = best[np.isfinite(best)].max()
    excess = np.minimum(distances, largest).mean() - np.minimum(best, largest).mean()
    return float(1 - excess / ((best > 0).mean() * largest - np.minimum(best, largest).mean()))


class Counted(nn.Module):
    """A model that counts passes with and without a gradient, in images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.passes = model, Passes()
        self.n_eot_samples = getattr(model, "n_eot_samples", 1)

    def forward(self, images: Tensor) -> Tensor:
        self.passes.add(len(images), torch.is_grad_enabled() and images.requires_grad)
        logits: Tensor = self.model(images)
        return logits


class Passes:
    """Numbers of passes, in images; copies of a model count in the same object."""

    def __init__(self) -> None:
        self.n_gradients = self.n_forward = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Passes":
        return self

    def add(self, n_images: int, with_gradient: bool) -> None:
        """Count the passes of a batch."""
        self.n_gradients += n_images * with_gradient
        self.n_forward += n_images * (not with_gradient)

    def per_image(self, n_images: int, seconds: float) -> dict[str, Any]:
        """Passes for each image, and seconds in all."""
        passes = {"gradients": self.n_gradients, "forward passes": self.n_forward}
        return {name: round(n / n_images, 1) for name, n in passes.items()} | {"seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
