import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tasks.attack import attack
from tasks.attack_defence import attack_defence
from tasks.attacks.campaign import in_parts
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared, choose_stratified, load_prepared
from tasks.defences.targets import load_target
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.files import save_model
from tasks.params import Params
from tasks.records.adversarial_images import load_kept
from tasks.records.scores import entropy, margin
from tasks.records.tables import read_records, read_smallest_eps
from tasks.tracking import Tracker
from tasks.train_defence import train_defence
from tests.small_workspace import SIDE, SMALL


def run(params: Params) -> dict[str, bytes]:
    """Both steps in empty folders of their own, as the runner calls them; what they wrote, by name."""
    for folder in (Workspace().attack, Workspace().attack_defence):
        shutil.rmtree(folder, ignore_errors=True)
    Workspace().attack.mkdir()
    attack(Workspace(), params, Tracker())
    for defence in params.benchmark:
        Workspace().step_folder("attack_defence", defence).mkdir(parents=True)
        attack_defence(Workspace(), params, Tracker(), defence)
    shutil.rmtree("checkpoints")
    files = [
        file
        for folder in (Workspace().attack, Workspace().attack_defence)
        for file in folder.rglob("*")
        if file.is_file()
    ]
    return {file.relative_to(Workspace().data).as_posix(): file.read_bytes() for file in files}


def shards() -> list[Path]:
    """Finished parts of both steps."""
    return [shard for shard in Path("checkpoints").glob("**/*") if len(shard.name) == 32]


BENCHMARK = ["autoencoder"]


def load_both() -> dict[str, nn.Module]:
    return {name: load_target(Workspace(), name, torch.device("cpu")) for name in ("undefended", *BENCHMARK)}


class KillAfter(logging.Handler):
    """Interrupts the step at its n-th line of progress."""

    def __init__(self, n_lines: int) -> None:
        super().__init__()
        self.n_left = n_lines

    def emit(self, record: logging.LogRecord) -> None:
        self.n_left -= 1
        if self.n_left == 0:
            raise KeyboardInterrupt


@pytest.fixture
def kill_after(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[Params, int], None]]:
    caplog.set_level(logging.INFO, logger="tasks.core.checkpoints")

    def run_and_kill(params: Params, n_lines: int) -> None:
        handler = KillAfter(n_lines)
        logging.getLogger("tasks.core.checkpoints").addHandler(handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                run(params)
        finally:
            logging.getLogger("tasks.core.checkpoints").removeHandler(handler)
        caplog.clear()

    return run_and_kill


def n_kept_lines(caplog: pytest.LogCaptureFixture) -> int:
    return sum("kept from a run before" in line for line in caplog.messages)


def test_there_is_one_record_for_each_image_target_threat_model_attack_and_eps(
    workspace: Path, params_with: Callable[..., Params]
) -> None:
    files = run(params_with(SMALL))
    assert sorted(files) == [
        "attack/cost.json",
        "attack/perturbations/fgsm-eps0.5.npz",
        "attack/perturbations/fgsm-eps4.npz",
        "attack/perturbations/pgd-eps0.5.npz",
        "attack/perturbations/pgd-eps4.npz",
        "attack/probes.parquet",
        "attack/records.parquet",
        "attack/smallest_eps.parquet",
        "attack_defence/autoencoder/cost.json",
        "attack_defence/autoencoder/perturbations/fgsm-eps4.npz",
        "attack_defence/autoencoder/perturbations/pgd-eps4.npz",
        "attack_defence/autoencoder/probes.parquet",
        "attack_defence/autoencoder/records.parquet",
        "attack_defence/autoencoder/smallest_eps.parquet",
    ]
    records = read_records(Workspace(), BENCHMARK)
    points = ["target", "threat_model", "attack", "eps"]
    expected = [("undefended", "none", "clean", 0.0)]
    expected += [("undefended", "adaptive", kind, eps) for kind in ("fgsm", "pgd") for eps in (0.5, 4.0)]
    expected += [("autoencoder", "none", "clean", 0.0)]
    expected += [
        ("autoencoder", threat_model, kind, eps)
        for threat_model in ("transfer", "adaptive")
        for kind in ("fgsm", "pgd")
        for eps in (0.5, 4.0)
    ]
    assert list(records.groupby(points, sort=False).groups) == expected
    test_rows = load_prepared(Workspace()).indices("test").tolist()
    for _, group in records.groupby(points):
        assert group["image"].tolist() == test_rows


def test_records_say_what_the_target_makes_of_the_adversarial_images(
    workspace: Path, params_with: Callable[..., Params]
) -> None:
    run(params_with(SMALL))
    data, targets, records = load_prepared(Workspace()), load_both(), read_records(Workspace(), BENCHMARK)
    by_point = records.set_index(["target", "threat_model", "attack", "eps"]).sort_index()

    for target, threat_model, surrogate in (
        ("undefended", "adaptive", "undefended"),
        ("autoencoder", "transfer", "undefended"),
        ("autoencoder", "adaptive", "autoencoder"),
    ):
        kept = load_kept(Workspace(), data, surrogate, "pgd", 4)
        rows, adversarial = kept.rows, kept.images()
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


def test_attacks_work_and_the_adaptive_one_beats_the_transferred(
    workspace: Path, params_with: Callable[..., Params]
) -> None:
    run(params_with(SMALL))
    margins = read_records(Workspace(), BENCHMARK).groupby(["target", "threat_model", "attack", "eps"])["margin"].mean()
    assert margins["undefended", "adaptive", "pgd", 4] < margins["undefended", "none", "clean", 0] - 0.1
    assert margins["autoencoder", "adaptive", "pgd", 4] < margins["autoencoder", "transfer", "pgd", 4]
    assert margins["undefended", "adaptive", "pgd", 4] < margins["undefended", "adaptive", "pgd", 0.5]


def test_bfloat16_is_for_the_sweep_alone_and_changes_what_it_finds_by_little(
    workspace: Path, params_with: Callable[..., Params]
) -> None:
    exact = run(params_with(SMALL))
    smallest = read_smallest_eps(Workspace(), BENCHMARK)
    reduced = run(params_with(SMALL | {"compute.precision": "bfloat16"}))
    same = {name for name in exact if exact[name] == reduced[name]}
    assert {name for name in exact if name.endswith(("records.parquet", ".npz", "probes.parquet"))} <= same
    both = smallest.merge(read_smallest_eps(Workspace(), BENCHMARK), on=["target", "attack", "image"])
    assert len(both) == len(smallest)
    swept = both[both["attack"] == "sweep"]
    assert (swept["smallest_eps_x"] == swept["smallest_eps_y"]).mean() > 0.95
    assert (swept["minimal_eps_x"] != swept["minimal_eps_y"]).any()


def test_the_smallest_eps_breaks_what_the_attacks_break_and_nothing_that_is_wrong_as_it_is(
    workspace: Path, params_with: Callable[..., Params]
) -> None:
    run(params_with(SMALL | {"attack.sweep.n_steps": 10}))
    records, smallest = read_records(Workspace(), BENCHMARK), read_smallest_eps(Workspace(), BENCHMARK)
    searches = {attack: of.set_index(["target", "image"]) for attack, of in smallest.groupby("attack", sort=False)}
    assert {attack: set(of["threat_model"]) for attack, of in searches.items()} == {
        "sweep": {"adaptive"},
        "suite": {"adaptive"},
        "square": {"black_box"},
    }
    found = searches["sweep"]["smallest_eps"]
    assert set(found.unique()) <= {0.0, 0.5, 4.0, np.inf}
    clean = records[records["attack"] == "clean"].set_index(["target", "image"])["correct"]
    assert ((found == 0) == ~clean.loc[found.index]).all()
    adaptive = records[(records["threat_model"] == "adaptive") & ~records["correct"]]
    broken = adaptive.groupby(["target", "image"])["eps"].min()
    suite = searches["suite"]
    assert (suite["smallest_eps"] <= found).all()
    same = suite["smallest_eps"] == found
    assert (suite.loc[same, "found_by"] == "sweep").all()
    assert suite.loc[~same, "found_by"].isin(["apgd_ce", "apgd_margin", "apgd_dlr", "deepfool"]).all()
    assert ((searches["square"]["smallest_eps"] == 0) == (found == 0)).all()
    for of in searches.values():
        minimal, smallest_of_grid = of["minimal_eps"], of["smallest_eps"]
        assert (minimal <= smallest_of_grid + 1e-3).all()
        assert ((minimal == 0) == (smallest_of_grid == 0)).all()
        assert (np.isinf(minimal) == np.isinf(smallest_of_grid)).all()
        # a perturbation that can't be shortened is the exception
        in_grid = (smallest_of_grid > 0) & np.isfinite(smallest_of_grid)
        assert in_grid.any()
        assert (minimal < smallest_of_grid)[in_grid].mean() > 0.5
    assert (suite["minimal_eps"] <= searches["sweep"]["minimal_eps"]).all()
    # the sweep has three times the steps
    assert (found.loc[broken.index] <= broken)[found.loc[broken.index] > 0].mean() > 0.95
    assert 0 < (found > 4).mean() < 1


def test_the_step_gives_the_same_bytes_twice(workspace: Path, params_with: Callable[..., Params]) -> None:
    params = params_with(SMALL)
    assert run(params) == run(params)


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
def test_images_are_cut_in_four_parts_where_there_are_enough(n_images: int, size: int, sizes: list[int]) -> None:
    parts = in_parts(np.arange(n_images), size)
    assert [len(part) for part in parts] == sizes
    assert np.concatenate(parts).tolist() == list(range(n_images))


@pytest.mark.parametrize("n_done", [3, 31])
def test_a_killed_attack_goes_on_where_it_was_and_gives_the_same_bytes(
    n_done: int,
    monkeypatch: pytest.MonkeyPatch,
    workspace: Path,
    params_with: Callable[..., Params],
    kill_after: Callable[[Params, int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # of each of two targets a look, three searches of two parts, 8 crafted shards, probes of two parts
    params = params_with(SMALL | {"attack.batch_size": 8, "attack.max_images": 30})
    monkeypatch.setattr("tasks.attacks.campaign.SEARCHED_BATCHES", 2)
    undisturbed = run(params)
    kill_after(params, n_done)
    assert len(shards()) == n_done
    assert run(params) == undisturbed
    assert n_kept_lines(caplog) == n_done


def test_clean_records_cover_every_test_image_however_few_are_attacked(
    workspace: Path, params_with: Callable[..., Params]
) -> None:
    run(params_with({**SMALL, "attack.max_images": 4}))
    records = read_records(Workspace(), BENCHMARK)
    test_rows = load_prepared(Workspace()).indices("test").tolist()
    for kind, group in records.groupby(["target", "attack", "threat_model", "eps"]):
        assert (group["image"].tolist() == test_rows) if kind[1] == "clean" else (len(group) == 4)
    clean = records[records["attack"] == "clean"].set_index(["target", "image"])["correct"]
    attacked = records[records["attack"] != "clean"]
    assert (
        attacked["clean_correct"] == clean.loc[list(zip(attacked["target"], attacked["image"], strict=True))].to_numpy()
    ).all()


@pytest.mark.parametrize(
    ("change", "n_kept"),
    [
        ({"seed": 1}, 0),
        # neither the look at clean images nor the three searches of two parts take so many steps
        ({"attack.pgd.n_steps": 4}, 7),
        ({"attack.norm": "l2", "attack.suite.n_queries": 0}, 0),
        # the look is at all test images
        ({"attack.max_images": 16}, 1),
    ],
)
def test_shards_of_other_parameters_never_mix_in(
    change: dict[str, Any],
    n_kept: int,
    workspace: Path,
    params_with: Callable[..., Params],
    kill_after: Callable[[Params, int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    small = SMALL | {"attack.eps": [4]}
    undisturbed = run(params_with(small | change))
    kill_after(params_with(small), 8)
    assert run(params_with(small | change)) == undisturbed
    assert n_kept_lines(caplog) == n_kept


def test_shards_of_another_defence_never_mix_in(
    workspace: Path,
    params_with: Callable[..., Params],
    kill_after: Callable[[Params, int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    params = params_with(SMALL | {"attack.eps": [4]})
    # a look at the classifier, three searches of two parts, 4 crafted shards and two probes, then the autoencoder's
    kill_after(params, 15)
    save_model(Workspace().purifier("autoencoder"), build_autoencoder("plain"), architecture="plain")
    resumed = run(params)
    assert n_kept_lines(caplog) == 13
    assert resumed == run(params)


def test_more_attacks_keep_what_a_killed_run_with_fewer_had_finished(
    workspace: Path,
    params_with: Callable[..., Params],
    kill_after: Callable[[Params, int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    kill_after(params_with(SMALL | {"attack.attacks": ["fgsm"]}), 3)
    run(params_with(SMALL | {"attack.attacks": ["fgsm", "pgd"]}))
    assert n_kept_lines(caplog) == 3


@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_the_size_of_a_batch_changes_no_prediction(
    mode: str, workspace: Path, params_with: Callable[..., Params]
) -> None:
    # ART's random starts follow its batches
    small = SMALL | {"attack.mode": mode, "attack.pgd.n_restarts": 1 if mode == "fast" else 0}
    run(params_with(small))
    records, smallest = read_records(Workspace(), BENCHMARK), read_smallest_eps(Workspace(), BENCHMARK)
    run(params_with(small | {"attack.batch_size": 3}))
    others, others_smallest = read_records(Workspace(), BENCHMARK), read_smallest_eps(Workspace(), BENCHMARK)
    assert (records["image"] == others["image"]).all()
    assert (records["prediction"] == others["prediction"]).all()
    assert records["margin"].to_numpy() == pytest.approx(others["margin"].to_numpy(), abs=1e-3)
    # 3 images a batch make three parts of the sweep, 16 two
    pd.testing.assert_frame_equal(smallest, others_smallest)


def test_l2_perturbations_lie_in_their_ball(workspace: Path, params_with: Callable[..., Params]) -> None:
    run(params_with(SMALL | {"attack.norm": "l2", "attack.suite.n_queries": 0, "attack.suite.n_label_queries": 60}))
    records = read_records(Workspace(), BENCHMARK)
    attacked = records[records["attack"] != "clean"]
    assert attacked["radius"].to_numpy() == pytest.approx(attacked["eps"] / 255 * SIDE)
    assert (attacked["l2"] <= attacked["radius"] * (1 + 1e-5)).all()
    assert (attacked["linf"] > attacked["eps"] / 255).all()


def test_a_model_with_broken_weights_is_named(workspace: Path, params_with: Callable[..., Params]) -> None:
    build = json.loads(Workspace().classifier.with_suffix(".json").read_text())
    broken = build_classifier(**build)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    save_model(Workspace().classifier, broken, **build)
    with pytest.raises(ValueError, match=r"32 of 32 images have logits that are not finite.* target undefended"):
        run(params_with(SMALL))


def prepared_with(labels: list[int]) -> Prepared:
    table = pd.DataFrame({"label": labels, "split": ["train"] * 2 + ["test"] * (len(labels) - 2)})
    return Prepared(np.zeros((len(labels), 1, 1, 1)), table, ("a", "b", "c"), 0, (0.0, 1.0), True)


def test_all_test_images_are_attacked_without_a_bound() -> None:
    data = prepared_with([0, 1] + [0, 1, 2] * 4)
    assert choose_stratified(data, data.indices("test"), 0, seed=0).tolist() == list(range(2, 14))
    assert choose_stratified(data, data.indices("test"), 12, seed=0).tolist() == list(range(2, 14))


def test_a_bound_keeps_the_proportions_of_the_classes() -> None:
    data = prepared_with([0, 1] + [0] * 60 + [1] * 30 + [2] * 10)
    for n_images in (10, 20, 50):
        rows = choose_stratified(data, data.indices("test"), n_images, seed=3)
        assert rows.tolist() == sorted(set(rows.tolist()))
        counts = np.bincount(data.labels(rows), minlength=3)
        assert counts.tolist() == [6 * n_images // 10, 3 * n_images // 10, n_images // 10]
    assert np.bincount(data.labels(choose_stratified(data, data.indices("test"), 3, seed=3))).tolist() == [1, 1, 1]


def test_the_chosen_images_follow_the_seed_and_fewer_are_a_part_of_more() -> None:
    data = prepared_with([0, 1] + [0, 1, 2] * 30)
    rows = data.indices("test")
    few, many = (choose_stratified(data, rows, n_images, seed=1).tolist() for n_images in (12, 40))
    assert set(few) < set(many)
    assert few == choose_stratified(data, rows, 12, seed=1).tolist()
    assert few != choose_stratified(data, rows, 12, seed=2).tolist()


def test_a_data_set_without_test_images_is_refused(workspace: Path, params_with: Callable[..., Params]) -> None:
    table = pd.read_parquet(Workspace().split)
    table.assign(split=table["split"].replace("test", "train")).to_parquet(Workspace().split)
    with pytest.raises(ValueError, match=r"raise prepare.split.test_fraction"):
        run(params_with(SMALL))


def test_images_of_another_attack_are_not_transferred(workspace: Path, params_with: Callable[..., Params]) -> None:
    run(params_with(SMALL))
    with pytest.raises(ValueError, match=r"fgsm-eps0.5.npz is of other images: run the step attack again"):
        attack_defence(Workspace(), params_with(SMALL | {"attack.max_images": 8}), Tracker(), "autoencoder")


def test_labels_alone_are_asked_for_of_some_images(workspace: Path, params_with: Callable[..., Params]) -> None:
    few = {"attack.suite.n_label_queries": 100, "attack.suite.max_label_images": 6, "attack.eps": [4, 16]}
    run(params_with(SMALL | few))
    smallest = read_smallest_eps(Workspace(), BENCHMARK)
    for _, of_target in smallest.groupby("target"):
        by_labels = of_target[of_target["attack"] == "hop_skip_jump"].set_index("image")
        assert len(by_labels) == 6
        assert set(by_labels["threat_model"]) == {"black_box"}
        suite = of_target[of_target["attack"] == "suite"].set_index("image").loc[by_labels.index]
        assert ((by_labels["smallest_eps"] == 0) == (suite["smallest_eps"] == 0)).all()


def test_a_random_defence_gives_the_same_bytes_twice(workspace: Path, params_with: Callable[..., Params]) -> None:
    params = params_with(
        SMALL
        | {
            "benchmark": ["autoencoder", "noise"],
            "defences.noise.n_draws": 2,
            "attack.eps": [4],
            "attack.max_images": 8,
            "attack.suite.n_label_queries": 60,
            "attack.batch_size": 4,
        }
    )
    Workspace().purifier("noise").parent.mkdir()
    train_defence(Workspace(), params, Tracker(), "noise")
    assert run(params) == run(params)
