"""What steps in threads of one process share, they leave as it is, or take turns at."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.core.workspace import Workspace
from tasks.models.compute import use_threads
from tasks.params import Params
from tasks.tracking import Tracker
from tests.conftest import ROOT
from tests.small_workspace import SMALL

LEARNING: dict[str, Any] = {
    "active_learning.shrink": 1,
    "active_learning.n_cycles": 1,
    "active_learning.n_seeds": 2,
    "active_learning.training.epochs": 1,
    "active_learning.warm_start_epochs": 1,
    "active_learning.max_images": 6,
    "acquire.classes": ["none", "left", "right"],
    "acquire.positive_class": "left",
    "prepare.image_size": 32,
}


@pytest.mark.parametrize(
    ("step", "overrides"),
    [
        ("train_classifier", {"train_classifier.epochs": 1}),
        # drops channels
        ("train_classifier", {"train_classifier.epochs": 1, "train_classifier.architecture": "squeezenet1_1"}),
        ("train_autoencoder", {"train_autoencoder.epochs": 1}),
        # draws its codes
        ("train_defence@variational_autoencoder", {"defences.variational_autoencoder.training.epochs": 1}),
        ("train_defence@retrained_autoencoder", {"defences.retrained_autoencoder.training.epochs": 1}),
        ("train_defence@median_jpeg_autoencoder", {}),
        ("active_learning", LEARNING),
        ("active_learning", LEARNING | {"train_classifier.architecture": "squeezenet1_1"}),
        ("attack", {}),
        ("attack_defence@autoencoder", {"attack.attacks": ["fgsm"]}),
    ],
)
def test_a_step_leaves_torchs_generator_to_the_thread_that_has_seeded_it(
    step: str, overrides: dict[str, Any], workspace: Path, params_with: Callable[..., Params]
) -> None:
    """What is drawn under the lock is taken back with it; what were drawn without would be seen."""
    params, (name, _, defence) = params_with(SMALL | overrides), step.partition("@")
    if name == "attack_defence":
        Workspace().step_folder("attack").mkdir(parents=True)
        import_module("tasks.attack").attack(params, Tracker())
    Workspace().step_folder(name, defence).mkdir(parents=True, exist_ok=True)
    before = torch.get_rng_state()
    getattr(import_module(f"tasks.{name}"), name)(params, Tracker(), *filter(None, [defence]))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_thread_computes_with_its_own_number_of_threads() -> None:
    """Torch gives a thread that has not computed yet the number that another has set last."""
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        first.submit(use_threads, 2).result()
        second.submit(use_threads, 1).result()
        assert [each.submit(torch.get_num_threads).result() for each in (first, second)] == [2, 1]


def test_two_threads_may_be_the_first_to_need_art() -> None:
    """A thread that begins with a part of it and one that begins with another would wait for each other."""
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from threading import Barrier\n"
        "from torch import nn\n"
        "from tasks.attacks.estimators import estimator_of\n"
        "from tasks.defences.preprocessing import build_purifier\n"
        "both = Barrier(2)\n"
        "def attacked():\n"
        "    both.wait()\n"
        "    estimator_of(nn.Conv2d(1, 2, 1), (1, 8, 8), 2, (0.0, 1.0))\n"
        "def defended():\n"
        "    both.wait()\n"
        "    build_purifier(steps=[{'method': 'bit_depth', 'bits': 4}])\n"
        "with ThreadPoolExecutor(2) as pool:\n"
        "    for done in [pool.submit(defended), pool.submit(attacked)]: done.result()\n"
    )
    tried = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert tried.returncode == 0, tried.stderr


@pytest.mark.parametrize("module", ["tasks.analyze", "flows.pipeline"])
def test_matrices_are_multiplied_by_one_thread_whatever_the_machine(module: str) -> None:
    code = (
        f"import {module}, numpy, scipy.linalg\n"
        "from threadpoolctl import threadpool_info\n"
        "print({pool['num_threads'] for pool in threadpool_info() if pool['internal_api'] == 'openblas'})\n"
    )
    # where nobody has said how many
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", code]
    seen = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert seen.stdout == "{1}\n"
