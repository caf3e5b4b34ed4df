"""Copy the raw images from one of three sources to ``data/acquire/images/<class>/``, with unchanged pixels."""

import logging
from pathlib import Path

from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.dataset.kaggle import download, find_class_root
from tasks.dataset.phantom import write_phantoms
from tasks.dataset.raw_images import copy_images
from tasks.params import Params
from tasks.tracking import Tracker

log = logging.getLogger(__name__)


def acquire(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Write ``images/<class>/<path as in the source>`` and ``source.json``.

    If patients, a split or subgroups are given, ``table.parquet`` has them. The source is not changed. DICOM files are
    copied without the tags that identify a patient.

    Rejected files, such as links out of the folder, are not copied; ``rejected.json`` lists them. The step ``validate``
    reports them together with the images that cannot be decoded, and fails.

    Raises:
        ValueError: the source cannot be used, or kagglehub is not installed.
        OSError: the download failed, or a file cannot be read or written. A retry may succeed.
    """
    settings = params.acquire
    match settings.source:
        case "phantom":
            name, size = "phantoms", settings.phantom
            write_phantoms(
                workspace.images,
                settings.classes,
                settings.positive_class,
                size.n_patients,
                size.n_slices_per_patient,
                params.seed,
            )
        case "folder":
            folder = Path(settings.folder).expanduser()
            name = folder.name
            copy_images(workspace, folder, settings, "acquire.folder")
        case "kaggle":
            name = settings.kaggle_dataset
            class_root = find_class_root(download(settings.kaggle_dataset), settings.classes)
            copy_images(workspace, class_root, settings, "acquire.kaggle_dataset")

    n_images = {cls: sum(file.is_file() for file in (workspace.images / cls).rglob("*")) for cls in settings.classes}
    source = {"source": settings.source, "name": name, "is_phantom": settings.source == "phantom", "n_images": n_images}
    write_json(source, workspace.source)
    log.info("%d images (%s): %s", sum(n_images.values()), name, n_images)
    tracker.dataset(workspace.images, name, "raw")
    tracker.metrics({"data/n_images": sum(n_images.values())})


if __name__ == "__main__":
    from tasks.runner import main

    main(acquire)
