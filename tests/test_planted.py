"""Bugs and a bogus defence, planted in the real attacks: each must be caught."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from tasks.attack import attack
from tasks.attack_defence import attack_defence
from tasks.attacks import campaign
from tasks.core.workspace import Workspace
from tasks.evaluate import evaluate
from tasks.evaluation.checks import Check
from tasks.params import Params
from tasks.tracking import Tracker
from tasks.train_defence import train_defence
from tests.small_workspace import SMALL

BENCHMARK = ["autoencoder", "bit_depth"]
FOUND = SMALL | {"benchmark": BENCHMARK, "attack.eps": [4, 32], "attack.keep_eps": [4], "attack.suite.n_queries": 60}


class RoundedWithoutBpda(nn.Module):
    """Fewer grey levels, differentiated as they stand: there is no gradient, and no attack that follows one works."""

    def forward(self, images: Tensor) -> Tensor:
        return (images * 15).round() / 15


def evaluated(params: Params) -> dict[tuple[str | None, str], Check]:
    """Checks by target and key, after all targets were attacked."""
    Workspace().attack.mkdir()
    attack(Workspace(), params, Tracker())
    for defence in params.benchmark:
        if not Workspace().step_folder("train_defence", defence).exists():
            Workspace().step_folder("train_defence", defence).mkdir()
            train_defence(Workspace(), params, Tracker(), defence)
        Workspace().step_folder("attack_defence", defence).mkdir(parents=True)
        attack_defence(Workspace(), params, Tracker(), defence)
    Workspace().evaluate.mkdir()
    evaluate(Workspace(), params, Tracker())
    checks = [Check(**values) for values in json.loads(Workspace().checks.read_text())]
    return {(check.target, check.key): check for check in checks}


def test_masked_gradients_are_caught_and_bpda_unmasks_them(
    workspace: Path, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = params_with(FOUND)
    honest = evaluated(params)
    for key in ("gradients", "huge_eps", "black_box"):
        assert honest["bit_depth", key].status == "PASS", honest["bit_depth", key]

    for step in ("attack", "attack_defence", "evaluate"):
        rename = Workspace().data / f"honest_{step}"
        (Workspace().data / step).rename(rename)
    load = campaign.load_target

    def load_masked(name: str, device: torch.device) -> nn.Module:
        target = load(name, device)
        if name == "bit_depth":
            target.purifier = RoundedWithoutBpda()
        return target

    monkeypatch.setattr(campaign, "load_target", load_masked)
    masked = evaluated(params)
    for key in ("gradients", "huge_eps", "black_box", "transfer"):
        assert masked["bit_depth", key].status == "FAIL", masked["bit_depth", key]
    assert masked["autoencoder", "gradients"].status == "PASS"


def test_an_attack_that_forgets_which_images_were_wrong_before_is_caught(
    workspace: Path, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = campaign.build_records

    def forgetful(*arguments: Any) -> pa.Table:
        table = build(*arguments)
        wrong = [not correct for correct in table["correct"].to_pylist()]
        return table.set_column(table.column_names.index("success"), "success", pa.array(wrong))

    monkeypatch.setattr(campaign, "build_records", forgetful)
    found = evaluated(params_with(FOUND | {"benchmark": ["autoencoder"]}))
    for target in ("undefended", "autoencoder"):
        assert found[target, "success"].status == "FAIL"
        assert found[target, "success"].figure > 0


@pytest.fixture
def too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack that moves images beyond their balls."""
    craft = campaign.craft

    def craft_too_far(model: nn.Module, images: Any, *arguments: Any) -> Any:
        for adversarial in craft(model, images, *arguments):
            yield (images + 1.02 * (adversarial - images)).clip(0, 1)

    monkeypatch.setattr(campaign, "craft", craft_too_far)


@pytest.mark.usefixtures("too_far")
def test_a_perturbation_outside_the_ball_ends_the_step(workspace: Path, params_with: Callable[..., Params]) -> None:
    Workspace().attack.mkdir()
    with pytest.raises(AssertionError, match="perturbations leave the ball of eps 4"):
        attack(Workspace(), params_with(FOUND), Tracker())


@pytest.mark.usefixtures("too_far")
def test_a_perturbation_outside_the_ball_that_slips_through_is_caught_by_the_check(
    workspace: Path, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "check_adversarial", lambda *_: None)
    found = evaluated(params_with(FOUND | {"benchmark": ["autoencoder"]}))
    assert found["undefended", "ball"].status == "FAIL"
