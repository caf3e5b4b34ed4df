"""Architectures, saved models, augmentation, noise and the training loop."""

import math
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

from tasks.core.checkpoints import Checkpoints
from tasks.core.digests import digest_of_model
from tasks.models.augmentation import augment
from tasks.models.autoencoder import ARCHITECTURES, VariationalAutoencoder, build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.classifier_training import mean_and_std
from tasks.models.compute import configure_torch
from tasks.models.files import load_model, save_model
from tasks.models.noise import add_noise
from tasks.models.objectives import classification_objective, denoising_objective, reconstruct
from tasks.models.seeding import build_seeded
from tasks.models.training import EVALUATION_BATCH_SIZE, TrainingDiverged, _BatchLoader, _State, fit
from tasks.params import Augmentation, Noise, Precision, TrainClassifier, load_params

SIZE = 32
NOISE_KINDS = get_args(Noise.model_fields["kind"].annotation)
NO_AUGMENTATION = Augmentation(
    horizontal_flip_probability=0, rotation=0, scale=0, translation=0, brightness=0, contrast=0
)


def settings(**overrides: Any) -> TrainClassifier:
    values = {
        "architecture": "cnn",
        "pretrained": False,
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "constant",
        "early_stopping_patience": 0,
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
    def test_it_takes_grey_images_and_returns_logits(self, architecture: str, n_classes: int, images: Tensor) -> None:
        model = build_classifier(architecture, n_classes, mean=0.5, std=0.25).eval()
        assert model(images).shape == (len(images), n_classes)

    def test_the_normalisation_is_part_of_the_model(self, images: Tensor) -> None:
        model = build_classifier("cnn", 2, mean=0.3, std=0.2).eval()
        torch.testing.assert_close(model(images), model.network((images - 0.3) / 0.2))

    def test_the_error_about_an_unknown_architecture_lists_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match=r"train_classifier.architecture: no classifier 'resnet19'\. .*resnet18"):
            build_classifier("resnet19", 2, 0.5, 0.25)

    def test_the_error_about_a_failed_download_of_weights_says_what_to_do(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        # a proxy on a closed local port has the effect of no network on every machine
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
        with pytest.raises(
            ValueError, match=r"train_classifier.pretrained: .*'resnet18' cannot be downloaded.*set it to false"
        ):
            build_classifier("resnet18", 2, 0.5, 0.25, pretrained=True)


class TestAutoencoder:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_it_keeps_shape_and_range(self, architecture: str, images: Tensor) -> None:
        denoised = build_autoencoder(architecture)(images)
        assert denoised.shape == images.shape
        assert 0 <= float(denoised.min()) <= float(denoised.max()) <= 1

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_the_bottleneck_has_a_quarter_as_many_values_as_the_image_has_pixels(
        self, architecture: str, images: Tensor
    ) -> None:
        autoencoder, codes = build_autoencoder(architecture), []
        autoencoder.get_submodule("encoder").register_forward_hook(
            lambda _module, _inputs, output: codes.append(output)
        )
        autoencoder(images)
        assert codes[0].numel() * 4 == images.numel()

    @pytest.mark.parametrize("architecture", ["residual", "residual_unet"])
    def test_an_untrained_residual_autoencoder_returns_its_input(self, architecture: str, images: Tensor) -> None:
        assert torch.equal(build_autoencoder(architecture)(images), images)

    def test_the_skip_connections_of_a_u_net_bypass_its_bottleneck(self, images: Tensor) -> None:
        torch.manual_seed(0)
        unet = build_autoencoder("unet")
        code = unet.get_submodule("encoder")
        code.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
        assert not torch.equal(unet(images), unet(images.flip(0)))

    def test_the_penalty_of_a_variational_autoencoder_is_the_divergence_from_the_standard_normal_distribution(
        self,
    ) -> None:
        autoencoder = VariationalAutoencoder()
        for layer in (autoencoder.encoder[-1], autoencoder.log_variance):
            torch.nn.init.zeros_(layer.weight)
        images = torch.rand(2, 1, 32, 32)
        n_codes = 64 * 2 * 2

        def penalty(mean: float, log_variance: float) -> float:
            torch.nn.init.constant_(autoencoder.encoder[-1].bias, mean)
            torch.nn.init.constant_(autoencoder.log_variance.bias, log_variance)
            return float(autoencoder.sample(images, generator())[1].detach())

        per_pixel = 2 * autoencoder.PIXEL_VARIANCE * n_codes / (32 * 32)
        assert penalty(0, 0) == pytest.approx(0)
        assert penalty(2, 0) == pytest.approx(per_pixel * 2)
        assert penalty(0, 1) == pytest.approx(per_pixel * (math.e - 2) / 2)

    def test_the_code_of_a_variational_autoencoder_is_random_in_training_only(self, images: Tensor) -> None:
        autoencoder = VariationalAutoencoder()
        assert torch.equal(autoencoder.eval()(images), reconstruct(autoencoder, images, generator())[0])
        samples = [reconstruct(autoencoder.train(), images, generator(seed))[0] for seed in (0, 0, 1)]
        assert torch.equal(samples[0], samples[1])
        assert not torch.equal(samples[0], samples[2])


class TestFiles:
    def test_a_loaded_model_has_the_same_outputs_and_frozen_parameters(self, tmp_path: Path, images: Tensor) -> None:
        build_arguments = {"architecture": "cnn", "n_classes": 2, "mean": 0.5, "std": 0.25}
        model = build_classifier(**build_arguments).eval()
        save_model(tmp_path / "model.safetensors", model, **build_arguments)
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
    def test_with_all_bounds_0_the_images_stay_unchanged(self, images: Tensor) -> None:
        assert torch.equal(augment(images, NO_AUGMENTATION, generator()), images)

    def test_a_flip_is_exact(self, images: Tensor) -> None:
        flipped = augment(images, NO_AUGMENTATION.model_copy(update={"horizontal_flip_probability": 1.0}), generator())
        assert torch.equal(flipped, images.flip(-1))

    def test_a_translation_is_by_whole_pixels_and_repeats_the_border(self, images: Tensor) -> None:
        translated = augment(images, NO_AUGMENTATION.model_copy(update={"translation": 0.25}), generator())
        assert not torch.equal(translated, images)
        for before, after in zip(images, translated, strict=True):
            assert set(after.unique().tolist()) <= set(before.unique().tolist())

    @pytest.mark.parametrize("name", ["rotation", "scale", "translation", "brightness", "contrast"])
    def test_it_keeps_the_range_and_depends_on_the_seed_alone(self, name: str, images: Tensor) -> None:
        augmentation = NO_AUGMENTATION.model_copy(update={name: 0.5})
        first = augment(images, augmentation, generator(1))
        assert torch.equal(first, augment(images, augmentation, generator(1)))
        assert not torch.equal(first, augment(images, augmentation, generator(2)))
        assert 0 <= float(first.min()) <= float(first.max()) <= 1

    def test_a_rotation_keeps_the_centre_of_the_image(self) -> None:
        image = torch.zeros(1, 1, 33, 33)
        image[..., 16, 16] = 1
        rotated = augment(image, NO_AUGMENTATION.model_copy(update={"rotation": 90.0}), generator())
        assert rotated[..., 16, 16] > 0.9


class TestNoise:
    @pytest.mark.parametrize("kind", NOISE_KINDS)
    def test_every_image_changes_and_stays_in_range(self, kind: Any, images: Tensor) -> None:
        noisy = add_noise(images, (Noise(kind=kind, max_strength=0.5),), 0.0, generator())
        assert all(not torch.equal(before, after) for before, after in zip(images, noisy, strict=True))
        assert 0 <= float(noisy.min()) <= float(noisy.max()) <= 1

    def test_uniform_noise_is_at_most_its_maximum_strength(self, images: Tensor) -> None:
        noisy = add_noise(images, (Noise(kind="uniform", max_strength=0.1),), 0.0, generator())
        assert float((noisy - images).abs().max()) <= 0.1 + 1e-6

    @pytest.mark.parametrize(("kind", "brightness"), [("gaussian", 1.0), ("speckle", 0.5)])
    def test_gaussian_and_speckle_noise_are_normal_with_a_uniform_standard_deviation(
        self, kind: Any, brightness: float
    ) -> None:
        grey = torch.full((200, 1, SIZE, SIZE), 0.5)
        added = add_noise(grey, (Noise(kind=kind, max_strength=0.12),), 0.0, generator()).sub(0.5).flatten(1).double()
        deviations = added.std(dim=1)
        assert kstest(deviations.numpy(), "uniform", (0, 0.12 * brightness)).pvalue > 0.01
        assert kstest((added / deviations[:, None]).numpy().ravel(), "norm").pvalue > 0.01

    def test_salt_and_pepper_noise_changes_half_of_its_maximum_fraction_of_pixels_on_average(self) -> None:
        grey = torch.full((64, 1, SIZE, SIZE), 0.5)
        changed = (add_noise(grey, (Noise(kind="salt_pepper", max_strength=0.2),), 0.0, generator()) != 0.5).float()
        assert 0.05 < float(changed.mean()) < 0.15

    def test_salt_and_pepper_noise_sets_pixels_to_0_or_1_equally_often(self) -> None:
        grey = torch.full((64, 1, SIZE, SIZE), 0.5)
        noisy = add_noise(grey, (Noise(kind="salt_pepper", max_strength=1.0),), 0.0, generator())
        assert noisy.unique().tolist() == [0, 0.5, 1]
        white, black = (float((noisy == value).float().mean()) for value in (1, 0))
        assert white == pytest.approx(black, rel=0.05)

    def test_the_clean_fraction_of_the_images_stays_unchanged(self) -> None:
        clean = torch.rand(400, 1, 8, 8, generator=generator())
        noisy = add_noise(clean, (Noise(kind="gaussian", max_strength=0.5),), 0.25, generator())
        unchanged = (noisy == clean).flatten(1).all(dim=1).float().mean()
        assert 0.18 < float(unchanged) < 0.32


def classify(
    model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
) -> dict[str, Tensor]:
    logits = model(images)
    return {"loss": F.cross_entropy(logits, labels), "accuracy": (logits.argmax(1) == labels).float().mean()}


class SynchronisationCounter(TorchDispatchMode):
    """Counts the operations in which the host would wait for an accelerator.

    These are reads of values, operations whose output size depends on values, and copies between devices. A training on
    the CPU has no copies between devices.
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


class Killed(Exception):
    """Stands for the end of the process."""


class TestTraining:
    """Training on images of two classes: the left or the right half is brighter."""

    @pytest.fixture
    def data(self) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        labels = np.arange(64) % 2
        pixels = rng.integers(0, 100, (64, 1, SIZE, SIZE), dtype=np.uint8)
        pixels[labels == 1, :, :, SIZE // 2 :] += 100
        pixels[labels == 0, :, :, : SIZE // 2] += 100
        split_rows = {"train": np.arange(48), "validation": np.arange(48, 64)}
        return {"pixels": pixels, "labels": labels, "split_rows": split_rows}

    @pytest.fixture
    def train(self, data: dict[str, Any], tmp_path: Path) -> Callable[..., Any]:
        def train(
            chosen: TrainClassifier,
            seed: int = 0,
            checkpoints: str = "checkpoints",
            objective: Any = classify,
            on_epoch: Any = None,
            precision: Precision = "float32",
        ) -> Any:
            model = build_seeded(lambda: build_classifier("cnn", 2, 0.4, 0.2), seed)
            extra = {"on_epoch": on_epoch} if on_epoch else {}
            return fit(
                model, objective, **data, settings=chosen, seed=seed, device=torch.device("cpu"),
                precision=precision, checkpoints=Checkpoints(tmp_path / checkpoints, ("models",)), **extra,
            )  # fmt: skip

        return train

    def test_it_learns_an_easy_task_and_returns_the_best_epoch(self, train: Any, data: dict[str, Any]) -> None:
        model, history = train(settings(epochs=6))
        rows = data["split_rows"]["validation"]
        logits = model(torch.from_numpy(data["pixels"][rows]).float() / 255)
        assert (logits.argmax(1).numpy() == data["labels"][rows]).mean() == 1
        assert list(history["epoch"]) == [1, 2, 3, 4, 5, 6]
        assert history["best"].sum() == 1
        kept = history[history["best"] == 1].iloc[0]
        best = history[history["validation_accuracy"] == history["validation_accuracy"].max()]
        assert kept["validation_loss"] == best["validation_loss"].min()
        kept_loss = F.cross_entropy(logits, torch.from_numpy(data["labels"][rows])).item()
        assert kept_loss == pytest.approx(kept["validation_loss"], rel=1e-4)

    def test_with_bfloat16_it_learns_as_well_and_weights_losses_and_evaluation_stay_float32(
        self, train: Any, data: dict[str, Any]
    ) -> None:
        calls = []

        def recording(model: Any, *rest: Any) -> dict[str, Tensor]:
            metrics = classify(model, *rest)
            calls.append((model.training, torch.is_autocast_enabled("cpu"), metrics["loss"].dtype))
            return metrics

        model, history = train(settings(epochs=6), precision="bfloat16", objective=recording)
        exact, _ = train(settings(epochs=6), checkpoints="exact")
        assert set(calls) == {(True, True, torch.float32), (False, False, torch.float32)}
        assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}
        assert history["validation_accuracy"].max() == 1
        weight, exact_weight = (each.network.head.weight for each in (model, exact))
        assert not torch.equal(weight, exact_weight)
        assert weight == pytest.approx(exact_weight, abs=0.1 * float(exact_weight.abs().max()))

    @pytest.mark.parametrize("architecture", ["cnn", "squeezenet1_1"])
    def test_trainings_in_threads_give_the_same_weights_as_one_after_the_other(
        self, architecture: str, data: dict[str, Any], tmp_path: Path
    ) -> None:
        """SqueezeNet has dropout, which uses torch's global generator that all threads share."""

        def trained(seed: int, folder: str) -> str:
            model = build_seeded(lambda: build_classifier(architecture, 2, 0.4, 0.2), seed)
            checkpoints = Checkpoints(tmp_path / folder, ("models",))
            arguments = settings(epochs=6), seed, torch.device("cpu"), "float32", checkpoints
            return digest_of_model(fit(model, classify, *data.values(), *arguments)[0])

        sequential = [trained(seed, "sequential") for seed in range(3)]
        for repetition in range(2):
            with ThreadPoolExecutor(3) as pool:
                concurrent = pool.map(trained, range(3), [f"concurrent-{repetition}"] * 3)
            assert list(concurrent) == sequential

    @pytest.mark.parametrize("step", ["train_classifier", "train_autoencoder"])
    def test_training_steps_do_not_synchronise_with_the_host(
        self, step: str, data: dict[str, Any], params_with: Any, tmp_path: Path
    ) -> None:
        def build() -> tuple[nn.Module, Any]:
            if step == "train_classifier":
                values = dict.fromkeys(Augmentation.model_fields, 0.1)
                augmentation = params_with({"train_classifier.augmentation": values}).train_classifier.augmentation
                return build_classifier("cnn", 2, 0.4, 0.2), classification_objective(augmentation)
            noises = [{"kind": kind, "max_strength": 0.1} for kind in NOISE_KINDS]
            return build_autoencoder("plain"), denoising_objective(
                params_with({"train_autoencoder.noise_types": noises}).train_autoencoder
            )

        def n_synchronisations(n_steps: int) -> int:
            model, objective = build()
            split_rows = {"train": np.arange(8 * n_steps), "validation": data["split_rows"]["validation"]}
            arguments = settings(epochs=1), 0, torch.device("cpu"), "float32", Checkpoints(tmp_path, ("models",))
            with SynchronisationCounter() as counter:
                fit(model, objective, data["pixels"], data["labels"], split_rows, *arguments)
            return counter.count

        # the number does not grow with the steps; each epoch reads its metrics once
        assert n_synchronisations(1) == n_synchronisations(6) > 0

    def test_the_row_numbers_of_an_epoch_are_copied_to_an_accelerator_at_once(self, data: dict[str, Any]) -> None:
        # the device "meta" stands for an accelerator; it computes nothing
        loader = _BatchLoader(data["pixels"], data["labels"], torch.device("meta"))

        def n_copies(n_images: int) -> int:
            with SynchronisationCounter() as counter:
                shapes = [images.shape for images, _ in loader.full_size_batches(np.arange(n_images), 8)]
            assert shapes == [(8, 1, SIZE, SIZE)] * (n_images // 8)
            return counter.count

        assert n_copies(8) == n_copies(48) == 1

    def test_a_training_does_not_resume_from_a_checkpoint_of_another_precision(self, train: Any) -> None:
        exact, _ = train(settings(), checkpoints="exact")
        train(settings(), precision="bfloat16")
        epochs: list[int] = []
        again, _ = train(settings(), on_epoch=lambda epoch, metrics: epochs.append(epoch))
        assert epochs == [1, 2, 3]
        assert torch.equal(again.network.head.weight, exact.network.head.weight)

    def test_the_same_seed_gives_the_same_weights_and_another_seed_others(self, train: Any) -> None:
        first, _ = train(settings(), seed=1, checkpoints="a")
        again, _ = train(settings(), seed=1, checkpoints="b")
        other, _ = train(settings(), seed=2, checkpoints="c")
        weights = [model.network.head.weight for model in (first, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    @pytest.mark.parametrize("killed_after", [1, 2])
    def test_a_killed_training_resumes_and_gives_the_same_weights_as_an_uninterrupted_one(
        self, train: Any, killed_after: int
    ) -> None:
        def kill(epoch: int, metrics: dict[str, float]) -> None:
            if epoch == killed_after:
                raise Killed

        uninterrupted, history = train(settings(learning_rate_schedule="cosine"), checkpoints="a")
        with pytest.raises(Killed):
            train(settings(learning_rate_schedule="cosine"), checkpoints="b", on_epoch=kill)
        epochs: list[int] = []
        resumed, resumed_history = train(
            settings(learning_rate_schedule="cosine"),
            checkpoints="b",
            on_epoch=lambda epoch, metrics: epochs.append(epoch),
        )
        assert epochs == list(range(killed_after + 1, 4))
        assert resumed_history.equals(history)
        for name, tensor in uninterrupted.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[name]), name

    def test_a_training_starts_again_if_its_checkpoint_is_damaged(self, train: Any, tmp_path: Path) -> None:
        def kill(epoch: int, metrics: dict[str, float]) -> None:
            raise Killed

        with pytest.raises(Killed):
            train(settings(), on_epoch=kill)
        (checkpoint,) = (tmp_path / "checkpoints").iterdir()
        content = bytearray(checkpoint.read_bytes())
        content[len(content) // 2] ^= 1
        for damaged in (bytes(content), b""):
            checkpoint.write_bytes(damaged)
            epochs: list[int] = []
            train(settings(), on_epoch=lambda epoch, metrics, epochs=epochs: epochs.append(epoch))
            assert epochs == [1, 2, 3]

    def test_a_training_does_not_resume_from_a_checkpoint_of_other_settings(self, train: Any) -> None:
        train(settings(epochs=2))
        epochs: list[int] = []
        train(settings(epochs=2, learning_rate=1e-4), on_epoch=lambda epoch, metrics: epochs.append(epoch))
        assert epochs == [1, 2]

    def test_early_stopping_ends_the_training_after_so_many_epochs_without_improvement(self, train: Any) -> None:
        def never_improving(
            model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
        ) -> dict[str, Tensor]:
            loss = model(images).square().mean()
            return {"loss": loss if model.training else loss.detach() * 0 + 1}

        _, history = train(settings(epochs=9, early_stopping_patience=2), objective=never_improving)
        assert len(history) == 3

    def test_the_error_about_a_loss_that_is_not_finite_says_what_to_do(self, train: Any) -> None:
        def diverging(
            model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
        ) -> dict[str, Tensor]:
            return {"loss": model(images).mean() * float("inf")}

        message = (
            r"training loss is -?inf at step 1 of epoch 1 of 3\. No earlier epoch was saved\. "
            r"Lower learning_rate \(0\.001\)"
        )
        with pytest.raises(TrainingDiverged, match=message):
            train(settings(), objective=diverging)

    def test_a_divergence_in_the_last_step_of_an_epoch_is_found_before_the_checkpoint_is_saved(
        self, train: Any, tmp_path: Path
    ) -> None:
        # one step in each epoch; its training loss is computed before the step
        too_fast = settings(batch_size=48).model_copy(update={"learning_rate": 1e30})
        with pytest.raises(
            TrainingDiverged, match=r"validation loss is \S+ of epoch 1 of 3\. No earlier epoch was saved\."
        ):
            train(too_fast)
        assert not (tmp_path / "checkpoints").exists()

    def test_batch_norm_statistics_need_no_batch_of_one_image(self, data: dict[str, Any], tmp_path: Path) -> None:
        # one more than a batch of the evaluation; the last feature map of resnet18 is 1 x 1 here
        rows = {"train": np.arange(EVALUATION_BATCH_SIZE + 1) % len(data["labels"]), "validation": np.arange(2)}
        model = build_classifier("resnet18", 2, 0.5, 0.1)
        checkpoints = Checkpoints(tmp_path, ["core"])
        how = settings(epochs=1, batch_size=64), 0, torch.device("cpu"), "float32", checkpoints
        fit(model, classification_objective(NO_AUGMENTATION), data["pixels"], data["labels"], rows, *how)

    def test_evaluation_does_not_depend_on_the_batch_norm_statistics_of_single_batches(self, train: Any) -> None:
        """With constant weights, all epochs have the same statistics and so the same validation loss."""
        _, history = train(settings(epochs=3, learning_rate=1e-12, ema_decay=0.0))
        assert history["validation_loss"].std() < 1e-4


def test_mean_and_standard_deviation_are_those_of_the_pixels_of_the_given_rows() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (9, 1, SIZE, SIZE), dtype=np.uint8)
    rows = np.array([1, 2, 7])
    expected = pixels[rows].mean() / 255, pixels[rows].std() / 255
    np.testing.assert_allclose(mean_and_std(pixels, rows), expected, rtol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_warning_is_logged_if_bfloat16_is_slower_than_float32(
    precision: str, params_with: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compute = params_with({"compute.device": "cpu", "compute.threads": 1, "compute.precision": precision}).compute
    for capabilities, expected in (({"avx512_f": True}, precision == "bfloat16"), ({"amx_bf16": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=capabilities: known)
        caplog.clear()
        assert configure_torch(compute) == torch.device("cpu")
        assert ("compute.precision" in caplog.text) == expected


def test_the_error_about_a_missing_device_lists_the_available_ones(params_with: Any) -> None:
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(
        ValueError, match=f"compute.device: {missing} is not available on this machine. Allowed are auto, .*cpu"
    ):
        configure_torch(params_with({"compute.device": missing}).compute)


def test_a_full_disk_while_weights_or_a_checkpoint_are_written_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    settings = load_params().train_autoencoder
    full = {"net.safetensors": save_model, "epochs.partial": lambda path, net: _State(net, settings).save(path)}
    for name, write in full.items():
        (tmp_path / name).symlink_to("/dev/full")
        with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / name}'"):
            write(tmp_path / name, nn.Linear(300, 300))
