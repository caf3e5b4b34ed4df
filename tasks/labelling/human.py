"""Labelling by a person: select the images of the next round with a classifier that is trained on all labels so far."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from tasks.core.checkpoints import Checkpoints
from tasks.core.workspace import Workspace
from tasks.dataset.folder import list_files, printable, rejected_files
from tasks.dataset.images import DEFAULT_READING, ImageError, Reading, read_prepared, reading_of
from tasks.dataset.intensity import IntensityRange
from tasks.dataset.prepared import load_prepared
from tasks.dataset.readers import SUFFIXES, has_image_name
from tasks.labelling.acquisition import select_query
from tasks.labelling.downsampling import downsample
from tasks.labelling.learner import CODE, build_learner
from tasks.labelling.rounds import (
    COLLECTED,
    LabellingRound,
    check_collected,
    check_pool,
    create_round,
    labelled_images,
    read_rounds,
)
from tasks.models.compute import configure_torch
from tasks.models.files import save_model
from tasks.params import Params


def next_round(
    workspace: Workspace, params: Params, pool: Path, folder: Path, acquisition: str, n_images: int, n_rounds: int
) -> LabellingRound | None:
    """Return the round to label: the first incomplete one, or a new one; None if there is no further round.

    A new round starts with training. The first round trains on the training images of the step ``prepare``. Later
    rounds also train on the labelled images; with ``active_learning.warm_start_epochs``, their training continues from
    the weights of the round before.

    Args:
        workspace: with the prepared images.
        params: all parameters; the section ``active_learning`` has the settings of the classifier.
        pool: folder of images without labels; it is not changed.
        folder: of the rounds and classifiers.
        acquisition: name of the acquisition function.
        n_images: of each round, at most.
        n_rounds: at most.

    Raises:
        ValueError: images cannot be read, labels are not valid, the pool and the folder overlap, or the folder of the
            labelled images has other files.
    """
    check_pool(pool, folder)
    data = load_prepared(workspace)
    rounds = read_rounds(folder, data.classes)
    if incomplete := [labelling_round for labelling_round in rounds if not labelling_round.is_complete]:
        return incomplete[0]
    settings = params.active_learning
    if acquisition == "bald" and not settings.dropout:
        raise ValueError(
            "active_learning.dropout is too small for the acquisition function bald: 0. It must be above 0, because "
            "bald compares forward passes with dropout. Raise it."
        )
    files = pool_files(pool)
    labelled = labelled_images(rounds, pool)
    # before the training, so that files of the user are reported at once
    check_collected(rounds, folder / COLLECTED)
    queried = {file for labelling_round in rounds for file in labelling_round.files}
    unlabelled = [file for file in files if file not in queried]
    if len(rounds) >= n_rounds or not unlabelled:
        return None

    # read before the training, so that unreadable images are reported at once
    reading = _reading(workspace, params)
    pool_pixels = _read_downsampled(params, pool, unlabelled, data.size, reading)
    labelled_pixels = _read_downsampled(params, pool, [file for file, _ in labelled], data.size, reading)
    device = configure_torch(params.compute)
    train = data.indices("train")
    train_pixels = downsample(data.pixels[train], settings.downsampling_factor)
    pixels = np.concatenate([train_pixels, labelled_pixels])
    labels = np.append(data.labels(train), np.array([data.classes.index(name) for _, name in labelled], dtype=np.int64))
    learner = build_learner(params, data, train_pixels, device)
    is_warm_start = bool(rounds) and settings.warm_start_epochs > 0
    previous = learner.load(_model_path(folder, len(rounds))) if is_warm_start else None
    seed = int(np.random.SeedSequence([params.seed, len(rounds)]).generate_state(1)[0])
    # in the folder of the rounds, which is locked; the training deletes it at its end
    checkpoints = Checkpoints(
        folder / ".checkpoints", CODE, device=str(device), parameters=params.of_step("simulate_labelling")
    )
    model, _ = learner.train(pixels, labels, previous, seed, checkpoints)

    candidates = learner.pool(model, pool_pixels, pixels, seed)
    chosen, scores = select_query(acquisition, candidates, min(n_images, len(unlabelled)))
    probabilities = candidates.probabilities[chosen]
    folder.mkdir(parents=True, exist_ok=True)
    # saved before the round, because a round whose folder exists is not computed again
    save_model(_model_path(folder, len(rounds) + 1), model)
    return create_round(
        folder / f"round-{len(rounds) + 1:02d}",
        pool,
        [unlabelled[position] for position in chosen],
        [data.classes[label] for label in probabilities.argmax(axis=1)],
        probabilities.max(axis=1),
        scores,
    )


def pool_files(pool: Path) -> list[str]:
    """Return the paths of the images below a folder, sorted.

    Raises:
        ValueError: the folder does not exist, or has no image.
    """
    if not pool.is_dir():
        raise ValueError(
            f"the pool is not a folder: {pool}. It must be the folder of the images without labels. Correct the path."
        )
    files = sorted(
        path.relative_to(pool).as_posix()
        for path in list_files(pool)
        # a link to a folder may contain images; read_pool reports it
        if has_image_name(path) or path.is_dir()
    )
    if not files:
        raise ValueError(
            f"the pool has no image: {pool}. Names of images end with {', '.join(SUFFIXES)}; a DICOM file may have any "
            "name. Choose another folder."
        )
    return files


def read_pool(
    pool: Path, files: list[str], size: tuple[int, int], max_megapixels: float, reading: Reading = DEFAULT_READING
) -> np.ndarray:
    """Return images as the step ``prepare`` makes them, uint8 ``(N, C, H, W)``.

    Args:
        pool: folder of the images.
        files: paths below ``pool``.
        size: H and W.
        max_megapixels: limit of the parameter ``validate.max_megapixels``.
        reading: how the files become images.

    Raises:
        ValueError: files cannot be read or are refused; the message lists all of them.
    """
    refused = rejected_files([pool / file for file in files], pool)
    unreadable = [f"{pool / printable(path, pool)}: {reason}" for path, reason in refused.items()]
    pixels = np.empty((len(files), reading.channels, *size), dtype=np.uint8)
    for row, file in enumerate(files):
        if pool / file in refused:
            continue
        try:
            pixels[row] = read_prepared(pool / file, size, max_megapixels, reading)
        except ImageError as error:
            unreadable.append(str(error))
    if unreadable:
        problem = f"images of the pool cannot be read: {len(unreadable)} of {len(files)}"
        advice = "All images must be readable. Move these files out of the pool:"
        raise ValueError("\n  ".join([f"{problem}. {advice}", *unreadable]))
    return pixels


def _model_path(folder: Path, number: int) -> Path:
    """Return the path of the classifier that selected the images of a round."""
    return folder / f"model-{number:02d}.safetensors"


def _reading(workspace: Workspace, params: Params) -> Reading:
    """Return the reading of the training images, with the range of values that the step ``prepare`` measured."""
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    return replace(reading_of(params.acquire, params.prepare), intensity=IntensityRange(**info.get("intensity", {})))


def _read_downsampled(
    params: Params, pool: Path, files: list[str], size: tuple[int, int], reading: Reading
) -> np.ndarray:
    pixels = read_pool(pool, files, size, params.validate_.max_megapixels, reading)
    return downsample(pixels, params.active_learning.downsampling_factor)
