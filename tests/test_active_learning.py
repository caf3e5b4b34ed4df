"""The steps of active learning on the small workspace: their outputs, errors, and resume after a kill."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.active_learning import active_learning
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.labelling.downsampling import downsample
from tasks.labelling.initial_set import choose_initial_set
from tasks.labelling.learner import Learner
from tasks.params import Params, ParamsError
from tasks.runner import run_step
from tasks.simulate_labelling import simulate_labelling
from tasks.statistics.rates import rate_estimate
from tasks.tracking import Tracker
from tests.small_workspace import SMALL

pytestmark = pytest.mark.usefixtures("few_channels")

LEARNING: dict[str, Any] = {
    "prepare.image_size": 32,
    "active_learning.downsampling_factor": 2,
    "active_learning.acquisition_functions": ["entropy"],
    "active_learning.n_seeds": 2,
    "active_learning.n_cycles": 2,
    "active_learning.training.epochs": 2,
    "active_learning.reference_training.epochs": 3,
    "active_learning.warm_start_epochs": 1,
    "active_learning.initial_set": {"strategy": "stratified", "fraction": 0.25},
    "active_learning.query_fraction": 0.2,
    "active_learning.max_attacked_images": 12,
    "active_learning.eps": 4,
    "acquire.classes": ["none", "left", "right"],
    "acquire.positive_class": "left",
}
N_TRAIN, N_TEST, N_INITIAL, N_QUERY = 56, 32, 14, 11


@pytest.fixture
def params(params_with: Callable[..., Params]) -> Callable[..., Params]:
    return lambda **overrides: params_with(
        SMALL | LEARNING | {f"active_learning.{name}": value for name, value in overrides.items()}
    )


@pytest.fixture(autouse=True)
def own_tracking_store(monkeypatch: pytest.MonkeyPatch, small_folder: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{small_folder / 'mlflow.db'}")


def run(params: Params) -> None:
    for step in (simulate_labelling, active_learning):
        Workspace().step_folder(step.__name__).mkdir(parents=True, exist_ok=True)
        step(Workspace(), params, Tracker())


def test_a_simulation_of_another_split_is_refused(params: Callable[..., Params]) -> None:
    workspace = Workspace()
    run(params(n_seeds=1, n_cycles=1))
    table = pd.read_parquet(workspace.split)
    table[::-1].to_parquet(workspace.split)
    with pytest.raises(ValueError, match=r"queries\.parquet was made with split .*Run the step simulate_labelling"):
        run_step(active_learning, workspace, params(n_seeds=1, n_cycles=1))


def run_steps(params: Params) -> None:
    for step in (simulate_labelling, active_learning):
        run_step(step, Workspace(), params)


def outputs() -> dict[str, str]:
    return {
        file.relative_to(Workspace().data).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in (Workspace().simulate_labelling, Workspace().active_learning)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_each_cycle_adds_one_query_and_all_functions_share_the_initial_cycle(params: Callable[..., Params]) -> None:
    run(params())
    cycles, queries = pd.read_csv(Workspace().cycles), pd.read_parquet(Workspace().queries)
    learned = cycles[cycles["acquisition"] != "all labels"]
    assert list(dict.fromkeys(learned["acquisition"])) == ["random", "entropy"]
    for _, cycles_of_run in learned.groupby(["acquisition", "seed"]):
        assert list(cycles_of_run["n_labelled"]) == [N_INITIAL, N_INITIAL + N_QUERY, N_INITIAL + 2 * N_QUERY]
        assert list(cycles_of_run["n_labelled"] + cycles_of_run["n_pool"]) == [N_TRAIN] * 3
    initial = learned[learned["cycle"] == 0].drop(columns="acquisition").drop_duplicates()
    assert len(initial) == 2
    assert (cycles[cycles["acquisition"] == "all labels"]["n_labelled"] == N_TRAIN).all()
    assert not queries.duplicated(["acquisition", "seed", "image"]).any()
    data = load_prepared(Workspace())
    assert set(queries["image"]) <= set(data.indices("train"))
    assert (queries["path"] == data.table["path"].to_numpy()[queries["image"]]).all()
    assert (queries["assigned_label"] == queries["label"]).all()


def test_accuracies_are_computed_from_the_saved_predictions(params: Callable[..., Params]) -> None:
    run(params())
    cycles, predictions = pd.read_csv(Workspace().cycles), pd.read_parquet(Workspace().test_predictions)
    assert (cycles["n_test"] == N_TEST).all()
    assert (cycles["n_attacked"] == 12).all()
    for _, row in cycles.iterrows():
        key = ["acquisition", "seed", "cycle"]
        rows = predictions[(predictions[key] == row[key]).all(axis=1)]
        assert row["clean_accuracy"] == pytest.approx((rows["prediction"] == rows["label"]).mean())
        assert row["robust_accuracy"] == pytest.approx(rows["robust_correct"].mean())
        rate = rate_estimate((rows["prediction"] == rows["label"]).to_numpy(), rows["group"].to_numpy())
        assert (row["clean_accuracy_low"], row["clean_accuracy_high"]) == pytest.approx(rate[1:])
        # an image that is correct under attack is also correct without attack
        robust = rows[rows["robust_correct"] == 1]
        assert (robust["prediction"] == robust["label"]).all()
        assert row["accuracy_gap"] >= 0


@pytest.mark.parametrize("n_trainings", [2, 5, 9], ids=["random, cycle 2", "all labels", "entropy, second seed"])
def test_a_killed_step_resumes_in_its_cycle_and_gives_the_same_bytes(
    params: Callable[..., Params], n_trainings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = params()
    run_steps(settings)
    expected = outputs()
    train, finished = Learner.train, []

    def counted(*arguments: Any) -> Any:
        model = train(*arguments)
        finished.append(1)
        return model

    def killed(*arguments: Any) -> Any:
        if len(finished) == n_trainings:
            raise KeyboardInterrupt
        return counted(*arguments)

    monkeypatch.setattr(Learner, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        run_step(simulate_labelling, Workspace(), settings)
    monkeypatch.setattr(Learner, "train", counted)
    run_steps(settings)
    assert outputs() == expected
    # two seeds with an initial cycle, all labels, and two cycles of two functions; each is trained once
    assert len(finished) == 2 * (1 + 1 + 2 * 2)
    assert not Workspace().checkpoint_folder("simulate_labelling").exists()


def test_outputs_depend_on_the_seed_alone(params: Callable[..., Params], params_with: Callable[..., Params]) -> None:
    run_steps(params(n_seeds=1, n_cycles=1))
    first = outputs()
    run_steps(params(n_seeds=1, n_cycles=1))
    assert outputs() == first
    other = params_with(SMALL | LEARNING | {"active_learning.n_seeds": 1, "active_learning.n_cycles": 1, "seed": 5})
    run_steps(other)
    assert outputs() != first


def test_the_last_query_is_reduced_to_the_rest_of_the_budget(params: Callable[..., Params]) -> None:
    run(params(budget=N_QUERY + 3, n_cycles=4, n_seeds=1))
    cycles = pd.read_csv(Workspace().cycles)
    assert list(cycles[cycles["acquisition"] == "entropy"]["n_labelled"]) == [14, 25, 28]


def test_a_run_ends_when_the_pool_is_empty(params: Callable[..., Params]) -> None:
    run(params(query_fraction=0.5, n_cycles=4, n_seeds=1))
    cycles = pd.read_csv(Workspace().cycles)
    entropy_run = cycles[cycles["acquisition"] == "entropy"]
    assert list(entropy_run["n_labelled"]) == [14, 42, 56]
    assert entropy_run["mean_pool_entropy"].isna().tolist() == [False, False, True]


def test_the_labels_of_a_noisy_oracle_are_recorded(params: Callable[..., Params]) -> None:
    rates = {"none": 1.0, "left": 1.0, "right": 1.0}
    run(params(oracle={"kind": "noisy", "error_rate": rates}, n_seeds=1, n_cycles=1))
    queries = pd.read_parquet(Workspace().queries)
    assert (queries["assigned_label"] != queries["label"]).all()
    cycles = pd.read_csv(Workspace().cycles)
    assert (cycles.loc[cycles["n_queried"] > 0, "assigned_label_accuracy"] == 0).all()


def test_pseudo_labels_are_assigned_to_confident_predictions_only(params: Callable[..., Params]) -> None:
    run(params(oracle={"kind": "pseudo_label", "confidence_threshold": 0.4}, n_seeds=1))
    queries = pd.read_parquet(Workspace().queries)
    assert (queries["confidence"] >= 0.4).all()
    assert (queries["assigned_label"] == queries["prediction"]).all()


def test_a_confidence_that_no_prediction_reaches_is_an_error(params: Callable[..., Params]) -> None:
    with pytest.raises(
        ValueError,
        match=r"active_learning.oracle.confidence_threshold 0.999999: no prediction .* reached it.* Lower it",
    ):
        run(params(oracle={"kind": "pseudo_label", "confidence_threshold": 0.999999}, n_seeds=1))


def test_an_initial_set_of_all_training_images_is_an_error(params: Callable[..., Params]) -> None:
    pd.read_parquet(Workspace().split).assign(group=0).to_parquet(Workspace().split)
    with pytest.raises(ValueError, match=r"active_learning.initial_set leaves no image in the pool: all 56 .* Lower"):
        run(params(initial_set={"strategy": "grouped", "fraction": 0.25}))


def test_adversarial_copies_of_queried_images_are_added_to_the_training(
    params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[np.ndarray, np.ndarray]] = []
    train = Learner.train

    def recorded(self: Any, pixels: np.ndarray, labels: np.ndarray, *others: Any) -> Any:
        trained.append((pixels, labels))
        return train(self, pixels, labels, *others)

    monkeypatch.setattr(Learner, "train", recorded)
    run(params(adversarial_augmentation=True, n_seeds=1, n_cycles=2))
    initial, first, second = trained[:3]
    assert [len(labels) for _, labels in (initial, first, second)] == [14, 14 + 2 * 11, 14 + 4 * 11]
    originals, copies = second[0][14:36], second[0][36:]
    assert (second[1][14:36] == second[1][36:]).all()
    assert np.abs(originals.astype(int) - copies).max() == 4
    # copies of the first cycle are kept in the second
    assert (copies[:11] == first[0][25:]).all()


def test_each_acquisition_function_is_tracked_as_a_curve_over_its_cycles_with_a_gallery(
    params: Callable[..., Params],
) -> None:
    tracked: dict[str, Any] = {}

    class CurveRecorder(Tracker):
        def curve(self, name: str, tags: Any, points: Any, artifacts: Any = ()) -> None:
            assert all(path.is_file() for path in artifacts)
            tracked[name] = (tags, points, len(artifacts))

    for step in (simulate_labelling, active_learning):
        Workspace().step_folder(step.__name__).mkdir(parents=True)
        step(Workspace(), params(), CurveRecorder())
    assert list(tracked) == ["active learning/random", "active learning/entropy"]
    tags, points, n_artifacts = tracked["active learning/entropy"]
    assert tags == {"acquisition": "entropy"}
    assert [cycle for cycle, _ in points] == [0, 1, 2]
    assert n_artifacts == 1
    curves = pd.read_csv(Workspace().learning_curves)
    clean = curves[(curves["acquisition"] == "entropy") & (curves["metric"] == "clean_accuracy")]["value"]
    assert [metrics["learning/clean_accuracy"] for _, metrics in points] == pytest.approx(list(clean))
    assert "label_efficiency/mean_clean_accuracy_gain" in points[0][1]
    plot = pd.read_csv(Workspace().active_learning_plots / "clean_accuracy.csv")
    assert list(plot) == ["curve", "n_labelled", "value"]
    assert list(plot["curve"].drop_duplicates()) == ["random", "entropy"]
    of_entropy = plot[plot["curve"] == "entropy"]
    assert list(of_entropy["n_labelled"]) == [N_INITIAL, N_INITIAL + N_QUERY, N_INITIAL + 2 * N_QUERY]
    assert list(of_entropy["value"]) == pytest.approx(list(clean))


def test_a_grouped_initial_set_has_whole_groups_and_every_class(params: Callable[..., Params]) -> None:
    table = pd.read_parquet(Workspace().split).assign(group=np.arange(96) // 8)
    table.to_parquet(Workspace().split)
    data = load_prepared(Workspace())
    settings = params(initial_set={"strategy": "grouped", "fraction": 0.2}).active_learning
    train = data.indices("train")
    rows = choose_initial_set(data, train, settings, 3)
    groups = data.table["group"].to_numpy()
    assert set(rows) == set(train[np.isin(groups[train], groups[rows])])
    assert len(rows) >= 0.2 * len(train)
    assert set(data.labels(rows)) == {0, 1, 2}
    assert set(choose_initial_set(data, train, settings, 4)) != set(rows)


def test_a_stratified_initial_set_has_groups_in_proportion_to_their_images(params: Callable[..., Params]) -> None:
    groups = np.where(np.arange(96) < 84, 0, np.arange(96))
    pd.read_parquet(Workspace().split).assign(group=groups).to_parquet(Workspace().split)
    settings = params(initial_set={"strategy": "stratified", "fraction": 0.25}).active_learning
    shares = [
        np.mean(choose_initial_set(load_prepared(Workspace()), np.arange(96), settings, s) < 84) for s in range(9)
    ]
    assert np.mean(shares) == pytest.approx(84 / 96, abs=0.05)


def test_a_grouped_initial_set_has_similar_shares_of_all_classes(params: Callable[..., Params]) -> None:
    """Groups of two images of one class; random groups would often miss the rare class."""
    label = np.where(np.arange(96) < 8, 0, np.where(np.arange(96) < 48, 1, 2))
    table = pd.read_parquet(Workspace().split).assign(label=label, group=np.arange(96) // 2)
    table.to_parquet(Workspace().split)
    data = load_prepared(Workspace())
    settings = params(initial_set={"strategy": "grouped", "fraction": 0.25}).active_learning
    for seed in range(20):
        rows = choose_initial_set(data, np.arange(96), settings, seed)
        counts = np.bincount(label[rows])
        assert counts.sum() == 24
        assert (np.abs(counts - [2, 10, 12]) <= 2).all()


def test_the_default_start_of_the_repository_has_whole_groups_of_every_class(
    params_with: Callable[..., Params],
) -> None:
    settings = params_with({}).active_learning
    assert settings.initial_set.strategy == "grouped"
    # the groups of the phantoms: patients with 6 slices each
    table = pd.read_parquet(Workspace().split).sort_values("class", ignore_index=True)
    table.assign(group=np.arange(96) // 6).to_parquet(Workspace().split)
    data = load_prepared(Workspace())
    for seed in range(50):
        rows = choose_initial_set(data, np.arange(96), settings, seed)
        assert set(data.labels(rows)) == {0, 1, 2}
        assert np.isin(data.table["group"], data.table["group"][rows]).sum() == len(rows) < 0.25 * 96


def test_the_reference_is_trained_until_validation_images_stop_it(params: Callable[..., Params]) -> None:
    training = {"epochs": 40, "batch_size": 16, "learning_rate": 1e-2, "learning_rate_schedule": "constant"}
    training |= {"early_stopping_patience": 3, "ema_decay": 0.9}
    run(params(reference_training=training, n_seeds=1, n_cycles=1))
    cycles = pd.read_csv(Workspace().cycles)
    of_reference = cycles[cycles["acquisition"] == "all labels"]
    # stopped by the rule, after more epochs than a cycle has
    assert 3 < of_reference["n_epochs"].item() < 40
    others = cycles[cycles["acquisition"] != "all labels"]
    assert others["n_epochs"].tolist() == [2, 1, 2, 1]


def test_an_architecture_that_does_not_accept_the_downsampled_images_is_an_error(
    params_with: Callable[..., Params],
) -> None:
    settings = params_with(SMALL | LEARNING | {"train_classifier.architecture": "alexnet"})
    with pytest.raises(
        ValueError, match=r"'alexnet' does not accept .* active_learning.downsampling_factor: 16 x 16 pixels"
    ):
        run(settings)


def test_training_does_not_depend_on_torchs_global_generator(params: Callable[..., Params]) -> None:
    settings = params(n_seeds=1, n_cycles=1, acquisition_functions=["bald"])
    run_steps(settings)
    expected = outputs()
    train = Learner.train

    def disturbed(self: Any, *arguments: Any) -> Any:
        torch.rand(3)
        return train(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "train", disturbed)
        run_steps(settings)
    assert outputs() == expected


def test_the_tables_are_computed_again_without_a_training(
    params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = params(n_seeds=1, n_cycles=1)
    run_steps(settings)
    expected = outputs()
    monkeypatch.delattr(Learner, "train")
    run_step(active_learning, Workspace(), settings)
    assert outputs() == expected


def test_downsampling_averages_squares_of_pixels() -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    assert downsample(pixels, 2)[0, 0].tolist() == [[2, 4], [10, 12]]
    assert (downsample(pixels, 1) == pixels).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"acquisition_functions": ["entropy", "entropy"]},
            r"active_learning: acquisition_functions \['entropy', 'entropy'\] must not repeat a name",
        ),
        ({"acquisition_functions": ["bald"], "dropout": 0.0}, "active_learning: dropout must be above 0"),
        ({"downsampling_factor": 3}, "active_learning.downsampling_factor"),
        (
            {"initial_set": {"strategy": "stratified", "fraction": 0.7}, "query_fraction": 0.5},
            "active_learning: initial_set.fraction 0.7 and query_fraction 0.5 together must be at most 1",
        ),
        (
            {"oracle": {"kind": "noisy", "error_rate": {"left": 0.1}}},
            r"active_learning.oracle.error_rate has the classes \['left'\]; exactly those of acquire.classes",
        ),
        (
            {"oracle": {"kind": "pseudo_label", "confidence_threshold": 1.0}},
            "active_learning.oracle.confidence_threshold",
        ),
        (
            {"adversarial_augmentation": True, "eps": 0.25},
            "active_learning.adversarial_augmentation needs .* a whole number .* copies have 8 bits; got linf and 0.25",
        ),
        (
            {"max_attacked_images": 2},
            "active_learning.max_attacked_images 2: at least one image of each of the 3 classes is needed, or 0",
        ),
    ],
)
def test_invalid_settings_are_an_error_that_names_the_parameter(
    params: Callable[..., Params], overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParamsError, match=message):
        params(**overrides)
