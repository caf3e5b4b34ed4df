"""Address of the tracking store, and name of the experiment."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

EXPERIMENT = "ct-robustness"
"""Default name of the experiment and of the registered model."""
UNESCAPED = {"?", "%", '"'}
"""Characters that MLflow does not escape in the path of an SQLite file and in statements of SQL."""


def experiment_name() -> str:
    """``MLFLOW_EXPERIMENT_NAME``, by default ``ct-robustness``."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def home() -> Path:
    """The current folder; in a temporary copy of it (``dvc exp run --temp``, ``--queue``) the original repository."""
    return next((folder.parent for folder in Path.cwd().parents if folder.name == ".dvc"), Path())


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, by default an SQLite file in :func:`home`.

    User and password of a server's address move to MLflow's variables for them, because MLflow's messages contain the
    address.

    Raises:
        ValueError: the path of the default file has a character that MLflow does not escape.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        folder = home().absolute()
        if found := sorted(UNESCAPED & set(str(folder))):
            raise ValueError(
                f"path of the tracking store: {folder} contains {' '.join(found)}. MLflow cannot use such a path. Move "
                "the repository, or set MLFLOW_TRACKING_URI to another place."
            )
        uri = f"sqlite:///{folder / 'mlflow.db'}"
    address = urlsplit(uri)
    if address.scheme in ("http", "https") and address.username and address.password:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(address.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(address.password)
        return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()
    return uri
