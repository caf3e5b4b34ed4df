import inspect
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tasks.attack import attack
from tasks.attack_defence import attack_defence
from tasks.attacks import fixed_eps
from tasks.attacks.attack_run import AttackRun, _split
from tasks.attacks.gradient import pgd as pgd_module
from tasks.attacks.searches import search
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared, choose_stratified, load_prepared
from tasks.defences.targets import load_target
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.files import save_model
from tasks.outcomes.attack_outputs import read_minimum_eps, read_records, read_validation_minimum_eps
from tasks.params import Params, parse_params
from tasks.records.adversarial_images import read_perturbations
from tasks.records.operating_points import OperatingPoint
from tasks.records.scores import entropy, margin
from tasks.records.vocabulary import SUITE_DOUBLED
from tasks.statistics.groups import effective_groups
from tasks.tracking import Tracker
from tasks.train_defence import train_defence
from tests.conftest import ROOT, set_small_effort, with_overrides
from tests.small_workspace import SIDE, SMALL

pytestmark = pytest.mark.usefixtures("few_channels")

DEFENCES = ["autoencoder"]


@pytest.fixture(scope="module")
def attacked(small_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which both steps have run with the parameters SMALL; tests only read it."""
    workspace = Workspace(tmp_path_factory.mktemp("attacked"))
    shutil.copytree(small_workspace / "data", workspace.data)
    with pytest.MonkeyPatch.context() as patch:
        set_small_effort(patch)
        run(workspace, parse_params(with_overrides(SMALL)))
    return workspace


def run(workspace: Workspace, params: Params) -> dict[str, bytes]:
    """Run both steps in empty folders, as the runner does; the written files by name."""
    files = run_attack(workspace, params)
    shutil.rmtree(workspace.attack_defence, ignore_errors=True)
    for defence in params.selected_defences:
        files |= run_attack_defence(workspace, params, defence)
    shutil.rmtree(workspace.root / "checkpoints")
    return files


def run_attack(workspace: Workspace, params: Params) -> dict[str, bytes]:
    """Run the step ``attack`` in an empty folder; its files by name. Its checkpoints stay."""
    shutil.rmtree(workspace.attack, ignore_errors=True)
    workspace.attack.mkdir()
    attack(workspace, params, Tracker())
    return files_in(workspace, workspace.attack)


def run_attack_defence(workspace: Workspace, params: Params, defence: str) -> dict[str, bytes]:
    """Run the step ``attack_defence`` in an empty folder; its files by name. Its checkpoints stay."""
    folder = workspace.step_folder("attack_defence", defence)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    attack_defence(workspace, params, Tracker(), defence)
    return files_in(workspace, folder)


def files_in(workspace: Workspace, *folders: Path) -> dict[str, bytes]:
    """The files of folders by their path below ``data/``."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(workspace.data).as_posix(): file.read_bytes() for file in files}


def all_files(workspace: Workspace) -> dict[str, bytes]:
    """The files of both steps."""
    return files_in(workspace, workspace.attack, workspace.attack_defence)


def checkpoints_in(workspace: Workspace) -> list[Path]:
    """Finished parts of both steps."""
    return [path for path in (workspace.root / "checkpoints").glob("**/*") if len(path.name) == 32]


def load_targets(workspace: Workspace) -> dict[str, nn.Module]:
    return {name: load_target(workspace, name, torch.device("cpu")) for name in ("undefended", *DEFENCES)}


class InterruptAfter(logging.Handler):
    """Interrupts the step at its n-th progress message."""

    def __init__(self, n_messages: int) -> None:
        super().__init__()
        self.n_left = n_messages

    def emit(self, record: logging.LogRecord) -> None:
        self.n_left -= 1
        if self.n_left == 0:
            raise KeyboardInterrupt


@pytest.fixture
def interrupt_after(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., None]]:
    caplog.set_level(logging.INFO, logger="tasks.core.checkpoints")

    def run_and_interrupt(params: Params, n_messages: int, function: Callable[..., Any] = run) -> None:
        handler = InterruptAfter(n_messages)
        logging.getLogger("tasks.core.checkpoints").addHandler(handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                function(workspace, params)
        finally:
            logging.getLogger("tasks.core.checkpoints").removeHandler(handler)
        caplog.clear()

    return run_and_interrupt


def n_resumed(caplog: pytest.LogCaptureFixture) -> int:
    """Number of parts that were resumed from a checkpoint."""
    return sum("resumed from a checkpoint" in message for message in caplog.messages)


def modules_on_the_stack(called: Callable[..., Any]) -> list[str]:
    """Modules of ``tasks/`` from the step to a function that it calls, once for consecutive frames of a module."""
    files = [inspect.getfile(called)]
    frame = sys._getframe()
    while frame := frame.f_back:
        files.append(frame.f_code.co_filename)
    own = [Path(file).relative_to(ROOT / "tasks") for file in files if Path(file).is_relative_to(ROOT / "tasks")]
    names = [path.as_posix() for path in reversed(own)]
    return [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]


def test_an_attack_passes_few_modules_from_the_step_to_its_gradients_and_records(
    workspace: Workspace, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: dict[str, list[str]] = {}

    def traced(name: str, function: Callable[..., Any], is_wanted: Callable[..., bool]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if is_wanted(*arguments):
                stacks[name] = modules_on_the_stack(function)
            return function(*arguments)

        return call

    def is_of_crafted(_table: Any, path: Path) -> bool:
        # records of crafted images are first written to the unfinished folder of a part
        return path.name == "records.parquet" and path.parent.suffix == ".partial"

    write, gradient = fixed_eps.write_records, pgd_module.loss_gradient
    monkeypatch.setattr(fixed_eps, "write_records", traced("records", write, is_of_crafted))
    monkeypatch.setattr(pgd_module, "loss_gradient", traced("gradient", gradient, lambda *_: True))
    workspace.attack.mkdir()
    attack(workspace, params_with(SMALL | {"attack.attacks": ["pgd"]}), Tracker())

    checkpoints = "core/checkpoints.py"
    for modules in stacks.values():
        assert modules[:2] == ["attack.py", "attacks/attack_run.py"]
        assert len(set(modules)) <= 8
        # only the module that starts a part appears twice: checkpoints call it back
        around = modules.index(checkpoints)
        assert modules[around - 1] == modules[around + 1]
        once = modules[:around] + modules[around + 2 :]
        assert len(set(once)) == len(once)
    assert len(set(stacks["records"]) | set(stacks["gradient"])) <= 8


def test_there_is_one_record_for_each_image_target_threat_model_attack_and_eps(attacked: Workspace) -> None:
    assert sorted(all_files(attacked)) == [
        "attack/cost.json",
        "attack/diagnostics.parquet",
        "attack/minimum_eps.parquet",
        "attack/operating_points.json",
        "attack/perturbations/fgsm-eps0.5.npz",
        "attack/perturbations/fgsm-eps4.npz",
        "attack/perturbations/pgd-eps0.5.npz",
        "attack/perturbations/pgd-eps4.npz",
        "attack/records.parquet",
        "attack/validation_minimum_eps.parquet",
        "attack_defence/autoencoder/cost.json",
        "attack_defence/autoencoder/diagnostics.parquet",
        "attack_defence/autoencoder/minimum_eps.parquet",
        "attack_defence/autoencoder/operating_points.json",
        "attack_defence/autoencoder/perturbations/fgsm-eps4.npz",
        "attack_defence/autoencoder/perturbations/pgd-eps4.npz",
        "attack_defence/autoencoder/records.parquet",
        "attack_defence/autoencoder/validation_minimum_eps.parquet",
    ]
    records = read_records(attacked, DEFENCES)
    points = ["target", "threat_model", "attack", "eps"]
    expected = [("undefended", "none", "clean", 0.0)]
    adaptive = ("fgsm", "pgd", "art_fgsm", "art_pgd")
    expected += [("undefended", "adaptive", kind, eps) for kind in adaptive for eps in (0.5, 4.0)]
    expected += [("autoencoder", "none", "clean", 0.0)]
    expected += [
        ("autoencoder", threat_model, kind, eps)
        for threat_model, kinds in (("transfer", ("fgsm", "pgd")), ("adaptive", adaptive))
        for kind in kinds
        for eps in (0.5, 4.0)
    ]
    assert list(records.groupby(points, sort=False).groups) == expected
    test_rows = load_prepared(attacked).indices("test").tolist()
    for _, group in records.groupby(points):
        assert group["image"].tolist() == test_rows


def test_validation_images_are_swept_as_trained_and_are_in_no_table_of_test_images(attacked: Workspace) -> None:
    swept = read_validation_minimum_eps(attacked, DEFENCES)
    validation = load_prepared(attacked).indices("validation").tolist()
    for _, of_target in swept.groupby("target", sort=False):
        assert of_target["image"].tolist() == validation
    assert swept["target"].unique().tolist() == ["undefended", *DEFENCES]
    assert set(swept["operating_point"]) == {"as_trained"}
    assert set(swept["attack"]) == {"sweep"}
    assert set(swept["minimum_eps"]) <= {0.0, 0.5, 4.0, np.inf}
    searches = read_minimum_eps(attacked, DEFENCES)
    for table in (read_records(attacked, DEFENCES), searches):
        assert set(validation).isdisjoint(table["image"])


def test_twice_the_effort_runs_where_targets_are_compared(attacked: Workspace) -> None:
    searches = read_minimum_eps(attacked, DEFENCES)
    doubled = searches[searches["attack"] == "suite_doubled"]
    assert set(doubled["operating_point"]) == {"recalibrated"}
    assert set(doubled["target"]) == {"undefended", *DEFENCES}
    of_suite = searches[(searches["attack"] == "suite") & (searches["operating_point"] == "recalibrated")]
    both = doubled.merge(of_suite, on=["target", "image"], suffixes=("", "_before"))
    assert len(both) == len(of_suite)
    assert (both["minimum_eps"] <= both["minimum_eps_before"]).all()


def test_records_equal_the_predictions_of_the_target_on_the_saved_adversarial_images(attacked: Workspace) -> None:
    data, targets, records = load_prepared(attacked), load_targets(attacked), read_records(attacked, DEFENCES)
    by_point = records.set_index(["target", "threat_model", "attack", "eps"]).sort_index()

    for target, threat_model, surrogate in (
        ("undefended", "adaptive", "undefended"),
        ("autoencoder", "transfer", "undefended"),
        ("autoencoder", "adaptive", "autoencoder"),
    ):
        perturbations = read_perturbations(attacked, data, attacked.perturbation_file(surrogate, "pgd", 4), 4)
        rows, adversarial = perturbations.rows, perturbations.images()
        group = by_point.loc[(target, threat_model, "pgd", 4.0)]
        logits = np.stack(group["logits"])
        with torch.no_grad():
            assert logits == pytest.approx(targets[target](torch.from_numpy(adversarial)).numpy(), abs=1e-4)
        assert group["image"].tolist() == rows.tolist()
        assert (group["label"] == data.labels(rows)).all()
        assert group["path"].tolist() == data.table["path"][rows].tolist()
        assert (group["prediction"] == logits.argmax(axis=1)).all()
        assert group["entropy"].to_numpy() == pytest.approx(entropy(logits))
        assert group["margin"].to_numpy() == pytest.approx(margin(logits, data.labels(rows)))
        clean = by_point.loc[(target, "none", "clean", 0.0)]
        assert (group["clean_correct"].to_numpy() == clean["correct"].to_numpy()).all()
        assert (group["success"] == (group["clean_correct"] & ~group["correct"])).all()
        assert group["linf"].to_numpy() == pytest.approx(np.full(len(rows), 4 / 255), abs=1e-5)
        rounded = torch.from_numpy(np.rint(adversarial * 255).astype(np.float32) / 255)
        with torch.no_grad():
            predicted = targets[target](rounded).argmax(dim=1).numpy()
        assert (group["correct_8bit"] == (predicted == data.labels(rows))).all()
        changes = (adversarial - data.floats(rows)).reshape(len(rows), -1)
        assert group["l2"].to_numpy() == pytest.approx(np.linalg.norm(changes, axis=1), rel=1e-5)
        if target == "autoencoder":
            with torch.no_grad():
                purified = targets[target].purifier(torch.from_numpy(adversarial)).numpy()
            error = ((purified - adversarial) ** 2).mean(axis=(1, 2, 3))
            assert group["reconstruction_error"].to_numpy() == pytest.approx(error, rel=1e-4)
        else:
            assert group["reconstruction_error"].isna().all()

    clean = records[records["attack"] == "clean"]
    assert (clean[["eps", "radius", "linf", "l2"]] == 0).all(axis=None)
    assert not clean["success"].any()
    assert (clean["correct_8bit"] == clean["correct"]).all()


def test_attacks_lower_the_margin_and_the_adaptive_attack_is_stronger_than_the_transfer_attack(
    attacked: Workspace,
) -> None:
    margins = read_records(attacked, DEFENCES).groupby(["target", "threat_model", "attack", "eps"])["margin"].mean()
    assert margins["undefended", "adaptive", "pgd", 4] < margins["undefended", "none", "clean", 0] - 0.1
    assert margins["autoencoder", "adaptive", "pgd", 4] < margins["autoencoder", "transfer", "pgd", 4]
    assert margins["undefended", "adaptive", "pgd", 4] < margins["undefended", "adaptive", "pgd", 0.5]


def test_bfloat16_changes_the_suite_alone_and_hardly_its_results(
    attacked: Workspace, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    exact, smallest = all_files(attacked), read_minimum_eps(attacked, DEFENCES)
    reduced = run(workspace, params_with(SMALL | {"compute.precision": "bfloat16"}))
    same = {name for name in exact if exact[name] == reduced[name]}
    assert {name for name in exact if name.endswith(("records.parquet", ".npz", "diagnostics.parquet"))} <= same
    both = smallest.merge(
        read_minimum_eps(workspace, DEFENCES), on=["target", "operating_point", "threat_model", "attack", "image"]
    )
    assert len(both) == len(smallest)
    suite = both[both["attack"] == "suite"]
    assert (suite["minimum_eps_x"] == suite["minimum_eps_y"]).mean() > 0.95
    assert (suite["minimum_perturbation_x"] != suite["minimum_perturbation_y"]).any()


def test_the_minimum_eps_is_consistent_with_the_records_of_the_attacks(attacked: Workspace) -> None:
    records, smallest = read_records(attacked, DEFENCES), read_minimum_eps(attacked, DEFENCES)
    smallest = smallest[smallest["operating_point"] == "as_trained"]
    searches = {attack: of.set_index(["target", "image"]) for attack, of in smallest.groupby("attack", sort=False)}
    assert {attack: set(of["threat_model"]) for attack, of in searches.items()} == {
        "suite": {"adaptive"},
        "square_on_survivors": {"adaptive"},
        "square": {"black_box"},
    }
    found = searches["suite"]["minimum_eps"]
    assert set(found.unique()) <= {0.0, 0.5, 4.0, np.inf}
    clean = records[records["attack"] == "clean"].set_index(["target", "image"])["correct"]
    assert ((found == 0) == ~clean.loc[found.index]).all()
    adaptive = records[(records["threat_model"] == "adaptive") & ~records["correct"]]
    broken = adaptive.groupby(["target", "image"])["eps"].min()
    assert ((searches["square"]["minimum_eps"] == 0) == (found == 0)).all()
    # Square on the survivors of the suite counts only where it breaks an image in a smaller ball
    on_survivors = searches.pop("square_on_survivors")["minimum_eps"]
    assert ((on_survivors < found) | np.isinf(on_survivors) | (on_survivors == 0)).all()
    for of in searches.values():
        minimal, smallest_of_grid = of["minimum_perturbation"], of["minimum_eps"]
        assert (minimal <= smallest_of_grid + 1e-3).all()
        assert ((minimal == 0) == (smallest_of_grid == 0)).all()
        assert (np.isinf(minimal) == np.isinf(smallest_of_grid)).all()
    together = pd.concat(searches.values())
    in_grid = together[(together["minimum_eps"] > 0) & np.isfinite(together["minimum_eps"])]
    assert set(in_grid["attack"]) == set(searches)
    # few perturbations cannot shrink
    assert (in_grid["minimum_perturbation"] < in_grid["minimum_eps"]).mean() > 0.5
    # the suite has many times the gradients of the attacks at fixed eps
    assert (found.loc[broken.index] <= broken)[found.loc[broken.index] > 0].mean() > 0.95
    assert 0 < (found > 4).mean() < 1


def test_a_higher_effort_breaks_every_image_that_a_lower_effort_breaks(
    workspace: Workspace, params_with: Callable[..., Params], caplog: pytest.LogCaptureFixture
) -> None:
    keys = ["target", "operating_point", "threat_model", "attack", "image"]
    few = SMALL | {"attack.max_images": 8, "attack.max_black_box_images": 3}
    run(workspace, params_with(few))
    quick = read_minimum_eps(workspace, DEFENCES).set_index(keys)["minimum_eps"]
    run(workspace, params_with(few | {"attack.effort": "standard"}))
    standard = read_minimum_eps(workspace, DEFENCES).set_index(keys)["minimum_eps"]
    suite = quick[quick.index.get_level_values("attack").isin(["suite", "square"])]
    assert (standard.loc[suite.index] <= suite).all()
    assert "hop_skip_jump" in standard.index.get_level_values("attack")


def test_black_box_attacks_run_on_a_part_of_the_images(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    run(workspace, params_with(SMALL | {"attack.max_black_box_images": 6}))
    smallest = read_minimum_eps(workspace, DEFENCES)
    for (_, name), rows in smallest.groupby(["target", "attack"]):
        for _, of_point in rows.groupby("operating_point"):
            assert len(of_point) == (6 if name == "square" else 32)
    square = smallest[smallest["attack"] == "square"].groupby("target")["image"].nunique()
    assert set(square) == {6}


def test_the_steps_give_the_same_bytes_twice(
    attacked: Workspace, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    assert run(workspace, params_with(SMALL)) == all_files(attacked)


@pytest.mark.parametrize(
    ("n_images", "size", "sizes"),
    [
        (1, 256, [1]),
        (31, 256, [31]),
        (32, 256, [16, 16]),
        (59, 256, [20, 20, 19]),
        (64, 256, [16, 16, 16, 16]),
        (200, 256, [50, 50, 50, 50]),
        (200, 64, [50, 50, 50, 50]),
        (1100, 256, [220, 220, 220, 220, 220]),
        (33, 16, [11, 11, 11]),
    ],
)
def test_images_are_split_into_four_parts_of_at_least_16_images(n_images: int, size: int, sizes: list[int]) -> None:
    parts = _split(np.arange(n_images), size)
    assert [len(part) for part in parts] == sizes
    assert np.concatenate(parts).tolist() == list(range(n_images))


def test_an_attack_that_is_interrupted_twice_resumes_and_gives_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch,
    workspace: Workspace,
    params_with: Callable[..., Params],
    interrupt_after: Callable[[Params, int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # for each of two targets: clean predictions on two splits, three searches of two parts at two operating points, 16
    # crafted parts, diagnostics of two parts
    params = params_with(SMALL | {"attack.batch_size": 8, "attack.max_images": 30})
    monkeypatch.setattr("tasks.attacks.attack_run.MAX_SEARCH_BATCHES", 2)
    uninterrupted = run(workspace, params)
    interrupt_after(params, 3)
    assert len(checkpoints_in(workspace)) == 3
    # three messages about the parts that are resumed, then new parts, up to one of the second target
    interrupt_after(params, 34)
    assert len(checkpoints_in(workspace)) == 34
    assert run(workspace, params) == uninterrupted
    assert n_resumed(caplog) == 34


def test_the_progress_of_an_attack_counts_its_parts_up_to_their_number(
    workspace: Workspace, params_with: Callable[..., Params], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tasks")
    params = params_with(SMALL | {"attack.attacks": ["fgsm"], "attack.max_images": 4})
    run_attack(workspace, params)
    n_parts = len(AttackRun.load(workspace, params, "undefended").parts())
    progress = [line for line in caplog.messages if line.endswith("parts")]
    assert progress == [f"attack on undefended: {n} of {n_parts} parts" for n in range(1, n_parts + 1)]
    assert n_parts > 4
    # a part can have several checkpoints, which are not counted
    assert not [line for line in caplog.messages if re.match(r"\d+/\d+ ", line)]


def test_equal_operating_points_are_searched_once_and_have_the_results_of_a_search_of_their_own(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    loaded = AttackRun.load(
        workspace, params_with(SMALL | {"attack.attacks": ["fgsm"], "attack.max_images": 6}), "undefended"
    )
    names, biases = ["as_trained", "recalibrated", "fixed_sensitivity"], [(0.0, 0.0, 0.0)] * 2 + [(0.0, 0.4, 0.0)]
    points = [OperatingPoint(*point) for point in zip(names, biases, strict=True)]
    attack_run = replace(loaded, attacked=replace(loaded.attacked, operating_points=points))
    two_points = replace(loaded, attacked=replace(loaded.attacked, operating_points=points[1:]))
    assert len(attack_run.parts()) == len(two_points.parts())

    workspace.attack.mkdir()
    attack_run.execute(workspace, Tracker())
    found = pd.read_parquet(workspace.minimum_eps("undefended"))
    attacks = {point: set(rows["attack"]) for point, rows in found.groupby("operating_point")}
    assert attacks["as_trained"] == attacks["recalibrated"] == attacks["fixed_sensitivity"] - {SUITE_DOUBLED}
    for name, folder in search(attack_run.attacked, points[0], attack_run.attacked.rows).items():
        own = pd.read_parquet(folder / "minimum_eps.parquet").drop(columns="operating_point")
        for point in ("as_trained", "recalibrated"):
            rows = found[(found["attack"] == name) & (found["operating_point"] == point)]
            pd.testing.assert_frame_equal(rows.drop(columns="operating_point").reset_index(drop=True), own)


def test_clean_records_cover_every_test_image_if_only_some_are_attacked(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    run(workspace, params_with({**SMALL, "attack.max_images": 4}))
    records = read_records(workspace, DEFENCES)
    test_rows = load_prepared(workspace).indices("test").tolist()
    for kind, group in records.groupby(["target", "attack", "threat_model", "eps"]):
        assert (group["image"].tolist() == test_rows) if kind[1] == "clean" else (len(group) == 4)
    clean = records[records["attack"] == "clean"].set_index(["target", "image"])["correct"]
    attacked = records[records["attack"] != "clean"]
    assert (
        attacked["clean_correct"] == clean.loc[list(zip(attacked["target"], attacked["image"], strict=True))].to_numpy()
    ).all()


@pytest.mark.parametrize(
    ("change", "n_expected"),
    [
        ({"seed": 1}, 0),
        # clean predictions and the searches do not depend on it
        ({"attack.pgd.n_steps": 4}, 8),
        ({"attack.norm": "l2"}, 0),
        # clean predictions are of all test images and of all validation images
        ({"attack.max_images": 16}, 2),
    ],
)
def test_checkpoints_of_other_parameters_are_not_used(
    change: dict[str, Any],
    n_expected: int,
    workspace: Workspace,
    params_with: Callable[..., Params],
    interrupt_after: Callable[[Params, int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    small = SMALL | {"attack.eps": [4]}
    uninterrupted = run_attack(workspace, params_with(small | change))
    shutil.rmtree(workspace.root / "checkpoints")
    interrupt_after(params_with(small), 8, run_attack)
    assert run_attack(workspace, params_with(small | change)) == uninterrupted
    assert n_resumed(caplog) == n_expected


def test_checkpoints_of_other_weights_of_a_defence_are_not_used(
    workspace: Workspace,
    params_with: Callable[..., Params],
    interrupt_after: Callable[[Params, int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    params = params_with(SMALL | {"attack.eps": [4]})
    # 2 clean predictions, 14 searches, a sweep of validation images, 8 crafted parts and two diagnostics of the
    # classifier, then the first parts of the autoencoder
    interrupt_after(params, 30)
    save_model(workspace.purifier("autoencoder"), build_autoencoder("plain"), architecture="plain")
    resumed = run(workspace, params)
    assert n_resumed(caplog) == 27
    assert resumed == run(workspace, params)


def test_checkpoints_of_other_groups_are_not_used(
    workspace: Workspace,
    params_with: Callable[..., Params],
    interrupt_after: Callable[[Params, int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    params = params_with(SMALL | {"attack.attacks": ["fgsm"], "attack.eps": [4]})
    interrupt_after(params, 3, run_attack)
    split = pd.read_parquet(workspace.split)
    split.assign(group=split["group"].to_numpy()[::-1]).to_parquet(workspace.split)
    run_attack(workspace, params)
    assert n_resumed(caplog) == 0
    groups = pd.read_parquet(workspace.records("undefended")).groupby("image")["group"].nunique()
    assert (groups == 1).all()


def test_checkpoints_of_an_interrupted_run_with_fewer_attacks_are_used(
    workspace: Workspace,
    params_with: Callable[..., Params],
    interrupt_after: Callable[[Params, int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    interrupt_after(params_with(SMALL | {"attack.attacks": ["fgsm"]}), 3)
    run(workspace, params_with(SMALL | {"attack.attacks": ["fgsm", "pgd"]}))
    assert n_resumed(caplog) == 3


def test_the_batch_size_does_not_change_predictions(
    attacked: Workspace, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    records, smallest = read_records(attacked, DEFENCES), read_minimum_eps(attacked, DEFENCES)
    run(workspace, params_with(SMALL | {"attack.batch_size": 3}))
    others, others_smallest = read_records(workspace, DEFENCES), read_minimum_eps(workspace, DEFENCES)
    # ART draws one random start for each batch
    records, others = (of[of["attack"] != "art_pgd"].reset_index(drop=True) for of in (records, others))
    assert (records["image"] == others["image"]).all()
    assert (records["prediction"] == others["prediction"]).all()
    assert records["margin"].to_numpy() == pytest.approx(others["margin"].to_numpy(), abs=1e-3)
    # batches of 3 images make three parts of the sweep, batches of 16 two
    pd.testing.assert_frame_equal(smallest, others_smallest)


def test_l2_perturbations_lie_in_their_ball(workspace: Workspace, params_with: Callable[..., Params]) -> None:
    run(workspace, params_with(SMALL | {"attack.norm": "l2"}))
    records = read_records(workspace, DEFENCES)
    attacked = records[records["attack"] != "clean"]
    assert attacked["radius"].to_numpy() == pytest.approx(attacked["eps"] / 255 * SIDE)
    assert (attacked["l2"] <= attacked["radius"] * (1 + 1e-5)).all()
    assert (attacked["linf"] > attacked["eps"] / 255).all()


def test_the_error_about_nan_weights_names_the_target(workspace: Workspace, params_with: Callable[..., Params]) -> None:
    build = json.loads(workspace.classifier.with_suffix(".json").read_text())
    broken = build_classifier(**build)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    save_model(workspace.classifier, broken, **build)
    with pytest.raises(ValueError, match=r"32 of 32 images have logits that are not finite.*target undefended"):
        run(workspace, params_with(SMALL))


def prepared_with(labels: list[int], groups: list[int] | None = None) -> Prepared:
    split = ["train"] * 2 + ["test"] * (len(labels) - 2)
    table = pd.DataFrame({"label": labels, "group": groups or list(range(len(labels))), "split": split})
    return Prepared(np.zeros((len(labels), 1, 1, 1)), table, ("a", "b", "c"), 0, (0.0, 1.0), True)


def test_all_test_images_are_chosen_without_a_limit() -> None:
    data = prepared_with([0, 1] + [0, 1, 2] * 4)
    assert choose_stratified(data, data.indices("test"), 0, seed=0).tolist() == list(range(2, 14))
    assert choose_stratified(data, data.indices("test"), 12, seed=0).tolist() == list(range(2, 14))


def test_chosen_images_have_the_proportions_of_the_classes() -> None:
    data = prepared_with([0, 1] + [0] * 60 + [1] * 30 + [2] * 10)
    for n_images in (10, 20, 50):
        rows = choose_stratified(data, data.indices("test"), n_images, seed=3)
        assert rows.tolist() == sorted(set(rows.tolist()))
        counts = np.bincount(data.labels(rows), minlength=3)
        assert counts.tolist() == [6 * n_images // 10, 3 * n_images // 10, n_images // 10]
    assert np.bincount(data.labels(choose_stratified(data, data.indices("test"), 3, seed=3))).tolist() == [1, 1, 1]


def test_chosen_images_depend_on_the_seed_and_fewer_are_a_subset_of_more() -> None:
    data = prepared_with([0, 1] + [0, 1, 2] * 30)
    rows = data.indices("test")
    few, many = (choose_stratified(data, rows, n_images, seed=1).tolist() for n_images in (12, 40))
    assert set(few) < set(many)
    assert few == choose_stratified(data, rows, 12, seed=1).tolist()
    assert few != choose_stratified(data, rows, 12, seed=2).tolist()


def test_images_are_chosen_from_every_group_before_a_second_of_any() -> None:
    groups = [8, 9] + [0] * 5 + [1] * 23 + [2] + [3]
    data = prepared_with([0] * len(groups), groups)
    for n_images, counts in [(2, [0, 0, 1, 1]), (4, [1, 1, 1, 1]), (6, [1, 1, 2, 2]), (16, [1, 1, 5, 9])]:
        rows = choose_stratified(data, data.indices("test"), n_images, seed=5)
        assert sorted(np.bincount(data.table["group"].to_numpy()[rows], minlength=4)[:4]) == counts
    first = {tuple(choose_stratified(data, data.indices("test"), 4, seed)) for seed in range(5)}
    assert len(first) == 5, "the image of a group is random"
    pairs = {tuple(data.table["group"][choose_stratified(data, data.indices("test"), 2, seed)]) for seed in range(30)}
    assert len(pairs) == 6, "the order of the groups is random"


def test_every_class_has_the_most_effective_groups_and_its_proportion() -> None:
    sizes = [1, 1, 2, 2, 3, 4, 5, 8, 14, 20, 21, 23]
    groups = [100, 101, *np.repeat(np.arange(12), sizes), *np.repeat(np.arange(12) + 12, sizes)]
    data = prepared_with([0, 1] + [0] * 104 + [1] * 104, groups)
    rows = choose_stratified(data, data.indices("test"), 52, seed=0)
    assert np.bincount(data.labels(rows)).tolist() == [26, 26]
    for _, of_class in data.table.iloc[rows].groupby("label"):
        counts = of_class["group"].value_counts()
        assert sorted(counts) == [1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3]
        assert effective_groups(counts.to_numpy()) > 10, "of a draw that ignores groups, 4 to 8"
    fewer = choose_stratified(data, data.indices("test"), 20, seed=0)
    assert set(fewer) < set(rows)


def test_a_data_set_without_test_images_raises_an_error(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    table = pd.read_parquet(workspace.split)
    table.assign(split=table["split"].replace("test", "train")).to_parquet(workspace.split)
    with pytest.raises(ValueError, match=r"Raise prepare.split.test_fraction"):
        run(workspace, params_with(SMALL))


def test_perturbations_of_other_images_are_not_transferred(
    attacked: Workspace, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    shutil.copytree(attacked.attack, workspace.attack)
    with pytest.raises(ValueError, match=r"fgsm-eps0.5.npz holds other images. Run the step attack again"):
        attack_defence(workspace, params_with(SMALL | {"attack.max_images": 8}), Tracker(), "autoencoder")


def test_a_random_defence_gives_the_same_bytes_twice(workspace: Workspace, params_with: Callable[..., Params]) -> None:
    params = params_with(
        SMALL
        | {
            "selected_defences": ["autoencoder", "noise"],
            "defences.noise.n_eot_samples": 2,
            "attack.eps": [4],
            "attack.attacks": ["pgd"],
            "attack.max_images": 4,
            "attack.max_art_reference_images": 3,
            "attack.max_black_box_images": 3,
            "attack.max_validation_images": 3,
            "attack.batch_size": 2,
        }
    )
    # every image is predicted at least a hundred times
    table = pd.read_parquet(workspace.split)
    rank = table.groupby("split").cumcount()
    table.loc[(table["split"] != "train") & (rank >= 4), "split"] = "train"
    table.to_parquet(workspace.split)
    workspace.purifier("noise").parent.mkdir()
    train_defence(workspace, params, Tracker(), "noise")
    run_attack(workspace, params)
    first = run_attack_defence(workspace, params, "noise")
    shutil.rmtree(workspace.root / "checkpoints")
    assert run_attack_defence(workspace, params, "noise") == first
