"""Nothing is unpickled: no code of this project unpickles, and a pickle in place of any of its files does not run."""

import ast
import hashlib
import io
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.exceptions import MlflowException
from ruamel.yaml import YAML

from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.defences.targets import load_target
from tasks.models.classifier import build_classifier
from tasks.outcomes.attack_outputs import read_records
from tasks.params import Params
from tasks.records.adversarial_images import read_perturbations
from tasks.serving import registry
from tasks.serving.bundle import BUNDLE, EXAMPLES
from tasks.serving.export import export_target
from tasks.serving.predictor import Predictor
from tasks.tracking import Tracker
from tasks.tracking.run import _save_model
from tasks.tracking.store import Store
from tasks.train_classifier import train_classifier
from tests.all_flows import all_flows
from tests.bundles import bundle_of, complete_workspace
from tests.conftest import ROOT
from tests.faults.untrusted_files import Malicious, torch_saved
from tests.small_workspace import SMALL

SOURCES = sorted(
    file for folder in ("tasks", "flows", "docs", "tests/benchmarks") for file in (ROOT / folder).rglob("*.py")
)
CPU = torch.device("cpu")

NEVER_IMPORTED = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "yaml"}
NEVER_CALLED = {"eval", "exec", "compile", "__import__", "system", "popen", "read_pickle", "to_pickle"}
"""Last part of the name of a function of any module."""
ONLY_WITH = {
    "torch.load": ("weights_only", True),
    "torch.hub.load_state_dict_from_url": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "YAML": ("typ", "safe"),
}
NEVER_WITH = {"shell": True, "allow_pickle": True, "weights_only": False, "typ": "unsafe"}


def name_of(function: ast.expr) -> str:
    """Dotted name of a called function: ``np.load`` for ``np.load(...)``; empty for calls of other expressions."""
    if isinstance(function, ast.Attribute):
        return f"{name_of(function.value)}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


def forbidden_in(code: str) -> Iterator[str]:
    """Forbidden imports and calls, with their lines."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{node.lineno}: imports {name}" for name in names if name.split(".")[0] in NEVER_IMPORTED)
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
        _owner, dot, last = name.rpartition(".")
        # eval() of a network and compile() of a pattern do not run text
        if last in NEVER_CALLED and not (dot and last in ("eval", "compile")):
            yield f"{node.lineno}: calls {name}"
        if (
            name in ONLY_WITH
            and given.get(ONLY_WITH[name][0]) != ONLY_WITH[name][1]
            and (name != "YAML" or "typ" in given)
        ):
            yield f"{node.lineno}: calls {name} without {ONLY_WITH[name][0]}={ONLY_WITH[name][1]}"
        yield from (
            f"{node.lineno}: {key}={value}" for key, value in NEVER_WITH.items() if given.get(key, ...) is value
        )


@pytest.mark.parametrize("source", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_code_unpickles_or_runs_text(source: Path) -> None:
    assert not list(forbidden_in(source.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "import yaml; yaml.load(text)",
        "YAML(typ='unsafe').load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, mmap_mode='r', allow_pickle=True)",
        "eval('1')",
        "exec(text)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "pd.read_pickle(path)",
    ],
)
def test_forbidden_code_is_found(code: str) -> None:
    assert list(forbidden_in(code))


def test_results_of_flows_that_prefect_persists_are_json() -> None:
    persisted = {name: flow.result_serializer for name, flow in all_flows().items() if flow.persist_result}
    assert persisted == {"labelling": "json"}


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """Path of the folder that a planted pickle would create."""
    yield tmp_path / "it-ran"
    assert not (tmp_path / "it-ran").exists()


@pytest.fixture
def planted(trace: Path) -> bytes:
    return pickle.dumps({"model": Malicious(trace)})


def as_numpy_saves(content: Any) -> bytes:
    np.save(file := io.BytesIO(), np.array([content, None], dtype=object), allow_pickle=True)
    return file.getvalue()


def test_the_planted_pickle_runs_when_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps({"model": Malicious(tmp_path / "it-ran")}))
    assert (tmp_path / "it-ran").is_dir()


@pytest.mark.parametrize("save", [pickle.dumps, torch_saved])
def test_a_pickle_in_place_of_a_checkpoint_is_not_loaded(
    save: Callable[[Any], bytes],
    small_folder: Path,
    params_with: Callable[..., Params],
    trace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = params_with(SMALL | {"train_classifier.epochs": 2})

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "metrics", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_classifier(Workspace(), params, Tracker())
    (checkpoint,) = Workspace().checkpoint_folder("train_classifier").glob("*.pt")
    pickled = save({"model": Malicious(trace)})
    checkpoint.write_bytes(pickled)
    train_classifier(Workspace(), params, Tracker())
    # somebody can also write the digest
    checkpoint.write_bytes(hashlib.sha256(pickled).digest() + pickled)
    with pytest.raises(pickle.UnpicklingError):
        train_classifier(Workspace(), params, Tracker())


@pytest.mark.parametrize("save", [pickle.dumps, torch_saved])
def test_the_error_about_a_pickle_in_place_of_weights_names_the_file(
    save: Callable[[Any], bytes], small_folder: Path, trace: Path
) -> None:
    Workspace().classifier.write_bytes(save(Malicious(trace)))
    with pytest.raises(ValueError, match=f"^{Workspace().classifier} holds no weights of this network"):
        load_target(Workspace(), "undefended", CPU)


def test_the_error_about_a_pickle_in_place_of_the_architecture_names_the_file(
    small_folder: Path, planted: bytes
) -> None:
    path = Workspace().classifier.with_suffix(".json")
    path.write_bytes(planted)
    with pytest.raises(ValueError, match=f"^{path} is no JSON"):
        load_target(Workspace(), "undefended", CPU)


@pytest.mark.parametrize("save", [pickle.dumps, as_numpy_saves])
def test_the_error_about_a_pickle_in_place_of_pixels_names_the_file(
    save: Callable[[Any], bytes], small_folder: Path, trace: Path
) -> None:
    Workspace().pixels.write_bytes(save(Malicious(trace)))
    with pytest.raises(ValueError, match=f"^{Workspace().pixels} holds no array of pixels: run the step prepare again"):
        load_prepared(Workspace())


def test_the_error_about_a_pickle_in_place_of_perturbations_names_the_file(small_folder: Path, trace: Path) -> None:
    file = Workspace().perturbation_file("undefended", "pgd", 4)
    file.parent.mkdir(parents=True)
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("rows", "scale", "q"):
            archive.writestr(f"{name}.npy", as_numpy_saves(Malicious(trace)))
    with pytest.raises(ValueError, match=f"^{file} is damaged: run the step attack again"):
        read_perturbations(Workspace(), load_prepared(Workspace()), file, 4)


def test_the_error_about_a_pickle_in_place_of_records_names_the_file(small_folder: Path, planted: bytes) -> None:
    Workspace().attack.mkdir()
    Workspace().records("undefended").write_bytes(planted)
    with pytest.raises(
        ValueError, match=rf"^{Workspace().records('undefended')} is damaged\. Run the step attack again"
    ):
        read_records(Workspace(), [])


def test_a_pickle_in_the_metadata_of_a_table_is_not_unpickled(small_folder: Path, trace: Path) -> None:
    """Earlier versions of Arrow unpickled Python extension types when a file was read."""
    hidden = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Malicious(trace)),
    }
    field = pa.field("label", pa.int64(), metadata=hidden)
    table = pa.table([pa.array([1]), pa.array(["a.png"])], schema=pa.schema([field, ("path", pa.string())]))
    Workspace().attack.mkdir()
    pq.write_table(table, Workspace().records("undefended"))
    assert read_records(Workspace(), [])["label"].tolist() == [1]


class TestBundle:
    @pytest.fixture
    def bundle(self, small_folder: Path, tmp_path: Path) -> Path:
        complete_workspace(Workspace())
        return bundle_of(Workspace(), "autoencoder", tmp_path / "bundles")

    @pytest.mark.parametrize("file", [BUNDLE, Workspace().classifier, Workspace().purifier("autoencoder")])
    def test_the_error_about_a_pickle_in_place_of_a_file_names_it(
        self, bundle: Path, file: Path, planted: bytes
    ) -> None:
        (bundle / file).write_bytes(planted)
        with pytest.raises(ValueError, match=file.name):
            Predictor.load(bundle)

    def test_a_pickle_in_place_of_examples_raises_an_error(self, bundle: Path, trace: Path, tmp_path: Path) -> None:
        (bundle / EXAMPLES).write_bytes(as_numpy_saves(Malicious(trace)))
        with pytest.raises(ValueError, match="allow_pickle=False"):
            export_target(bundle, tmp_path / "target.pt2")


def test_a_pickle_in_place_of_the_weights_of_torchvision_raises_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trace: Path
) -> None:
    from torchvision.models import ResNet18_Weights

    file = tmp_path / "hub" / "checkpoints" / Path(ResNet18_Weights.DEFAULT.url).name
    file.parent.mkdir(parents=True)
    file.write_bytes(torch_saved(Malicious(trace)))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"^train_classifier\.pretrained: the weights of 'resnet18' in TORCH_HOME are damaged"
    ):
        build_classifier("resnet18", 2, 0.5, 0.2, pretrained=True)


class TestMlflow:
    """Models that steps log, loaded by a process that has used the store."""

    @pytest.fixture
    def logged(self, tmp_path: Path) -> Path:
        Store()
        _save_model(str(tmp_path / "model"), torch.nn.Flatten(), np.zeros((2, 1, 4, 4), np.float32))
        return tmp_path / "model"

    def test_models_are_torch_programs_and_can_be_loaded(self, logged: Path) -> None:
        assert {file.suffix for file in logged.rglob("*") if file.is_file()} & {".pt2", ".pth", ".pkl"} == {".pt2"}
        assert mlflow.pytorch.load_model(str(logged))(torch.zeros(2, 1, 4, 4)).shape == (2, 16)

    def test_a_pickle_in_place_of_a_program_raises_an_error(self, logged: Path, trace: Path) -> None:
        (logged / "data" / "model.pth").write_bytes(torch_saved(Malicious(trace)))
        (logged / "data" / "pickle_module_info.txt").write_text("pickle")
        with pytest.raises(MlflowException, match="using pickle is disallowed"):
            mlflow.pytorch.load_model(str(logged))

    def test_a_pickle_within_a_program_raises_an_error(self, logged: Path, trace: Path) -> None:
        (program,) = logged.rglob("*.pt2")
        shutil.move(program, original := program.with_suffix(".before"))
        with zipfile.ZipFile(original) as before, zipfile.ZipFile(program, "w") as after:
            for name in before.namelist():
                content = torch_saved(Malicious(trace)) if name.endswith(".pt") else before.read(name)
                after.writestr(name, content)
            assert any(name.endswith(".pt") for name in before.namelist())
        with pytest.raises(MlflowException, match="not a pickle-free payload"):
            mlflow.pytorch.load_model(str(logged))

    @pytest.mark.faults
    def test_a_pickle_in_a_registered_model_raises_an_error_when_it_is_served(
        self, small_folder: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{small_folder / 'mlflow.db'}")
        complete_workspace(Workspace())
        registry.register_bundle(bundle_of(Workspace(), "undefended", small_folder / "bundles"), "toy", "A toy.")
        (model,) = small_folder.rglob("MLmodel")
        description = YAML(typ="safe").load(model.read_text(encoding="utf-8"))
        description["flavors"]["python_function"]["python_model"] = "python_model.pkl"
        del description["flavors"]["python_function"]["model_code_path"]
        with model.open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(description, file)
        (model.parent / "python_model.pkl").write_bytes(pickle.dumps(Malicious(trace)))
        with pytest.raises(MlflowException, match="using pickle is disallowed"):
            mlflow.pyfunc.load_model("models:/toy/1")
