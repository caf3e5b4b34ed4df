"""Download of a data set from Kaggle."""

import tarfile
import zipfile
from pathlib import Path


def download(dataset: str) -> Path:
    """Download a Kaggle data set, unless it is complete in the cache of kagglehub; return its folder.

    Raises:
        ValueError: kagglehub is not installed, Kaggle rejects the request, or the archive is damaged or has paths
            outside its folder.
        ConnectionError: the network or Kaggle failed.
    """
    alternative = "or get the data set by other means and use acquire.source folder"
    try:
        import kagglehub
        import kagglehub.exceptions
    except ModuleNotFoundError:
        raise ValueError(
            "kagglehub is not installed. acquire.source kaggle requires it. Install it with `pip install kagglehub`, "
            f"{alternative}."
        ) from None
    try:
        return Path(kagglehub.dataset_download(dataset))
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"the archive of acquire.kaggle_dataset {dataset!r} cannot be unpacked: {error}. It must be a valid "
            f"archive without paths outside its folder. Use another data set, {alternative}."
        ) from error
    except (OSError, kagglehub.exceptions.DataCorruptionError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in {401, 403, 404}:
            raise ValueError(
                f"Kaggle rejected the request for acquire.kaggle_dataset {dataset!r}: HTTP status {status}. The data "
                f"set must exist and be accessible to you. Check its name and your Kaggle token, {alternative}."
            ) from error
        raise ConnectionError(
            f"the download of acquire.kaggle_dataset {dataset!r} failed: {type(error).__name__}. It requires a "
            f"connection to Kaggle. Check the network, {alternative}."
        ) from error


def find_class_root(folder: Path, classes: tuple[str, ...]) -> Path:
    """Return the highest folder with a subfolder for every class, or ``folder`` if there is none."""
    folders = [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()]
    below = sorted(folders, key=lambda path: (len(path.parts), path))
    return next((parent for parent in [folder, *below] if all((parent / name).is_dir() for name in classes)), folder)
