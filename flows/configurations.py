"""Add the configurations of DVC's experiments to the list of those that were compared.

``python -m flows.configurations`` writes to ``data/configurations.csv``.
An experiment in a temporary folder (``dvc exp run --queue``, ``--temp`` and the flow ``seeds``) has the list in its own
commit. If one of several such experiments is chosen, the rows of all of them belong in the list.
"""

import argparse
from collections.abc import Sequence

import dvc.api

from flows.dvc_pipeline import run_dvc
from tasks.core.locks import locked
from tasks.core.workspace import Workspace
from tasks.evaluation.selection import add_configurations, parse_configurations, read_configurations


def collect(workspace: Workspace, revisions: Sequence[str]) -> int:
    """Add the lists of some revisions to the list of a workspace, and return the number of new configurations.

    Args:
        workspace: in the current folder.
        revisions: experiments, branches or commits; those without a list are skipped.
    """
    path, name = workspace.configurations, workspace.configurations.as_posix()
    # this step adds to the list, too
    with locked(workspace.locks, ["evaluate"]):
        n_before = len(read_configurations(path))
        for revision in revisions:
            try:
                text = dvc.api.read(name, rev=revision)
            except FileNotFoundError:
                continue
            add_configurations(path, parse_configurations(text, f"{name} of {revision}"))
        return len(read_configurations(path)) - n_before


def main() -> None:
    """Add the configurations of all experiments of DVC to data/configurations.csv."""
    argparse.ArgumentParser(prog="python -m flows.configurations", description=main.__doc__).parse_args()
    n_new = collect(Workspace(), run_dvc("exp", "list", "--name-only").split())
    print(f"added {n_new} configurations to {Workspace().configurations}. Commit the file.")


if __name__ == "__main__":
    main()
