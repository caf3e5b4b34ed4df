"""The step active_learning on the small workspace: what it writes, and that a kill loses nothing."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tasks.active_learning as step
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.labelling.learner import shrunk
from tasks.labelling.start import choose_start
from tasks.params import Params, ParamsError
from tasks.runner import run_step
from tasks.tracking import Tracker
from tests.small_workspace import SMALL

LEARNING: dict[str, Any] = {
    "prepare.image_size": 32,
    "active_learning.shrink": 2,
    "active_learning.acquisition": ["entropy"],
    "active_learning.n_seeds": 2,
    "active_learning.n_cycles": 2,
    "active_learning.training.epochs": 2,
    "active_learning.warm_start_epochs": 1,
    "active_learning.start.share": 0.25,
    "active_learning.query": 0.2,
    "active_learning.max_images": 12,
    "active_learning.eps": 4,
    "acquire.classes": ["none", "left", "right"],
    "acquire.positive_class": "left",
}
N_TRAIN, N_TEST, N_START, N_QUERY = 56, 32, 14, 11


@pytest.fixture
def params(params_with: Callable[..., Params]) -> Callable[..., Params]:
    return lambda **overrides: params_with(
        SMALL | LEARNING | {f"active_learning.{name}": value for name, value in overrides.items()}
    )


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'mlflow.db'}")


def run(params: Params) -> None:
    Workspace().active_learning.mkdir(parents=True, exist_ok=True)
    step.active_learning(params, Tracker())


def outputs() -> dict[str, str]:
    return {
        file.relative_to(Workspace().active_learning).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(Workspace().active_learning.rglob("*"))
        if file.is_file()
    }


def test_labels_grow_by_the_query_and_random_runs_beside_from_the_same_start(params: Callable[..., Params]) -> None:
    run(params())
    cycles, queries = pd.read_csv(Workspace().cycles), pd.read_parquet(Workspace().queries)
    asked = cycles[cycles["acquisition"] != "all labels"]
    assert list(dict.fromkeys(asked["acquisition"])) == ["random", "entropy"]
    for _, of_run in asked.groupby(["acquisition", "seed"]):
        assert list(of_run["n_labelled"]) == [N_START, N_START + N_QUERY, N_START + 2 * N_QUERY]
        assert list(of_run["n_labelled"] + of_run["n_pool"]) == [N_TRAIN] * 3
    starts = asked[asked["cycle"] == 0].drop(columns="acquisition").drop_duplicates()
    assert len(starts) == 2
    assert (cycles[cycles["acquisition"] == "all labels"]["n_labelled"] == N_TRAIN).all()
    assert not queries.duplicated(["acquisition", "seed", "image"]).any()
    data = load_prepared(Workspace())
    assert set(queries["image"]) <= set(data.indices("train"))
    assert (queries["path"] == data.table["path"].to_numpy()[queries["image"]]).all()
    assert (queries["told"] == queries["label"]).all()


def test_every_accuracy_is_that_of_the_predictions_that_are_kept(params: Callable[..., Params]) -> None:
    run(params())
    cycles, tested = pd.read_csv(Workspace().cycles), pd.read_parquet(Workspace().tested)
    assert (cycles["n_test"] == N_TEST).all()
    assert (cycles["n_attacked"] == 12).all()
    for _, row in cycles.iterrows():
        key = ["acquisition", "seed", "cycle"]
        of = tested[(tested[key] == row[key]).all(axis=1)]
        assert row["clean_accuracy"] == pytest.approx((of["predicted"] == of["label"]).mean())
        assert row["robust_accuracy"] == pytest.approx(of["robust"].mean())
        # what withstands is right without an attack, too
        assert (of.loc[of["robust"] == 1, "predicted"] == of.loc[of["robust"] == 1, "label"]).all()
        assert row["gap"] >= 0


@pytest.mark.parametrize(
    "killed_in", ["random, seed 0, cycle 2", "entropy, seed 1, cycle 1", "all labels, seed 0, cycle 0"]
)
def test_killed_in_a_cycle_it_goes_on_there_and_gives_the_same_bytes(
    params: Callable[..., Params], killed_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = params()
    run_step(step.active_learning, Workspace(), undisturbed)
    expected = outputs()
    fit, made = step.Learner.taught, []

    def taught(*arguments: Any) -> Any:
        made.append(1)
        return fit(*arguments)

    finish = step.Campaign.finish

    def dying(self: Any, taught: Any, *more: Any) -> Any:
        name = f"{taught.acquisition or 'start'}, seed {taught.seed}, cycle {taught.cycle}"
        if name == killed_in:
            raise KeyboardInterrupt
        return finish(self, taught, *more)

    monkeypatch.setattr(step.Learner, "taught", taught)
    with monkeypatch.context() as patch:
        patch.setattr(step.Campaign, "finish", dying)
        with pytest.raises(KeyboardInterrupt):
            run_step(step.active_learning, Workspace(), undisturbed)
    n_before = len(made)
    run_step(step.active_learning, Workspace(), undisturbed)
    assert outputs() == expected
    # two seeds: a start, all labels, and two cycles of two functions each; none was trained twice
    assert len(made) == 2 * (1 + 1 + 2 * 2)
    assert 0 < n_before < len(made)
    assert not Workspace().checkpoint_folder("active_learning").exists()


def test_another_seed_starts_from_other_images_and_the_same_one_gives_the_same_bytes(
    params: Callable[..., Params], params_with: Callable[..., Params]
) -> None:
    run_step(step.active_learning, Workspace(), params(n_seeds=1, n_cycles=1))
    first = outputs()
    run_step(step.active_learning, Workspace(), params(n_seeds=1, n_cycles=1))
    assert outputs() == first
    other = params_with(SMALL | LEARNING | {"active_learning.n_seeds": 1, "active_learning.n_cycles": 1, "seed": 5})
    run_step(step.active_learning, Workspace(), other)
    assert outputs() != first


def test_a_budget_ends_the_asking_in_the_middle_of_a_query(params: Callable[..., Params]) -> None:
    run(params(budget=N_QUERY + 3, n_cycles=4, n_seeds=1))
    cycles = pd.read_csv(Workspace().cycles)
    assert list(cycles[cycles["acquisition"] == "entropy"]["n_labelled"]) == [14, 25, 28]


def test_the_pool_runs_dry(params: Callable[..., Params]) -> None:
    run(params(query=0.5, n_cycles=4, n_seeds=1))
    cycles = pd.read_csv(Workspace().cycles)
    of_entropy = cycles[cycles["acquisition"] == "entropy"]
    assert list(of_entropy["n_labelled"]) == [14, 42, 56]
    assert of_entropy["pool_entropy"].isna().tolist() == [False, False, True]


def test_a_noisy_oracle_is_believed(params: Callable[..., Params]) -> None:
    rates = {"none": 1.0, "left": 1.0, "right": 1.0}
    run(params(oracle={"kind": "noisy", "error_rate": rates}, n_seeds=1, n_cycles=1))
    queries = pd.read_parquet(Workspace().queries)
    assert (queries["told"] != queries["label"]).all()
    cycles = pd.read_csv(Workspace().cycles)
    assert (cycles.loc[cycles["n_queried"] > 0, "told_accuracy"] == 0).all()


def test_pseudo_labels_are_given_to_sure_images_only(params: Callable[..., Params]) -> None:
    run(params(oracle={"kind": "pseudo", "confidence": 0.4}, n_seeds=1))
    queries = pd.read_parquet(Workspace().queries)
    assert (queries["confidence"] >= 0.4).all()
    assert (queries["told"] == queries["predicted"]).all()


def test_pseudo_labels_that_no_image_can_have_are_one_clear_error(params: Callable[..., Params]) -> None:
    with pytest.raises(ValueError, match=r"active_learning.oracle: nothing was queried.*lower it"):
        run(params(oracle={"kind": "pseudo", "confidence": 0.999999}, n_seeds=1))


def test_adversarial_copies_of_what_was_queried_are_trained_on(
    params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    taught = step.Learner.taught

    def watch(self: Any, pixels: np.ndarray, labels: np.ndarray, *more: Any) -> Any:
        seen.append((pixels, labels))
        return taught(self, pixels, labels, *more)

    monkeypatch.setattr(step.Learner, "taught", watch)
    run(params(adversarial_copies=True, n_seeds=1, n_cycles=2))
    start, first, second = seen[:3]
    assert [len(labels) for _, labels in (start, first, second)] == [14, 14 + 2 * 11, 14 + 4 * 11]
    originals, copies = second[0][14:36], second[0][36:]
    assert (second[1][14:36] == second[1][36:]).all()
    change = np.abs(originals.astype(int) - copies)
    assert change.max() == 4
    # what was attacked in the first cycle is not attacked anew
    assert (copies[:11] == first[0][25:]).all()


def test_tracking_hears_a_run_an_acquisition_function_with_cycles_as_steps_and_a_gallery(
    params: Callable[..., Params],
) -> None:
    class Listener(Tracker):
        heard: dict[str, Any] = {}  # noqa: RUF012  read by the test alone

        def curve(self, name: str, tags: Any, points: Any, artifacts: Any = ()) -> None:
            assert all(path.is_file() for path in artifacts)
            self.heard[name] = (tags, points, len(artifacts))

    Workspace().active_learning.mkdir(parents=True)
    step.active_learning(params(), Listener())
    assert list(Listener.heard) == ["active learning/random", "active learning/entropy"]
    tags, points, n_artifacts = Listener.heard["active learning/entropy"]
    assert tags == {"acquisition": "entropy"}
    assert [cycle for cycle, _ in points] == [0, 1, 2]
    assert n_artifacts == 1
    curves = pd.read_csv(Workspace().learning_curves)
    clean = curves[(curves["acquisition"] == "entropy") & (curves["metric"] == "clean_accuracy")]["value"]
    assert [metrics["learning/clean_accuracy"] for _, metrics in points] == pytest.approx(list(clean))
    assert "efficiency/clean_area_gain" in points[0][1]
    plot = pd.read_csv(Workspace().active_learning_plots / "clean_accuracy.csv")
    assert list(plot) == ["n_labelled", "entropy", "random"]
    assert list(plot["entropy"]) == pytest.approx(list(clean))


def test_a_grouped_start_takes_whole_groups_and_every_class(params: Callable[..., Params]) -> None:
    table = pd.read_parquet(Workspace().split).assign(group=np.arange(96) // 8)
    table.to_parquet(Workspace().split)
    data = load_prepared(Workspace())
    settings = params(start={"selection": "grouped", "share": 0.2}).active_learning
    train = data.indices("train")
    rows = choose_start(data, train, settings, 3)
    groups = data.table["group"].to_numpy()
    assert set(rows) == set(train[np.isin(groups[train], groups[rows])])
    assert len(rows) >= 0.2 * len(train)
    assert set(data.labels(rows)) == {0, 1, 2}
    assert set(choose_start(data, train, settings, 4)) != set(rows)


def test_a_classifier_that_can_not_take_small_images_is_one_clear_error(
    params_with: Callable[..., Params],
) -> None:
    small = params_with(SMALL | LEARNING | {"train_classifier.architecture": "alexnet"})
    with pytest.raises(ValueError, match=r"active_learning.shrink 2: .*'alexnet' can't take images of 16 x 16 pixels"):
        run(small)


def test_training_does_not_depend_on_who_else_draws_from_the_global_generator(params: Callable[..., Params]) -> None:
    settings = params(n_seeds=1, n_cycles=1, acquisition=["bald"])
    run_step(step.active_learning, Workspace(), settings)
    expected = outputs()
    fit = step.Learner.taught

    def disturbed(self: Any, *arguments: Any) -> Any:
        torch.rand(3)
        return fit(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step.Learner, "taught", disturbed)
        run_step(step.active_learning, Workspace(), settings)
    assert outputs() == expected


def test_squares_of_pixels_are_averaged() -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    assert shrunk(pixels, 2)[0, 0].tolist() == [[2, 4], [10, 12]]
    assert (shrunk(pixels, 1) == pixels).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"acquisition": ["entropy", "entropy"]}, "acquisition must not repeat"),
        ({"acquisition": ["bald"], "dropout": 0.0}, "dropout must be above 0"),
        ({"shrink": 3}, "active_learning.shrink"),
        ({"start": {"selection": "stratified", "share": 0.7}, "query": 0.5}, "more than all training images"),
        ({"oracle": {"kind": "noisy", "error_rate": {"left": 0.1}}}, "a rate for each of acquire.classes"),
        ({"oracle": {"kind": "pseudo", "confidence": 1.0}}, "active_learning.oracle.confidence"),
        ({"adversarial_copies": True, "eps": 0.25}, "active_learning.adversarial_copies are kept in 8 bits"),
        ({"max_images": 2}, "active_learning.max_images: 2 images can't stand for 3 classes"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_what_is_allowed(
    params: Callable[..., Params], overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParamsError, match=message):
        params(**overrides)
