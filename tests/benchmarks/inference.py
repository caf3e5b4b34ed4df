"""Milliseconds of a prediction by each target, and its parameters and multiply-adds.

Run ``python -m tests.benchmarks.inference`` in a folder where the pipeline has run. It measures the undefended
classifier and every trained defence, with batches of 1 and of 64 images. Targets take turns in every repeat; the first
prediction is a warm-up. Medians over the repeats are reported.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.defences.targets import load_target
from tasks.models.compute import configure_torch
from tasks.models.cost import prediction_cost
from tasks.params import UNDEFENDED, load_params
from tests.benchmarks.machine import describe, machine, write_json

BATCHES = (1, 64)


def main() -> None:
    """Measure, print, and write JSON if a path is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    device = configure_torch(load_params().compute)
    data = load_prepared(Workspace())
    names = [UNDEFENDED, *sorted(folder.name for folder in Workspace().train_defence.glob("*"))]
    targets = {name: load_target(Workspace(), name, device) for name in names}
    images = torch.from_numpy(data.floats(data.indices("test")[: max(BATCHES)])).to(device)
    seconds: dict[tuple[str, int], list[float]] = {(name, size): [] for name in targets for size in BATCHES}
    with torch.inference_mode():
        for repeat in range(arguments.repeats + 1):
            for (name, size), spent in seconds.items():
                began = time.perf_counter()
                targets[name](images[:size]).cpu()
                spent += [time.perf_counter() - began] if repeat else []
    facts = machine("torch", "adversarial-robustness-toolbox") | {"device": str(device)}
    print(describe(facts))
    found: dict[str, dict[str, Any]] = {
        name: {f"ms an image, batches of {size}": 1000 * median(seconds[name, size]) / size for size in BATCHES}
        | prediction_cost(target, images[:1].cpu().numpy())
        for name, target in targets.items()
    }
    print(json.dumps(found, indent=2))
    write_json(arguments.json, {"machine": facts, "phantoms": data.is_phantom, "targets": found})


if __name__ == "__main__":
    main()
