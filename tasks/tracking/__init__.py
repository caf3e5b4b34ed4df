"""Tracking of steps with MLflow. Only this package and parts of ``tasks.serving`` import mlflow.

``tracker.py``: the interface of a step, and the no-op tracker. ``run.py``: the run of a step. ``store.py``: the calls
to MLflow's store. ``address.py``: its address. ``errors.py``: the kinds of its errors. ``outbox.py``: the journal of
calls while the store is unavailable; ``python -m tasks.tracking sync`` sends it. ``open_runs.py``: runs whose process
was killed. ``masking.py``: removes passwords from messages.
"""

from tasks.tracking.address import EXPERIMENT, tracking_uri
from tasks.tracking.digests import digest_of
from tasks.tracking.masking import masked, plain_markdown
from tasks.tracking.origin import git_output, origin_tags
from tasks.tracking.run import open_run
from tasks.tracking.store import experiment_id, minutes_of_steps
from tasks.tracking.tracker import MAX_NOTE_CHARACTERS, MAX_PARAM_CHARACTERS, Tracker

__all__ = [
    "EXPERIMENT",
    "MAX_NOTE_CHARACTERS",
    "MAX_PARAM_CHARACTERS",
    "Tracker",
    "digest_of",
    "experiment_id",
    "git_output",
    "masked",
    "minutes_of_steps",
    "open_run",
    "origin_tags",
    "plain_markdown",
    "tracking_uri",
]
