"""Networks, augmentation, noise and the training loop."""

import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.core.digests import digest_of_model
from tasks.models.augmentation import augment
from tasks.models.autoencoder import ARCHITECTURES, VariationalAutoencoder, build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.compute import set_up
from tasks.models.files import load_model, save_model
from tasks.models.noise import add_noise
from tasks.models.objectives import classification, denoising, reconstruct
from tasks.models.seeding import build_seeded
from tasks.models.training import TrainingDiverged, UncompiledAdam, _Batches, fit
from tasks.params import Augmentation, Noise, Precision, TrainClassifier
from tasks.train_classifier import mean_and_std

SIZE = 32
KINDS_OF_NOISE = get_args(Noise.model_fields["kind"].annotation)
NO_AUGMENTATION = Augmentation(flip=0, rotation=0, scale=0, translation=0, brightness=0, contrast=0)


def settings(**overrides: Any) -> TrainClassifier:
    values = {
        "architecture": "cnn",
        "pretrained": False,
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "early_stopping": 0,
        "ema_decay": 0.9,
        "augmentation": NO_AUGMENTATION,
    }
    return TrainClassifier(**{**values, **overrides})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 1, SIZE, SIZE, generator=generator())


class TestClassifier:
    @pytest.mark.parametrize("architecture", ["cnn", "resnet18", "mobilenet_v3_small", "squeezenet1_1", "googlenet"])
    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_takes_grey_images_and_returns_logits(self, architecture: str, n_classes: int, images: Tensor) -> None:
        model = build_classifier(architecture, n_classes, mean=0.5, std=0.25).eval()
        assert model(images).shape == (len(images), n_classes)

    def test_normalisation_lives_inside(self, images: Tensor) -> None:
        model = build_classifier("cnn", 2, mean=0.3, std=0.2).eval()
        torch.testing.assert_close(model(images), model.network((images - 0.3) / 0.2))

    def test_an_unknown_architecture_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match=r"train_classifier.architecture: no classifier 'resnet19'.*resnet18"):
            build_classifier("resnet19", 2, 0.5, 0.25)

    def test_weights_that_cant_be_downloaded_are_refused_with_what_to_do(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        # a proxy on a closed local port stands for "no network", wherever the test runs
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
        with pytest.raises(
            ValueError, match=r"train_classifier.pretrained: .*'resnet18' can't be downloaded.*set it to false"
        ):
            build_classifier("resnet18", 2, 0.5, 0.25, pretrained=True)


class TestAutoencoder:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_keeps_shape_and_range(self, architecture: str, images: Tensor) -> None:
        denoised = build_autoencoder(architecture)(images)
        assert denoised.shape == images.shape
        assert 0 <= float(denoised.min()) <= float(denoised.max()) <= 1

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_the_bottleneck_holds_a_quarter_as_many_numbers_as_pixels(self, architecture: str, images: Tensor) -> None:
        autoencoder, codes = build_autoencoder(architecture), []
        autoencoder.get_submodule("encoder").register_forward_hook(lambda *seen: codes.append(seen[-1]))
        autoencoder(images)
        assert codes[0].numel() * 4 == images.numel()

    @pytest.mark.parametrize("architecture", ["residual", "residual_unet"])
    def test_untrained_residual_ones_change_nothing(self, architecture: str, images: Tensor) -> None:
        assert torch.equal(build_autoencoder(architecture)(images), images)

    def test_a_u_net_sees_detail_that_its_bottleneck_does_not_pass(self, images: Tensor) -> None:
        torch.manual_seed(0)
        unet = build_autoencoder("unet")
        code = unet.get_submodule("encoder")
        code.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
        assert not torch.equal(unet(images), unet(images.flip(0)))

    def test_a_variational_code_costs_its_divergence_from_the_standard_normal_distribution(self) -> None:
        autoencoder = VariationalAutoencoder()
        for layer in (autoencoder.encoder[-1], autoencoder.log_variance):
            torch.nn.init.zeros_(layer.weight)
        images = torch.rand(2, 1, 32, 32)
        n_codes = 64 * 2 * 2

        def cost(mean: float, log_variance: float) -> float:
            torch.nn.init.constant_(autoencoder.encoder[-1].bias, mean)
            torch.nn.init.constant_(autoencoder.log_variance.bias, log_variance)
            return float(autoencoder.draw(images, generator())[1].detach())

        per_pixel = 2 * autoencoder.PIXEL_VARIANCE * n_codes / (32 * 32)
        assert cost(0, 0) == pytest.approx(0)
        assert cost(2, 0) == pytest.approx(per_pixel * 2)
        assert cost(0, 1) == pytest.approx(per_pixel * (math.e - 2) / 2)

    def test_a_variational_code_is_drawn_in_training_alone(self, images: Tensor) -> None:
        autoencoder = VariationalAutoencoder()
        assert torch.equal(autoencoder.eval()(images), reconstruct(autoencoder, images, generator())[0])
        draws = [reconstruct(autoencoder.train(), images, generator(seed))[0] for seed in (0, 0, 1)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])


class TestFiles:
    def test_a_saved_model_comes_back_with_the_same_outputs_frozen(self, tmp_path: Path, images: Tensor) -> None:
        build = {"architecture": "cnn", "n_classes": 2, "mean": 0.5, "std": 0.25}
        model = build_classifier(**build).eval()
        save_model(tmp_path / "model.safetensors", model, **build)
        loaded = load_model(tmp_path / "model.safetensors", build_classifier)
        torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())

    def test_saving_twice_gives_the_same_bytes(self, tmp_path: Path) -> None:
        model = build_autoencoder("plain")
        for name in ("first", "second"):
            save_model(tmp_path / f"{name}.safetensors", model, architecture="plain")
        assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "second.safetensors").read_bytes()


class TestAugmentation:
    def test_without_settings_nothing_changes(self, images: Tensor) -> None:
        assert torch.equal(augment(images, NO_AUGMENTATION, generator()), images)

    def test_a_certain_flip_is_exact(self, images: Tensor) -> None:
        flipped = augment(images, NO_AUGMENTATION.model_copy(update={"flip": 1.0}), generator())
        assert torch.equal(flipped, images.flip(-1))

    def test_a_move_is_by_whole_pixels_and_repeats_the_border(self, images: Tensor) -> None:
        moved = augment(images, NO_AUGMENTATION.model_copy(update={"translation": 0.25}), generator())
        assert not torch.equal(moved, images)
        for before, after in zip(images, moved, strict=True):
            assert set(after.unique().tolist()) <= set(before.unique().tolist())

    @pytest.mark.parametrize("name", ["rotation", "scale", "translation", "brightness", "contrast"])
    def test_stays_in_range_is_reproducible_and_differs_by_seed(self, name: str, images: Tensor) -> None:
        some = NO_AUGMENTATION.model_copy(update={name: 0.5})
        first = augment(images, some, generator(1))
        assert torch.equal(first, augment(images, some, generator(1)))
        assert not torch.equal(first, augment(images, some, generator(2)))
        assert 0 <= float(first.min()) <= float(first.max()) <= 1

    def test_a_quarter_turn_at_most_keeps_the_centre(self) -> None:
        image = torch.zeros(1, 1, 33, 33)
        image[..., 16, 16] = 1
        turned = augment(image, NO_AUGMENTATION.model_copy(update={"rotation": 90.0}), generator())
        assert turned[..., 16, 16] > 0.9


class TestNoise:
    @pytest.mark.parametrize("kind", KINDS_OF_NOISE)
    def test_changes_images_within_range(self, kind: Any, images: Tensor) -> None:
        noisy = add_noise(images, (Noise(kind=kind, strength=0.5),), 0.0, generator())
        assert all(not torch.equal(before, after) for before, after in zip(images, noisy, strict=True))
        assert 0 <= float(noisy.min()) <= float(noisy.max()) <= 1

    def test_uniform_noise_is_no_larger_than_its_strength(self, images: Tensor) -> None:
        noisy = add_noise(images, (Noise(kind="uniform", strength=0.1),), 0.0, generator())
        assert float((noisy - images).abs().max()) <= 0.1 + 1e-6

    @pytest.mark.parametrize(("kind", "brightness"), [("gaussian", 1.0), ("speckle", 0.5)])
    def test_gaussian_and_speckle_are_normal_with_every_standard_deviation_up_to_their_strength(
        self, kind: Any, brightness: float
    ) -> None:
        grey = torch.full((200, 1, SIZE, SIZE), 0.5)
        added = add_noise(grey, (Noise(kind=kind, strength=0.12),), 0.0, generator()).sub(0.5).flatten(1).double()
        deviations = added.std(dim=1)
        assert kstest(deviations.numpy(), "uniform", (0, 0.12 * brightness)).pvalue > 0.01
        assert kstest((added / deviations[:, None]).numpy().ravel(), "norm").pvalue > 0.01

    def test_salt_and_pepper_touches_its_share_of_pixels_at_most(self) -> None:
        grey = torch.full((64, 1, SIZE, SIZE), 0.5)
        touched = (add_noise(grey, (Noise(kind="salt_pepper", strength=0.2),), 0.0, generator()) != 0.5).float()
        assert 0.05 < float(touched.mean()) < 0.15

    def test_salt_and_pepper_is_white_and_black_and_nothing_between(self) -> None:
        grey = torch.full((64, 1, SIZE, SIZE), 0.5)
        noisy = add_noise(grey, (Noise(kind="salt_pepper", strength=1.0),), 0.0, generator())
        assert noisy.unique().tolist() == [0, 0.5, 1]
        white, black = (float((noisy == value).float().mean()) for value in (1, 0))
        assert white == pytest.approx(black, rel=0.05)

    def test_the_clean_share_is_left_as_it_is(self) -> None:
        many = torch.rand(400, 1, 8, 8, generator=generator())
        noisy = add_noise(many, (Noise(kind="gaussian", strength=0.5),), 0.25, generator())
        unchanged = (noisy == many).flatten(1).all(dim=1).float().mean()
        assert 0.18 < float(unchanged) < 0.32


def classify(
    model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
) -> dict[str, Tensor]:
    logits = model(images)
    return {"loss": F.cross_entropy(logits, labels), "accuracy": (logits.argmax(1) == labels).float().mean()}


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for an accelerator.

    These are values that are read, sizes that hang on values, and copies from one device to another, which a training
    on the CPU has none of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        aten = torch.ops.aten
        match func.overloadpacket:
            case aten._local_scalar_dense | aten.nonzero | aten.masked_select | aten.equal:
                self.count += 1
            case aten.index | aten.index_put | aten.index_put_:
                self.count += any(index is not None and index.dtype == torch.bool for index in args[1])
            case aten._to_copy | aten.copy_:
                self.count += output.device != next(arg for arg in reversed(args) if isinstance(arg, Tensor)).device
        return output


class TestTraining:
    """On images whose class is whether the left or the right half is brighter."""

    @pytest.fixture
    def data(self) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        labels = np.arange(64) % 2
        pixels = rng.integers(0, 100, (64, 1, SIZE, SIZE), dtype=np.uint8)
        pixels[labels == 1, :, :, SIZE // 2 :] += 100
        pixels[labels == 0, :, :, : SIZE // 2] += 100
        return {"pixels": pixels, "labels": labels, "rows": {"train": np.arange(48), "validation": np.arange(48, 64)}}

    @pytest.fixture
    def train(self, data: dict[str, Any], tmp_path: Path) -> Callable[..., Any]:
        def train(
            chosen: TrainClassifier,
            seed: int = 0,
            checkpoint: str = "checkpoint.pt",
            objective: Any = classify,
            on_epoch: Any = None,
            precision: Precision = "float32",
        ) -> Any:
            model = build_seeded(lambda: build_classifier("cnn", 2, 0.4, 0.2), seed)
            extra = {"on_epoch": on_epoch} if on_epoch else {}
            return fit(
                model, objective, **data, settings=chosen, seed=seed, device=torch.device("cpu"),
                precision=precision, checkpoint=tmp_path / checkpoint, **extra,
            )  # fmt: skip

        return train

    def test_learns_what_is_easy_and_keeps_the_best_epoch(self, train: Any, data: dict[str, Any]) -> None:
        model, history = train(settings(epochs=6))
        rows = data["rows"]["validation"]
        logits = model(torch.from_numpy(data["pixels"][rows]).float() / 255)
        assert (logits.argmax(1).numpy() == data["labels"][rows]).mean() == 1
        assert list(history["epoch"]) == [1, 2, 3, 4, 5, 6]
        assert history["best"].sum() == 1
        kept = history[history["best"] == 1].iloc[0]
        best = history[history["validation_accuracy"] == history["validation_accuracy"].max()]
        assert kept["validation_loss"] == best["validation_loss"].min()
        kept_loss = F.cross_entropy(logits, torch.from_numpy(data["labels"][rows])).item()
        assert kept_loss == pytest.approx(kept["validation_loss"], rel=1e-4)

    def test_steps_of_bfloat16_learn_as_well_and_keep_everything_else_in_float32(
        self, train: Any, data: dict[str, Any]
    ) -> None:
        seen = []

        def watched(model: Any, *rest: Any) -> dict[str, Tensor]:
            metrics = classify(model, *rest)
            seen.append((model.training, torch.is_autocast_enabled("cpu"), metrics["loss"].dtype))
            return metrics

        model, history = train(settings(epochs=6), precision="bfloat16", objective=watched)
        exact, _ = train(settings(epochs=6), checkpoint="exact.pt")
        assert set(seen) == {(True, True, torch.float32), (False, False, torch.float32)}
        assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}
        assert history["validation_accuracy"].max() == 1
        ours, theirs = (each.network.head.weight for each in (model, exact))
        assert not torch.equal(ours, theirs)
        assert ours == pytest.approx(theirs, abs=0.1 * float(theirs.abs().max()))

    @pytest.mark.parametrize("architecture", ["cnn", "squeezenet1_1"])
    def test_trainings_side_by_side_learn_what_each_learns_alone(
        self, architecture: str, data: dict[str, Any], tmp_path: Path
    ) -> None:
        """SqueezeNet drops channels, and dropout draws from the generator that all threads share."""

        def trained(number: int, checkpoint: str) -> str:
            model = build_seeded(lambda: build_classifier(architecture, 2, 0.4, 0.2), number)
            how = settings(epochs=6), number, torch.device("cpu"), "float32", tmp_path / checkpoint
            return digest_of_model(fit(model, classify, *data.values(), *how)[0])

        alone = [trained(number, f"alone-{number}.pt") for number in range(3)]
        for turn in range(2):
            with ThreadPoolExecutor(3) as pool:
                beside = pool.map(trained, range(3), [f"{turn}-{number}.pt" for number in range(3)])
            assert list(beside) == alone

    @pytest.mark.parametrize("step", ["train_classifier", "train_autoencoder"])
    def test_no_step_reads_a_value_that_it_has_computed(
        self, step: str, data: dict[str, Any], params_with: Any, tmp_path: Path
    ) -> None:
        def build() -> tuple[nn.Module, Any]:
            if step == "train_classifier":
                some = dict.fromkeys(Augmentation.model_fields, 0.1)
                augmentation = params_with({"train_classifier.augmentation": some}).train_classifier.augmentation
                return build_classifier("cnn", 2, 0.4, 0.2), classification(augmentation)
            noises = [{"kind": kind, "strength": 0.1} for kind in KINDS_OF_NOISE]
            return build_autoencoder("plain"), denoising(
                params_with({"train_autoencoder.noises": noises}).train_autoencoder
            )

        def waits(n_steps: int) -> int:
            model, objective = build()
            rows = {"train": np.arange(8 * n_steps), "validation": data["rows"]["validation"]}
            how = settings(epochs=1), 0, torch.device("cpu"), "float32", tmp_path / f"{n_steps}.pt"
            with Waits() as seen:
                fit(model, objective, data["pixels"], data["labels"], rows, *how)
            return seen.count

        # an epoch reads its metrics
        assert waits(1) == waits(6) > 0

    def test_an_accelerator_is_sent_the_order_of_an_epoch_at_once(self, data: dict[str, Any]) -> None:
        # the device "meta" takes what an accelerator takes, and computes nothing
        batches = _Batches(data["pixels"], data["labels"], torch.device("meta"))

        def waits(n_images: int) -> int:
            with Waits() as seen:
                shapes = [images.shape for images, _ in batches.full(np.arange(n_images), 8)]
            assert shapes == [(8, 1, SIZE, SIZE)] * (n_images // 8)
            return seen.count

        assert waits(8) == waits(48) == 1

    def test_a_step_is_that_of_torchs_adam_to_the_bit(self) -> None:
        def trained(kind: Any) -> list[Tensor]:
            model = build_seeded(lambda: build_classifier("cnn", 2, 0.4, 0.2), 0)
            optimizer = kind(model.parameters(), lr=0.01, fused=True)
            images = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
            for number in range(6):
                if number == 3:
                    state = optimizer.state_dict()
                    optimizer = kind(model.parameters(), lr=1, fused=True)
                    optimizer.load_state_dict(state)
                optimizer.zero_grad()
                F.cross_entropy(model(images), torch.arange(8) % 2).backward()
                optimizer.step()
            return list(model.parameters())

        assert all(map(torch.equal, trained(UncompiledAdam), trained(torch.optim.Adam)))

    def test_training_does_not_import_torchs_compiler(self, tmp_path: Path) -> None:
        code = (
            "import sys, numpy as np, torch\n"
            "from pathlib import Path\n"
            "from tasks.models.classifier import build_classifier\n"
            "from tasks.models.objectives import classification\n"
            "from tasks.models.training import fit\n"
            "from tasks.params import load_params\n"
            "settings = load_params().train_classifier.model_copy(update={'epochs': 1})\n"
            "pixels, labels = np.zeros((16, 1, 32, 32), dtype=np.uint8), np.arange(16) % 2\n"
            "rows = {'train': np.arange(16), 'validation': np.arange(16)}\n"
            "model, objective = build_classifier('cnn', 2, 0.5, 0.2), classification(settings.augmentation)\n"
            "how = settings, 0, torch.device('cpu'), 'bfloat16', Path(sys.argv[1])\n"
            "fit(model, objective, pixels, labels, rows, *how)\n"
            "sys.exit('torch._dynamo' in sys.modules)"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "state.pt")]
        assert subprocess.run(command, check=False).returncode == 0

    def test_a_checkpoint_of_another_precision_is_not_gone_on_from(self, train: Any) -> None:
        exact, _ = train(settings(), checkpoint="exact.pt")
        train(settings(), precision="bfloat16")
        again, _ = train(settings())
        assert torch.equal(again.network.head.weight, exact.network.head.weight)

    def test_the_same_seed_gives_the_same_weights_and_another_does_not(self, train: Any) -> None:
        first, _ = train(settings(), seed=1, checkpoint="a.pt")
        again, _ = train(settings(), seed=1, checkpoint="b.pt")
        other, _ = train(settings(), seed=2, checkpoint="c.pt")
        weights = [model.network.head.weight for model in (first, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    @pytest.mark.parametrize("killed_after", [1, 2])
    def test_a_killed_training_goes_on_and_ends_like_an_undisturbed_one(self, train: Any, killed_after: int) -> None:
        class Killed(Exception):
            pass

        def kill(epoch: int, metrics: dict[str, float]) -> None:
            if epoch == killed_after:
                raise Killed

        undisturbed, history = train(settings(schedule="cosine"), checkpoint="a.pt")
        with pytest.raises(Killed):
            train(settings(schedule="cosine"), checkpoint="b.pt", on_epoch=kill)
        epochs: list[int] = []
        resumed, resumed_history = train(
            settings(schedule="cosine"), checkpoint="b.pt", on_epoch=lambda epoch, metrics: epochs.append(epoch)
        )
        assert epochs == list(range(killed_after + 1, 4))
        assert resumed_history.equals(history)
        for name, tensor in undisturbed.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[name]), name

    def test_a_checkpoint_of_other_settings_is_not_taken_up(self, train: Any) -> None:
        train(settings(epochs=2))
        epochs: list[int] = []
        train(settings(epochs=2, learning_rate=1e-4), on_epoch=lambda epoch, metrics: epochs.append(epoch))
        assert epochs == [1, 2]

    def test_early_stopping_ends_after_that_many_epochs_without_a_better_loss(self, train: Any) -> None:
        def never_better(
            model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
        ) -> dict[str, Tensor]:
            loss = model(images).square().mean()
            return {"loss": loss if model.training else loss.detach() * 0 + 1}

        _, history = train(settings(epochs=9, early_stopping=2), objective=never_better)
        assert len(history) == 3

    def test_a_loss_that_is_not_finite_stops_with_what_to_do(self, train: Any) -> None:
        def diverging(
            model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
        ) -> dict[str, Tensor]:
            return {"loss": model(images).mean() * float("inf")}

        told = r"training loss is -?inf at step 1 of epoch 1 of 3; lower learning_rate .* no epoch before it is kept"
        with pytest.raises(TrainingDiverged, match=told):
            train(settings(), objective=diverging)

    def test_a_step_that_goes_too_far_at_the_end_of_an_epoch_is_found_before_the_epoch_is_kept(
        self, train: Any, tmp_path: Path
    ) -> None:
        # one batch an epoch, whose loss is that of the weights before the step
        too_fast = settings(batch_size=48).model_copy(update={"learning_rate": 1e30})
        with pytest.raises(
            TrainingDiverged, match=r"validation loss is \S+ of epoch 1 of 3; .* no epoch before it is kept"
        ):
            train(too_fast)
        assert not (tmp_path / "checkpoint.pt").exists()

    def test_evaluation_does_not_follow_the_batch_norm_statistics_of_single_batches(self, train: Any) -> None:
        """With weights that no longer move, measured statistics make every epoch's evaluation the same."""
        _, history = train(settings(epochs=3, learning_rate=1e-12, ema_decay=0.0))
        assert history["validation_loss"].std() < 1e-4


def test_mean_and_standard_deviation_are_those_of_the_chosen_images_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (9, 1, SIZE, SIZE), dtype=np.uint8)
    rows = np.array([1, 2, 7])
    expected = pixels[rows].mean() / 255, pixels[rows].std() / 255
    np.testing.assert_allclose(mean_and_std(pixels, rows), expected, rtol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_where_bfloat16_gains_nothing_a_warning_says_so(
    precision: str, params_with: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compute = params_with({"compute.device": "cpu", "compute.threads": 1, "compute.precision": precision}).compute
    for capabilities, expected in (({"avx512_f": True}, precision == "bfloat16"), ({"amx_bf16": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=capabilities: known)
        caplog.clear()
        assert set_up(compute) == torch.device("cpu")
        assert ("compute.precision" in caplog.text) == expected


def test_a_device_that_is_not_there_is_refused_with_those_that_are(params_with: Any) -> None:
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(ValueError, match=f"compute.device: no {missing} on this machine; available: auto, .*cpu"):
        set_up(params_with({"compute.device": missing}).compute)
