"""What a classifier asks a person next: training on all labels that there are, and a query of what it wants to know."""

from pathlib import Path

import numpy as np

from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.labelling.acquisition import choose
from tasks.labelling.human import Query, begin_round, pool_files, read_pool, read_rounds
from tasks.labelling.learner import learner_of, shrunk
from tasks.models.compute import set_up
from tasks.models.files import save_model
from tasks.params import Params


def next_query(
    workspace: Workspace, params: Params, pool: Path, folder: Path, acquisition: str, n_images: int, n_rounds: int
) -> Query | None:
    """The round that waits for a person's labels; a new one if all were answered, None once nothing is left to ask.

    A new round begins with training: on the training images of the step ``prepare`` in the first round, and on what was
    labelled since then in the others, which go on from the weights before if ``active_learning.warm_start_epochs`` says
    so.

    Args:
        workspace: where inputs are read and outputs written.
        params: all parameters; the section ``active_learning`` says how it learns.
        pool: folder of images without labels, not changed.
        folder: where rounds are kept.
        acquisition: name of the function that chooses.
        n_images: of each round, at most.
        n_rounds: at most.

    Raises:
        ValueError: images that can't be read, or labels that can't be used.
    """
    data = load_prepared(workspace)
    rounds = read_rounds(folder, data.classes)
    if waiting := [query for query in rounds if not query.is_answered]:
        return waiting[0]
    if acquisition == "bald" and not params.active_learning.dropout:
        raise ValueError("active_learning.dropout must be above 0 for bald, whose passes differ by it")
    files = pool_files(pool)
    labelled = [pair for query in rounds for pair in query.labelled]
    if gone := sorted({file for file, _ in labelled} - set(files)):
        raise ValueError(f"{len(gone)} labelled images are no longer in {pool}: {', '.join(gone[:5])}")
    asked = {file for query in rounds for file in query.files}
    left = [file for file in files if file not in asked]
    if len(rounds) >= n_rounds or not left:
        return None

    side = data.pixels.shape[2]
    # images that can't be read end it before the training
    pixels = _read(params, pool, left, side)
    settings, device = params.active_learning, set_up(params.compute)
    train = data.indices("train")
    known = np.concatenate(
        [shrunk(data.pixels[train], settings.shrink), _read(params, pool, [file for file, _ in labelled], side)]
    )
    told = [data.classes.index(name) for _, name in labelled]
    labels = np.append(data.labels(train), np.array(told, dtype=np.int64))
    learner = learner_of(params, data, known[: len(train)], device)
    goes_on = bool(rounds) and settings.warm_start_epochs > 0
    before = learner.load(_model(folder, len(rounds))) if goes_on else None
    seed = int(np.random.SeedSequence([params.seed, len(rounds)]).generate_state(1)[0])
    checkpoint = workspace.checkpoint_folder("labelling") / "state.pt"
    model = learner.taught(known, labels, before, seed, checkpoint)

    unlabelled = learner.pool(model, pixels, known, seed)
    chosen, scores = choose(acquisition, unlabelled, min(n_images, len(left)))
    shares = unlabelled.probabilities[chosen]
    # before the round, which counts as begun once its folder is there
    folder.mkdir(parents=True, exist_ok=True)
    save_model(_model(folder, len(rounds) + 1), model)
    return begin_round(
        folder / f"round-{len(rounds) + 1:02d}",
        pool,
        [left[row] for row in chosen],
        [data.classes[label] for label in shares.argmax(axis=1)],
        shares.max(axis=1),
        scores,
    )


def _model(folder: Path, number: int) -> Path:
    """The classifier that asked in a round."""
    return folder / f"model-{number:02d}.safetensors"


def _read(params: Params, pool: Path, files: list[str], side: int) -> np.ndarray:
    pixels = read_pool(pool, files, side, params.validate_.max_megapixels)
    return shrunk(pixels, params.active_learning.shrink)
