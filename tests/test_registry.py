"""The model registry: versions, aliases, changes of the champion, and the choice of the best defence."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from flows.register import best_defence, refuse_stale_results, register
from tasks.core.workspace import Workspace
from tasks.params import load_params
from tasks.serving import registry
from tasks.serving.bundle import BUNDLE, CARD, EXAMPLES, SEEN, read_bundle
from tasks.serving.registry import Registered
from tests.bundles import bundle_of, copy_completed, write_results

NAME = "toy"
SUMMARY = "A toy, not for diagnosis."


@pytest.fixture(scope="module")
def store(small_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a store in which the bundles of two defences are versions 1 and 2."""
    folder = tmp_path_factory.mktemp("store")
    workspace = copy_completed(small_workspace, folder)
    with pytest.MonkeyPatch.context() as patch:
        # artifacts of a store without a server are in the current folder
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        for target in ("autoencoder", "retrained_autoencoder"):
            bundle = bundle_of(workspace, target, folder / "bundles")
            registry.make_candidate(registry.register_bundle(bundle, NAME, SUMMARY))
        yield folder


@pytest.fixture
def versions(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Registered]:
    """The two versions, in a copy of the store's database."""
    shutil.copy(store / "mlflow.db", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return registry.all_versions(NAME)


def test_a_version_has_target_digest_alias_description_and_signature(versions: list[Registered], store: Path) -> None:
    first, second = versions
    assert [(each.version, each.target) for each in versions] == [(1, "autoencoder"), (2, "retrained_autoencoder")]
    assert first.digest == read_bundle(store / "bundles" / "autoencoder").digest != second.digest
    assert registry.version_with(NAME, registry.CANDIDATE) == second == registry.find(f"{NAME}@candidate")
    assert registry.find(f"{NAME}/1") == first
    client = mlflow.MlflowClient()
    assert client.get_model_version(NAME, "1").description == SUMMARY
    info = mlflow.models.get_model_info(f"models:/{NAME}/1")
    assert info.signature.inputs.input_names() == ["image", "pixels"]
    assert "class" in info.signature.outputs.input_names()


def test_a_registered_model_predicts_its_input_example(versions: list[Registered]) -> None:
    model = mlflow.pyfunc.load_model(f"models:/{NAME}/2")
    example = model.input_example
    assert list(example.columns) == ["image"]
    for prediction in model.predict(example):
        assert sum(prediction["probabilities"].values()) == pytest.approx(1)


def test_a_version_has_no_pickles(versions: list[Registered], tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1", dst_path=str(tmp_path / "version")))
    suffixes = {file.suffix for file in folder.rglob("*") if file.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"}


def test_a_downloaded_bundle_is_the_registered_one(versions: list[Registered], store: Path, tmp_path: Path) -> None:
    downloaded = registry.download(versions[0], tmp_path / "downloaded")
    original = store / "bundles" / "autoencoder"
    files = [BUNDLE, EXAMPLES, Workspace().classifier, Workspace().purifier("autoencoder")]
    assert [(downloaded / file).read_bytes() for file in files] == [(original / file).read_bytes() for file in files]


def test_a_bundle_with_a_changed_file_beside_the_weights_is_refused(
    store: Path, versions: list[Registered], tmp_path: Path
) -> None:
    downloaded = registry.download(versions[0], tmp_path / "downloaded")
    values = json.loads((downloaded / BUNDLE).read_text())
    (swapped := tmp_path / "bundle").mkdir()
    shutil.copytree(downloaded, swapped / "autoencoder")
    (swapped / "autoencoder" / BUNDLE).write_text(json.dumps(values | {"classes": values["classes"][::-1]}))
    registered = registry.register_bundle(swapped / "autoencoder", NAME, SUMMARY)
    client = mlflow.MlflowClient()
    client.set_model_version_tag(NAME, str(registered.version), "files_digest", versions[0].files_digest)
    with pytest.raises(ValueError, match=r"the digest of its files is .*Do not use this version"):
        registry.download(registry.find(f"{NAME}/{registered.version}"), tmp_path / "again")
    client.delete_model_version_tag(NAME, str(registered.version), "files_digest")
    with pytest.raises(ValueError, match="the registry has none, since an earlier version of this project registered"):
        registry.download(registry.find(f"{NAME}/{registered.version}"), tmp_path / "third")


@pytest.mark.parametrize(
    ("network", "arguments", "what"),
    [
        ("train_classifier/classifier", {"imported": {"source": "factory", "factory": "evil:make"}}, "source factory"),
        ("train_classifier/classifier", {"imported": {"source": "http", "address": "http://x"}}, "source http"),
        ("train_classifier/classifier", {"imported": {"source": "torchscript"}}, "source torchscript"),
        ("train_classifier/classifier", {"imported": None, "plugin": {}}, "a plug-in"),
        ("train_defence/autoencoder/purifier", {"plugin": {"factory": "os:system"}}, "a plug-in"),
    ],
)
def test_a_bundle_that_runs_code_needs_trust_and_runs_none_before(
    network: str, arguments: dict[str, object], what: str, store: Path, versions: list[Registered], tmp_path: Path
) -> None:
    bundle = shutil.copytree(store / "bundles" / "autoencoder", tmp_path / "autoencoder")
    (bundle / "data" / network).with_suffix(".json").write_text(json.dumps(arguments))
    registered = registry.register_bundle(bundle, NAME, SUMMARY)
    with pytest.raises(ValueError, match=rf"{what} in data/.*If you trust the person who registered it, pass --trust"):
        registry.download(registered, tmp_path / "downloaded")


@pytest.mark.parametrize("tags", [{"target": "undefended"}, {"digest": "0" * 64}])
def test_a_version_whose_tags_differ_from_its_bundle_is_refused(
    tags: dict[str, str], versions: list[Registered], tmp_path: Path
) -> None:
    for key, value in tags.items():
        mlflow.MlflowClient().set_model_version_tag(NAME, "1", key, value)
    with pytest.raises(ValueError, match="Do not use this version"):
        registry.download(registry.find(f"{NAME}/1"), tmp_path / "downloaded")


def test_a_version_is_found_by_its_bundle_and_not_by_its_weights_alone(
    versions: list[Registered], store: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(store / "bundles" / "retrained_autoencoder", tmp_path / "bundle")
    assert registry.find_version(NAME, bundle) == versions[1]
    assert registry.find_version("unknown", bundle) is None
    values = json.loads((bundle / BUNDLE).read_text())
    # the same weights for images with another window
    (bundle / BUNDLE).write_text(json.dumps(values | {"intensity": {"kind": "window", "low": 0, "high": 80}}))
    assert registry.find_version(NAME, bundle) is None


@pytest.mark.parametrize("file", [CARD, SEEN])
def test_a_version_with_another_model_card_or_other_seen_images_is_another_version(
    file: Path, versions: list[Registered], store: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(store / "bundles" / "retrained_autoencoder", tmp_path / "bundle")
    (bundle / file).write_text('{"train": [], "validation": []}')
    assert registry.find_version(NAME, bundle) is None


def test_a_bundle_with_compiled_python_files_is_refused(
    versions: list[Registered], store: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(store / "bundles" / "autoencoder", tmp_path / "autoencoder")
    cache = bundle / "data/train_classifier/files/__pycache__"
    cache.mkdir(parents=True)
    (cache / "net.cpython-311.pyc").write_bytes(b"compiled")
    registered = registry.register_bundle(bundle, NAME, SUMMARY)
    with pytest.raises(ValueError, match=r"__pycache__: Python would run compiled files.*Do not use this version"):
        registry.download(registered, tmp_path / "downloaded", trust=True)


def test_a_model_that_is_registered_again_becomes_the_candidate_again(
    versions: list[Registered], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as after another registration, or after one that was killed before it set the alias
    monkeypatch.setattr("flows.register.refuse_stale_results", lambda: None)
    monkeypatch.setattr("flows.register.card_of", lambda *_: ("# autoencoder\n", SUMMARY))
    monkeypatch.chdir(store)
    outcome = register.fn(target="autoencoder", name=NAME)
    assert outcome.startswith("autoencoder (as requested) is not registered again: toy-v1 has the same networks")
    assert registry.version_with(NAME, registry.CANDIDATE) == versions[0]


def test_changes_of_the_champion_are_recorded_and_can_be_undone(versions: list[Registered]) -> None:
    first, second = versions
    assert registry.version_with(NAME, registry.CHAMPION) is None
    with pytest.raises(ValueError, match="toy has no champion"):
        registry.restore_champion(NAME)
    registry.move_champion(first, "the first")
    with pytest.raises(ValueError, match="there is no champion before toy-v1"):
        registry.restore_champion(NAME)
    registry.move_champion(second, "better")
    assert registry.find(f"{NAME}@champion") == second
    registry.restore_champion(NAME)
    assert registry.find(f"{NAME}@champion") == first
    moves = registry.history(NAME)
    assert [(move.version, move.before, move.why) for move in moves] == [
        (1, None, "the first"),
        (2, 1, "better"),
        (1, 2, "return from version 2"),
    ]
    assert [move.when for move in moves] == sorted(move.when for move in moves)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("toy", "Write name@alias or name/version"),
        ("toy@", "Write name@alias or name/version"),
        ("toy@unknown", "Versions of toy: toy/1, toy/2"),
        ("toy/7", "Versions of toy: toy/1, toy/2"),
        ("other@champion", "Versions of other: none"),
    ],
)
def test_an_unknown_version_is_refused_with_the_list_of_versions(
    versions: list[Registered], model: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        registry.find(model)


def test_a_text_that_is_too_long_for_the_registry_is_refused_before_anything_changes(
    versions: list[Registered],
) -> None:
    with pytest.raises(ValueError, match=r"6000 characters\. At most 5000 are allowed"):
        registry.log_audit(versions[0], "x" * 6000, [])
    with pytest.raises(ValueError, match="At most 5000 are allowed"):
        registry.move_champion(versions[0], "x" * 6000)
    assert registry.version_with(NAME, registry.CHAMPION) is None


class TestBestDefence:
    @pytest.fixture
    def workspace(self, small_workspace: Path, tmp_path: Path) -> Workspace:
        return copy_completed(small_workspace, tmp_path)

    def choose(self, workspace: Workspace, results: dict[str, tuple[int, list[str]]]) -> tuple[str, str]:
        write_results(workspace, results)
        return best_defence(workspace, load_params(workspace.params_file))

    def test_the_defence_with_the_highest_rank_is_chosen(self, workspace: Workspace) -> None:
        results = {"undefended": (30, []), "retrained_autoencoder": (24, []), "autoencoder": (16, [])}
        chosen, reason = self.choose(workspace, results)
        assert chosen == "retrained_autoencoder"
        assert reason == (
            "chosen by balanced accuracy on attacked validation images, 75.0 % at eps 4; on test images 75.0 % in the "
            "worst case"
        )

    def test_a_defence_with_a_failed_check_is_left_out(self, workspace: Workspace) -> None:
        chosen, reason = self.choose(workspace, {"retrained_autoencoder": (24, ["noise"]), "autoencoder": (16, [])})
        assert chosen == "autoencoder"
        assert "retrained_autoencoder left out, failed checks: noise" in reason

    def test_without_a_defence_that_passes_its_checks_nothing_is_chosen(self, workspace: Workspace) -> None:
        with pytest.raises(ValueError, match="autoencoder left out, failed checks: noise, ball"):
            self.choose(workspace, {"undefended": (30, []), "autoencoder": (16, ["ball", "noise"])})


def test_results_of_other_models_are_not_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.repo import Repo

    # DVC works on the current folder
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True)
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  train: {cmd: echo 1 > weights, outs: [weights]}\n"
        "  evaluate: {cmd: cp weights table, deps: [weights], outs: [table]}\n"
        "  report: {cmd: cp table page, deps: [table], outs: [page]}\n",
        encoding="utf-8",
    )
    with pytest.raises(RuntimeError, match="DVC reports changes of train, evaluate"):
        refuse_stale_results()
    Repo().reproduce(targets=["evaluate"])
    refuse_stale_results()
    (tmp_path / "weights").unlink()
    (tmp_path / "weights").write_text("2")
    with pytest.raises(RuntimeError, match="evaluate"):
        refuse_stale_results()
