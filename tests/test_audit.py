"""The audit of a registered model, in a workspace of its own and on images that the model has not seen."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.audit import Audit, outcome_of, run_audit, set_up_audit
from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.models.files import copy_model
from tasks.params import Classifier, load_params
from tasks.serving.bundle import SEEN, digests_of_images, read_bundle
from tasks.serving.registry import Registered
from tests.bundles import bundle_of, copy_completed

TARGET = "retrained_autoencoder"


@pytest.fixture
def workspace(small_workspace: Path, tmp_path: Path) -> Workspace:
    return copy_completed(small_workspace, tmp_path)


def moved_to_bundle(workspace: Workspace, target: str) -> Path:
    """Write a target as a bundle, and remove all networks from the workspace."""
    folder = bundle_of(workspace, target, workspace.root / "bundles")
    for step in (workspace.train_classifier, workspace.train_autoencoder, workspace.train_defence):
        shutil.rmtree(step)
    return folder


@pytest.fixture
def bundle(workspace: Workspace) -> Path:
    return moved_to_bundle(workspace, TARGET)


@pytest.fixture
def model(bundle: Path) -> Registered:
    about = read_bundle(bundle)
    return Registered("toy", 1, about.target, about.digest, "")


@pytest.fixture
def audited(workspace: Workspace) -> Workspace:
    """The workspace of the audit."""
    return Workspace(workspace.root / "audits" / "toy-v1")


def write_seen(workspace: Workspace, bundle: Path, train: list[int], validation: list[int]) -> None:
    """Declare rows of the prepared data as the training and validation images of the bundle's target."""
    pixels = load_prepared(workspace).pixels
    seen = {"train": digests_of_images(pixels[train]), "validation": digests_of_images(pixels[validation])}
    (bundle / SEEN).write_text(json.dumps(seen))


def rows(workspace: Workspace, split: str) -> list[int]:
    return [int(row) for row in load_prepared(workspace).indices(split)]


def set_up(
    workspace: Workspace,
    audited: Workspace,
    model: Registered,
    bundle: Path,
    also_left_out: frozenset[str] = frozenset(),
) -> Audit:
    return set_up_audit(workspace, model, bundle, audited, load_params(workspace.params_file), also_left_out)


def test_no_image_is_left_out_if_the_test_images_are_those_of_the_training(
    workspace: Workspace, audited: Workspace, model: Registered, bundle: Path
) -> None:
    audit = set_up(workspace, audited, model, bundle)
    assert (audit.n_test, audit.n_left_out) == (32, 0)
    pd.testing.assert_frame_equal(pd.read_parquet(audited.split), pd.read_parquet(workspace.split))


def test_seen_test_images_are_left_out_and_counted(
    workspace: Workspace, audited: Workspace, model: Registered, bundle: Path
) -> None:
    train, validation, test = (rows(workspace, split) for split in ("train", "validation", "test"))
    write_seen(workspace, bundle, train + test[:5] + validation[:2], validation[2:] + test[5:8])
    audit = set_up(workspace, audited, model, bundle)
    assert (audit.n_test, audit.n_left_out) == (24, 8)
    assert rows(audited, "test") == test[8:]
    # images that the model was only validated on still set the thresholds of detectors
    assert rows(audited, "validation") == validation[2:]
    info = json.loads(audited.dataset_info.read_text())
    assert sum(info["n_images"]["test"].values()) == 24


def test_test_images_that_another_model_has_seen_are_left_out_too(
    workspace: Workspace, audited: Workspace, model: Registered, bundle: Path
) -> None:
    data = load_prepared(workspace)
    others = frozenset(digests_of_images(data.pixels[data.indices("test")[-3:]]))
    audit = set_up(workspace, audited, model, bundle, others)
    assert (audit.n_test, audit.n_left_out) == (29, 3)


def test_the_current_workspace_does_not_change(
    workspace: Workspace, audited: Workspace, model: Registered, bundle: Path
) -> None:
    write_seen(workspace, bundle, rows(workspace, "test")[:5], [])
    before = {file: file.read_bytes() for file in sorted(workspace.data.rglob("*")) if file.is_file()}
    set_up(workspace, audited, model, bundle)
    assert {file: file.read_bytes() for file in sorted(workspace.data.rglob("*")) if file.is_file()} == before


def test_other_files_of_a_bundle_do_not_reach_the_workspace_of_the_audit_or_the_current_one(
    workspace: Workspace, audited: Workspace, model: Registered, bundle: Path
) -> None:
    planted = Workspace(bundle)
    planted.validate.mkdir()
    planted.manifest.write_bytes(b"planted")
    workspace.active_learning.mkdir()
    workspace.reference.touch()
    before = workspace.manifest.read_bytes()
    set_up_audit(workspace, model, bundle, audited, load_params(workspace.params_file), with_report=True)
    assert audited.manifest.read_bytes() == workspace.manifest.read_bytes() == before


def test_leakage_is_measured_against_the_training_images_of_the_model(
    workspace: Workspace, audited: Workspace, model: Registered, bundle: Path
) -> None:
    validation, test = rows(workspace, "validation"), rows(workspace, "test")
    table = pd.read_parquet(workspace.split)
    # the group of four test images has one more image: now in validation, in training for the model
    table.loc[test[:4], "group"] = table.loc[validation[0], "group"]
    table.to_parquet(workspace.split)
    write_seen(workspace, bundle, validation[:1], [])
    set_up(workspace, audited, model, bundle)
    leakage = json.loads(audited.dataset_info.read_text())["leakage"]
    assert leakage == {"near_duplicate_in_train": 0.0, "group_in_train": 4 / 32}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("test", "no test images are left for toy-v1: it was trained or validated on all 32"),
        ("validation", "no validation images are left for toy-v1"),
    ],
)
def test_an_audit_without_images_is_refused(
    split: str, message: str, workspace: Workspace, audited: Workspace, model: Registered, bundle: Path
) -> None:
    write_seen(workspace, bundle, rows(workspace, split), [])
    with pytest.raises(ValueError, match=message):
        set_up(workspace, audited, model, bundle)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", ["left", "none", "right"], r"has classes \('left', 'none', 'right'\), but toy-v1 takes \('none'"),
        ("intensity", {"kind": "window", "low": -10, "high": 20}, r"has intensity \{.*takes full range"),
        ("resize", "pad", r"has resize pad, but toy-v1 takes stretch"),
        ("value_range", [0.0, 255.0], r"has value range \(0\.0, 255\.0\), but toy-v1 takes \(0\.0, 1\.0\)"),
    ],
)
def test_images_that_were_prepared_in_another_way_are_refused(
    key: str, value: object, message: str, workspace: Workspace, audited: Workspace, model: Registered, bundle: Path
) -> None:
    info = json.loads(workspace.dataset_info.read_text())
    workspace.dataset_info.write_text(json.dumps(info | {key: value}))
    with pytest.raises(ValueError, match=message):
        set_up(workspace, audited, model, bundle)


def test_images_of_another_size_are_refused(
    workspace: Workspace, audited: Workspace, model: Registered, bundle: Path
) -> None:
    np.save(workspace.pixels, np.load(workspace.pixels)[:, :, ::2, ::2])
    with pytest.raises(ValueError, match=r"data/prepare has images .* \(1, 16, 16\), but toy-v1 takes \(1, 32, 32\)"):
        set_up(workspace, audited, model, bundle)


def test_parameters_of_the_networks_come_from_the_model_and_all_others_from_params_yaml(
    workspace: Workspace, audited: Workspace, model: Registered, bundle: Path
) -> None:
    now = load_params(workspace.params_file)
    changed = now.model_copy(
        update={
            "train_classifier": now.train_classifier.model_copy(update={"epochs": 7}),
            "classifier": Classifier(source="onnx", folder="models", file="other.onnx"),
            "attack": now.attack.model_copy(update={"eps": (4.0, 6.0)}),
            "selected_defences": ("autoencoder",),
        }
    )
    audit = set_up_audit(workspace, model, bundle, audited, changed)
    assert audit.params.train_classifier == now.train_classifier
    assert audit.params.classifier == now.classifier
    assert audit.params.attack.eps == (4, 6)
    assert audit.params.selected_defences == ("autoencoder", TARGET)
    assert load_params(audited.params_file) == audit.params


def test_an_audit_uses_the_surrogates_of_the_current_workspace_and_needs_none(
    workspace: Workspace, audited: Workspace, model: Registered, bundle: Path
) -> None:
    copy_model(Workspace(bundle).classifier, workspace.surrogate("cnn-1"))
    write_json([{"name": "cnn-1", "architecture": "cnn"}], workspace.surrogates)
    set_up(workspace, audited, model, bundle)
    assert audited.surrogate("cnn-1").read_bytes() == workspace.surrogate("cnn-1").read_bytes()
    assert json.loads(audited.surrogates.read_text()) == [{"name": "cnn-1", "architecture": "cnn"}]
    shutil.rmtree(workspace.train_surrogates)
    set_up(workspace, audited, model, bundle)
    assert json.loads(audited.surrogates.read_text()) == []


def test_an_audit_with_report_needs_the_other_results_that_the_report_shows(
    workspace: Workspace, audited: Workspace, model: Registered, bundle: Path
) -> None:
    params = load_params(workspace.params_file)
    with pytest.raises(FileNotFoundError, match=r"data/active_learning not found\. Run the step active_learning first"):
        set_up_audit(workspace, model, bundle, audited, params, with_report=True)


class TestSteps:
    """The real steps, on the study's defence, which needs the fewest of them."""

    @pytest.fixture
    def bundle(self, workspace: Workspace, own_store: str) -> Path:
        copy_model(workspace.classifier, workspace.surrogate("cnn-1"))
        write_json([{"name": "cnn-1", "architecture": "cnn"}], workspace.surrogates)
        return moved_to_bundle(workspace, "autoencoder")

    def test_the_steps_run_in_the_audits_workspace(
        self, server: str, workspace: Workspace, audited: Workspace, model: Registered, bundle: Path
    ) -> None:
        from mlflow import MlflowClient
        from prefect import flow

        write_seen(workspace, bundle, rows(workspace, "test")[:2], [])
        audit = set_up(workspace, audited, model, bundle)
        flow(name="attack_and_evaluate")(run_audit)(audit, with_report=False)
        records = pd.read_parquet(audited.records("autoencoder"))
        assert set(records["image"]) == set(rows(workspace, "test")[2:])
        # the bundle has no surrogates: those of the current workspace attack the model
        transferred = records[records["threat_model"] == "transfer"]
        assert set(transferred["surrogate"]) == {"undefended", "cnn-1"}
        assert not (workspace.data / "attack").exists()
        outcome = outcome_of(audit)
        assert "(n = 30)" in outcome
        assert "2 test images were left out" in outcome
        client = MlflowClient()
        runs = client.search_runs([client.get_experiment_by_name("ct-robustness").experiment_id])
        steps = {run.data.tags.get("step") for run in runs if run.data.tags.get("audit") == "toy-v1"}
        assert {"attack", "attack_defence@autoencoder", "evaluate"} <= steps

    def test_a_failed_step_ends_the_audit_with_its_own_error(
        self, server: str, workspace: Workspace, audited: Workspace, model: Registered, bundle: Path
    ) -> None:
        from prefect import flow

        audit = set_up(workspace, audited, model, bundle)
        audited.pixels.unlink()
        with pytest.raises(FileNotFoundError, match=r"audits/toy-v1/data/prepare/pixels\.npy"):
            flow(name="fails")(run_audit)(audit, with_report=False)
