"""The comparison of an imported classifier with its original names each single mistake, and no other."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.models.imported import ImportedClassifier
from tasks.models.loading import load_classifier
from tasks.models.mistakes import find_cause
from tasks.models.parity import TOLERANCE, check_accuracy, check_parity, logits_of
from tasks.models.reference_outputs import Reference, difference, read_reference
from tasks.params import ClassifierInput, ClassifierOutput

SIDE, N, K = 32, 20, 3
MEAN, STD = (0.45, 0.5, 0.4), (0.21, 0.25, 0.23)


def conv_net(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(0.2), nn.Linear(108, K),
    )  # fmt: skip


def resnet18(channels: int) -> nn.Module:
    import torchvision

    network: nn.Module = torchvision.models.resnet18(num_classes=K)
    if channels == 1:
        network.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    return network


class Patches(nn.Module):
    """A small transformer on patches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, 16, 8, stride=8)
        self.norm = nn.BatchNorm2d(16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, K)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.norm(self.embed(images)).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.block(patches).mean(dim=1))
        return logits


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"conv": conv_net, "resnet18": resnet18, "patches": Patches}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Colour images of several shapes with structure at several scales."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    paths = []
    for i in range(N):
        height, width = 60 + 3 * (i % 5), 80 + 4 * (i % 7)
        pixels = np.zeros((height, width, 3))
        for size in (4, 12, height):
            coarse = rng.uniform(0, 1, (-(-height // size) + 1, -(-width // size) + 1, 3))
            pixels += np.kron(coarse, np.ones((size, size, 1)))[:height, :width]
        paths.append(folder / f"{i:02d}.png")
        Image.fromarray((pixels / 3 * 255 * rng.uniform(0.5, 1)).astype(np.uint8)).save(paths[-1])
    return paths


def stretched(paths: list[Path], name: Image.Resampling = Image.Resampling.BILINEAR, grey: bool = False) -> Tensor:
    resized = [
        np.asarray(Image.open(path).convert("L" if grey else "RGB").resize((SIDE, SIDE), name)) for path in paths
    ]
    pixels = torch.from_numpy(np.stack(resized)).float() / 255
    return pixels[:, None] if grey else pixels.permute(0, 3, 1, 2).contiguous()


def cropped(paths: list[Path]) -> Tensor:
    """Torchvision's transform: shorter side, then a central crop."""
    from torchvision.transforms import v2

    transform = v2.Compose([v2.Resize(36), v2.CenterCrop(SIDE)])
    return (
        torch.stack([torch.from_numpy(np.array(transform(Image.open(path)))).permute(2, 0, 1) for path in paths]) / 255
    )


def network_of(name: str, images: Tensor, channels: int = 3) -> nn.Module:
    """A network with drawn weights, whose statistics and logits are those of the images."""
    torch.manual_seed(len(name))
    network = NETWORKS[name](channels).train()
    with torch.no_grad():
        for _ in range(20):
            network(images)
        network.eval()
        head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        head.weight *= 3 / network(images).std()
    return network


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def imported(network: nn.Module, declared: dict[str, Any] | None = None, **output: Any) -> ImportedClassifier:
    declared = {"channels": 3, "mean": MEAN, "std": STD} | (declared or {})
    order = output.pop("order", range(K))
    model = ImportedClassifier(network, ClassifierInput(**declared), ClassifierOutput(**output), order)
    return model.eval().requires_grad_(False)


def outputs(network: nn.Module, images: Tensor, train: bool = False) -> np.ndarray:
    """Outputs of the original, in the mode that a user left it in."""
    network = network.train() if train else network.eval()
    with torch.no_grad():
        found: np.ndarray = network(images).double().numpy()
    network.eval()
    return found


class WithSoftmax(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).softmax(dim=1)


Case = tuple[ImportedClassifier, np.ndarray]
"""A classifier as declared, and the outputs of the original."""


def mistaken(mistakes: tuple[str, ...], network: nn.Module, paths: list[Path]) -> Case:
    """The declaration and the reference of a user who made these mistakes."""
    images = stretched(paths)
    if "resize" in mistakes:
        images = stretched(paths, Image.Resampling.NEAREST)
    if "crop instead of stretch" in mistakes:
        images = cropped(paths)
    if "channel order (RGB or BGR)" in mistakes:
        images = images.flip(1)
    if "inverted grey levels" in mistakes:
        images = 1 - images
    original, output = network, {}
    if "probabilities declared as logits" in mistakes:
        network = original = WithSoftmax(network)
    reference = outputs(original, normalised(images), train="training mode" in mistakes)
    if "order of the classes" in mistakes:
        output["order"] = [1, 2, 0]
    declared: dict[str, Any] = {}
    if "value range" in mistakes:
        declared["value_range"] = (0.0, 255.0)
    if "missing mean and std" in mistakes:
        declared |= {"mean": None, "std": None}
    if "wrong mean and std" in mistakes:
        declared |= {"mean": (0.3, 0.35, 0.3), "std": (0.15, 0.3, 0.2)}
    return imported(network, declared, **output), reference


MISTAKES = (
    "value range",
    "missing mean and std",
    "wrong mean and std",
    "channel order (RGB or BGR)",
    "resize",
    "crop instead of stretch",
    "training mode",
    "probabilities declared as logits",
    "order of the classes",
    "inverted grey levels",
)


def named(case: Case, images: Tensor, paths: list[Path]) -> str:
    model, reference = case
    cause = find_cause(model, images, Reference([str(path) for path in paths], reference), paths)
    return cause.name if cause else "unknown"


def remove_dropout(network: nn.Module) -> None:
    """A random output has no reference."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_named_from_20_reference_outputs(mistake: str, network: str, pictures: list[Path]) -> None:
    images = stretched(pictures)
    net = network_of(network, normalised(images))
    if mistake == "training mode":
        remove_dropout(net)
    case = mistaken((mistake,), net, pictures)
    with pytest.raises(ValueError, match=r"Most likely cause: "):
        check_parity(case[0], images, Reference([str(path) for path in pictures], case[1]), pictures)
    assert named(case, images, pictures) == mistake


@pytest.mark.parametrize(
    ("original", "name"), [(Image.Resampling.BILINEAR, "colours became grey"), (Image.Resampling.NEAREST, "unknown")]
)
def test_grey_images_of_a_classifier_for_colours_are_named(
    original: Image.Resampling, name: str, pictures: list[Path]
) -> None:
    images = stretched(pictures, original)
    network = network_of("conv", normalised(images))
    case = imported(network), outputs(network, normalised(images))
    assert named(case, stretched(pictures, grey=True), pictures) == name


def test_outputs_of_another_classifier_for_grey_images_get_no_name(pictures: list[Path]) -> None:
    images = stretched(pictures, grey=True)
    model = imported(network_of("conv", images, 1), {"channels": 1, "mean": (0.5,), "std": (0.5,)})
    assert named((model, outputs(network_of("patches", images, 1), images)), images, pictures) == "unknown"


PAIRS = [
    pair
    for pair in combinations(MISTAKES, 2)
    # both are about the same numbers, or about the same step
    if set(pair) != {"missing mean and std", "wrong mean and std"}
    and set(pair) != {"resize", "crop instead of stretch"}
]


# seconds each, so `make test` has every third pair, and `make faults` the others
@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(pair, id="+".join(pair), marks=[pytest.mark.faults] if number % 3 else [])
        for number, pair in enumerate(PAIRS)
    ],
)
def test_two_mistakes_at_once_get_no_name(pair: tuple[str, str], pictures: list[Path]) -> None:
    images, is_trained = stretched(pictures), "training mode" in pair
    # batch normalisation in training mode hides some second mistakes of this network
    network = network_of("patches" if is_trained else "conv", normalised(images))
    if is_trained:
        remove_dropout(network)
    assert named(mistaken(pair, network, pictures), images, pictures) == "unknown"


Right = tuple[ImportedClassifier, np.ndarray, Tensor]
"""A right declaration, the outputs of the original, and the images."""


def right_models(network: nn.Module, grey: nn.Module, paths: list[Path]) -> dict[str, Right]:
    """Eight right declarations of originals that differ."""
    images, greys = stretched(paths), stretched(paths, grey=True)
    plain, probabilities = outputs(network, normalised(images)), outputs(WithSoftmax(network), normalised(images))
    levels = {"mean": tuple(255 * each for each in MEAN), "std": tuple(255 * each for each in STD)}
    reversed_ = {"channel_order": "BGR", "mean": MEAN[::-1], "std": STD[::-1]}
    xray = {"channels": 1, "value_range": (-1024.0, 1024.0), "mean": None, "std": None}
    repeated = outputs(network, normalised(greys.repeat(1, 3, 1, 1)))
    return {
        "logits": (imported(network), plain, images),
        "rounded to three decimals": (imported(network), np.round(plain, 3), images),
        "logits with probabilities as reference": (imported(network), probabilities, images),
        "probabilities": (imported(WithSoftmax(network), kind="probabilities"), probabilities, images),
        "levels from 0 to 255": (imported(network, {"value_range": (0, 255)} | levels), plain, images),
        "BGR": (imported(network, reversed_), outputs(network, normalised(images).flip(1)), images),
        "grey images of a colour network": (imported(network), repeated, greys),
        "grey network from -1024 to 1024": (imported(grey, xray), outputs(grey, 2048 * greys - 1024), greys),
    }


@pytest.mark.parametrize("number", range(8))
def test_right_models_raise_no_alarm(number: int, pictures: list[Path]) -> None:
    images = stretched(pictures)
    network = network_of("conv", normalised(images))
    grey = network_of("conv", 2048 * stretched(pictures, grey=True) - 1024, channels=1)
    model, reference, given = list(right_models(network, grey, pictures).values())[number]
    assert check_parity(model, given, Reference([str(path) for path in pictures], reference), pictures) <= TOLERANCE


def test_a_single_output_is_compared_with_the_second_class(pictures: list[Path]) -> None:
    images = stretched(pictures)
    network = nn.Sequential(network_of("conv", normalised(images)), nn.Linear(K, 1)).eval()
    reference = torch.sigmoid(torch.from_numpy(outputs(network, normalised(images)))).numpy()
    model = ImportedClassifier(
        network, ClassifierInput(channels=3, mean=MEAN, std=STD), ClassifierOutput(kind="sigmoid_logit"), (0, 1)
    ).eval()
    assert difference(model(images).detach(), Reference([], reference)) < 1e-4
    exchanged = ImportedClassifier(network, model.input, model.output, (1, 0)).eval().requires_grad_(False)
    assert named((exchanged, reference), images, pictures) == "order of the classes"


class TestFile:
    def test_columns_are_found_by_the_names_of_the_classes(self, tmp_path: Path) -> None:
        paths = [f"{i}.png" for i in range(8)]
        rows = "\n".join(f"{path},{i},{-i}" for i, path in enumerate(paths))
        (tmp_path / "reference.csv").write_text(f"path,b,a\n{rows}\n")
        found = read_reference(tmp_path / "reference.csv", ["a", "b"], "b", paths)
        assert found.paths == paths
        assert found.outputs.tolist() == [[-i, i] for i in range(8)]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("path,a\n" + "x.png,1\n" * 8, "columns"),
            ("path,a,b\nx.png,1,2\n", "1 rows"),
            ("path,a,b\n" + "y.png,1,2\n" * 8, "no image of the data set"),
            ("path,a,b\n" + "x.png,1,\n" * 8, "not finite"),
            ("", "not readable"),
        ],
    )
    def test_other_files_are_refused(self, text: str, reason: str, tmp_path: Path) -> None:
        (tmp_path / "reference.csv").write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_reference(tmp_path / "reference.csv", ["a", "b"], "b", ["x.png"])

    @pytest.mark.parametrize("positive", ["a", "b"])
    def test_a_single_column_is_about_the_positive_class_wherever_it_stands(
        self, positive: str, tmp_path: Path
    ) -> None:
        logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        paths, label = [f"{i}.png" for i in range(8)], "ab".index(positive)
        rows = "\n".join(f"{path},{value}" for path, value in zip(paths, logits.softmax(1)[:, label], strict=True))
        (tmp_path / "reference.csv").write_text(f"path,{positive}\n{rows}\n")
        found = read_reference(tmp_path / "reference.csv", ["a", "b"], positive, paths)
        assert difference(logits, found) < 1e-6
        assert difference(logits.flip(1), found) > TOLERANCE

    def test_a_single_column_of_three_classes_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "reference.csv").write_text("path,c\n" + "x.png,1\n" * 8)
        with pytest.raises(ValueError, match="columns"):
            read_reference(tmp_path / "reference.csv", ["a", "b", "c"], "c", ["x.png"])


class TestAccuracy:
    @pytest.fixture
    def right(self, small_workspace: Path) -> ImportedClassifier:
        network = load_classifier(Workspace(small_workspace), Workspace(small_workspace).classifier)
        return ImportedClassifier(network, ClassifierInput(), ClassifierOutput(), range(K)).eval()

    def test_the_expected_accuracy_raises_no_alarm(self, right: ImportedClassifier, small_workspace: Path) -> None:
        data = load_prepared(Workspace(small_workspace))
        rows = np.concatenate([data.indices("train"), data.indices("test")])
        accuracy = float((logits_of(right, data, rows).argmax(axis=1) == data.labels(rows)).mean())
        assert check_accuracy(right, data, rows, accuracy) == accuracy

    @pytest.mark.parametrize(
        ("mistake", "name"), [("order", "order of the classes"), ("value_range", "value range"), ("both", "unknown")]
    )
    def test_a_single_mistake_is_named(
        self, mistake: str, name: str, right: ImportedClassifier, small_workspace: Path
    ) -> None:
        data = load_prepared(Workspace(small_workspace))
        rows = np.concatenate([data.indices("train"), data.indices("test")])
        accuracy = float((logits_of(right, data, rows).argmax(axis=1) == data.labels(rows)).mean())
        wrong = right.redeclared(input={"value_range": (0.0, 255.0)} if mistake != "order" else {})
        wrong.order = (1, 2, 0) if mistake != "value_range" else (0, 1, 2)
        with pytest.raises(ValueError, match=f"Most likely cause: {name}"):
            check_accuracy(wrong, data, rows, accuracy)
