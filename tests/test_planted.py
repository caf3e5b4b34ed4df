"""Faults planted in the real attacks, and a defence that masks gradients: the checks must detect each."""

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from tasks.attack import attack
from tasks.attack_defence import attack_defence
from tasks.attacks import attack_run, attacked, fixed_eps
from tasks.core.workspace import Workspace
from tasks.evaluate import evaluate
from tasks.evaluation.checks import CheckResult
from tasks.params import Params
from tasks.tracking import Tracker
from tasks.train_defence import train_defence
from tests.small_workspace import SMALL

pytestmark = pytest.mark.usefixtures("few_channels")

DEFENCES = ["autoencoder", "bit_depth"]
OVERRIDES = SMALL | {"selected_defences": DEFENCES, "attack.eps": [4, 32], "attack.saved_eps": [4]}


class RoundedWithoutBpda(nn.Module):
    """Fewer grey levels, whose gradient is zero: no attack that follows the gradient works."""

    def forward(self, images: Tensor) -> Tensor:
        return (images * 15).round() / 15


def checks_of(workspace: Workspace, params: Params) -> dict[tuple[str | None, str], CheckResult]:
    """Attack all targets and evaluate; the checks by target and key."""
    workspace.attack.mkdir()
    attack(workspace, params, Tracker())
    for defence in params.selected_defences:
        if not workspace.step_folder("train_defence", defence).exists():
            workspace.step_folder("train_defence", defence).mkdir()
            train_defence(workspace, params, Tracker(), defence)
        workspace.step_folder("attack_defence", defence).mkdir(parents=True)
        attack_defence(workspace, params, Tracker(), defence)
    workspace.evaluate.mkdir()
    evaluate(workspace, params, Tracker())
    checks = [CheckResult(**values) for values in json.loads(workspace.checks.read_text())]
    return {(check.target, check.key): check for check in checks}


def test_masked_gradients_fail_the_checks_and_bpda_passes_them(
    workspace: Workspace, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = params_with(OVERRIDES)
    with_bpda = checks_of(workspace, params)
    for key in ("gradients", "unbounded_attack", "black_box"):
        assert with_bpda["bit_depth", key].status == "PASS", with_bpda["bit_depth", key]

    for step in ("attack", "attack_defence", "evaluate"):
        shutil.rmtree(workspace.data / step)
    load = attack_run.load_target

    def load_masked(of: Workspace, name: str, device: torch.device) -> nn.Module:
        target = load(of, name, device)
        if name == "bit_depth":
            target.purifier = RoundedWithoutBpda()
        return target

    monkeypatch.setattr(attack_run, "load_target", load_masked)
    masked = checks_of(workspace, params)
    for key in ("gradients", "unbounded_attack", "black_box", "transfer_vs_adaptive"):
        assert masked["bit_depth", key].status == "FAIL", masked["bit_depth", key]
    assert masked["autoencoder", "gradients"].status == "PASS"


def test_counting_images_that_are_misclassified_unchanged_as_successes_fails_the_check(
    workspace: Workspace, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = attacked.build_records

    def build_wrongly(*arguments: Any) -> pa.Table:
        table = build(*arguments)
        wrong = [not correct for correct in table["correct"].to_pylist()]
        return table.set_column(table.column_names.index("success"), "success", pa.array(wrong))

    monkeypatch.setattr(attacked, "build_records", build_wrongly)
    checks = checks_of(workspace, params_with(OVERRIDES | {"selected_defences": ["autoencoder"]}))
    for target in ("undefended", "autoencoder"):
        assert checks[target, "success_definition"].status == "FAIL"
        assert checks[target, "success_definition"].value > 0


@pytest.fixture
def too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make attacks move images beyond their balls."""

    def beyond_the_ball(craft: Callable[..., Iterator[Tensor]]) -> Callable[..., Iterator[Tensor]]:
        def craft_too_far(model: nn.Module, images: Tensor, *arguments: Any) -> Iterator[Tensor]:
            for adversarial in craft(model, images, *arguments):
                yield (images + 1.02 * (adversarial - images)).clip(0, 1)

        return craft_too_far

    for name in ("fgsm", "pgd"):
        monkeypatch.setattr(fixed_eps, name, beyond_the_ball(getattr(fixed_eps, name)))


@pytest.mark.usefixtures("too_far")
def test_a_perturbation_outside_the_ball_stops_the_step(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    workspace.attack.mkdir()
    with pytest.raises(AssertionError, match="perturbations leave the ball of eps 4"):
        attack(workspace, params_with(OVERRIDES), Tracker())


@pytest.mark.usefixtures("too_far")
def test_a_perturbation_outside_the_ball_fails_the_check_where_the_step_does_not_stop(
    workspace: Workspace, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attacked, "check_adversarial", lambda *_: None)
    checks = checks_of(workspace, params_with(OVERRIDES | {"selected_defences": ["autoencoder"]}))
    assert checks["undefended", "norm_bound"].status == "FAIL"
