"""The examples of ``docs/examples``: short files of defences that fulfil the contract of a plug-in."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.defences.preprocessing import BPDA
from tasks.defences.randomness import random_modules
from tasks.models.classifier import build_classifier
from tasks.models.seeding import torch_seeded
from tasks.models.sources import call_function
from tests.broken_defences import CLASSIFIERS, EXAMPLES, examples

MAX_LINES = 60
RANDOM = ("diffusion", "random_resizing")
BPDA_USERS = ("defense_gan", "feature_squeezing", "jpeg", "thermometer")
NETWORKS = ("defense_gan", "diffusion", "ensemble_diversity", "k_winners", "thermometer")
"""Examples with a network of their own."""
TRAINED = (*NETWORKS, "random_resizing")


def built(name: str, n_channels: int = 1) -> nn.Module:
    arguments: dict[str, object] = {"n_channels": n_channels} if name in NETWORKS else {}
    with torch_seeded(0):
        if name in CLASSIFIERS:
            arguments["classifier"] = build_classifier("cnn", 2, 0.5, 0.2, n_channels=n_channels).requires_grad_(False)
        module = call_function(f"{name}:build", EXAMPLES, f"defences.{name}.factory", arguments)
    assert isinstance(module, nn.Module)
    return module.eval()


def test_there_are_ten_examples() -> None:
    assert len(examples()) == 10


@pytest.mark.parametrize("name", examples())
def test_an_example_is_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("name", examples())
@pytest.mark.parametrize("n_channels", [1, 3])
def test_outputs_have_the_shape_and_range_of_the_role_and_gradients_flow(name: str, n_channels: int) -> None:
    images = torch.rand(3, n_channels, 32, 48, requires_grad=True)
    output = built(name, n_channels)(images)
    if name in CLASSIFIERS:
        assert output.shape == (3, 2)
    else:
        assert output.shape == images.shape
        assert output.min() >= 0
        assert output.max() <= 1
    (gradient,) = torch.autograd.grad(output.square().sum(), images)
    assert gradient.isfinite().all()
    assert (gradient != 0).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("name", examples())
def test_bpda_and_random_modules_are_declared(name: str) -> None:
    module = built(name)
    assert any(isinstance(each, BPDA) for each in module.modules()) == (name in BPDA_USERS)
    assert bool(random_modules(module)) == (name in RANDOM)


@pytest.mark.parametrize("name", examples())
def test_the_same_seed_gives_the_same_output(name: str) -> None:
    images, module = torch.rand(3, 1, 32, 32), built(name)
    with torch.inference_mode():
        first = module(images)
        second = module(images)
        for each in random_modules(module):
            each.reseed([0])
        again = module(images)
    assert torch.equal(first, again)
    assert torch.equal(first, second) == (name not in RANDOM)


@pytest.mark.parametrize("name", RANDOM)
def test_fixed_draws_are_those_of_single_images(name: str) -> None:
    images, module = torch.rand(3, 1, 32, 32), built(name)
    (source,) = random_modules(module)
    source.same_for_all_images = True
    source.reseed([0])
    of_batch = module(images)
    source.reseed([0])
    torch.testing.assert_close(of_batch[1:2], module(images[1:2]))


@pytest.mark.parametrize("name", TRAINED)
def test_training_lowers_the_error(name: str) -> None:
    labels = torch.arange(64) % 2
    # smooth images, of which the noise can be removed
    images = 0.1 + 0.3 * labels[:, None, None, None] + torch.linspace(0, 0.5, 32).expand(64, 1, 32, 32)
    module = built(name).train()
    with torch_seeded(0):
        module.fit(images, labels, n_epochs=30)  # type: ignore[operator]  # of a plug-in
        output = module.eval()(images)
    if name in CLASSIFIERS:
        assert (output.argmax(dim=1) == labels).float().mean() == 1
    else:
        before = (built(name)(images) - images).square().mean()
        assert (output - images).square().mean() < 0.8 * before


def test_examples_are_found_in_the_documentation() -> None:
    text = (Path(EXAMPLES).parent / "how-to" / "own-defence.md").read_text()
    assert [name for name in examples() if f"examples/{name}.py" not in text] == []
