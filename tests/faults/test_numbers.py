"""Numbers that are none, and a predictor that predicts nothing, planted where the real steps meet them."""

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
from tasks.attacks import campaign
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.defences.targets import load_target
from tasks.evaluate import evaluate
from tasks.labelling.acquisition import probabilities
from tasks.models.classifier import build_classifier
from tasks.models.files import build_of, load_model, save_model
from tasks.models.training import TrainingDiverged
from tasks.params import Params
from tasks.records.adversarial_images import load_kept
from tasks.records.tables import read_records
from tasks.serving.predictor import Predictor
from tasks.tracking import Tracker
from tests.bundles import bundle_of
from tests.small_workspace import SIDE, SMALL, draw_images

FEW = SMALL | {
    "benchmark": ["autoencoder"],
    "attack.eps": [4],
    "attack.suite.n_queries": 0,
    "analyze.n_resamples": 100,
}
TRAINING = SMALL | {"train_classifier.epochs": 4}
CHECKPOINT = Path("checkpoints/train_classifier/state.pt")
VICTIM = 67
"""Row of the image that things are planted in."""
PATH = draw_images()[1]["path"][VICTIM]


class Planted(nn.Module):
    """Says NaN of some images; of others what the target says."""

    def __init__(self, target: nn.Module, where: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.target, self.where = target, where

    def forward(self, images: Tensor) -> Tensor:
        return torch.where(self.where(images)[:, None], torch.nan, self.target(images))


class NoWayBack(torch.autograd.Function):
    """Changes nothing, and has NaN for a gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.nan


class Untraceable(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return NoWayBack.apply(images)


def distance(images: Tensor) -> Tensor:
    """Of each image from the victim: the largest change of a pixel."""
    victim = torch.from_numpy(draw_images()[0][VICTIM].astype(np.float32) / 255)
    return (images - victim).abs().amax(dim=(1, 2, 3))


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[nn.Module], nn.Module]], None]:
    """``plant(target, wrap)``: steps that attack meet another module in place of a target."""
    load = campaign.load_target

    def planted(name: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
        def load_planted(of: str, device: torch.device) -> nn.Module:
            target = load(of, device)
            return wrap(target).eval() if of == name else target

        monkeypatch.setattr(campaign, "load_target", load_planted)

    return planted


def attack_all(params: Params) -> None:
    Workspace().attack.mkdir()
    attack(Workspace(), params, Tracker())
    for defence in params.benchmark:
        Workspace().step_folder("attack_defence", defence).mkdir(parents=True)
        attack_defence(Workspace(), params, Tracker(), defence)


def checks_of(target: str, params: Params) -> dict[str, str]:
    """Key to status, after the real steps."""
    attack_all(params)
    Workspace().evaluate.mkdir()
    evaluate(Workspace(), params, Tracker())
    checks = json.loads(Workspace().checks.read_text(encoding="utf-8"))
    return {check["key"]: check["status"] for check in checks if check["target"] == target}


class TestTrainingThatDiverges:
    @pytest.fixture
    def diverging(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The loss is no longer a number in the second batch of the third epoch."""
        classification, seen = step.classification, {"batches": 0}

        def planted(settings: Any) -> Any:
            measure = classification(settings)

            def measure_until(model: nn.Module, *given: Any) -> dict[str, Tensor]:
                found = measure(model, *given)
                seen["batches"] += model.training
                # 56 images in batches of 16, the rest left out
                return found | {"loss": found["loss"] * torch.nan} if seen["batches"] == 8 and model.training else found

            return measure_until

        monkeypatch.setattr(step, "classification", planted)

    def trained(self, params: Params) -> bytes:
        """The weights; the checkpoint stays where the step raises, as the runner has it."""
        Workspace().classifier.unlink(missing_ok=True)
        step.train_classifier(params, Tracker())
        shutil.rmtree(CHECKPOINT.parent)
        return Workspace().classifier.read_bytes()

    @pytest.fixture
    def undisturbed(self, workspace: Path, params_with: Callable[..., Params]) -> bytes:
        return self.trained(params_with(TRAINING))

    @pytest.fixture
    def stopped(self, undisturbed: bytes, diverging: None, params_with: Callable[..., Params]) -> str:
        """What was said."""
        with pytest.raises(TrainingDiverged) as raised:
            self.trained(params_with(TRAINING))
        return str(raised.value)

    def test_it_stops_with_epoch_step_and_what_to_do(self, stopped: str) -> None:
        assert "the training loss is nan at step 2 of epoch 3 of 4; lower learning_rate (0.0001)" in stopped
        assert f"{CHECKPOINT} keeps the state after epoch 2" in stopped
        assert not Workspace().classifier.exists()

    def test_the_checkpoint_is_that_of_the_last_good_epoch_and_the_same_training_goes_on_from_it(
        self, stopped: str, undisturbed: bytes, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = torch.load(CHECKPOINT, weights_only=True)
        assert [row["epoch"] for row in state["history"]] == [1, 2]
        assert all(weights.isfinite().all() for weights in state["averaged"].values())
        # the planted fault is over: only epochs 3 and 4 are left, and nothing else has changed
        epochs: list[int] = []
        monkeypatch.setattr(Tracker, "metrics", lambda self, values, epoch=0: epochs.append(epoch))
        assert self.trained(params_with(TRAINING)) == undisturbed
        assert epochs == [3, 4]

    def test_with_another_learning_rate_it_begins_anew(self, stopped: str, params_with: Callable[..., Params]) -> None:
        slower = params_with(TRAINING | {"train_classifier.learning_rate": 1e-5})
        after = self.trained(slower)
        assert self.trained(slower) == after


class TestNotANumber:
    def test_logits_of_a_clean_image_are_refused_with_its_path(
        self, workspace: Path, params_with: Callable[..., Params], plant: Any
    ) -> None:
        plant("undefended", lambda target: Planted(target, lambda images: distance(images) < 1e-7))
        with pytest.raises(
            ValueError, match=rf"1 of 32 images .* not finite, {PATH.replace('(', '.').replace(')', '.')}"
        ):
            attack_all(params_with(FEW))

    def test_logits_that_only_a_search_meets_are_refused_with_the_images_path(
        self, workspace: Path, params_with: Callable[..., Params], plant: Any
    ) -> None:
        def near(images: Tensor) -> Tensor:
            return (distance(images) > 1e-7) & (distance(images) < 0.05)

        plant("undefended", lambda target: Planted(target, near))
        with pytest.raises(ValueError, match=r"1 of \d+ images .* not finite") as raised:
            attack_all(params_with(FEW))
        assert f"{PATH} the first; target undefended, attack sweep" in str(raised.value)

    def test_what_an_attack_returns_is_refused_with_the_images_path(
        self, workspace: Path, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        craft = campaign.craft

        def craft_nothing(model: nn.Module, *given: Any) -> Iterator[np.ndarray]:
            rows = given[-1]
            for adversarial in craft(model, *given):
                yield np.where((rows == VICTIM)[:, None, None, None], np.float32(np.nan), adversarial)

        monkeypatch.setattr(campaign, "craft", craft_nothing)
        with pytest.raises(AssertionError, match="leave the value range") as raised:
            attack_all(params_with(FEW))
        assert f"by nan: 1 of 16 images, {PATH} the first" in str(raised.value)

    @pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.faults)])
    def test_gradients_that_are_no_numbers_are_marked(
        self, norm: str, workspace: Path, params_with: Callable[..., Params], plant: Any
    ) -> None:
        plant("autoencoder", lambda target: nn.Sequential(Untraceable(), target))
        assert checks_of("autoencoder", params_with(FEW | {"attack.norm": norm}))["gradients"] == "FAIL"

    def test_probabilities_are_refused_where_a_classifier_asks_for_labels(self) -> None:
        broken = Planted(nn.Flatten(), lambda images: images[:, 0, 0, 0] > 0.5)
        broken.register_parameter("device", nn.Parameter(torch.zeros(())))
        images = np.zeros((5, 1, 2, 2), dtype=np.float32)
        images[3] = 1
        with pytest.raises(ValueError, match=r"of 1 of 5 images the classifier's probabilities are NaN; lower"):
            probabilities(broken, images, 2)

    def test_a_served_model_with_broken_weights_gives_no_answer(self, workspace: Path, tmp_path: Path) -> None:
        folder = bundle_of("undefended", tmp_path / "bundles")
        broken = load_model(folder / Workspace().classifier, build_classifier)
        with torch.no_grad():
            next(broken.parameters()).fill_(torch.nan)
        save_model(folder / Workspace().classifier, broken, **build_of(folder / Workspace().classifier))
        with pytest.raises(RuntimeError, match="undefended gives no finite numbers"):
            Predictor.load(folder).predict_arrays(np.zeros((SIDE, SIDE)))


@pytest.fixture(scope="module")
def attacked(small_workspace: Path, tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    """A workspace in which the steps that attack have run; not to be written to."""
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


def planted_in(table: pa.Table, column: str, row: int) -> pa.Table:
    """The table with NaN in one row of a column."""
    values = table[column].to_pylist()
    values[row] = [math.nan] * len(values[row]) if isinstance(values[row], list) else math.nan
    index = table.column_names.index(column)
    return table.set_column(index, table.field(index), pa.array(values, table.field(index).type))


class TestNotANumberOnDisk:
    """In files that came from elsewhere, or were damaged."""

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
            *((Workspace().smallest_eps, name) for name in ("smallest_eps", "minimal_eps")),
            (Workspace().probes, "value"),
        ],
    )
    def test_a_table_with_one_is_refused_with_file_column_and_image(
        self, path: Callable[[str], Path], column: str, params: Params
    ) -> None:
        file = path("autoencoder")
        table = pq.read_table(file)
        pq.write_table(planted_in(table, column, 5), file)
        Workspace().evaluate.mkdir()
        with pytest.raises(ValueError, match=f"no number in {column} of 1 rows") as raised:
            evaluate(Workspace(), params, Tracker())
        assert str(file) in str(raised.value)
        assert f"that of {table['path'][5]} the first: run the step attack_defence@autoencoder again" in str(
            raised.value
        )

    def test_an_adversarial_image_is_refused_with_its_path(self) -> None:
        file = Workspace().perturbations("undefended") / "pgd-eps4.npz"
        with np.load(file, allow_pickle=False) as kept:
            arrays = dict(kept)
        arrays["scale"][3] = np.nan
        np.savez(file, **arrays)
        with pytest.raises(ValueError, match=r"1 images are not finite.*run the step attack again") as raised:
            load_kept(Workspace(), load_prepared(Workspace()), "undefended", "pgd", 4)
        assert f"{file}: " in str(raised.value)
        assert f"{PATH} the first" in str(raised.value)

    def test_none_is_written(self) -> None:
        for target in ("undefended", "autoencoder"):
            for path in (Workspace().records(target), Workspace().smallest_eps(target), Workspace().probes(target)):
                assert (
                    not pd.read_parquet(path)
                    .drop(columns="reconstruction_error", errors="ignore")
                    .isna()
                    .any(axis=None)
                )
        assert len(read_records(Workspace(), ["autoencoder"]))


def test_a_predictor_that_always_says_the_same_is_flagged_though_nothing_breaks_it(
    workspace: Path, params_with: Callable[..., Params]
) -> None:
    constant = load_target(Workspace(), "undefended", torch.device("cpu"))
    with torch.no_grad():
        # gradients are all there, and lead nowhere within the grid
        constant.network.head.bias[1] += 26
    Workspace().defended_classifier("trades").parent.mkdir(parents=True)
    save_model(Workspace().defended_classifier("trades"), constant, **build_of(Workspace().classifier))
    queries = {"benchmark": ["autoencoder", "trades"], "attack.eps": [4, 32], "attack.suite.n_queries": 20}
    checks = checks_of("trades", params_with(FEW | queries))
    assert checks.pop("constant") == "FAIL"
    # an attacker gains nothing from knowing it, either
    assert checks.pop("knowledge") == "WARN"
    assert set(checks.values()) == {"PASS"}
    benchmark = pd.read_csv(Workspace().benchmark).set_index(["target", "threat_model", "eps"])
    assert benchmark.loc[("trades", "adaptive", 32), ["accuracy", "n_fail"]].tolist() == [0.5, 1]
