"""Images of any height and width, and of three channels: resizing, networks, and every step of a toy pipeline."""

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18
from torchvision.transforms import CenterCrop, Compose
from torchvision.transforms import Resize as ShorterSide
from torchvision.transforms._presets import ImageClassification

from tasks.core.workspace import Workspace
from tasks.dataset.images import Reading, read_prepared, resize
from tasks.dataset.manifest import build_manifest
from tasks.dataset.prepared import load_prepared
from tasks.models.augmentation import augment
from tasks.models.autoencoder import ARCHITECTURES, build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.imported import ImportedClassifier
from tasks.params import Augmentation, ClassifierInput, ClassifierOutput, Params, Report, parse_params
from tasks.params import Resize as Mode
from tasks.reporting.drawings import IMAGES
from tasks.serving.bundle import EXAMPLES, write_bundle
from tasks.serving.export import export_target
from tasks.serving.predictor import Predictor
from tasks.tracking import Tracker
from tests.conftest import ROOT, set_small_effort, with_overrides
from tests.report_workspace import leave_out_static_figures
from tests.test_pipeline import TOY

ODD = (50, 70)
"""Height and width that are no multiples of 4."""
CLASSES = ["non-COVID", "COVID"]
N_IMAGES = 30
NO_CHANGE = {"horizontal_flip_probability": 0.0, "rotation": 0.0, "scale": 0.0, "translation": 0.0}


def box(channel: np.ndarray) -> tuple[int, int, int, int]:
    """First and last row, first and last column of the bright pixels."""
    rows, columns = np.nonzero(channel > 127)
    return rows.min(), rows.max(), columns.min(), columns.max()


class TestResize:
    @pytest.mark.parametrize(
        ("mode", "ratio", "expected"),
        [
            ("stretch", 1.0, (10, 19, 20, 24)),
            ("pad", 1.0, (15, 19, 20, 24)),
            ("crop", 1.0, (10, 19, 20, 29)),
            # scaled by 2: rows 20 to 39 and columns 80 to 99, of which rows 20 to 59 and columns 60 to 99 remain
            ("crop", 2.0, (0, 19, 20, 39)),
        ],
    )
    def test_a_marker_lies_where_the_resize_puts_it(
        self, mode: Mode, ratio: float, expected: tuple[int, int, int, int]
    ) -> None:
        levels = np.zeros((40, 80), dtype=np.uint8)
        levels[10:20, 40:50] = 255
        (prepared,) = resize(levels, (40, 40), mode, ratio)
        assert prepared.shape == (40, 40)
        assert box(prepared) == expected
        colours = resize(np.stack([levels, levels // 2, levels], axis=2), (40, 40), mode, ratio)
        np.testing.assert_array_equal(colours[[0, 2]], [prepared, prepared])
        assert int(colours[1].max()) == 127

    def test_a_padded_border_is_black_and_the_image_is_complete(self) -> None:
        (wide,) = resize(np.full((30, 90), 200, dtype=np.uint8), ODD, "pad")
        # 70 columns, 23 rows: 13 rows above, 14 below
        assert (wide[13:36] == 200).all()
        assert not wide[:13].any()
        assert not wide[36:].any()

    @pytest.mark.parametrize(("size", "resized"), [((48, 48), 48), ((48, 48), 55), ((224, 224), 256)])
    @pytest.mark.parametrize("shape", [(301, 400), (400, 301), (123, 123), (60, 200)])
    def test_a_crop_is_that_of_torchvision(self, shape: tuple[int, int], size: tuple[int, int], resized: int) -> None:
        levels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        theirs = Compose([ShorterSide(resized), CenterCrop(size)])(Image.fromarray(levels))
        ours = resize(levels, size, "crop", resized / size[0])
        np.testing.assert_array_equal(ours, np.asarray(theirs).transpose(2, 0, 1))


class TestChannels:
    def test_colours_are_kept_and_grey_gets_three_equal_channels(self, tmp_path: Path) -> None:
        colours = np.random.default_rng(0).integers(0, 256, (*ODD, 3), dtype=np.uint8)
        Image.fromarray(colours).save(tmp_path / "colours.png")
        Image.fromarray(colours[..., 0]).save(tmp_path / "grey.png")
        colour, grey = (
            read_prepared(tmp_path / f"{name}.png", ODD, reading=Reading(channels=3)) for name in ("colours", "grey")
        )
        np.testing.assert_array_equal(colour, colours.transpose(2, 0, 1))
        np.testing.assert_array_equal(grey, np.stack([colours[..., 0]] * 3))

    def test_images_of_equal_luma_and_other_colours_are_no_exact_duplicates(self, tmp_path: Path) -> None:
        for name, colour in (("red", (97, 0, 0)), ("blue", (0, 0, 255))):
            image = np.full((40, 40, 3), colour, dtype=np.uint8)
            image[:20] = 200
            (tmp_path / name).mkdir()
            Image.fromarray(image).save(tmp_path / name / "a.png")
        hashes = [
            build_manifest(tmp_path, ("red", "blue"), 1, 0.97, 0.8, Reading(channels=channels))
            .table["sha256"]
            .nunique()
            for channels in (1, 3)
        ]
        # both colours have luma 29
        assert hashes == [1, 2]


class TestNetworks:
    @pytest.mark.parametrize("n_channels", [1, 3])
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_an_autoencoder_pads_images_of_odd_sizes_with_zeros_and_cuts_its_output(
        self, architecture: str, n_channels: int
    ) -> None:
        torch.manual_seed(0)
        model = build_autoencoder(architecture, n_channels).eval()
        images = torch.rand(2, n_channels, *ODD, requires_grad=True)
        output = model(images)
        padded = F.pad(images, (0, 10, 0, 14))
        torch.testing.assert_close(output, cut(padded, model))
        assert 0 <= float(output.detach().min()) <= float(output.detach().max()) <= 1
        output.sum().backward()
        assert images.grad is not None
        # of a residual network before training, all pixels; of others, the pixels that the filters use
        assert (images.grad != 0).float().mean() > 0.9

    @pytest.mark.parametrize("n_channels", [1, 3])
    def test_our_cnn_pads_normalised_images_with_zeros(self, n_channels: int) -> None:
        torch.manual_seed(0)
        model = build_classifier("cnn", 3, mean=0.5, std=0.25, n_channels=n_channels).eval()
        images = torch.rand(2, n_channels, *ODD)
        torch.testing.assert_close(model(images), model(F.pad(images, (0, 2, 0, 2), value=0.5)))

    @pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small"])
    def test_a_classifier_of_torchvision_for_colours_has_its_own_first_convolution(self, architecture: str) -> None:
        torch.manual_seed(0)
        images = torch.rand(2, 3, 64, 64)
        model = build_classifier(architecture, 2, mean=0.0, std=1.0, n_channels=3).eval()
        assert torch.equal(model(images), model.get_submodule("network")(images))


def test_logits_of_colour_images_are_those_of_torchvisions_own_transform_and_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, theirs = resnet18(num_classes=3).eval(), ImageClassification(crop_size=224, resize_size=256)
    declared = ClassifierInput(channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    model = ImportedClassifier(network, declared, ClassifierOutput(), range(3)).eval()
    reading = Reading(channels=3, resize="crop", crop_ratio=256 / 224)
    for height, width in ((240, 331), (301, 280)):
        levels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(levels).save(tmp_path / "a.png")
        ours = torch.from_numpy(read_prepared(tmp_path / "a.png", (224, 224), reading=reading).copy())
        with torch.no_grad():
            expected = network(theirs(Image.fromarray(levels))[None])
            torch.testing.assert_close(model(ours[None] / 255), expected, atol=1e-5, rtol=0)


def cut(padded: Tensor, model: nn.Module) -> Tensor:
    output: Tensor = model(padded)[..., : ODD[0], : ODD[1]]
    return output


class TestAugmentation:
    def test_a_rotation_keeps_distances_in_images_that_are_not_square(self) -> None:
        images = torch.zeros(16, 1, *ODD)
        images[:, :, 13:16, 34:37] = 1
        settings = Augmentation(**NO_CHANGE | {"rotation": 180.0}, brightness=0.0, contrast=0.0)
        rotated = augment(images, settings, torch.Generator().manual_seed(0))[:, 0]
        rows, columns = (torch.arange(size) - (size - 1) / 2 for size in ODD)
        weights = rotated / rotated.sum(dim=(1, 2), keepdim=True)
        y, x = (weights.sum(2) * rows).sum(1), (weights.sum(1) * columns).sum(1)
        before = float(torch.hypot(torch.tensor(14.0 - 24.5), torch.tensor(35.0 - 34.5)))
        torch.testing.assert_close(torch.hypot(y, x), torch.full((16,), before), atol=0.3, rtol=0)
        assert x.abs().max() > 8

    def test_flips_and_translations_move_all_channels_together(self) -> None:
        grey = torch.rand(8, 1, *ODD)
        colours = grey * torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
        changes = NO_CHANGE | {"horizontal_flip_probability": 0.5, "translation": 0.2}
        settings = Augmentation(**changes, brightness=0.0, contrast=0.0)
        moved = augment(grey, settings, torch.Generator().manual_seed(0))
        assert not torch.equal(moved, grey)
        expected = moved * torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
        assert torch.equal(augment(colours, settings, torch.Generator().manual_seed(0)), expected)


def draw_colours(folder: Path) -> None:
    """Images of two classes with a red or a blue cast, of several sizes."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(N_IMAGES):
            coarse = rng.uniform(30, 190, (6, 6, 3))
            coarse[..., 2 * label] += 60
            image = Image.fromarray(coarse.astype(np.uint8)).resize((80 + i % 7, 90), Image.Resampling.BICUBIC)
            image.save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Params]:
    """A workspace in which every step ran on colour images of 50 x 70 pixels."""
    root = tmp_path_factory.mktemp("colours")
    draw_colours(root / "scans")
    (root / "data").mkdir()
    (root / "data" / "reference.csv").write_bytes((ROOT / "data" / "reference.csv").read_bytes())
    overrides: dict[str, Any] = {
        "acquire.source": "folder",
        "acquire.folder": "scans",
        "prepare.channels": 3,
        "prepare.image_size": list(ODD),
        "prepare.resize": "pad",
        "prepare.split.strategy": "stratified",
        "selected_defences": ["autoencoder", "median_jpeg_autoencoder"],
        "train_classifier.epochs": 8,
        "attack.attacks": ["fgsm", "pgd", "pgd_8_bit"],
        "active_learning.acquisition_functions": ["entropy", "core_set"],
    }
    params = parse_params(with_overrides(TOY | overrides))
    workspace = Workspace(root)
    defences = params.selected_defences
    steps: list[tuple[str, ...]] = [
        *((step,) for step in ("check_params", "acquire", "validate", "prepare", "train_classifier")),
        *((step,) for step in ("train_surrogates", "train_autoencoder")),
        *(("train_defence", defence) for defence in defences),
        ("attack",),
        *(("attack_defence", defence) for defence in defences),
        *((step,) for step in ("evaluate", "analyze", "simulate_labelling", "active_learning", "report")),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        set_small_effort(patch)
        leave_out_static_figures(patch)
        for step, *defence in steps:
            workspace.step_folder(step, *defence).mkdir(parents=True)
            getattr(import_module(f"tasks.{step}"), step)(workspace, params, Tracker(), *defence)
    return workspace, params


class TestSteps:
    def test_the_prepared_images_are_the_padded_colours_of_the_files(self, colours: tuple[Workspace, Params]) -> None:
        workspace, _ = colours
        data = load_prepared(workspace)
        assert data.pixels.shape == (2 * N_IMAGES, 3, *ODD)
        for row in (0, 40):
            levels = np.asarray(Image.open(workspace.images / data.paths(np.array([row]))[0]))
            np.testing.assert_array_equal(data.pixels[row], resize(levels, ODD, "pad"))
        cast = data.pixels.mean(axis=(2, 3)) @ [1, 0, -1]
        assert ((cast < 0) == (data.labels() == 1)).all()

    def test_the_classifier_sees_colours_and_attacks_change_all_channels(
        self, colours: tuple[Workspace, Params]
    ) -> None:
        workspace, _ = colours
        table = pd.read_csv(workspace.robustness)
        row = table[(table["target"] == "undefended") & (table["attack"] == "clean")].iloc[0]
        assert row["accuracy"] > 0.9
        records = pd.read_parquet(workspace.records("undefended"))
        assert set(records["attack"]) >= {"clean", "fgsm", "pgd", "pgd_8_bit", "art_fgsm", "art_pgd"}
        fgsm = records[(records["attack"] == "fgsm") & (records["eps"] == 4)]
        # almost all of the 3 x 50 x 70 values change by 4 / 255; some are cut at 0 and 255
        assert fgsm["l2"].min() > 0.6 * 4 / 255 * np.sqrt(3 * 50 * 70)

    def test_figures_show_colours(self, colours: tuple[Workspace, Params]) -> None:
        workspace, _ = colours
        with np.load(workspace.examples) as examples:
            assert examples["images"].shape[0] == 2
            assert examples["images"].shape[2:] == (*ODD, 3)
            assert examples["maps"].shape[2:] == ODD
        red, _, blue = np.asarray(Image.open(workspace.queried_images / "entropy.png")).astype(int).transpose(2, 0, 1)
        assert (red - blue > 50).any()
        assert (blue - red > 50).any()
        assert "red, green and blue, 70 × 50 pixels, padded with 0" in workspace.report_html.read_text(encoding="utf-8")

    @pytest.mark.parametrize("target", ["undefended", "autoencoder"])
    def test_a_served_and_an_exported_target_take_colours(
        self, colours: tuple[Workspace, Params], target: str, tmp_path: Path
    ) -> None:
        workspace, params = colours
        bundle = write_bundle(workspace, tmp_path / "bundle", params, target, "card")
        assert (bundle.channels, bundle.image_size, bundle.resize) == (3, ODD, "pad")
        data, predictor = load_prepared(workspace), Predictor.load(tmp_path / "bundle")
        rows = data.indices("test")[:3]
        from_files = predictor.predict_files([(workspace.images / path).read_bytes() for path in data.paths(rows)])
        for images in (data.pixels[rows], data.floats(rows)):
            found = predictor.predict_arrays(images)
            assert [each.probabilities for each in found] == [each.probabilities for each in from_files]
        with pytest.raises(ValueError, match=r"It must be \(N, 3, 50, 70\)\. Send images of another size as files"):
            predictor.predict_arrays(np.zeros((2, 70, 50)))
        assert export_target(tmp_path / "bundle", tmp_path / "model.pt2") < 1e-5

    def test_a_bundle_without_images_has_random_examples(
        self, colours: tuple[Workspace, Params], tmp_path: Path
    ) -> None:
        workspace, params = colours
        hidden = params.model_copy(update={"report": Report(include_images=False)})
        write_bundle(workspace, tmp_path / "bundle", hidden, "undefended", "card")
        examples = np.load(tmp_path / "bundle" / EXAMPLES)
        assert examples.shape[1:] == (3, *ODD)
        # neighbours of a real image correlate
        assert abs(np.corrcoef(examples[..., :-1].ravel(), examples[..., 1:].ravel())[0, 1]) < 0.05

    def test_without_images_no_step_writes_one_for_people(
        self, colours: tuple[Workspace, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace, params = colours
        shutil.copytree(workspace.root, tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        leave_out_static_figures(monkeypatch)
        hidden, written = params.model_copy(update={"report": Report(include_images=False)}), Workspace(tmp_path)
        for step in ("analyze", "active_learning", "report"):
            shutil.rmtree(written.step_folder(step))
            written.step_folder(step).mkdir()
            getattr(import_module(f"tasks.{step}"), step)(written, hidden, Tracker())
        steps = [written.step_folder(step) for step in ("evaluate", "analyze", "active_learning", "report")]
        files = [path for step in steps for path in step.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} <= {".csv", ".json", ".parquet", ".md", ".html", ".png"}
        pictures = [path for path in files if path.suffix == ".png"]
        assert pictures
        assert all(path.parent == written.figures and not path.name.startswith(IMAGES) for path in pictures)
        assert "data:image/jpeg" not in written.report_html.read_text(encoding="utf-8")
