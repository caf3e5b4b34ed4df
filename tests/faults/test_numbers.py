"""NaN, and a predictor that always predicts the same class, planted in the inputs of the real steps."""

import io
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from tasks import train_classifier as step
from tasks.attack import attack
from tasks.attack_defence import attack_defence
from tasks.attacks import attack_run, fixed_eps
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.defences.targets import load_target
from tasks.evaluate import evaluate
from tasks.labelling.acquisition import predict_probabilities
from tasks.models import classifier_training
from tasks.models.classifier import build_classifier
from tasks.models.files import load_build_arguments, load_model, save_model
from tasks.models.training import DIGEST_BYTES, TrainingDiverged
from tasks.outcomes.attack_outputs import read_records
from tasks.params import Params
from tasks.records.adversarial_images import read_perturbations
from tasks.serving.predictor import Predictor
from tasks.tracking import Tracker
from tests.bundles import bundle_of, complete_workspace
from tests.small_workspace import SIDE, SMALL, draw_images

FEW = SMALL | {"selected_defences": ["autoencoder"], "attack.eps": [4]}
TRAINING = SMALL | {"train_classifier.epochs": 4}
PLANTED_ROW = 67
"""Row of the image that NaN is planted in."""
PATH = draw_images()[1]["path"][PLANTED_ROW]


class Planted(nn.Module):
    """Logits of the target, but NaN for some images."""

    def __init__(self, target: nn.Module, where: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.target, self.where = target, where

    def forward(self, images: Tensor) -> Tensor:
        return torch.where(self.where(images)[:, None], torch.nan, self.target(images))


class IdentityWithNaNGradient(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.nan


class NaNGradient(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return IdentityWithNaNGradient.apply(images)


def distance(images: Tensor) -> Tensor:
    """Largest difference of a pixel between each image and the image of the planted row."""
    planted = torch.from_numpy(draw_images()[0][PLANTED_ROW].astype(np.float32) / 255)
    return (images - planted).abs().amax(dim=(1, 2, 3))


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[nn.Module], nn.Module]], None]:
    """``plant(target, wrap)``: attacks load a wrapped module in place of a target."""
    load = attack_run.load_target

    def planted(name: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
        def load_planted(workspace: Workspace, of: str, device: torch.device) -> nn.Module:
            target = load(workspace, of, device)
            return wrap(target).eval() if of == name else target

        monkeypatch.setattr(attack_run, "load_target", load_planted)

    return planted


def attack_all(params: Params) -> None:
    Workspace().attack.mkdir()
    attack(Workspace(), params, Tracker())
    for defence in params.selected_defences:
        Workspace().step_folder("attack_defence", defence).mkdir(parents=True)
        attack_defence(Workspace(), params, Tracker(), defence)


def checks_of(target: str, params: Params) -> dict[str, str]:
    """Status of each check by key, after the real steps."""
    attack_all(params)
    Workspace().evaluate.mkdir()
    evaluate(Workspace(), params, Tracker())
    checks = json.loads(Workspace().checks.read_text(encoding="utf-8"))
    return {check["key"]: check["status"] for check in checks if check["target"] == target}


class TestTrainingThatDiverges:
    @pytest.fixture
    def diverging(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make the loss NaN in the second batch of the third epoch."""
        classification, n_batches = classifier_training.classification_objective, 0

        def planted(settings: Any) -> Any:
            measure = classification(settings)

            def measure_with_nan(model: nn.Module, *arguments: Any) -> dict[str, Tensor]:
                nonlocal n_batches
                metrics = measure(model, *arguments)
                n_batches += model.training
                # 56 images are three batches of 16; the rest is dropped
                return metrics | {"loss": metrics["loss"] * torch.nan} if n_batches == 8 and model.training else metrics

            return measure_with_nan

        monkeypatch.setattr(classifier_training, "classification_objective", planted)

    def trained(self, params: Params) -> bytes:
        """Train; return the weights. The checkpoint remains if the step raises, as with the runner."""
        Workspace().classifier.unlink(missing_ok=True)
        step.train_classifier(Workspace(), params, Tracker())
        shutil.rmtree(Workspace().checkpoint_folder("train_classifier"))
        return Workspace().classifier.read_bytes()

    def checkpoint(self) -> Path:
        (path,) = Workspace().checkpoint_folder("train_classifier").glob("*.pt")
        return path

    @pytest.fixture
    def uninterrupted(self, small_folder: Path, params_with: Callable[..., Params]) -> bytes:
        return self.trained(params_with(TRAINING))

    @pytest.fixture
    def stopped(self, uninterrupted: bytes, diverging: None, params_with: Callable[..., Params]) -> str:
        """The message of the error."""
        with pytest.raises(TrainingDiverged) as raised:
            self.trained(params_with(TRAINING))
        return str(raised.value)

    def test_the_error_names_epoch_step_and_checkpoint_and_what_to_do(self, stopped: str) -> None:
        assert "the training loss is nan at step 2 of epoch 3 of 4." in stopped
        assert "Lower learning_rate (0.0003)" in stopped
        assert f"{self.checkpoint()} holds the state after epoch 2" in stopped
        assert not Workspace().classifier.exists()

    def test_the_checkpoint_holds_the_last_finite_epoch_and_the_same_training_resumes_from_it(
        self, stopped: str, uninterrupted: bytes, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        content = self.checkpoint().read_bytes()[DIGEST_BYTES:]
        state = torch.load(io.BytesIO(content), weights_only=True)
        assert [row["epoch"] for row in state["history"]] == [1, 2]
        assert all(weights.isfinite().all() for weights in state["averaged"].values())
        # without the planted NaN, only epochs 3 and 4 are trained, with the same result
        epochs: list[int] = []
        monkeypatch.setattr(Tracker, "metrics", lambda self, values, epoch=0: epochs.append(epoch))
        assert self.trained(params_with(TRAINING)) == uninterrupted
        assert epochs == [3, 4]

    def test_training_with_another_learning_rate_starts_from_the_beginning(
        self, stopped: str, params_with: Callable[..., Params]
    ) -> None:
        slower = params_with(TRAINING | {"train_classifier.learning_rate": 1e-5})
        after = self.trained(slower)
        assert self.trained(slower) == after


class TestNotANumber:
    def test_the_error_about_nan_logits_of_a_clean_image_names_its_path(
        self, small_folder: Path, params_with: Callable[..., Params], plant: Any
    ) -> None:
        plant("undefended", lambda target: Planted(target, lambda images: distance(images) < 1e-7))
        with pytest.raises(
            ValueError, match=rf"1 of 32 images .* not finite; the first is {PATH.replace('(', '.').replace(')', '.')}"
        ):
            attack_all(params_with(FEW))

    def test_the_error_about_nan_logits_during_a_search_names_the_path_of_the_image(
        self, small_folder: Path, params_with: Callable[..., Params], plant: Any
    ) -> None:
        def near(images: Tensor) -> Tensor:
            return (distance(images) > 1e-7) & (distance(images) < 0.05)

        plant("undefended", lambda target: Planted(target, near))
        with pytest.raises(ValueError, match=r"1 of \d+ images .* not finite") as raised:
            attack_all(params_with(FEW))
        assert f"{PATH} the first; target undefended, attack suite" in str(raised.value)

    def test_the_error_about_nan_in_an_adversarial_image_names_its_path(
        self, small_folder: Path, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fgsm = fixed_eps.fgsm

        def craft_nan(model: nn.Module, images: Tensor, *arguments: Any) -> Iterator[Tensor]:
            is_planted = distance(images) < 1e-7
            for adversarial in fgsm(model, images, *arguments):
                yield torch.where(is_planted[:, None, None, None], torch.nan, adversarial)

        monkeypatch.setattr(fixed_eps, "fgsm", craft_nan)
        with pytest.raises(AssertionError, match="leave the value range") as raised:
            attack_all(params_with(FEW))
        assert f"by nan: 1 of 16 images; the first is {PATH}" in str(raised.value)

    @pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.faults)])
    def test_nan_gradients_fail_the_check(
        self, norm: str, small_folder: Path, params_with: Callable[..., Params], plant: Any
    ) -> None:
        plant("autoencoder", lambda target: nn.Sequential(NaNGradient(), target))
        assert checks_of("autoencoder", params_with(FEW | {"attack.norm": norm}))["gradients"] == "FAIL"

    def test_nan_probabilities_raise_an_error_in_active_learning(self) -> None:
        broken = Planted(nn.Flatten(), lambda images: images[:, 0, 0, 0] > 0.5)
        broken.register_parameter("device", nn.Parameter(torch.zeros(())))
        images = np.zeros((5, 1, 2, 2), dtype=np.float32)
        images[3] = 1
        with pytest.raises(ValueError, match=r"classifier's probabilities are NaN: 1 of 5 images\. .*Lower"):
            predict_probabilities(broken, images, 2)

    def test_a_served_model_with_nan_weights_raises_an_error(self, small_folder: Path, tmp_path: Path) -> None:
        complete_workspace(Workspace())
        folder = bundle_of(Workspace(), "undefended", tmp_path / "bundles")
        broken = load_model(folder / Workspace().classifier, build_classifier)
        with torch.no_grad():
            next(broken.parameters()).fill_(torch.nan)
        save_model(folder / Workspace().classifier, broken, **load_build_arguments(folder / Workspace().classifier))
        with pytest.raises(RuntimeError, match="undefended returns NaN or infinity"):
            Predictor.load(folder).predict_arrays(np.zeros((SIDE, SIDE)))


@pytest.fixture(scope="module")
def attacked(small_workspace: Path, tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    """A workspace in which the attack steps have run; it must not be changed."""
    folder = tmp_path_factory.mktemp("attacked")
    shutil.copytree(small_workspace / "data", folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        attack_all(params)
    return folder


@pytest.fixture(scope="module")
def params() -> Params:
    from tasks.params import parse_params
    from tests.conftest import with_overrides

    return parse_params(with_overrides(FEW))


def with_nan(table: pa.Table, column: str, row: int) -> pa.Table:
    """The table with NaN in one row of a column."""
    values = table[column].to_pylist()
    values[row] = [math.nan] * len(values[row]) if isinstance(values[row], list) else math.nan
    index = table.column_names.index(column)
    return table.set_column(index, table.field(index), pa.array(values, table.field(index).type))


class TestNotANumberOnDisk:
    """In damaged files, or files from elsewhere."""

    @pytest.fixture(autouse=True)
    def copied(self, attacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(attacked / "data", tmp_path / "data")
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize(
        ("path", "column"),
        [
            *(
                (Workspace().records, name)
                for name in ("logits", "entropy", "margin", "eps", "linf", "reconstruction_error")
            ),
            *((Workspace().minimum_eps, name) for name in ("minimum_eps", "minimum_perturbation")),
            (Workspace().diagnostics, "value"),
        ],
    )
    def test_the_error_about_nan_in_a_table_names_file_column_and_image(
        self, path: Callable[[str], Path], column: str, params: Params
    ) -> None:
        file = path("autoencoder")
        table = pq.read_table(file)
        pq.write_table(with_nan(table, column, 5), file)
        Workspace().evaluate.mkdir()
        with pytest.raises(ValueError, match=f"1 rows without a value in {column}; the first is") as raised:
            evaluate(Workspace(), params, Tracker())
        assert str(file) in str(raised.value)
        assert f"{table['path'][5]}. Run the step attack_defence@autoencoder again" in str(raised.value)

    def test_the_error_about_nan_in_saved_perturbations_names_the_path_of_the_image(self) -> None:
        file = Workspace().perturbation_file("undefended", "pgd", 4)
        with np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        arrays["scale"][3] = np.nan
        np.savez(file, **arrays)
        with pytest.raises(ValueError, match=r"1 images are not finite.*run the step attack again") as raised:
            read_perturbations(Workspace(), load_prepared(Workspace()), file, 4)
        assert f"{file}: " in str(raised.value)
        assert f"{PATH} the first" in str(raised.value)

    def test_the_steps_write_no_nan(self) -> None:
        for target in ("undefended", "autoencoder"):
            for path in (Workspace().records(target), Workspace().minimum_eps(target), Workspace().diagnostics(target)):
                assert (
                    not pd.read_parquet(path)
                    .drop(columns="reconstruction_error", errors="ignore")
                    .isna()
                    .any(axis=None)
                )
        assert len(read_records(Workspace(), ["autoencoder"]))


def test_a_constant_predictor_fails_the_check_though_no_attack_breaks_it(
    small_folder: Path, params_with: Callable[..., Params]
) -> None:
    constant = load_target(Workspace(), "undefended", torch.device("cpu"))
    with torch.no_grad():
        # gradients are not masked, but no perturbation within the grid changes the prediction
        constant.network.head.bias[1] += 26
    Workspace().defended_classifier("trades").parent.mkdir(parents=True)
    save_model(Workspace().defended_classifier("trades"), constant, **load_build_arguments(Workspace().classifier))
    queries = {"selected_defences": ["autoencoder", "trades"], "attack.eps": [4, 32]}
    params = params_with(FEW | queries)
    settings = params.defences["trades"].model_dump_json()
    Workspace().defence_settings("trades").write_text(settings, encoding="utf-8")
    checks = checks_of("trades", params)
    assert checks.pop("majority_class") == "FAIL"
    assert checks.pop("constant") == "FAIL"
    assert checks.pop("shortcut_baseline") == "WARN"
    # adaptive attacks are not stronger than transfer attacks
    assert checks.pop("adaptive_advantage") == "WARN"
    # of the recalibrated target, which is not constant; the few steps of tests do not converge
    more_steps = checks.pop("more_steps")
    assert {key: status for key, status in checks.items() if status != "PASS"} == {}
    comparison = pd.read_csv(Workspace().comparison)
    comparison = comparison[comparison["operating_point"] == "as_trained"].set_index(["target", "threat_model", "eps"])
    assert comparison.loc[("trades", "adaptive", 32), ["robust_accuracy", "n_fail"]].tolist() == [
        0.5,
        2 + (more_steps == "FAIL"),
    ]
