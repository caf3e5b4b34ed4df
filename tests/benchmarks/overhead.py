"""Overhead: ``dvc repro`` and the flow with nothing to do, and the start-up of each stage.

The toy workspace is up to date after ``dvc repro`` (``--workspace`` names another one for the commands with nothing to
do). Every command runs once as a warm-up of the file cache and then ``--repeats`` times; medians are reported.

The start-up of a stage is the time of ``python -m tasks.<step>`` minus the time of the work: interpreter, imports,
initialisation of libraries at first use (fonts, Data Docs, torch.export), opening the tracking store, and exit. The
time of the work is that of the second of two runs of the step in another process. The same difference of processor
time (user and system, all threads) is reported too, since other processes on the machine affect it less.
``--only-stages`` skips the commands with nothing to do.

Goals: ``dvc repro`` at most 3 s, the flow at most 10 s, start-up at most 4 s in the median and 45 s over all stages.

    python -m tests.benchmarks.overhead [--json PATH] [--repeats N] [--workspace FOLDER] [--only-stages]
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.machine import describe, machine, verdict, write_json
from tests.test_pipeline import STEPS, make_workspace, run

NOTHING_TO_DO = {
    "dvc repro": (["dvc", "repro"], "up to date", 3.0),
    "flow": ([sys.executable, "-m", "flows.pipeline"], "Nothing to do", 10.0),
}
"""Name -> command, text that it prints, and goal in seconds."""
MEDIAN_GOAL, SUM_GOAL = 4.0, 45.0
"""Start-up in seconds: median of the stages, and sum over all stages."""
TWICE = """
import importlib, sys, time
from tasks.core.workspace import Workspace
from tasks.params import load_params
from tasks.runner import run_step

name, _, defence = sys.argv[1].partition("@")
step = getattr(importlib.import_module(f"tasks.{name}"), name)
run_step(step, Workspace(), load_params(), defence=defence or None)
began, busy = time.perf_counter(), time.process_time()
run_step(step, Workspace(), load_params(), defence=defence or None)
print("second run:", time.perf_counter() - began, time.process_time() - busy)
"""


def nothing_to_do(workspace: Path, command: list[str], printed: str) -> float:
    """Return the seconds of a command that has nothing to do."""
    began = time.perf_counter()
    output = run(workspace, *command)
    seconds = time.perf_counter() - began
    assert printed in output, output
    return seconds


def start_up(workspace: Path, step: str) -> dict[str, float]:
    """Return the seconds of the start-up of a stage and of its work; ``processor``: user and system time."""
    began, busy = time.perf_counter(), processor_time_of_children()
    name, _, defence = step.partition("@")
    run(workspace, sys.executable, "-m", f"tasks.{name}", *(["--defence", defence] if defence else []))
    whole, whole_busy = time.perf_counter() - began, processor_time_of_children() - busy
    output = run(workspace, sys.executable, "-c", TWICE, step)
    work, work_busy = map(float, output.rsplit("second run:", 1)[1].split())
    return {"start_up": whole - work, "processor": whole_busy - work_busy, "work": work}


def processor_time_of_children() -> float:
    """Return user and system seconds of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="Overhead of DVC, of the flow and of the start-up of stages.")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only-stages", action="store_true", help="skip the commands with nothing to do")
    parser.add_argument("--workspace", type=Path, help="up-to-date workspace for the commands with nothing to do")
    arguments = parser.parse_args()
    facts = machine("dvc", "prefect", "mlflow", "torch", "great-expectations", "pandas")
    facts["bytecode"] = "not written" if sys.dont_write_bytecode else "written"
    print(describe(facts), flush=True)

    with tempfile.TemporaryDirectory() as name:
        toy = make_workspace(Path(name) / "workspace")
        run(toy, "dvc", "repro")
        idle: dict[str, Any] = {}
        for label, (command, printed, goal) in ({} if arguments.only_stages else NOTHING_TO_DO).items():
            place = arguments.workspace or toy
            nothing_to_do(place, command, printed)
            seconds = [nothing_to_do(place, command, printed) for _ in range(arguments.repeats)]
            idle[label] = {"median": median(seconds), "seconds": seconds, "goal": goal}
            print(f"{label + ', nothing to do':36s} {verdict(median(seconds), goal)}", flush=True)
        stages: dict[str, Any] = {}
        for step in STEPS:
            start_up(toy, step)
            found = [start_up(toy, step) for _ in range(arguments.repeats)]
            stages[step] = {
                "median": median(each["start_up"] for each in found),
                "start_up": [each["start_up"] for each in found],
                "processor": median(each["processor"] for each in found),
                "work": median(each["work"] for each in found),
            }
            of_step = stages[step]
            print(
                f"{step:36s} {of_step['median']:6.2f} s  (processor {of_step['processor']:.2f} s, "
                f"work {of_step['work']:.2f} s)",
                flush=True,
            )
    medians, busy = ([stage[kind] for stage in stages.values()] for kind in ("median", "processor"))
    print(f"{'median of the stages':36s} {verdict(median(medians), MEDIAN_GOAL)}")
    print(f"{'all stages':36s} {verdict(sum(medians), SUM_GOAL)}")
    print(f"{'processor time':36s} {median(busy):6.2f} s in the median, {sum(busy):.2f} s over all stages")
    figures = {"machine": facts, "nothing_to_do": idle, "stages": stages}
    figures |= {"stages_median": median(medians), "stages_sum": sum(medians)}
    write_json(arguments.json, figures | {"processor_median": median(busy), "processor_sum": sum(busy)})


if __name__ == "__main__":
    main()
