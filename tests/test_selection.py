"""Choice among targets by validation images, and the list of the configurations that were compared."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.core.workspace import Workspace
from tasks.evaluation.selection import (
    add_configurations,
    configuration_rows,
    merge_configurations,
    read_configurations,
    validation_table,
)
from tasks.params import Params
from tests.plausible_attack import write_settings

GROUPS = np.repeat(np.arange(10), 2)
LABELS = np.repeat([0, 1], 10)


def swept(**n_broken: int) -> pd.DataFrame:
    """The sweep's result on 20 validation images of two classes: at eps 1 it breaks the first images of a target."""
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "target": target,
                    "operating_point": "as_trained",
                    "threat_model": "adaptive",
                    "image": np.arange(20),
                    "label": LABELS,
                    "group": GROUPS,
                    "minimum_eps": np.where(np.arange(20) < n, 1.0, np.inf),
                    "minimum_eps_8bit": np.inf,
                }
            )
            for target, n in n_broken.items()
        ],
        ignore_index=True,
    )


VALIDATION = validation_table(swept(undefended=20, autoencoder=5), [1.0], ["non-COVID", "COVID"], positive=1)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with four images and the settings of the autoencoder."""
    monkeypatch.chdir(tmp_path)
    workspace = Workspace()
    workspace.prepare.mkdir(parents=True)
    np.save(workspace.pixels, np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1))
    splits = ["train", "train", "validation", "test"]
    pd.DataFrame({"path": list("abcd"), "split": splits}).to_parquet(workspace.split)
    write_settings(workspace, "autoencoder")
    return workspace


Rows = Callable[..., pd.DataFrame]


@pytest.fixture
def rows(workspace: Workspace, params_with: Callable[..., Params]) -> Rows:
    """The rows of this workspace with some parameters."""
    return lambda overrides=None: configuration_rows(
        workspace, params_with(overrides), pd.read_parquet(workspace.split), VALIDATION
    )


def test_validation_accuracy_is_balanced_and_has_an_interval_by_group() -> None:
    table = VALIDATION.set_index(["target", "eps", "metric"])
    found = table.loc[("autoencoder", 1.0, "balanced_accuracy")]
    # five of ten images of one class are broken
    assert found["value"] == 0.75
    assert (found["n"], found["n_groups"]) == (20, 10)
    assert found["low"] < 0.75 < found["high"]
    assert table.loc[("autoencoder", 0.0, "accuracy"), "value"] == 1
    assert table.loc[("autoencoder", 1.0, "specificity"), "value"] == 0.5


def test_a_configuration_has_one_row_with_its_result_on_validation_images(rows: Rows) -> None:
    found = rows().set_index("target")
    assert found.index.tolist() == ["undefended", "autoencoder"]
    assert found["balanced_accuracy"].tolist() == [0, 0.75]
    assert found[["seed", "eps", "n", "n_groups"]].drop_duplicates().to_numpy().tolist() == [[0, 1, 20, 10]]
    assert found["configuration"].nunique() == 2
    assert found["data"].nunique() == 1


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ({}, []),
        # the attacks and the reported eps make no other configuration
        ({"attack.pgd.n_steps": 3, "attack.effort": "standard"}, []),
        ({"train_classifier.epochs": 3}, ["undefended", "autoencoder"]),
        ({"train_autoencoder.epochs": 3}, ["autoencoder"]),
        ({"seed": 1}, ["undefended", "autoencoder"]),
    ],
)
def test_other_settings_of_a_training_are_another_configuration(
    rows: Rows, overrides: dict[str, object], changed: list[str]
) -> None:
    before, after = (found.set_index("target")["configuration"] for found in (rows(), rows(overrides)))
    assert before.index[before != after].tolist() == changed


def test_other_images_or_another_split_are_another_configuration(rows: Rows, workspace: Workspace) -> None:
    before = rows()
    split = pd.read_parquet(workspace.split)
    split.assign(split=split["split"][::-1].to_numpy()).to_parquet(workspace.split)
    of_split = rows()
    assert set(of_split["configuration"]).isdisjoint(before["configuration"])
    assert set(of_split["data"]) == set(before["data"])
    np.save(workspace.pixels, np.zeros((4, 1, 1, 1), np.uint8))
    assert set(rows()["data"]).isdisjoint(before["data"])


def test_other_files_of_an_imported_classifier_or_a_plug_in_are_another_configuration(
    rows: Rows, workspace: Workspace
) -> None:
    before = rows().set_index("target")["configuration"]
    plugin = workspace.defence_files("autoencoder") / "purifier.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text("pass\n")
    after = rows().set_index("target")["configuration"]
    assert before.index[before != after].tolist() == ["autoencoder"]
    workspace.classifier_files.mkdir(parents=True)
    (workspace.classifier_files / "model.onnx").write_bytes(b"1")
    assert set(rows()["configuration"]).isdisjoint([*before, *after])


def test_the_list_grows_by_new_configurations_alone_and_the_same_run_gives_the_same_bytes(
    rows: Rows, workspace: Workspace
) -> None:
    add_configurations(workspace.configurations, rows())
    first = workspace.configurations.read_bytes()
    add_configurations(workspace.configurations, rows())
    assert workspace.configurations.read_bytes() == first
    add_configurations(workspace.configurations, rows({"train_autoencoder.epochs": 3}))
    listed = read_configurations(workspace.configurations)
    # another autoencoder, in front of the same classifier
    assert listed["target"].tolist() == ["autoencoder", "autoencoder", "undefended"]
    # the order of the runs does not matter
    workspace.configurations.unlink()
    for overrides in ({"train_autoencoder.epochs": 3}, {}):
        add_configurations(workspace.configurations, rows(overrides))
    pd.testing.assert_frame_equal(read_configurations(workspace.configurations), listed)


def test_a_repeated_run_replaces_the_result_of_its_configuration(rows: Rows) -> None:
    merged = merge_configurations(rows().assign(balanced_accuracy=0.5), rows())
    assert merged.set_index("target")["balanced_accuracy"].to_dict() == {"undefended": 0, "autoencoder": 0.75}


def test_digests_of_digits_alone_stay_text(workspace: Workspace, rows: Rows) -> None:
    add_configurations(workspace.configurations, rows()[:1].assign(configuration="0000000000000012"))
    assert read_configurations(workspace.configurations)["configuration"].tolist() == ["0000000000000012"]


def test_lists_of_other_revisions_are_added(workspace: Workspace, rows: Rows) -> None:
    from flows.configurations import collect

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    (workspace.root / ".dvc").mkdir()
    (workspace.root / ".dvc" / "config").write_text("")
    git("init", "--initial-branch", "main")
    add_configurations(workspace.configurations, rows())
    git("add", "data/configurations.csv", ".dvc/config")
    git("commit", "--message", "first")
    git("checkout", "-b", "experiment")
    add_configurations(workspace.configurations, rows({"train_autoencoder.epochs": 3}))
    git("commit", "--all", "--message", "second")
    git("checkout", "main")
    assert len(read_configurations(workspace.configurations)) == 2
    assert collect(workspace, ["main", "experiment"]) == 1
    assert len(read_configurations(workspace.configurations)) == 3
    assert collect(workspace, ["experiment"]) == 0


def test_a_damaged_list_is_refused_with_its_name(workspace: Workspace, rows: Rows) -> None:
    workspace.configurations.write_text("<<<<<<< HEAD\nconfiguration,data\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"configurations\.csv: .* Restore the file: git checkout"):
        add_configurations(workspace.configurations, rows())
