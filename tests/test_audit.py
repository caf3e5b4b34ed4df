"""A registered model audited in a workspace of its own: on images that it has not seen, by the real steps."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.audit import outcome_of, run_audit, set_up_audit
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.params import load_params
from tasks.serving.bundle import SEEN, digests_of_images, read_bundle
from tasks.serving.registry import Registered
from tests.bundles import bundle_of, complete_workspace

TARGET = "retrained_autoencoder"
AUDIT = Path("audits") / "toy-v1"


def moved_into_bundle(target: str, workspace: Path) -> Path:
    """A target of the small workspace, whose networks are in a bundle then and not in the workspace any more."""
    complete_workspace()
    folder = bundle_of(target, workspace / "bundles")
    for step in (Workspace().train_classifier, Workspace().train_autoencoder, Workspace().train_defence):
        shutil.rmtree(step)
    return folder


@pytest.fixture
def bundle(workspace: Path) -> Path:
    return moved_into_bundle(TARGET, workspace)


@pytest.fixture
def model(bundle: Path) -> Registered:
    about = read_bundle(bundle)
    return Registered("toy", 1, about.target, about.digest)


def make_seen(bundle: Path, train: np.ndarray, validation: np.ndarray) -> None:
    """Let the bundle's target have been trained and validated on these rows of the workspace."""
    pixels = load_prepared(Workspace()).pixels
    seen = {"train": digests_of_images(pixels[train]), "validation": digests_of_images(pixels[validation])}
    (bundle / SEEN).write_text(json.dumps(seen))


def test_on_the_data_it_was_trained_on_nothing_is_left_out(bundle: Path, model: Registered) -> None:
    audit = set_up_audit(Workspace(), model, bundle, AUDIT, load_params())
    assert (audit.n_test, audit.n_left_out) == (32, 0)
    pd.testing.assert_frame_equal(pd.read_parquet(AUDIT / Workspace().split), pd.read_parquet(Workspace().split))


def test_test_images_that_it_has_seen_are_left_out_and_counted(bundle: Path, model: Registered) -> None:
    data = load_prepared(Workspace())
    test, validation = data.indices("test"), data.indices("validation")
    make_seen(bundle, np.r_[data.indices("train"), test[:5], validation[:2]], np.r_[validation[2:], test[5:8]])
    audit = set_up_audit(Workspace(), model, bundle, AUDIT, load_params())
    assert (audit.n_test, audit.n_left_out) == (24, 8)
    split = pd.read_parquet(AUDIT / Workspace().split)["split"]
    assert list(np.flatnonzero(split == "test")) == list(test[8:])
    # what it was merely validated on still tells thresholds, what it was trained on does not
    assert list(np.flatnonzero(split == "validation")) == list(validation[2:])
    info = json.loads((AUDIT / Workspace().dataset_info).read_text())
    assert sum(info["n_images"]["test"].values()) == 24


def test_images_that_another_model_has_seen_are_left_out_too(bundle: Path, model: Registered) -> None:
    data = load_prepared(Workspace())
    others = set(digests_of_images(data.pixels[data.indices("test")[-3:]]))
    audit = set_up_audit(Workspace(), model, bundle, AUDIT, load_params(), others)
    assert (audit.n_test, audit.n_left_out) == (29, 3)


def test_the_current_workspace_is_not_written_to(bundle: Path, model: Registered, workspace: Path) -> None:
    make_seen(bundle, load_prepared(Workspace()).indices("test")[:5], np.array([], dtype=int))
    before = {file: file.read_bytes() for file in sorted(Workspace().data.rglob("*")) if file.is_file()}
    set_up_audit(Workspace(), model, bundle, AUDIT, load_params())
    assert {file: file.read_bytes() for file in sorted(Workspace().data.rglob("*")) if file.is_file()} == before
    assert Path.cwd() == workspace


def test_leakage_is_told_of_the_images_that_the_model_itself_was_trained_on(bundle: Path, model: Registered) -> None:
    data = load_prepared(Workspace())
    table = data.table.copy()
    # the first four test images are of the group of what is validation today, and training for the model
    table.loc[data.indices("test")[:4], "group"] = table.loc[data.indices("validation")[0], "group"]
    table.to_parquet(Workspace().split)
    make_seen(bundle, data.indices("validation")[:1], np.array([], dtype=int))
    set_up_audit(Workspace(), model, bundle, AUDIT, load_params())
    leakage = json.loads((AUDIT / Workspace().dataset_info).read_text())["leakage"]
    assert leakage == {"near_duplicate_in_train": 0.0, "group_in_train": 4 / 32}


@pytest.mark.parametrize(
    ("split", "message"),
    [("test", "all 32 test images: none is left"), ("validation", "all validation images: none is left")],
)
def test_an_audit_without_images_is_refused(bundle: Path, model: Registered, split: str, message: str) -> None:
    make_seen(bundle, load_prepared(Workspace()).indices(split), np.array([], dtype=int))
    with pytest.raises(ValueError, match=message):
        set_up_audit(Workspace(), model, bundle, AUDIT, load_params())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", ["left", "none", "right"], r"toy-v1 takes classes .* holds \('left', 'none', 'right'\)"),
        ("value_range", [0.0, 255.0], "value range"),
    ],
)
def test_images_that_are_not_for_it_are_refused(
    bundle: Path, model: Registered, key: str, value: list[str], message: str
) -> None:
    info = json.loads(Workspace().dataset_info.read_text())
    Workspace().dataset_info.write_text(json.dumps(info | {key: value}))
    with pytest.raises(ValueError, match=message):
        set_up_audit(Workspace(), model, bundle, AUDIT, load_params())


def test_images_of_another_size_are_refused(bundle: Path, model: Registered) -> None:
    np.save(Workspace().pixels, np.load(Workspace().pixels)[:, :, ::2, ::2])
    with pytest.raises(ValueError, match="image size 32, and data/prepare holds 16"):
        set_up_audit(Workspace(), model, bundle, AUDIT, load_params())


def test_how_networks_are_made_is_told_by_the_model_and_all_else_by_today(bundle: Path, model: Registered) -> None:
    today = load_params()
    changed = today.model_copy(
        update={
            "train_classifier": today.train_classifier.model_copy(update={"epochs": 7}),
            "attack": today.attack.model_copy(update={"eps": (4.0, 6.0)}),
            "benchmark": ("autoencoder",),
        }
    )
    audit = set_up_audit(Workspace(), model, bundle, AUDIT, changed)
    assert audit.params.train_classifier == today.train_classifier
    assert audit.params.attack.eps == (4, 6)
    assert audit.params.benchmark == ("autoencoder", TARGET)
    assert load_params(AUDIT / Workspace().params_file) == audit.params


def test_a_report_wants_what_the_page_also_shows(bundle: Path, model: Registered) -> None:
    with pytest.raises(FileNotFoundError, match="data/active_learning not found: run the step active_learning first"):
        set_up_audit(Workspace(), model, bundle, AUDIT, load_params(), with_report=True)


class TestSteps:
    """The real steps, each in its own process, of the study's defence: the fewest that there are."""

    @pytest.fixture
    def bundle(self, workspace: Path) -> Path:
        return moved_into_bundle("autoencoder", workspace)

    @pytest.fixture(scope="class")
    def server(self) -> Iterator[None]:
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=300):
            yield

    def test_they_run_in_the_audit_and_say_what_they_found(
        self, server: None, bundle: Path, model: Registered, workspace: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow import MlflowClient
        from prefect import flow

        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'mlflow.db'}")
        make_seen(bundle, load_prepared(Workspace()).indices("test")[:2], np.array([], dtype=int))
        audit = set_up_audit(Workspace(), model, bundle, AUDIT, load_params())
        flow(name="attack_and_evaluate")(run_audit)(audit, with_report=False)
        records = pd.read_parquet(audit.path(Workspace().records("autoencoder")))
        assert set(records["image"]) == set(load_prepared(Workspace()).indices("test")[2:])
        outcome = outcome_of(audit)
        assert "2 test images left out" in outcome
        assert "of 30 clean test images" in outcome
        assert not (Workspace().data / "attack").exists()
        assert Path.cwd() == workspace
        client = MlflowClient()
        runs = client.search_runs([client.get_experiment_by_name("ct-robustness").experiment_id])
        assert {"attack", "attack_defence@autoencoder", "evaluate"} <= {
            run.data.tags.get("step") for run in runs if run.data.tags.get("audit") == "toy-v1"
        }

    def test_one_that_fails_ends_the_audit_with_its_own_message(
        self, server: None, bundle: Path, model: Registered, workspace: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from prefect import flow

        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'mlflow.db'}")
        audit = set_up_audit(Workspace(), model, bundle, AUDIT, load_params())
        (AUDIT / Workspace().pixels).unlink()
        with pytest.raises(RuntimeError, match=r"attack: data/prepare/pixels.npy not found: run the step prepare"):
            flow(name="fails")(run_audit)(audit, with_report=False)
