"""A bundle: one target as a folder of files, with what has to be known to use, to audit and to judge it.

It is laid out like a workspace, so that everything which finds networks in a workspace finds them in a bundle::

    bundle.json                 what the target is, what it takes, its detector
    seen.json                   digests of the images that it was trained and validated on
    examples.npy                validation images, uint8 (N, 1, H, W)
    card.md                     the model card
    data/train_classifier/      weights as safetensors, with JSON of how to build them
    data/train_autoencoder/
    data/train_defence/NAME/    of a defence

The bare classifier and the autoencoder are always there: transfer attacks are crafted on the one, and analyses look
through the other.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.analysis.detection import threshold_at
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED, Params, Section

if TYPE_CHECKING:
    from torch import nn

    from tasks.dataset.prepared import Prepared

BUNDLE, SEEN, EXAMPLES, CARD = Path("bundle.json"), Path("seen.json"), Path("examples.npy"), Path("card.md")

PREDICTION_CHANGE = "prediction change"
N_EXAMPLES = 8


class Detector(Section):
    """What flags an image, and from where on."""

    name: str
    """``prediction change``: see :func:`tasks.serving.predictor.look`."""
    threshold: float
    """Of the score; an image is flagged above it."""
    false_positive_rate: float
    """Share of clean validation images, at most, above the threshold."""


class Bundle(Section):
    """What ``bundle.json`` says."""

    target: str
    """``undefended``, or the name of a defence."""
    digest: str
    """SHA-256 of the target's layers and weights."""
    params: dict[str, Any]
    """How its networks were trained: ``seed``, ``train_classifier``, ``train_autoencoder`` and the row of ``defences``
    (null for the bare classifier), as in params.yaml."""
    dataset: str
    """Name of the data set that it was trained on."""
    is_phantom: bool
    """Whether that consists of drawn phantoms instead of patients' scans."""
    classes: tuple[str, ...]
    """Names in the order of the labels."""
    positive_class: str
    image_size: int
    """H and W in pixels."""
    value_range: tuple[float, float]
    """Lowest and highest value that the target takes."""
    aspect_ratios: tuple[float, float]
    """Least and greatest width / height of the training images, before they were made square."""
    max_megapixels: float
    """Above which an image is refused before it is decoded."""
    threads: int
    """CPU threads that it was evaluated with."""
    detector: Detector | None
    """None where the target has no purifier to look through."""


def write_bundle(workspace: Workspace, folder: Path, params: Params, target: str, card: str) -> Bundle:
    """Write a target of this workspace as a bundle.

    Args:
        workspace: where inputs are read and outputs written.
        folder: a new one.
        params: all parameters.
        target: ``undefended``, or the name of a defence that is trained.
        card: the model card, Markdown.

    Raises:
        FileNotFoundError: a step has not run.
        ValueError: there are no validation images, which the detector's threshold is told from.
    """
    import pandas as pd

    from tasks.core.digests import digest_of_model
    from tasks.dataset.prepared import load_prepared
    from tasks.defences.targets import load_target
    from tasks.models.compute import set_up

    data = load_prepared(workspace)
    network = load_target(workspace, target, set_up(params.compute))
    steps = [workspace.train_classifier, workspace.train_autoencoder]
    steps += [] if target == UNDEFENDED else [workspace.step_folder("train_defence", target)]
    if missing := [path for path in (*steps, workspace.manifest) if not path.exists()]:
        step_name = workspace.step_of(missing[0])
        raise FileNotFoundError(f"{missing[0]} not found: run the step {step_name} first (dvc repro {step_name})")
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    sizes = pd.read_parquet(workspace.manifest).set_index("path").loc[data.table["path"].iloc[data.indices("train")]]
    ratios = sizes["width"] / sizes["height"]
    row = None if target == UNDEFENDED else params.defences[target].model_dump(mode="json")
    of_training = params.model_dump(mode="json", include={"seed", "train_classifier", "train_autoencoder"})
    bundle = Bundle(
        target=target,
        digest=digest_of_model(network),
        params=of_training | {"defence": row},
        dataset=info["name"],
        is_phantom=data.is_phantom,
        classes=data.classes,
        positive_class=data.classes[data.positive],
        image_size=data.pixels.shape[-1],
        value_range=data.value_range,
        aspect_ratios=(float(ratios.min()), float(ratios.max())),
        max_megapixels=params.validate_.max_megapixels,
        threads=params.compute.threads,
        detector=_detector(network, data, params),
    )
    folder.mkdir(parents=True)
    for step in steps:
        shutil.copytree(step, folder / step.relative_to(workspace.root))
    (folder / BUNDLE).write_text(bundle.model_dump_json(indent=2) + "\n", encoding="utf-8")
    seen = {split: digests_of_images(data.pixels[data.indices(split)]) for split in ("train", "validation")}
    (folder / SEEN).write_text(json.dumps(seen, indent=0) + "\n", encoding="utf-8")
    np.save(folder / EXAMPLES, data.pixels[data.indices("validation")[:N_EXAMPLES]])
    (folder / CARD).write_text(card, encoding="utf-8")
    return bundle


def read_bundle(folder: Path) -> Bundle:
    """What a bundle says of itself.

    Raises:
        FileNotFoundError: the folder is no bundle.
        ValueError: it is damaged, or was written by another version of this code.
    """
    path = folder / BUNDLE
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: {folder} is no bundle")
    try:
        return Bundle.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, or of another version: {error}") from error


def read_seen(folder: Path) -> dict[str, set[str]]:
    """Digests of the images that a bundle's target was trained (``train``) and validated (``validation``) on."""
    seen = json.loads((folder / SEEN).read_text(encoding="utf-8"))
    return {split: set(digests) for split, digests in seen.items()}


def load_bundle(folder: Path) -> "nn.Module":
    """A bundle's target as :func:`tasks.defences.targets.load_target` gives it, on the device that is there."""
    import torch

    from tasks.defences.targets import load_target
    from tasks.models.compute import set_up
    from tasks.params import Compute

    bundle = read_bundle(folder)
    device = set_up(Compute(threads=bundle.threads, device="auto", precision="float32"))
    network: torch.nn.Module = load_target(Workspace(folder), bundle.target, device)
    return network


def digests_of_images(pixels: np.ndarray) -> list[str]:
    """SHA-256 of each prepared image, by which the same image is known again whatever its file is called.

    Args:
        pixels: uint8 ``(N, 1, H, W)``.
    """
    return [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in pixels]


def _detector(network: "nn.Module", data: "Prepared", params: Params) -> Detector | None:
    from tasks.defences.purified import Purified
    from tasks.serving.predictor import look_at_all

    if not isinstance(network, Purified):
        return None
    rows = data.indices("validation")
    if not len(rows):
        raise ValueError("no validation images to tell the detector's threshold from: raise validation_fraction")
    rate = params.analyze.false_positive_rate
    _, scores = look_at_all(network, data.floats(rows))
    assert scores is not None
    return Detector(name=PREDICTION_CHANGE, threshold=threshold_at(scores, rate), false_positive_rate=rate)
