"""Download of a classifier from an MLflow registry, for the step that imports it."""

from pathlib import Path

from tasks.tracking.address import tracking_uri
from tasks.tracking.masking import masked
from tasks.tracking.store import Store


def download_program(uri: str, folder: Path) -> Path:
    """Copy an MLflow model of the PyTorch flavour into a folder, and return the path of its program.

    Args:
        uri: such as ``models:/name/3``.
        folder: for the files of the model.

    Raises:
        ValueError: there is no such model, or it is no program of ``torch.export``.
    """
    import mlflow

    store = Store().client.tracking_uri
    try:
        local = mlflow.artifacts.download_artifacts(uri, dst_path=str(folder), tracking_uri=store, registry_uri=store)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise ValueError(
            f"classifier.uri: {uri} cannot be downloaded from {masked(tracking_uri())}: {error}. A model such as "
            "models:/name/3 is needed. Correct the address, or set MLFLOW_TRACKING_URI"
        ) from error
    programs = sorted(Path(local).rglob("*.pt2"))
    pickles = [path for path in Path(local).rglob("*") if path.suffix in (".pth", ".pt", ".pkl", ".bin")]
    if len(programs) != 1 or pickles:
        found = ", ".join(path.name for path in [*programs, *pickles]) or "no file of a network"
        raise ValueError(
            f"classifier.uri: {uri} holds {found}. One program of torch.export is allowed, because a pickle can run "
            'code on loading. Log the model again with mlflow.pytorch.log_model(..., serialization_format="pt2")'
        )
    return programs[0]
