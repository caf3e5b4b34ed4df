"""Steps that run side by side in threads of one process: torch's generator, thread counts, and imports."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import pytest
import torch

from tasks.core.workspace import Workspace
from tasks.models.compute import set_num_threads
from tasks.params import Params
from tasks.tracking import Tracker
from tests.conftest import ROOT
from tests.small_workspace import SMALL

LEARNING: dict[str, Any] = {
    "active_learning.downsampling_factor": 1,
    "active_learning.n_cycles": 1,
    "active_learning.n_seeds": 2,
    "active_learning.training.epochs": 1,
    "active_learning.reference_training.epochs": 1,
    "active_learning.warm_start_epochs": 1,
    "active_learning.max_attacked_images": 6,
    "acquire.classes": ["none", "left", "right"],
    "acquire.positive_class": "left",
    "prepare.image_size": 32,
}


@pytest.mark.parametrize(
    ("step", "overrides"),
    [
        ("train_classifier", {"train_classifier.epochs": 1}),
        # has dropout
        ("train_classifier", {"train_classifier.epochs": 1, "train_classifier.architecture": "squeezenet1_1"}),
        ("train_autoencoder", {"train_autoencoder.epochs": 1}),
        # samples its latent codes
        ("train_defence@variational_autoencoder", {"defences.variational_autoencoder.training.epochs": 1}),
        ("train_defence@retrained_autoencoder", {"defences.retrained_autoencoder.training.epochs": 1}),
        ("train_defence@median_jpeg_autoencoder", {}),
        ("simulate_labelling", LEARNING),
        ("simulate_labelling", LEARNING | {"train_classifier.architecture": "squeezenet1_1"}),
        ("attack", {}),
        ("attack_defence@autoencoder", {"attack.attacks": ["fgsm"]}),
    ],
)
def test_a_step_restores_torchs_global_generator(
    step: str, overrides: dict[str, Any], workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    """Steps draw from torch's global generator under a lock and then restore its state; other draws would change it."""
    params, (name, _, defence) = params_with(SMALL | overrides), step.partition("@")
    if name == "attack_defence":
        workspace.attack.mkdir()
        import_module("tasks.attack").attack(workspace, params, Tracker())
    workspace.step_folder(name, defence).mkdir(parents=True, exist_ok=True)
    before = torch.get_rng_state()
    getattr(import_module(f"tasks.{name}"), name)(workspace, params, Tracker(), *filter(None, [defence]))
    assert torch.equal(torch.get_rng_state(), before)


def test_each_thread_computes_with_its_own_number_of_threads() -> None:
    """A new thread gets the number that another one has set last, so each has to set its own."""
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        first.submit(set_num_threads, 2).result()
        second.submit(set_num_threads, 1).result()
        assert [each.submit(torch.get_num_threads).result() for each in (first, second)] == [2, 1]


def test_two_threads_can_import_art_at_the_same_time() -> None:
    """Two threads that import different parts of ART at once can wait for each other for ever."""
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from threading import Barrier\n"
        "from torch import nn\n"
        "from tasks.attacks.art_estimator import art_estimator\n"
        "from tasks.defences.preprocessing import build_purifier\n"
        "both = Barrier(2)\n"
        "def attacked():\n"
        "    both.wait()\n"
        "    art_estimator(nn.Conv2d(1, 2, 1), (1, 8, 8), 2, (0.0, 1.0))\n"
        "def defended():\n"
        "    both.wait()\n"
        "    build_purifier(steps=[{'kind': 'bit_depth', 'bits': 4}])\n"
        "with ThreadPoolExecutor(2) as pool:\n"
        "    for done in [pool.submit(defended), pool.submit(attacked)]: done.result()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("module", ["tasks.analyze", "flows.pipeline"])
def test_matrix_products_use_one_thread_on_every_machine(module: str) -> None:
    code = (
        f"import {module}, numpy, scipy.linalg\n"
        "from threadpoolctl import threadpool_info\n"
        "print({pool['num_threads'] for pool in threadpool_info() if pool['internal_api'] == 'openblas'})\n"
    )
    # without a number of threads from the user
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout == "{1}\n"
