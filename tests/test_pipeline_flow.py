"""The whole pipeline at toy size by the flow: the same bytes as by DVC, and no unneeded work."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.tracking import digest_of
from tests.test_pipeline import STEPS, TOY, digests, make_workspace, run, write_params


@pytest.fixture(scope="module")
def flowed(tmp_path_factory: pytest.TempPathFactory, server: str) -> Iterator[Path]:
    """A toy workspace that the flow has brought up to date."""
    workspace = make_workspace(tmp_path_factory.mktemp("flow") / "workspace")
    run(workspace, sys.executable, "-m", "flows.pipeline", api=server)
    yield workspace
    shutil.rmtree(workspace)


def test_after_the_flow_dvc_finds_every_step_up_to_date(flowed: Path) -> None:
    assert "up to date" in run(flowed, "dvc", "repro")


def test_a_changed_eps_repeats_the_attack_and_later_steps_alone_and_the_old_eps_restores_their_outputs(
    flowed: Path,
) -> None:
    before = digests(flowed)
    write_params(
        flowed, {"attack.eps": [1, 2], "attack.saved_eps": [2], "analyze.eps": 2, "analyze.detector_evasion.eps": []}
    )
    printed = run(flowed, "dvc", "repro", "attack")
    assert [step for step in STEPS if f"Running stage '{step}'" in printed] == ["check_params", "attack"]
    assert digests(flowed)["attack"] != before["attack"]
    assert set(json.loads(run(flowed, "dvc", "status", "--json"))) == set(STEPS[STEPS.index("attack") + 1 :])

    write_params(flowed, {})
    for step in STEPS[STEPS.index("attack") + 1 :]:
        shutil.rmtree(flowed / "data" / step.replace("@", "/"))
    printed = run(flowed, sys.executable, "-m", "flows.pipeline")
    assert [line for line in printed.splitlines() if line.endswith(": restored")] == [
        f"{step}: restored"
        for step in (
            *("check_params", "attack", "attack_defence@autoencoder", "attack_defence@retrained_autoencoder"),
            *("analyze", "evaluate", "report"),
        )
    ]
    assert digests(flowed) == before
    assert "up to date" in run(flowed, "dvc", "status")


def test_a_new_defence_changes_its_own_steps_and_the_steps_that_compare_defences_alone(flowed: Path) -> None:
    third = {"kind": "autoencoder"}
    write_params(flowed, {"selected_defences": [*TOY["selected_defences"], "third"], "defences.third": third})
    changed = json.loads(run(flowed, "dvc", "status", "--json"))
    own = {"train_defence@third", "attack_defence@third"}
    assert set(changed) == {"check_params", *own, "evaluate", "analyze", "report"}


# last, since another test process makes the other workspace at the same time
def test_dvc_and_the_flow_write_the_same_bytes(reproduced: Path, flowed: Path) -> None:
    assert digests(flowed) == digests(reproduced)
    summaries = [digest_of(folder / "data" / "summary") for folder in (flowed, reproduced)]
    assert summaries[0] == summaries[1]
