"""What a step says about itself, and where MLflow hears it; mlflow is imported nowhere else.

``tracker.py``: what a step can say. ``run.py``: the run of a step, which tells the store or, where that can't be
reached, the outbox. ``store.py``: MLflow's store. ``outbox.py``: what waits on disk, and how it is sent later, by
``python -m tasks.tracking sync``. ``masking.py``: no password in what is told.
"""

from tasks.tracking.digests import digest_of
from tasks.tracking.masking import masked
from tasks.tracking.run import open_run
from tasks.tracking.store import EXPERIMENT, experiment_id, tracking_uri
from tasks.tracking.tracker import MAX_NOTE_CHARACTERS, MAX_PARAM_CHARACTERS, Tracker

__all__ = [
    "EXPERIMENT",
    "MAX_NOTE_CHARACTERS",
    "MAX_PARAM_CHARACTERS",
    "Tracker",
    "digest_of",
    "experiment_id",
    "masked",
    "open_run",
    "tracking_uri",
]
