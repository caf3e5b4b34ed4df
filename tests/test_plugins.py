"""Defences and attacks of a user's own: a Python file in ``plugins/`` and a row of the parameters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.attack import attack
from tasks.attack_defence import attack_defence
from tasks.core.digests import digest_of_model
from tasks.core.workspace import Workspace
from tasks.defences.plugins import Plugin
from tasks.defences.purified import Purified
from tasks.defences.randomness import random_modules
from tasks.defences.targets import load_target
from tasks.params import Params, parse_params
from tasks.runner import run_step
from tasks.train_defence import train_defence
from tests.conftest import with_overrides
from tests.small_workspace import CLASSES, SMALL

pytestmark = pytest.mark.usefixtures("few_channels")

CPU = torch.device("cpu")
MODULE = """
import torch
from torch import nn
from tasks.defences.randomness import RandomModule

class MeanFilter(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.pool = nn.AvgPool2d(width, 1, width // 2, count_include_pad=False)
        self.register_buffer("darkest", torch.zeros(()))
        self.register_buffer("n_threads", torch.zeros(()))

    def fit(self, images, labels):
        assert len(images) == len(labels)
        self.darkest.fill_(images.min())
        self.n_threads.fill_(torch.get_num_threads())

    def forward(self, images):
        return self.pool(images).clamp_min(self.darkest)

class Noise(RandomModule):
    def __init__(self):
        super().__init__()
        self.reseed([0])

    def reseed(self, seed):
        self.generator = torch.Generator().manual_seed(sum(seed))

    def forward(self, images):
        return (images + 0.05 * torch.randn(images.shape, generator=self.generator)).clamp(0, 1)

class Ensemble(nn.Module):
    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images):
        return (self.classifier(images) + self.classifier(images.flip(3))) / 2

def mean_filter(width=3):
    return MeanFilter(width)

def noise():
    return Noise()

def ensemble(classifier):
    return Ensemble(classifier)

def wrong(classifier):
    return nn.Identity()

def signs(model, images, labels, radius, norm, scale=1.0):
    images = images.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(images), labels)
    (gradient,) = torch.autograd.grad(loss, images)
    return images + 5 * scale * radius * gradient.sign()

def in_place(model, images, labels, radius, norm):
    images += radius
    labels.zero_()
    return images

def nothing(model, images, labels, radius, norm):
    return None
"""
ROWS = {
    "blur": {"kind": "plugin", "factory": "mine:mean_filter", "role": "purifier", "width": 5},
    "noisy": {"kind": "plugin", "factory": "mine:noise", "role": "purifier", "n_eot_samples": 4},
    "flipped": {"kind": "plugin", "factory": "mine:ensemble", "role": "classifier"},
    "broken": {"kind": "plugin", "factory": "mine:wrong", "role": "classifier"},
}


@pytest.fixture
def workspace(small_folder: Path) -> Workspace:
    (small_folder / "plugins").mkdir()
    (small_folder / "plugins" / "mine.py").write_text(MODULE)
    return Workspace(small_folder)


def parameters(**overrides: Any) -> Params:
    values = SMALL | {"acquire.classes": CLASSES, "acquire.positive_class": "left", "attack.max_images": 9}
    values |= {f"defences.{name}": row for name, row in ROWS.items()}
    return parse_params(with_overrides(values | {name.replace("__", "."): value for name, value in overrides.items()}))


def built(workspace: Workspace, defence: str) -> torch.nn.Module:
    run_step(train_defence, workspace, parameters(), defence=defence)
    return load_target(workspace, defence, CPU)


def test_a_purifier_is_trained_saved_and_loaded(workspace: Workspace) -> None:
    images = torch.rand(3, 1, 32, 32)
    target = built(workspace, "blur")
    assert isinstance(target, Purified)
    assert isinstance(target.purifier, Plugin)
    assert target.purifier.module.pool.kernel_size == 5
    assert float(target.purifier.module.darkest) == np.load(workspace.pixels)[:56].min() / 255
    torch.testing.assert_close(target(images), load_target(workspace, "undefended", CPU)(target.purifier(images)))


def test_it_is_trained_with_the_threads_of_the_parameters(workspace: Workspace) -> None:
    threads = torch.get_num_threads()
    try:
        run_step(train_defence, workspace, parameters(compute__threads=threads + 1), defence="blur")
    finally:
        torch.set_num_threads(threads)
    assert load_target(workspace, "blur", CPU).get_buffer("purifier.module.n_threads") == threads + 1


def test_a_change_of_its_file_changes_the_digest_of_the_target(workspace: Workspace) -> None:
    before = digest_of_model(built(workspace, "blur"))
    (workspace.plugins / "mine.py").write_text(MODULE.replace("count_include_pad=False", "count_include_pad=True"))
    assert digest_of_model(load_target(workspace, "blur", CPU)) == before
    assert digest_of_model(built(workspace, "blur")) != before


def test_a_random_purifier_is_averaged_and_known_to_be_random(workspace: Workspace) -> None:
    target = built(workspace, "noisy")
    assert isinstance(target, Purified)
    assert target.n_eot_samples == 4
    assert len(random_modules(target)) == 1


def test_a_classifier_gets_the_undefended_classifier(workspace: Workspace) -> None:
    images, target = torch.rand(3, 1, 32, 32), built(workspace, "flipped")
    undefended = load_target(workspace, "undefended", CPU)
    torch.testing.assert_close(target(images), (undefended(images) + undefended(images.flip(3))) / 2)


def test_a_wrong_output_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ValueError, match=r"Finite values of the shape \(2, 3\) are needed"):
        built(workspace, "broken")


def test_an_attack_counts_in_the_records_of_every_target(workspace: Workspace) -> None:
    params = parameters(attack__attacks=["fgsm", {"plugin": "mine:signs", "scale": 0.5}])
    run_step(train_defence, workspace, params, defence="blur")
    run_step(attack, workspace, params)
    run_step(attack_defence, workspace, params, defence="blur")
    for target in ("undefended", "blur"):
        records = pd.read_parquet(workspace.records(target))
        rows = records[records["attack"] == "plugin_signs"]
        assert set(rows["threat_model"]) == {"adaptive"}
        assert set(rows["eps"]) == {0.5, 4}
        # five times the radius was projected back into the ball
        assert (rows["linf"] <= rows["radius"] + 1e-6).all()
        assert rows["linf"].max() > 0


def test_an_attack_may_change_the_images_and_labels_that_it_gets(workspace: Workspace) -> None:
    params = parameters(attack__attacks=["fgsm", {"plugin": "mine:in_place"}])
    run_step(attack, workspace, params)
    records = pd.read_parquet(workspace.records("undefended"))
    rows = records[records["attack"] == "plugin_in_place"].set_index(["eps", "image"]).sort_index()
    for eps in (0.5, 4):
        assert np.allclose(rows.loc[eps, "linf"], rows.loc[eps, "radius"], atol=1e-6)
    clean = records[records["attack"] == "clean"].set_index("image")["label"]
    assert rows.loc[0.5, "label"].tolist() == clean.loc[rows.loc[0.5].index].tolist()


def test_an_attack_that_returns_no_images_is_one_message(workspace: Workspace) -> None:
    params = parameters(attack__attacks=["fgsm", {"plugin": "mine:nothing"}])
    with pytest.raises(ValueError, match=r"attack\.attacks: mine:nothing returns NoneType"):
        run_step(attack, workspace, params)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"kind": "plugin", "factory": "mine", "role": "purifier"}, "factory"),
        ({"kind": "plugin", "factory": "mine:noise"}, "role"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameters(**{"defences__mine": row})


def test_settings_of_the_defence_hold_its_arguments(workspace: Workspace) -> None:
    built(workspace, "blur")
    assert json.loads(workspace.defence_settings("blur").read_text())["width"] == 5
