"""Parallel efficiency of the step ``attack`` with two workers.

Run ``python -m tests.benchmarks.workers`` in a folder where the pipeline has run. Its prepared images and its
classifier are attacked in a temporary workspace, with one thread for each worker. Every round measures, in turns:

- ``alone``: one process computes all parts;
- ``limit``: two independent processes compute all parts at the same time, each in a workspace of its own. This is twice
  the work, so half its time is the lower bound for two cores;
- ``threads``, ``dask``: two workers compute the parts (``flows/workers.py``), then one reads their checkpoints.
  Processes of Dask also track the step.

Efficiency is the time of ``alone`` divided by twice the time of two workers; relative to the limit, half the time of
``limit`` divided by the time of two workers. Each measurement is a process of its own. Its time excludes the import of
the step and of torch and the start of a Prefect server; it includes the start of a cluster.

    python -m tests.benchmarks.workers [--images N] [--rounds N] [--json PATH]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from ruamel.yaml import YAML

from tests.benchmarks.machine import ROOT, describe, machine, write_json

WAYS = ("alone", "limit", "threads", "dask")
N_WORKERS = 2


def make_workspace(folder: Path, source: Path, n_images: int) -> Path:
    """Make a workspace with the images and the classifier of another one, one thread, and no attacks."""
    (folder / "data").mkdir(parents=True)
    for step in ("prepare", "train_classifier"):
        (folder / "data" / step).symlink_to((source / "data" / step).resolve(), target_is_directory=True)
    values = YAML(typ="safe").load((source / "params.yaml").read_text(encoding="utf-8"))
    values["compute"]["threads"] = 1
    values["attack"]["max_images"] = n_images
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values, file)
    return folder


def begin(way: str, workspace: Path) -> "subprocess.Popen[str]":
    """Start the attack in a process of its own, without outputs and checkpoints."""
    for name in ("data/attack", "checkpoints"):
        shutil.rmtree(workspace / name, ignore_errors=True)
    command = [sys.executable, "-m", "tests.benchmarks.workers", "--way", way, "--workspace", str(workspace)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def seconds_of(running: "subprocess.Popen[str]") -> float:
    """Return the seconds that the process reports."""
    output, _ = running.communicate()
    if running.returncode:
        raise SystemExit("the attack failed")
    return float(json.loads(output.splitlines()[-1]))


def measure(way: str, workspace: Path) -> float:
    """Time the attack in this process, without tracking and imports; :func:`begin` starts it."""
    from prefect.testing.utilities import prefect_test_harness

    from flows.workers import Workers, worker_pool
    from tasks.attack import attack
    from tasks.core.workspace import Workspace
    from tasks.params import load_params
    from tasks.runner import run_step

    # without mlflow the runner does not track
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # None: as if not installed
    os.chdir(workspace)
    params = load_params()
    if way == "alone":
        began = time.perf_counter()
        run_step(attack, Workspace(), params)
        return time.perf_counter() - began
    with prefect_test_harness(server_startup_timeout=300):
        began = time.perf_counter()
        with worker_pool(Workers(runner=way, n_workers=N_WORKERS)) as pool:
            assert pool is not None
            pool.run("attack", Workspace(), params)
        return time.perf_counter() - began


def main() -> None:
    """Measure, print, and write JSON if a path is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=200, help="attacked test images, stratified; 0: all (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--workspace", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.workspace)))
        return
    facts = machine("torch", "prefect", "prefect-dask", "dask")
    print(describe(facts), flush=True)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        first, second = (make_workspace(Path(name) / part, Path.cwd(), arguments.images) for part in ("a", "b"))
        for _ in range(arguments.rounds):
            for way in WAYS:
                running = (
                    [begin("alone", place) for place in (first, second)] if way == "limit" else [begin(way, first)]
                )
                seconds[way].append(max(seconds_of(each) for each in running))
                print(f"{way:8s} {seconds[way][-1]:7.1f} s", flush=True)
    figures: dict[str, Any] = {"machine": facts, "images": arguments.images, "seconds": seconds, "efficiency": {}}
    for way in ("threads", "dask"):
        rounds = zip(seconds["alone"], seconds["limit"], seconds[way], strict=True)
        ratios = [(alone / (N_WORKERS * taken), limit / N_WORKERS / taken) for alone, limit, taken in rounds]
        of_ideal, of_limit = (median(ratio[i] for ratio in ratios) for i in (0, 1))
        figures["efficiency"][way] = {"of two times one": of_ideal, "of the limit": of_limit}
        print(f"{way}: efficiency {of_ideal:.2f}, {of_limit:.2f} relative to two independent processes")
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
