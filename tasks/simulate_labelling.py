"""Step ``simulate_labelling``: train a classifier on the labelled set of each cycle of active learning."""

from tasks.core.made_with import digest_of_file
from tasks.core.workspace import Workspace
from tasks.labelling.simulation import build_simulation, result_tables
from tasks.params import Params
from tasks.tracking import Tracker


def simulate_labelling(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Simulate labelling with every acquisition function and seed; write queries, predictions and pool statistics.

    A killed step resumes with the cycle in which it was killed.
    """
    tracker.dataset(workspace.prepare, "prepared", "training")
    results = build_simulation(workspace, params).run()
    files = workspace.simulated_queries, workspace.simulated_predictions, workspace.simulated_pools
    for path, table in zip(files, result_tables(results), strict=True):
        # active_learning refuses results of another split: rows would be other images
        table.attrs["split"] = digest_of_file(workspace.split)
        table.to_parquet(path, index=False)


if __name__ == "__main__":
    from tasks.runner import main

    main(simulate_labelling)
