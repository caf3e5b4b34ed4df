"""What is paid beside the work: ``dvc repro`` and the flow with nothing to do, and the start-up of each stage.

In a toy workspace that ``dvc repro`` has brought up to date (for the first two, ``--workspace`` names another), every
command is run once unmeasured, so that files are in the system's cache, and then ``--repeats`` times; medians count.

Start-up of a stage is what its process takes beside the work: interpreter, imports wherever they happen, what
libraries set up at their first use (fonts, Data Docs, torch.export), opening the tracking store, and the way out: the
time of ``python -m tasks.<step>`` less that of the work, which another process tells that runs the step twice, and the
second time has nothing but the work to do. Beside it stands the same of
processor time (user and system, all threads), which other work on the machine stretches less. ``--only-stages`` leaves
the commands with nothing to do out.

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
"""Name -> command, what it prints, and the seconds that it may take."""
MEDIAN_GOAL, SUM_GOAL = 4.0, 45.0
"""Seconds of start-up of a stage in the median, and over all stages."""
TWICE = """
import gc, importlib, sys, time
from tasks.params import load_params
from tasks.runner import run_step

gc.set_threshold(100_000)  # as the runner's main
name, _, defence = sys.argv[1].partition("@")
step = getattr(importlib.import_module(f"tasks.{name}"), name)
run_step(step, Workspace(), load_params(), defence=defence or None)
began, busy = time.perf_counter(), time.process_time()
run_step(step, Workspace(), load_params(), defence=defence or None)
print("second run:", time.perf_counter() - began, time.process_time() - busy)
"""


def nothing_to_do(workspace: Path, command: list[str], printed: str) -> float:
    """Seconds of a command that finds everything up to date."""
    began = time.perf_counter()
    told = run(workspace, *command)
    seconds = time.perf_counter() - began
    assert printed in told, told
    return seconds


def start_up(workspace: Path, step: str) -> dict[str, float]:
    """Seconds of a stage's start-up, and of its work at toy size; ``processor``: user and system time."""
    began, busy = time.perf_counter(), processor_time_of_children()
    name, _, defence = step.partition("@")
    run(workspace, sys.executable, "-m", f"tasks.{name}", *filter(None, [defence]))
    whole, whole_busy = time.perf_counter() - began, processor_time_of_children() - busy
    told = run(workspace, sys.executable, "-c", TWICE, step)
    work, work_busy = map(float, told.rsplit("second run:", 1)[1].split())
    return {"start_up": whole - work, "processor": whole_busy - work_busy, "work": work}


def processor_time_of_children() -> float:
    """Seconds, user and system, of all processes that have been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="What is paid before and beside the work.")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only-stages", action="store_true", help="without the commands that have nothing to do")
    parser.add_argument("--workspace", type=Path, help="one that is up to date, for the commands with nothing to do")
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
