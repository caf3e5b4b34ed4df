"""Time and peak memory of prepare, training and attack against the number of images, and of attack against eps points.

Phantoms are drawn at 1x, 4x and 16x images into one workspace each, and the earlier steps run there. Every measurement
is a process of its own that calls the step as ``python -m tasks.<step>`` does, without tracking. The step runs first in
the smallest workspace as a warm-up (imports, initialisation of torch), then in the measured workspace until two seconds
have passed. Peak memory is the ``ru_maxrss`` of the process. It includes the pages of the memory-mapped images, which
the kernel can drop at any time: one stored image for each image. It varies by tens of MiB between processes, so three
processes measure a step at each size, in turns, and medians are reported.

Two exponents of time against images: ``slope``, by least squares on logarithms over the three sizes; and
``beyond constant``, k of ``T = a + b n^k``, which is log4((T16 - T4) / (T4 - T1)). The pipeline is small: 96 x 96
pixels, half of the images outside the test set are for validation, one epoch, PGD of 4 steps, 2 eps points.

Goals: time linear in images (exponents at most 1.1); memory flat (from 4x to 16x at most 1.5 stored images more for
each image, one of which is the map); time of an attack sub-linear in eps points (7 points at most 3.5 times one).

    python -m tests.benchmarks.growth [--json PATH]
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from tasks.core.workspace import Workspace
from tests.benchmarks.machine import ROOT, describe, machine, write_json

N_SLICES = 4
PATIENTS = {1: 48, 4: 192, 16: 768}
"""Phantom patients at each size; from 4x on every step has at least two full batches."""
IMAGE_SIZE = 96
MEASURED = ("prepare", "train_classifier", "train_autoencoder", "attack")
EPS: dict[int, list[float]] = {1: [2], 2: [1, 4], 4: [0.5, 1, 4, 8], 7: [0.25, 0.5, 1, 2, 4, 8, 16]}
"""Grids of eps by their length, for the attack at 4x images."""
ENOUGH_SECONDS = 2.0
N_PROCESSES = 3
"""Processes that measure a step at a size."""
EXPONENT_GOAL, MEMORY_GOAL, EPS_GOAL = 1.1, 1.5, 3.5


def make_workspace(folder: Path, n_patients: int) -> Path:
    folder.mkdir()
    write_params(folder, n_patients, EPS[2])
    for step in ("acquire", "validate"):
        call(step, folder)
    return folder


def write_params(folder: Path, n_patients: int, eps: list[float]) -> None:
    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["compute"]["device"] = "cpu"
    values["acquire"] |= {"source": "phantom", "phantom": {"n_patients": n_patients, "n_slices_per_patient": N_SLICES}}
    values["prepare"]["image_size"] = IMAGE_SIZE
    # two full validation batches of 128 at 4x images
    values["prepare"]["split"]["validation_fraction"] = 0.5
    values["train_classifier"]["epochs"] = values["train_autoencoder"]["epochs"] = 1
    # parts of the searches have their maximum size at 4x images
    values["attack"] |= {"eps": eps, "saved_eps": eps[:1], "batch_size": 8}
    values["analyze"]["eps"], values["analyze"]["detector_evasion"]["eps"] = eps[0], eps[:1]
    values["attack"]["pgd"]["n_steps"] = 4
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values, file)


def call(step: str, workspace: Path, warm_up: Path | None = None) -> dict[str, float]:
    """Run a step in a process of its own; return its seconds and its peak memory in bytes."""
    command = [sys.executable, "-m", "tests.benchmarks.growth", "--step", step, "--workspace", str(workspace)]
    if warm_up:
        command += ["--warm-up", str(warm_up)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{step} failed in {workspace}:\n{result.stderr}")
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def measure(step: str, workspace: Path, warm_up: Path | None) -> dict[str, float]:
    """Run the step in this process, without mlflow; :func:`call` starts it."""
    from importlib import import_module

    from tasks.params import load_params
    from tasks.runner import run_step

    # without mlflow the runner does not track
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # None: as if not installed
    function = getattr(import_module(f"tasks.{step}"), step)
    if warm_up:
        os.chdir(warm_up)
        run_step(function, Workspace(), load_params())
    os.chdir(workspace)
    params = load_params()
    seconds: list[float] = []
    while not seconds or (warm_up and sum(seconds) < ENOUGH_SECONDS):
        began = time.perf_counter()
        run_step(function, Workspace(), params)
        seconds.append(time.perf_counter() - began)
    # kibibytes on Linux, bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": median(seconds), "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def exponents(seconds: dict[int, float]) -> dict[str, float]:
    slope = np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0]
    first, second = seconds[4] - seconds[1], seconds[16] - seconds[4]
    beyond = math.log(second / first, 4) if first > 0 and second > 0 else math.nan
    return {"slope": float(slope), "beyond_constant": beyond}


def over_images(folder: Path) -> dict[str, Any]:
    """Measure every step at every size; the workspaces ``1x``, ``4x``, ``16x`` then have the outputs of all steps."""
    workspaces = {size: make_workspace(folder / f"{size}x", n_patients) for size, n_patients in PATIENTS.items()}
    figures: dict[str, Any] = {}
    for step in MEASURED:
        turns = [
            {size: call(step, workspace, workspaces[1]) for size, workspace in workspaces.items()}
            for _ in range(N_PROCESSES)
        ]
        found = {
            size: {figure: median(turn[size][figure] for turn in turns) for figure in turns[0][size]}
            for size in workspaces
        }
        n_images = {size: n_patients * N_SLICES for size, n_patients in PATIENTS.items()}
        growth = (found[16]["peak_bytes"] - found[4]["peak_bytes"]) / (n_images[16] - n_images[4])
        figures[step] = {
            "images": n_images,
            "seconds": {size: each["seconds"] for size, each in found.items()},
            "peak_mib": {size: each["peak_bytes"] / 2**20 for size, each in found.items()},
            "exponents": exponents({size: each["seconds"] for size, each in found.items()}),
            "peak_mib_of_each": {size: [turn[size]["peak_bytes"] / 2**20 for turn in turns] for size in workspaces},
            "stored_images_of_memory_an_image": growth / IMAGE_SIZE**2,
        }
        print("\n".join(lines_of(step, figures[step])), flush=True)
    return figures


def lines_of(step: str, figures: dict[str, Any]) -> list[str]:
    of_time, memory = figures["exponents"], figures["stored_images_of_memory_an_image"]
    linear = "met" if max(of_time.values()) <= EXPONENT_GOAL else "MISSED"
    flat = "met" if memory <= MEMORY_GOAL else "MISSED"
    return [
        f"{step}: time ~ images^{of_time['slope']:.2f}, beyond its constant part ^{of_time['beyond_constant']:.2f} "
        f"(goal at most {EXPONENT_GOAL}: {linear}); {memory:.2f} more stored images of memory for each image "
        f"(goal at most {MEMORY_GOAL}: {flat})",
        *(
            f"  {size:3d}x {figures['images'][size]:5d} images {seconds:8.2f} s "
            f"{1000 * seconds / figures['images'][size]:8.2f} ms/image {figures['peak_mib'][size]:7.0f} MiB peak"
            for size, seconds in figures["seconds"].items()
        ),
    ]


def over_eps(folder: Path) -> dict[str, Any]:
    """Measure the attack at 4x images with 1, 2, 4 and 7 eps points."""
    workspace, warm_up = folder / "4x", folder / "1x"
    seconds: dict[int, float] = {}
    for n_points, eps in EPS.items():
        write_params(workspace, PATIENTS[4], eps)
        seconds[n_points] = call("attack", workspace, warm_up)["seconds"]
    slope = float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])
    ratio = seconds[7] / seconds[1]
    print(
        f"attack: time ~ eps points^{slope:.2f}; 7 points take {ratio:.2f} times one "
        f"(goal at most {EPS_GOAL}: {'met' if ratio <= EPS_GOAL else 'MISSED'})"
    )
    print("\n".join(f"  {n:2d} points {each:8.2f} s" for n, each in seconds.items()), flush=True)
    return {"seconds": seconds, "slope": slope, "seven_over_one": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and peak memory against images, and attack against eps points.")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--workspace", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--warm-up", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(measure(arguments.step, arguments.workspace, arguments.warm_up)))
        return
    facts = machine("torch", "numpy", "pillow")
    print(describe(facts), flush=True)
    with tempfile.TemporaryDirectory() as name:
        figures = {
            "machine": facts,
            "image_size": IMAGE_SIZE,
            "over_images": over_images(Path(name)),
            "attack_over_eps": over_eps(Path(name)),
        }
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
