"""Compute the published results: ``python -m docs.make_results [TABLE ...] --data FOLDER``.

A table is a file ``docs/evidence/results/TABLE.yaml`` with values that replace those of ``params.yaml``. If it has the
key ``runs``, its values are further replacements for several runs of the pipeline, by name. A run is archived in
``docs/evidence/results/TABLE/`` or ``docs/evidence/results/TABLE-RUN/``. If the runs of a table have different seeds,
``docs/evidence/results/TABLE/seeds.csv`` compares them; it is written if all of them are computed. ``TABLE-RUN`` in
place of ``TABLE`` computes one run.

Each run has its own workspace: a clone of this repository at its present commit, or at that of ``--commit``. All of
them share a cache of DVC and a tracking store. If the command was interrupted, finished steps are not repeated, and the
others resume.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from docs import RESULTS
from docs.keep_results import LOCK, check_archive, copy_archive, definitions, merged
from docs.seeds_table import seeds_table
from flows.audit_forecast import forecast, forecast_text, measure_costs
from flows.audit_options import change_value
from flows.own_audit import count_images
from tasks.core.files import write_table
from tasks.core.workspace import Workspace
from tasks.params import Params, parse_params
from tasks.tracking import git_output

WORKSPACES = Path("results")


@dataclass(frozen=True)
class Run:
    """One run of the pipeline for a table."""

    table: str
    """Name of the table."""
    name: str
    """Name of its workspace and its archive."""
    params: Params


def read_runs(file: Path, folders: Sequence[Path], changes: Sequence[str]) -> list[Run]:
    """Runs of a table.

    Args:
        file: definition of the table.
        folders: data sets; a run takes the first one that has its classes.
        changes: further values, each ``dotted.key=value``.

    Returns:
        The runs; none if no data set has the classes.

    Raises:
        ValueError: a parameter is not valid.
    """
    runs = []
    for name, given in definitions(file).items():
        values = merged(YAML(typ="safe").load(Workspace().params_file), given)
        for change in changes:
            change_value(values, change)
        acquire = values["acquire"]
        fits = [folder for folder in folders if all((folder / each).is_dir() for each in acquire["classes"])]
        if fits:
            acquire |= {"source": "folder", "folder": str(fits[0].expanduser().resolve())}
            runs.append(Run(file.stem, name, parse_params(values, str(file))))
    return runs


def choose_runs(tables: Path, names: Sequence[str], folders: Sequence[Path], changes: Sequence[str]) -> list[Run]:
    """Runs of the named tables and the named single runs, or of all tables whose classes one of the data sets has.

    Raises:
        ValueError: there is no such table, run or folder, or no data set has the classes of a named table.
    """
    known = {file.stem: file for file in sorted(tables.glob("*.yaml"))}
    table_of = {name: table for table, file in known.items() for name in (table, *definitions(file))}
    if unknown := sorted(set(names) - set(table_of)):
        raise ValueError(f"table {', '.join(unknown)}: not in {tables}. Use one or more of {', '.join(table_of)}.")
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise ValueError(f"--data: {', '.join(missing)} is not a folder. It must hold the images. Correct the path.")
    runs = []
    for table in dict.fromkeys(table_of[name] for name in names or known):
        found = read_runs(known[table], folders, changes)
        if not found and names:
            raise ValueError(
                f"--data: no folder has the classes of the table {table}. It must have a subfolder of each of "
                f"acquire.classes in {known[table]}. Add the folder of its data set."
            )
        if not found:
            print(f"Table {table}: left out, because no folder of --data has its classes", file=sys.stderr)
        runs += [run for run in found if not names or run.table in names or run.name in names]
    return runs


def print_forecast(run: Run) -> None:
    """Print the parts of a run and their times."""
    parts = forecast(run.params, sum(count_images(run.params).values()), measure_costs(None, run.params))
    print(f"{run.name}\n{forecast_text(parts)}\n", flush=True)


def compute(run: Run, workspaces: Path, commit: str, pipeline: Sequence[str]) -> Path:
    """Bring a run up to date in its workspace, and archive its results there.

    Args:
        run: one run of a table.
        workspaces: folder of the workspaces, absolute.
        commit: that computes.
        pipeline: command that runs the pipeline.

    Returns:
        The archive in the workspace.

    Raises:
        RuntimeError: a command failed.
    """
    workspace = Workspace(workspaces / run.name)
    set_up(workspace, workspaces, commit)
    yaml = YAML()
    params = yaml.load(workspace.params_file)
    replace_values(params, run.params.model_dump(mode="json", by_alias=True, exclude_unset=True))
    yaml.dump(params, workspace.params_file)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{workspaces / 'mlflow.db'}")
    for command in (pipeline, [sys.executable, "-m", "docs.keep_results", run.name]):
        call(command, workspace.root, environment)
    return workspace.root / RESULTS / run.name


def set_up(workspace: Workspace, workspaces: Path, commit: str) -> None:
    """Create the clone of a run, or bring it to the commit. The outputs and checkpoints there stay.

    Raises:
        ValueError: the folder is another repository, or has changes beside those of a run.
    """
    root, git = workspace.root, ["git", "-C", str(workspace.root)]
    if not (root / ".git").is_dir():
        call(["git", "clone", "--quiet", "--no-checkout", str(Path.cwd()), str(root)], Path(), os.environ)
        (root / ".dvc").mkdir()
        (root / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {workspaces / 'cache'}\n", encoding="utf-8")
    elif (present := git_output("-C", str(root), "rev-parse", "HEAD")) == commit:
        return
    else:
        check_clone(root)
        print(f"{root}: moves from commit {present} to {commit}. Steps whose code differs run again.", file=sys.stderr)
    call([*git, "fetch", "--quiet", str(Path.cwd()), "HEAD"], Path(), os.environ)
    call([*git, "checkout", "--quiet", "--force", "--detach", commit], Path(), os.environ)


def check_clone(root: Path) -> None:
    """Check that a folder is a clone of this repository without changes beside those of a run.

    Raises:
        ValueError: it is another repository, or has other changes.
    """
    of_root = ("rev-list", "--max-parents=0", "HEAD")
    if git_output("-C", str(root), *of_root) != git_output(*of_root):
        raise ValueError(f"--workspaces: {root} is another git repository. Use another folder for the workspaces.")
    by_a_run = (f":!{name}" for name in (Workspace().params_file, LOCK, RESULTS))
    if changed := git_output("-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", ".", *by_a_run):
        raise ValueError(f"--workspaces: {root} has uncommitted changes: {changed}. Commit or revert them.")


def replace_values(section: Any, values: Mapping[str, Any]) -> None:
    """Replace the values of a section of a YAML file that differ; comments and order stay."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(section.get(key), dict):
            replace_values(section[key], value)
        elif section.get(key) != value:
            section[key] = value


def call(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Run a command in a folder. If this process is interrupted, the command and its children end first.

    Raises:
        RuntimeError: the command failed.
    """
    with subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True) as process:  # noqa: S603  a list of arguments, no shell  # nosec B603
        try:
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
    if status:
        raise RuntimeError(f"{' '.join(command)} failed in {folder}. Correct the cause, and run the command again.")


def main() -> None:
    """Compute the published tables on real data, and archive them. Interrupted runs resume."""
    parser = argparse.ArgumentParser(prog="python -m docs.make_results", description=main.__doc__)
    of_tables = f"file in {RESULTS} without .yaml, or one of its runs as TABLE-RUN (default: all)"
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=of_tables)
    parser.add_argument("--data", required=True, nargs="+", type=Path, metavar="FOLDER", help="folders of data sets")
    parser.add_argument(
        "--workspaces", type=Path, default=WORKSPACES, help="folder of the workspaces (default: %(default)s)"
    )
    parser.add_argument("--definitions", type=Path, default=RESULTS, help="folder of tables (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a parameter; repeatable"
    )
    parser.add_argument("--commit", default="HEAD", help="commit that computes (default: %(default)s)")
    parser.add_argument("--plan", action="store_true", help="print the forecast of the time; run nothing")
    parser.add_argument("--runner", help="run the steps side by side by flows.pipeline, with this runner")
    parser.add_argument("--n-workers", default="2", help="workers of the runner (default: %(default)s)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pipeline = ["dvc", "repro"]
    if options.runner:
        pipeline = [sys.executable, "-m", "flows.pipeline", "--runner", options.runner]
        pipeline += ["--n-workers", options.n_workers]
    try:
        runs = choose_runs(options.definitions, options.tables, options.data, options.set)
        for run in runs:
            check_archive(options.definitions / run.name)
            print_forecast(run)
        if options.plan:
            return
        if not git_output("rev-parse", "HEAD"):
            raise ValueError("this folder is no git repository with a commit. Results need one. Clone the repository.")
        if not (commit := git_output("rev-parse", "--verify", "--quiet", f"{options.commit}^{{commit}}")):
            raise ValueError(f"--commit {options.commit}: no such commit. Allowed is a commit of the present branch.")
        if git_output("status", "--porcelain", "--untracked-files=no"):
            print(f"Uncommitted changes are not part of the results: commit {commit} computes them", file=sys.stderr)
        for run in runs:
            archive = options.definitions / run.name
            kept = compute(run, options.workspaces.resolve(), commit, pipeline)
            copy_archive(kept, archive)
            print(f"{archive}: written. python -m docs.write_tables updates the documents.", flush=True)
        for table, of_table in groupby(runs, lambda run: run.table):
            seeds = {run.name: str(run.params.seed) for run in of_table}
            workspaces = {seed: Workspace(options.workspaces / name) for name, seed in seeds.items()}
            if len(workspaces) > 1 and seeds.keys() == definitions(options.definitions / f"{table}.yaml").keys():
                (options.definitions / table).mkdir(exist_ok=True)
                write_table(seeds_table(workspaces), options.definitions / table / "seeds.csv")
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"make_results: {error}")
    except KeyboardInterrupt:
        sys.exit("make_results: interrupted. Finished steps are kept; the same command resumes.")


if __name__ == "__main__":
    main()
