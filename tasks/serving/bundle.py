"""A bundle: the files of one target that are needed to serve and to audit it.

The weights lie as in a workspace, so ``Workspace(bundle)`` finds them::

    bundle.json                 the target, its images, its detector
    seen.json                   digests of the images that it was trained and validated on
    examples.npy                validation images, uint8 (N, C, H, W); random pixels if report.include_images is false
    card.md                     the model card
    data/train_classifier/      weights as safetensors, with the architecture as JSON
    data/train_autoencoder/
    data/train_defence/NAME/    of a defence

The undefended classifier and the autoencoder are part of every bundle: transfer attacks are computed on the classifier,
and analyses use the autoencoder.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.analysis.detection import threshold_at
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED, Channels, ImageSize, Params, Resize, Section
from tasks.params.params import DefenceName

if TYPE_CHECKING:
    from torch import nn

    from tasks.dataset.prepared import Prepared

BUNDLE, SEEN, EXAMPLES, CARD = Path("bundle.json"), Path("seen.json"), Path("examples.npy"), Path("card.md")

SCHEMA_VERSION = 1
"""Version of the fields of ``bundle.json``; raised when a field changes."""
SAFE_SOURCES = ("torch_export", "mlflow", "onnx")
"""Sources of an imported classifier whose files hold no code."""
OF_TRAINING = ("classifier", "train_classifier", "train_autoencoder")
"""Sections of params.yaml that describe the networks of every target."""
PREDICTION_CHANGE = "prediction change"
N_EXAMPLES = 8


class BundleDetector(Section):
    """The detector of a target and its threshold."""

    name: str
    """``prediction change``: see :func:`tasks.serving.inference.predict`."""
    threshold: float
    """An image with a higher score is flagged."""
    false_positive_rate: float
    """Maximum share of the clean validation images above the threshold."""


class Bundle(Section):
    """The content of ``bundle.json``."""

    schema_version: int = SCHEMA_VERSION
    target: DefenceName
    """``undefended``, or the name of a defence."""
    digest: str
    """SHA-256 of the layers and weights of the target."""
    params: dict[str, Any]
    """Parameters of the training of its networks, as in params.yaml: ``seed``, those of :data:`OF_TRAINING` and
    ``defence`` (its entry of ``defences``; null for the undefended classifier)."""
    dataset: str
    """Name of the training data set."""
    is_phantom: bool
    """True if the training images are drawn phantoms, not scans."""
    classes: tuple[str, ...]
    """Class names in the order of the labels."""
    positive_class: str
    image_size: ImageSize
    """Height and width in pixels."""
    channels: Channels = 1
    """1: grey, 3: red, green and blue."""
    resize: Resize = "stretch"
    """Treatment of images of another aspect ratio, as in the step ``prepare``."""
    crop_ratio: float = 1.0
    """``prepare.crop_ratio``."""
    value_range: tuple[float, float]
    """Lowest and highest pixel value that the target takes."""
    aspect_ratios: tuple[float, float]
    """Least and greatest width / height of the training images before they were resized."""
    mean_levels: tuple[float, float] | None = None
    """Least and greatest mean grey level of the prepared training images, 0 to 255; null in earlier bundles."""
    intensity: dict[str, Any] | None = None
    """Map from the values of a file to [0, 1] (:class:`tasks.dataset.intensity.IntensityRange`); null: the full range
    of each file."""
    max_megapixels: float
    """Larger image files are refused before they are decoded."""
    threads: int
    """CPU threads of the evaluation."""
    detector: BundleDetector | None
    """None for a target without a purifier."""


def write_bundle(workspace: Workspace, folder: Path, params: Params, target: str, card: str) -> Bundle:
    """Write a target of a workspace as a bundle.

    Args:
        workspace: where the trained networks and the prepared images are.
        folder: a new folder.
        params: all parameters.
        target: ``undefended``, or the name of a trained defence.
        card: the model card, Markdown.

    Raises:
        FileNotFoundError: a step has not run.
        ValueError: there are no validation images for the threshold of the detector.
    """
    import pandas as pd

    from tasks.core.digests import PYTHON_CACHE, digest_of_model
    from tasks.dataset.prepared import load_prepared
    from tasks.defences.targets import load_target
    from tasks.models.compute import configure_torch

    data = load_prepared(workspace)
    network = load_target(workspace, target, configure_torch(params.compute))
    steps = network_folders(workspace, target)
    if missing := [path for path in (*steps, workspace.manifest) if not path.exists()]:
        step_name = workspace.step_of(missing[0])
        raise FileNotFoundError(f"{missing[0]} not found. Run the step {step_name} first: dvc repro {step_name}")
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    sizes = pd.read_parquet(workspace.manifest).set_index("path").loc[data.table["path"].iloc[data.indices("train")]]
    ratios = sizes["width"] / sizes["height"]
    levels = data.pixels[data.indices("train")].mean(axis=(1, 2, 3))
    row = None if target == UNDEFENDED else params.defences[target].model_dump(mode="json")
    of_training = params.model_dump(mode="json", include={"seed", *OF_TRAINING})
    bundle = Bundle(
        target=target,
        digest=digest_of_model(network),
        params=of_training | {"defence": row},
        dataset=info["name"],
        is_phantom=data.is_phantom,
        classes=data.classes,
        positive_class=data.classes[data.positive],
        image_size=data.size,
        channels=params.prepare.channels,
        resize=params.prepare.resize,
        crop_ratio=params.prepare.crop_ratio,
        value_range=data.value_range,
        aspect_ratios=(float(ratios.min()), float(ratios.max())),
        mean_levels=(float(levels.min()), float(levels.max())),
        intensity=info.get("intensity"),
        max_megapixels=params.validate_.max_megapixels,
        threads=params.compute.threads,
        detector=_detector(network, data, params),
    )
    folder.mkdir(parents=True)
    for step in steps:
        ignored = shutil.ignore_patterns(PYTHON_CACHE)
        shutil.copytree(step, folder / step.relative_to(workspace.root), ignore=ignored)
    (folder / BUNDLE).write_text(bundle.model_dump_json(indent=2) + "\n", encoding="utf-8")
    seen = {split: digests_of_images(data.pixels[data.indices(split)]) for split in ("train", "validation")}
    (folder / SEEN).write_text(json.dumps(seen, indent=0) + "\n", encoding="utf-8")
    examples = data.pixels[data.indices("validation")[:N_EXAMPLES]]
    if not params.report.include_images:
        examples = np.random.default_rng(0).integers(0, 256, examples.shape, dtype=np.uint8)
    np.save(folder / EXAMPLES, examples)
    (folder / CARD).write_text(card, encoding="utf-8")
    return bundle


def read_bundle(folder: Path) -> Bundle:
    """Read ``bundle.json``.

    Raises:
        FileNotFoundError: the folder is no bundle.
        ValueError: the file is damaged, or has another schema version.
    """
    path = folder / BUNDLE
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found. {folder} is no bundle.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.get("schema_version")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}. Download the model version again.") from error
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has the unknown schema_version {version}, and only {SCHEMA_VERSION} is supported: register the "
            "model again with this version of the code."
        )
    try:
        # as JSON: lists are tuples there
        return Bundle.model_validate_json(json.dumps(values))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Download the model version again.") from error


def check_trust(folder: Path) -> None:
    """Refuse a bundle that, when it is loaded, runs code of its author or sends images to a server.

    Raises:
        ValueError: the bundle does one of the two.
    """
    for file in sorted((folder / "data").rglob("*.json")):
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            continue
        imported = values.get("imported")
        source = imported.get("source") if isinstance(imported, dict) else None
        if "plugin" in values or (imported is not None and source not in SAFE_SOURCES):
            what = f"classifier.source {source}" if imported is not None else "a plug-in"
            raise ValueError(
                f"{folder}: this bundle runs code of its author, or sends images to a server, when it is loaded "
                f"({what} in {file.relative_to(folder)}). If you trust the person who registered it, pass --trust, "
                "in Prefect the parameter trust."
            )


def check_digest(folder: Path, target: str, digest: str) -> None:
    """Check that a bundle holds a certain target with certain weights.

    Args:
        folder: of the bundle.
        target: expected target.
        digest: expected SHA-256 of its layers and weights.

    Raises:
        ValueError: it is another target, or it has other weights than expected or than ``bundle.json`` says.
    """
    from tasks.core.digests import digest_of_model

    about = read_bundle(folder)
    found = {"bundle.json": about.digest, "the weights": digest_of_model(load_bundle(folder))}
    wrong = [f"the digest of {name} is {value}" for name, value in found.items() if value != digest]
    if about.target != target:
        wrong.insert(0, f"its target is {about.target}")
    if wrong:
        raise ValueError(
            f"{folder}: {'; '.join(wrong)}. The registry has the target {target} with the digest {digest}. Do not use "
            "this version: register the model again."
        )


def network_folders(workspace: Workspace, target: str) -> list[Path]:
    """Folders of the networks of a target, in a workspace or in a bundle."""
    own = [] if target == UNDEFENDED else [workspace.step_folder("train_defence", target)]
    return [workspace.train_classifier, workspace.train_autoencoder, *own]


def read_seen(folder: Path) -> dict[str, set[str]]:
    """Digests of the images that a target was trained (``train``) and validated (``validation``) on."""
    seen = json.loads((folder / SEEN).read_text(encoding="utf-8"))
    return {split: set(digests) for split, digests in seen.items()}


def load_bundle(folder: Path) -> "nn.Module":
    """Load the target of a bundle, on a GPU if there is one."""
    import torch

    from tasks.defences.targets import load_target
    from tasks.models.compute import configure_torch
    from tasks.params import Compute

    bundle = read_bundle(folder)
    device = configure_torch(Compute(threads=bundle.threads, device="auto", precision="float32"))
    network: torch.nn.Module = load_target(Workspace(folder), bundle.target, device)
    return network


def digests_of_images(pixels: np.ndarray) -> list[str]:
    """SHA-256 of the pixels of each prepared image: it identifies an image, also under another file name.

    Args:
        pixels: uint8 ``(N, C, H, W)``.
    """
    return [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in pixels]


def _detector(network: "nn.Module", data: "Prepared", params: Params) -> BundleDetector | None:
    from tasks.defences.purified import Purified
    from tasks.serving.inference import predict

    if not isinstance(network, Purified):
        return None
    rows = data.indices("validation")
    if not len(rows):
        raise ValueError(
            "prepare.split.validation_fraction: no validation images for the detector's threshold. Raise the value."
        )
    rate = params.analyze.false_positive_rate
    _, scores = predict(network, data.floats(rows), seed=0)
    assert scores is not None
    return BundleDetector(name=PREDICTION_CHANGE, threshold=threshold_at(scores, rate), false_positive_rate=rate)
