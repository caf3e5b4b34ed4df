"""Training of the classifier and the whole pipeline on an accelerator; without one, nothing is measured.

- Training: ``fit`` as ``train_classifier`` calls it, 50 epochs of the CNN on 1985 images of 224 x 224 in batches of 16,
  from the untrained to the trained network, without imports; in float32 and, if the device supports it, in bfloat16.
  Pixels are random, since time does not depend on them.
- Pipeline: every stage of ``dvc.yaml`` in order, each in a process of its own as with DVC, with the repository's
  params.yaml, tracked in a temporary store; on the images of ``--folder`` (one subfolder for each class, as
  ``acquire.folder``), or on as many phantoms.

Goals: 50 epochs in at most 20 s, the pipeline in at most 180 s, both on a GPU such as an H200. ``--device cpu``
measures the processor in the same way.

    python -m tests.benchmarks.accelerator [--json PATH] [--device cuda] [--images N] [--epochs N] [--folder FOLDER]
                                           [--only-training]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML

from tasks.core.checkpoints import Checkpoints
from tasks.models.classifier import build_classifier
from tasks.models.compute import configure_torch, supports_bfloat16
from tasks.models.objectives import classification_objective
from tasks.models.seeding import build_seeded
from tasks.models.training import fit
from tasks.params import Params, Precision, load_params
from tests.benchmarks.machine import ROOT, describe, machine, verdict, write_json

TRAINING_GOAL, PIPELINE_GOAL = 20.0, 180.0
"""Seconds."""
STUDY_IMAGES, STUDY_EPOCHS = 1985, 50
ALL_IMAGES, SLICES = 2481, 7
"""Images of the original data set, and slices of each phantom patient."""


def seconds_of_training(
    params: Params, device: torch.device, precision: Precision, n_images: int, n_epochs: int, folder: Path
) -> float:
    """Seconds of a training; checkpoints are written to the folder."""
    settings = params.train_classifier.model_copy(update={"epochs": n_epochs})
    (side, _), rng = params.prepare.image_size, np.random.default_rng(params.seed)
    pixels = rng.integers(0, 256, (n_images, 1, side, side), dtype=np.uint8)
    labels = rng.integers(0, 2, n_images)
    n_validation = round(n_images * params.prepare.split.validation_fraction)
    rows = {"train": np.arange(n_images), "validation": np.arange(n_validation)}
    model = build_seeded(lambda: build_classifier("cnn", 2, 0.5, 0.29), params.seed)
    how = settings, params.seed, device, precision, Checkpoints(folder, ("models",))
    began = time.perf_counter()
    fit(model, classification_objective(settings.augmentation), pixels, labels, rows, *how)
    return time.perf_counter() - began


def stages(params: Params) -> Iterator[list[str]]:
    """Steps in the order of ``dvc.yaml``, with the defence for steps that run once for each."""
    for name, stage in YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        yield from ([name, defence] for defence in params.selected_defences) if "matrix" in stage else ([name],)


def seconds_of_stages(params: Params, device: str, images: Path | None, workspace: Path) -> dict[str, float]:
    """Seconds of every stage, including start-up."""
    workspace.mkdir()
    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["compute"]["device"] = device
    if images:
        values["acquire"] |= {"source": "folder", "folder": str(images.resolve())}
    else:
        values["acquire"] |= {
            "source": "phantom",
            "phantom": {"n_patients": ALL_IMAGES // SLICES, "n_slices_per_patient": SLICES},
        }
    with (workspace / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values, file)
    (workspace / "tasks").symlink_to(ROOT / "tasks")
    (workspace / "data").mkdir()
    shutil.copy(ROOT / "data" / "reference.csv", workspace / "data")
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    seconds: dict[str, float] = {}
    for stage in stages(params):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", f"tasks.{stage[0]}", *stage[1:]],
            cwd=workspace,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        name = "@".join(stage)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stdout}")
        seconds[name] = time.perf_counter() - began
        print(f"{name:38s} {seconds[name]:7.1f} s", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Training of the classifier and the whole pipeline on an accelerator.")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"), default="cuda")
    parser.add_argument("--images", type=int, default=STUDY_IMAGES, help="training images (%(default)s)")
    parser.add_argument("--epochs", type=int, default=STUDY_EPOCHS)
    parser.add_argument("--folder", type=Path, help="images for the pipeline (default: phantoms)")
    parser.add_argument("--only-training", action="store_true", help="skip the pipeline")
    arguments = parser.parse_args()
    params = load_params(ROOT / "params.yaml")
    params = params.model_copy(update={"compute": params.compute.model_copy(update={"device": arguments.device})})
    try:
        device = configure_torch(params.compute)
    except ValueError as error:
        print(f"not measured: {error}")
        return
    facts = machine("torch", "numpy")
    facts["device"] = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
    print(describe(facts), flush=True)
    figures: dict[str, Any] = {"machine": facts, "images": arguments.images, "epochs": arguments.epochs, "training": {}}
    precisions: list[Precision] = ["float32", "bfloat16"] if supports_bfloat16(device) else ["float32"]
    with tempfile.TemporaryDirectory() as name:
        # initialisation of the device
        seconds_of_training(params, device, "float32", 64, 1, Path(name) / "warm-up")
        for precision in precisions:
            folder = Path(name) / precision
            seconds = seconds_of_training(params, device, precision, arguments.images, arguments.epochs, folder)
            figures["training"][precision] = seconds
            what = f"{arguments.epochs} epochs of {arguments.images} images, {precision}"
            is_full_size = (arguments.images, arguments.epochs) == (STUDY_IMAGES, STUDY_EPOCHS)
            print(f"{what:38s} {verdict(seconds, TRAINING_GOAL) if is_full_size else f'{seconds:7.2f} s'}", flush=True)
        write_json(arguments.json, figures)
        if not arguments.only_training:
            figures["pipeline"] = seconds_of_stages(
                params, arguments.device, arguments.folder, Path(name) / "workspace"
            )
            print(f"{'pipeline':38s} {verdict(sum(figures['pipeline'].values()), PIPELINE_GOAL)}")
            write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
