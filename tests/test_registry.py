"""Versions, aliases and the history of the champion, in a real MLflow store."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tasks.core.workspace import Workspace
from tasks.serving import registry
from tasks.serving.bundle import BUNDLE, EXAMPLES, read_bundle
from tasks.serving.registry import Registered
from tests.bundles import bundle_of, complete_workspace, write_results

NAME = "toy"
SUMMARY = "A toy, not for diagnosis."


@pytest.fixture(scope="module")
def store(small_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a store in which the bundles of two defences are versions 1 and 2; not to be written to."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        shutil.copytree(small_workspace / "data", folder / "data")
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        for target in ("autoencoder", "retrained_autoencoder"):
            registry.register_bundle(bundle_of(target, folder / "bundles"), NAME, SUMMARY)
        yield folder


@pytest.fixture
def versions(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Registered]:
    """The two versions, in a copy of the store's database that a test may change."""
    shutil.copy(store / "mlflow.db", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return registry.all_versions(NAME)


def test_a_version_says_what_it_is(versions: list[Registered], store: Path) -> None:
    first, second = versions
    assert (first.version, first.target, second.version, second.target) == (
        1,
        "autoencoder",
        2,
        "retrained_autoencoder",
    )
    assert first.digest == read_bundle(store / "bundles" / "autoencoder").digest != second.digest
    assert registry.holder_of(NAME, registry.CANDIDATE) == second == registry.find(f"{NAME}@candidate")
    assert registry.find(f"{NAME}/1") == first
    client = mlflow.MlflowClient()
    assert client.get_model_version(NAME, "1").description == SUMMARY
    info = mlflow.models.get_model_info(f"models:/{NAME}/1")
    assert info.signature.inputs.input_names() == ["image", "pixels"]
    assert "class" in info.signature.outputs.input_names()


def test_the_input_example_is_answered(versions: list[Registered]) -> None:
    model = mlflow.pyfunc.load_model(f"models:/{NAME}/2")
    example = model.input_example
    assert list(example.columns) == ["image"]
    for answer in model.predict(example):
        assert sum(answer["probabilities"].values()) == pytest.approx(1)


def test_nothing_of_a_version_is_a_pickle(versions: list[Registered], tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1", dst_path=str(tmp_path / "whole")))
    suffixes = {file.suffix for file in folder.rglob("*") if file.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"}


def test_a_downloaded_bundle_is_the_one_that_was_registered(
    versions: list[Registered], store: Path, tmp_path: Path
) -> None:
    folder = registry.download(versions[0], tmp_path / "downloaded")
    for file in (BUNDLE, EXAMPLES, Workspace().classifier, Workspace().purifier("autoencoder")):
        assert (folder / file).read_bytes() == (store / "bundles" / "autoencoder" / file).read_bytes()


def test_the_same_weights_are_found_again(versions: list[Registered]) -> None:
    assert registry.find_version(NAME, versions[1].digest) == versions[1]
    assert registry.find_version(NAME, "0" * 64) is None
    assert registry.find_version("unknown", versions[1].digest) is None


def test_the_history_tells_every_champion_and_going_back_is_one_call(versions: list[Registered]) -> None:
    first, second = versions
    assert registry.holder_of(NAME, registry.CHAMPION) is None
    with pytest.raises(ValueError, match="has no champion"):
        registry.champion_back(NAME)
    registry.move_champion(first, "the first")
    with pytest.raises(ValueError, match="knows of none before it"):
        registry.champion_back(NAME)
    registry.move_champion(second, "better")
    assert registry.find(f"{NAME}@champion") == second
    registry.champion_back(NAME)
    assert registry.find(f"{NAME}@champion") == first
    moves = registry.history(NAME)
    assert [(move.version, move.before, move.why) for move in moves] == [
        (1, None, "the first"),
        (2, 1, "better"),
        (1, 2, "back from version 2"),
    ]
    assert [move.when for move in moves] == sorted(move.when for move in moves)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("toy", "write name@alias or name/version"),
        ("toy@", "write name@alias or name/version"),
        ("toy@nobody", "there are toy/1, toy/2"),
        ("toy/7", "there are toy/1, toy/2"),
        ("other@champion", "there is no version of other"),
    ],
)
def test_a_version_that_is_not_there_is_refused_with_those_that_are(
    versions: list[Registered], model: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        registry.find(model)


def test_what_is_longer_than_the_registry_keeps_is_refused_before_anything_is_written(
    versions: list[Registered],
) -> None:
    with pytest.raises(ValueError, match="6000 characters are more than the 5000"):
        registry.note_audit(versions[0], "x" * 6000, [])
    with pytest.raises(ValueError, match="more than the 5000"):
        registry.move_champion(versions[0], "x" * 6000)
    assert registry.holder_of(NAME, registry.CHAMPION) is None


class TestChoice:
    """Which defence the flow ``register`` takes."""

    @pytest.fixture(autouse=True)
    def completed(self, workspace: Path) -> None:
        self.params = complete_workspace()

    def test_the_best_defence_at_the_eps_of_analyze(self) -> None:
        from flows.register import best_defence

        write_results({"undefended": (30, []), "retrained_autoencoder": (24, []), "autoencoder": (16, [])})
        chosen, why = best_defence(Workspace(), self.params)
        assert chosen == "retrained_autoencoder"
        assert "75.0 % right" in why

    def test_one_that_fails_a_check_is_left_out_and_named(self) -> None:
        from flows.register import best_defence

        write_results({"retrained_autoencoder": (24, ["noise"]), "autoencoder": (16, [])})
        chosen, why = best_defence(Workspace(), self.params)
        assert chosen == "autoencoder"
        assert "retrained_autoencoder left out since it fails noise" in why

    def test_with_none_left_nothing_is_chosen(self) -> None:
        from flows.register import best_defence

        write_results({"undefended": (30, []), "autoencoder": (16, ["ball", "noise"])})
        with pytest.raises(ValueError, match="autoencoder left out since it fails noise, ball"):
            best_defence(Workspace(), self.params)


def test_results_of_other_networks_are_not_registered(workspace: Path) -> None:
    from dvc.repo import Repo

    from flows.register import refuse_stale_results

    Repo.init(no_scm=True)
    (workspace / "dvc.yaml").write_text(
        "stages:\n"
        "  train: {cmd: echo 1 > weights, outs: [weights]}\n"
        "  evaluate: {cmd: cp weights table, deps: [weights], outs: [table]}\n"
        "  report: {cmd: cp table page, deps: [table], outs: [page]}\n",
        encoding="utf-8",
    )
    with pytest.raises(RuntimeError, match=r"^train, evaluate changed since they ran"):
        refuse_stale_results()
    Repo().reproduce(targets=["evaluate"])
    refuse_stale_results()
    (workspace / "weights").unlink()
    (workspace / "weights").write_text("2")
    with pytest.raises(RuntimeError, match="evaluate"):
        refuse_stale_results()
