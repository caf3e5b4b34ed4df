"""Serving: the bundle, the predictor in Python and over HTTP, the model card, and the export."""

import base64
import gzip
import io
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
import torch
from PIL import Image
from torch import nn

from tasks.core.workspace import Workspace
from tasks.dataset.images import ImageError, read_prepared
from tasks.dataset.intensity import IntensityRange
from tasks.dataset.prepared import load_prepared
from tasks.defences.preprocessing import AdditiveGaussianNoise
from tasks.defences.purified import Purified
from tasks.defences.targets import load_target
from tasks.models.seeding import build_seeded
from tasks.params import load_params
from tasks.reporting.model_card import card_of
from tasks.serving import export, registry
from tasks.serving.bundle import BUNDLE, EXAMPLES, digests_of_images, load_bundle, read_bundle, read_seen
from tasks.serving.export import EXPORT_TOLERANCE, export_target
from tasks.serving.inference import predict
from tasks.serving.predictor import MAX_IMAGES, Predictor
from tests.bundles import bundle_of, copy_completed, write_results
from tests.small_workspace import CLASSES, SIDE

CPU = torch.device("cpu")


def png(pixels: np.ndarray, **options: Any) -> bytes:
    Image.fromarray(pixels).save(file := io.BytesIO(), format="PNG", **options)
    return file.getvalue()


def random_target() -> tuple[nn.Module, np.ndarray]:
    """A target that draws noise, and five images, float32 ``(5, 1, 8, 8)``."""
    classifier = build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    images = np.random.default_rng(0).uniform(size=(5, 1, 8, 8)).astype(np.float32)
    return Purified(AdditiveGaussianNoise(0.3), classifier, n_eot_samples=3).eval(), images


@pytest.fixture(scope="module")
def workspace(small_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The completed small workspace; not to be written to."""
    return copy_completed(small_workspace, tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def bundle(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The autoencoder in front of the classifier, as a bundle."""
    return bundle_of(workspace, "autoencoder", tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle)


class TestBundle:
    def test_a_bundle_has_the_target_itself_and_no_pickles(self, bundle: Path, workspace: Workspace) -> None:
        images = torch.from_numpy(load_prepared(workspace).floats(np.arange(5)))
        with torch.no_grad():
            assert torch.equal(load_bundle(bundle)(images), load_target(workspace, "autoencoder", CPU)(images))
        suffixes = {file.suffix for file in bundle.rglob("*") if file.is_file()}
        assert suffixes <= {".json", ".md", ".npy", ".safetensors", ".csv"}

    def test_a_bundle_has_digests_of_its_training_and_validation_images(
        self, bundle: Path, workspace: Workspace
    ) -> None:
        data, seen = load_prepared(workspace), read_seen(bundle)
        for split in ("train", "validation"):
            assert seen[split] == set(digests_of_images(data.pixels[data.indices(split)]))
        assert not set(digests_of_images(data.pixels[data.indices("test")])) & (seen["train"] | seen["validation"])

    def test_the_examples_of_a_bundle_are_validation_images(self, bundle: Path, workspace: Workspace) -> None:
        data = load_prepared(workspace)
        np.testing.assert_array_equal(np.load(bundle / EXAMPLES), data.pixels[data.indices("validation")[:8]])

    def test_the_detector_flags_at_most_its_share_of_clean_validation_images(
        self, bundle: Path, workspace: Workspace
    ) -> None:
        data, detector = load_prepared(workspace), read_bundle(bundle).detector
        assert detector is not None
        _, scores = predict(load_bundle(bundle), data.floats(data.indices("validation")))
        assert scores is not None
        assert (scores > detector.threshold).mean() <= detector.false_positive_rate

    def test_predictions_of_a_target_without_purifier_warn_that_there_is_no_detector(
        self, workspace: Workspace, tmp_path: Path
    ) -> None:
        folder = bundle_of(workspace, "undefended", tmp_path)
        assert read_bundle(folder).detector is None
        (prediction,) = Predictor.load(folder).predict_arrays(np.zeros((SIDE, SIDE)))
        assert prediction.detector_score is None
        assert "no detector" in prediction.warnings[0]

    def test_a_folder_that_is_no_bundle_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="is no bundle"):
            Predictor.load(tmp_path)

    @pytest.mark.parametrize("version", [2, "1", None])
    def test_an_unknown_schema_version_is_refused(self, version: object, bundle: Path, tmp_path: Path) -> None:
        values = json.loads((bundle / BUNDLE).read_text())
        (tmp_path / BUNDLE).write_text(json.dumps(values | {"schema_version": version}))
        with pytest.raises(ValueError, match=f"unknown schema_version {version}, and only 1 is supported: register"):
            read_bundle(tmp_path)

    @pytest.mark.parametrize("content", ["", "[]", '{"schema_version": 1}'])
    def test_a_damaged_bundle_is_refused(self, content: str, tmp_path: Path) -> None:
        (tmp_path / BUNDLE).write_text(content)
        with pytest.raises(ValueError, match=r"bundle\.json is damaged"):
            read_bundle(tmp_path)


class TestPredictor:
    def test_predictions_are_those_of_the_target_for_every_form_of_an_array(
        self, predictor: Predictor, bundle: Path
    ) -> None:
        pixels = np.load(bundle / EXAMPLES)
        with torch.no_grad():
            expected = load_bundle(bundle)(torch.from_numpy(pixels.astype(np.float32) / 255)).softmax(1).numpy()
        forms = [pixels, pixels[:, 0], pixels / 255, (pixels / 255).astype(np.float32)[:, 0]]
        for given in forms:
            predictions = predictor.predict_arrays(given)
            found = np.array([list(each.probabilities.values()) for each in predictions])
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert [each.name for each in predictions] == [CLASSES[label] for label in expected.argmax(1)]
        (alone,) = predictor.predict_arrays(pixels[0, 0])
        nats = -(expected[0] * np.log(expected[0])).sum()
        assert alone.entropy == pytest.approx(nats, abs=1e-4)

    def test_a_file_is_read_as_in_the_step_prepare(self, predictor: Predictor, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        wide = rng.integers(0, 256, (40, 48), dtype=np.uint8)
        colour = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        deep = rng.integers(0, 65536, (40, 48), dtype=np.uint16)
        for content in (png(wide), png(colour), png(deep)):
            (tmp_path / "image").write_bytes(content)
            (found,) = predictor.predict_files([content])
            (expected,) = predictor.predict_arrays(read_prepared(tmp_path / "image", (SIDE, SIDE)))
            assert found.probabilities == expected.probabilities

    def test_values_are_mapped_as_in_the_training_data(self, predictor: Predictor) -> None:
        window = IntensityRange("window", low=1000, high=3000, unit="HU")
        windowed = Predictor(predictor.bundle.model_copy(update={"intensity": asdict(window)}), predictor._target)
        deep = np.random.default_rng(0).integers(0, 4000, (SIDE, SIDE), dtype=np.uint16)
        (found,) = windowed.predict_files([png(deep)])
        levels = np.rint(255 * np.clip((deep - 1000.0) / 2000, 0, 1)).astype(np.uint8)
        (expected,) = predictor.predict_arrays(levels)
        assert found.probabilities == expected.probabilities

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (np.zeros((SIDE, SIDE + 1)), r"shape \(32, 33\)\. It must be \(32, 32\)"),
            (np.zeros((1, 3, SIDE, SIDE)), "It must be"),
            (np.zeros((0, SIDE, SIDE)), "no images"),
            (np.zeros(SIDE), rf"shape \({SIDE},\)\. It must be \({SIDE}, {SIDE}\), \(N, {SIDE}, {SIDE}\) or \(N, 1"),
            (np.zeros((2, 3, SIDE, SIDE)), "It must be"),
            (np.full((SIDE, SIDE), np.nan), "NaN"),
            (np.full((SIDE, SIDE), 200.0), r"are in \[200, 200\]\. Floating point must be in \[0, 1\]"),
            (np.full((SIDE, SIDE), -0.1), "must be in"),
            (np.zeros((SIDE, SIDE), dtype=np.int64), r"type int64\. It must be uint8"),
        ],
    )
    def test_invalid_pixels_are_refused_with_what_is_allowed(
        self, predictor: Predictor, given: np.ndarray, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            predictor.predict_arrays(given)

    def test_unreadable_files_are_refused_with_number_and_reason(self, predictor: Predictor) -> None:
        good, floating = png(np.zeros((40, 48), dtype=np.uint8)), io.BytesIO()
        Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(floating, format="TIFF")
        bad = {b"": "empty", b"text": "none of PNG", good[:-20]: "cannot be decoded"}
        bad[floating.getvalue()] = "mode float32"
        for content, reason in bad.items():
            with pytest.raises(ImageError, match=f"^image 1: .*{reason}"):
                predictor.predict_files([good, content])
        with pytest.raises(ImageError, match="max_megapixels"):
            predictor.predict_files([png(np.zeros((8001, 8001), dtype=np.uint8))])
        with pytest.raises(ValueError, match="no images"):
            predictor.predict_files([])

    def test_an_image_of_an_unusual_size_gets_a_warning(self, predictor: Predictor) -> None:
        usual, small, long = (np.zeros(size, dtype=np.uint8) for size in ((40, 48), (10, 12), (40, 96)))
        warnings = [each.warnings for each in predictor.predict_files([png(usual), png(small), png(long)])]
        assert [any("small image" in text for text in texts) for texts in warnings] == [False, True, False]
        assert [any("aspect ratio" in text for text in texts) for texts in warnings] == [False, False, True]
        assert all("phantoms" in texts[-1] for texts in warnings)

    def test_an_image_of_another_unit_or_bit_depth_gets_a_warning(self, predictor: Predictor, bundle: Path) -> None:
        usual = np.load(bundle / EXAMPLES)[0, 0]
        # 12 bits in a file of 16, and the brightest part of a window
        for shown, is_unusual in ((usual, False), (usual // 16, True), (235 + usual // 13, True)):
            (found,) = predictor.predict_files([png(shown)])
            assert any("unusual grey levels" in text for text in found.warnings) == is_unusual

    def test_a_detector_score_above_the_threshold_gives_a_warning(self, predictor: Predictor, bundle: Path) -> None:
        assert predictor.bundle.detector is not None
        pixels = np.load(bundle / EXAMPLES)
        strict = predictor.bundle.detector.model_copy(update={"threshold": -1.0})
        strict_predictor = Predictor(predictor.bundle.model_copy(update={"detector": strict}), load_bundle(bundle))
        for each in strict_predictor.predict_arrays(pixels):
            assert any("prediction change" in text and "above -1" in text for text in each.warnings)

    def test_a_random_target_with_a_seed_predicts_an_image_independently_of_the_others(self) -> None:
        target, images = random_target()
        logits, scores = predict(target, images, seed=1)
        alone, score = predict(target, images[3:4], seed=1)
        assert scores is not None
        assert score is not None
        np.testing.assert_array_equal(alone[0], logits[3])
        np.testing.assert_array_equal(score[0], scores[3])

    def test_a_served_random_target_draws_anew_for_every_image_at_every_start(self, predictor: Predictor) -> None:
        # two starts of a server, two requests each, with the same image twice
        entropies = []
        for _ in range(2):
            target, images = random_target()
            started = Predictor(predictor.bundle.model_copy(update={"image_size": (8, 8)}), target)
            for _ in range(2):
                entropies += [each.entropy for each in started.predict_arrays(images[[0, 0]])]
        assert len(set(entropies)) == 8

    def test_a_request_with_many_images_is_refused_and_allowed_ones_need_memory_for_one_batch(
        self, predictor: Predictor
    ) -> None:
        tiny = [png(np.zeros((1, 1), dtype=np.uint8))] * (MAX_IMAGES + 1)
        with pytest.raises(ValueError, match=r"has 513 images\. At most 512 are allowed\. Send several requests"):
            predictor.predict_files(tiny)
        with pytest.raises(ValueError, match="has 513 images"):
            predictor.predict_arrays(np.zeros((MAX_IMAGES + 1, SIDE, SIDE)))
        # a target that needs no memory of its own; all images at once would need 512 MiB
        large = predictor.bundle.model_copy(update={"image_size": (512, 512), "detector": None})
        target = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3)).eval()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert len(Predictor(large, target).predict_files(tiny[1:])) == MAX_IMAGES
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


class TestCard:
    def test_the_card_has_the_results_of_the_target_and_its_intended_use(
        self, small_workspace: Path, tmp_path: Path
    ) -> None:
        workspace = copy_completed(small_workspace, tmp_path)
        params = load_params(workspace.params_file)
        write_results(workspace, {"autoencoder": (24, []), "retrained_autoencoder": (16, ["noise"])})
        card, summary = card_of(workspace, params, "autoencoder")
        assert "75.0 %" in summary
        assert "Intended use: research on the robustness of classifiers. Not for diagnosis" in summary
        assert len(summary) < registry.MAX_DESCRIPTION
        for part in (
            "leakage: 0.0 % of the test images have a near-duplicate in the training set. 0.0 % have another image of "
            "their group in the training set. Without patient ids, the leakage by patient is unverified.",
            "56 train, 8 validation, 32 test",
            "| as trained | adaptive | 0 | 32 | 32 | 75.0 % [",
            "| as trained | transfer | 4 | 32 | 32 | 75.0 % [",
            "| recalibrated | adaptive | 4 | 32 | 32 | 75.0 % [",
            "- as trained: rank 1 of 2 targets by balanced accuracy on attacked validation images at ε = 4/255; in the "
            "worst case on test images, a difference of +25.0 [+12.5, +37.5] points to the next target, retrained "
            "autoencoder (p = 0.008 after Holm's correction for 1 comparison of neighbours)",
            "2 PASS, 1 UNVERIFIED",
        ):
            assert part in card
        # at other operating points, only adaptive attacks are shown
        assert "| recalibrated | transfer |" not in card
        assert "**FAIL**" not in card
        assert "**FAIL** about noise: about noise" in card_of(workspace, params, "retrained_autoencoder")[0]
        with pytest.raises(ValueError, match="has no 'jpeg'"):
            card_of(workspace, params, "jpeg")

    def test_the_card_names_the_unit_and_gives_no_interval_for_too_few_groups(
        self, small_workspace: Path, tmp_path: Path
    ) -> None:
        workspace = copy_completed(small_workspace, tmp_path)
        write_results(workspace, {"autoencoder": (24, []), "retrained_autoencoder": (16, [])})
        info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
        workspace.dataset_info.write_text(json.dumps(info | {"n_groups": 12}), encoding="utf-8")
        for path, columns in (
            (workspace.worst_case, {"low": None, "high": None, "n_groups": 4}),
            (workspace.comparison, {"difference_low": None, "difference_high": None}),
        ):
            pd.read_csv(path).assign(**columns).to_csv(path, index=False)
        card, summary = card_of(workspace, load_params(workspace.params_file), "autoencoder")
        assert "75.0 % [too few groups] in the worst case of all attacks at ε = 4/255" in summary
        assert "n = 32 images of 4 inferred groups, 95 % intervals by inferred group" in summary
        assert "a difference of +25.0 [too few groups] points to the next target, retrained autoencoder" in card
        assert "nan" not in card


@pytest.mark.parametrize("kind", ["NIfTI", "compressed NIfTI", "DICOM without preamble"])
def test_the_answer_to_a_file_that_only_its_name_identifies_says_so(kind: str, predictor: Predictor) -> None:
    import nibabel
    from pydicom.data import get_testdata_file

    content = nibabel.Nifti1Image(np.zeros((8, 8, 1), np.int16), np.eye(4)).to_bytes()
    if kind == "compressed NIfTI":
        content = gzip.compress(content)
    elif kind == "DICOM without preamble":
        path = get_testdata_file("CT_small.dcm")
        assert isinstance(path, str)
        content = Path(path).read_bytes()[132:]
    with pytest.raises(
        ImageError, match=r"image 0: .* A request has no file names, by which .* recognises NIfTI, and DICOM"
    ):
        predictor.predict_files([content])


class TestExport:
    def test_an_exported_program_gives_the_targets_logits_for_any_batch_size(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "target.pt2"
        assert export_target(bundle, path) <= EXPORT_TOLERANCE
        extra = {"bundle.json": ""}
        program = torch.export.load(path, extra_files=extra).module()
        assert json.loads(extra["bundle.json"])["classes"] == CLASSES
        target, rng = load_bundle(bundle), np.random.default_rng(0)
        for n in (1, 3, 7, 33):
            images = torch.from_numpy(rng.uniform(size=(n, 1, SIDE, SIDE)).astype(np.float32))
            with torch.no_grad():
                np.testing.assert_allclose(program(images).numpy(), target(images).numpy(), atol=1e-5, rtol=0)

    def test_a_program_with_nan_is_refused_and_an_earlier_file_stays(
        self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "target.pt2"
        path.write_bytes(b"earlier")
        broken = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3))
        nn.init.constant_(broken[1].bias, float("nan"))
        monkeypatch.setattr(export, "load_bundle", lambda folder: broken)
        with pytest.raises(ValueError, match=r"a logit differs by nan\. At most"):
            export_target(bundle, path)
        assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("target.pt2", b"earlier")]

    def test_two_exports_to_one_file_do_not_share_a_partial_file_and_a_failed_one_leaves_none(
        self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, load = tmp_path / "target.pt2", torch.export.load

        def load_after_another_export(partial: Path) -> Any:
            monkeypatch.setattr(torch.export, "load", load)
            assert export_target(bundle, path) <= EXPORT_TOLERANCE
            return load(partial)

        monkeypatch.setattr(torch.export, "load", load_after_another_export)
        assert export_target(bundle, path) <= EXPORT_TOLERANCE

        def fail(_partial: Path) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(torch.export, "load", fail)
        with pytest.raises(OSError, match="disk full"):
            export_target(bundle, path)
        assert list(tmp_path.iterdir()) == [path]

    def test_a_target_that_draws_at_random_is_not_exported(
        self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        noisy = Purified(AdditiveGaussianNoise(0.1), nn.Identity())
        monkeypatch.setattr(export, "load_bundle", lambda folder: noisy)
        with pytest.raises(ValueError, match=r"autoencoder cannot be exported: AdditiveGaussianNoise\(std=0.1\)"):
            export_target(bundle, tmp_path / "x.pt2")


class TestServer:
    @pytest.fixture(scope="class")
    def address(self, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        """Address of ``mlflow models serve`` for a champion, started in a folder without this project."""
        folder = tmp_path_factory.mktemp("served")
        store = f"sqlite:///{folder / 'mlflow.db'}"
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("MLFLOW_TRACKING_URI", store)
            registry.move_champion(registry.register_bundle(bundle, "toy", "A toy."), "first")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [str(Path(sys.executable).parent / "mlflow"), "models", "serve", "-m", "models:/toy@champion"]
        command += ["--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"MLFLOW_TRACKING_URI": store, "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                assert process.poll() is None, (folder / "log.txt").read_text()
                try:
                    if requests.get(f"{address}/ping", timeout=5).ok:
                        break
                except requests.ConnectionError:
                    time.sleep(0.5)
            yield f"{address}/invocations"
        finally:
            process.terminate()
            process.wait(60)

    def test_the_server_predicts_files_and_pixels_like_the_predictor(
        self, address: str, predictor: Predictor, bundle: Path
    ) -> None:
        pixels = np.load(bundle / EXAMPLES)[:2, 0]
        files = [png(image) for image in pixels]
        encoded = [[base64.b64encode(file).decode()] for file in files]
        response = requests.post(address, json={"dataframe_split": {"columns": ["image"], "data": encoded}}, timeout=60)
        for found, expected in zip(response.json()["predictions"], predictor.predict_files(files), strict=True):
            assert found["class"] == expected.name
            assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
            assert found["detector_score"] == pytest.approx(expected.detector_score, abs=1e-5)
            assert found["warnings"] == expected.warnings
        response = requests.post(
            address, json={"dataframe_records": [{"pixels": (pixels[0] / 255).tolist()}]}, timeout=60
        )
        (expected,) = predictor.predict_arrays(pixels[0])
        assert response.json()["predictions"][0]["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (
                {"image": base64.b64encode(b"text").decode()},
                "image 0: the content is none of PNG, JPEG, BMP, TIFF, DICOM. A request has no file names",
            ),
            ({"pixels": [[0.5] * 3] * 3}, "must be (32, 32)"),
            ({"pixels": [[77.0] * SIDE] * SIDE}, "Divide 8-bit grey levels by 255"),
            ({"scan": "x"}, "exactly one of the columns image"),
        ],
    )
    def test_invalid_input_gets_status_400_and_the_reason(
        self, address: str, row: dict[str, Any], message: str
    ) -> None:
        response = requests.post(address, json={"dataframe_records": [row]}, timeout=60)
        assert response.status_code == 400
        assert message in response.json()["message"]
