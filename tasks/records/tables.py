"""Tables that the attack steps write: records (one row for each image, target, attack and eps) and others."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.core.made_with import check_made_with, inputs_of_attack
from tasks.core.workspace import Workspace
from tasks.records.scores import entropy, margin

CERTIFIED_RADII = pa.schema(
    {
        "image": pa.int32(),
        "path": pa.string(),
        "label": pa.int32(),
        "group": pa.int32(),
        "target": pa.string(),
        "prediction": pa.int32(),
        "certified_eps": pa.float64(),
        "largest_eps": pa.float64(),
    }
)
"""Columns of certified radii. ``certified_eps`` is in 1/255 of the value range, as ``attack.eps`` counts an L2 ball;
for abstentions of the smoothed classifier ``prediction`` is -1 and ``certified_eps`` 0. ``largest_eps`` is the largest
radius that the number of noisy copies can certify, the same for all images of a target."""


MADE_WITH = b"made_with"
PARAMETERS = "parameters"
"""Entry of ``MADE_WITH``: digest of the seed and of the section ``attack``."""
"""Key of the metadata of records: the digests of :func:`tasks.core.made_with.inputs_of_attack`, as JSON."""


def schema(n_classes: int) -> pa.Schema:
    """Columns of the records, for K classes.

    ``image`` is the row in the prepared table, ``group`` the group of the image; ``eps`` is in 1/255 of the value
    range; ``radius``, ``linf`` and ``l2`` (norms of the perturbation) are in units of the value range; ``norm`` is the
    norm of the ball, for clean rows too; ``entropy`` is in nats; ``margin`` is the true logit minus the largest other;
    ``success`` means that an image that is correct unchanged is misclassified; ``correct_8bit`` is ``correct`` after
    rounding the image to 8 bits; ``reconstruction_error`` is null without a purifier. ``surrogate`` is the classifier
    that the image was crafted on for the threat model ``transfer``, and empty for the others.
    """
    columns = {
        "image": pa.int32(),
        "path": pa.string(),
        "label": pa.int32(),
        "group": pa.int32(),
        "target": pa.string(),
        "threat_model": pa.string(),
        "attack": pa.string(),
        "surrogate": pa.string(),
        "norm": pa.string(),
        "eps": pa.float64(),
        "radius": pa.float64(),
        "prediction": pa.int32(),
        "logits": pa.list_(pa.float32(), n_classes),
        "entropy": pa.float64(),
        "margin": pa.float64(),
        "correct": pa.bool_(),
        "clean_correct": pa.bool_(),
        "success": pa.bool_(),
        "correct_8bit": pa.bool_(),
        "linf": pa.float64(),
        "l2": pa.float64(),
        "reconstruction_error": pa.float64(),
    }
    return pa.schema([pa.field(name, kind, nullable=name == "reconstruction_error") for name, kind in columns.items()])


def build_records(
    images: dict[str, np.ndarray],
    curve: dict[str, str],
    eps: float,
    radius: float,
    logits: np.ndarray,
    clean_logits: np.ndarray,
    logits_8bit: np.ndarray,
    norms: dict[str, np.ndarray],
    reconstruction_error: np.ndarray | None,
) -> pa.Table:
    """Records of N images under one attack at one eps.

    Args:
        images: image, path, label and group, as of :meth:`tasks.dataset.prepared.Prepared.identity`.
        curve: target, threat_model, attack and norm; and surrogate, empty by default.
        eps: in 1/255 of the value range.
        radius: of the ball, in units of the value range.
        logits: of the target on the attacked images, float32 ``(N, K)``.
        clean_logits: on the unchanged images, float32 ``(N, K)``.
        logits_8bit: on the attacked images rounded to 8 bits, float32 ``(N, K)``.
        norms: ``linf`` and ``l2`` of the perturbations, ``(N,)`` each.
        reconstruction_error: ``(N,)``, or None without a purifier.

    Raises:
        ValueError: a logit is not finite.
    """
    finite = np.isfinite(logits).all(axis=1) & np.isfinite(logits_8bit).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{(~finite).sum()} of {len(logits)} images have logits that are not finite; the first is "
            f"{images['path'][~finite][0]} ({', '.join(f'{name} {value}' for name, value in curve.items())}, "
            f"eps {eps:g}). Train the models again with a lower learning rate"
        )
    n_images, n_classes = logits.shape
    prediction, labels = logits.argmax(axis=1), images["label"]
    correct = prediction == labels
    clean_correct = clean_logits.argmax(axis=1) == labels
    columns = {
        **images,
        **{name: [value] * n_images for name, value in ({"surrogate": ""} | curve).items()},
        "eps": np.full(n_images, eps),
        "radius": np.full(n_images, radius),
        "prediction": prediction,
        "logits": pa.FixedSizeListArray.from_arrays(pa.array(logits.ravel(), pa.float32()), n_classes),
        "entropy": entropy(logits),
        "margin": margin(logits, labels),
        "correct": correct,
        "clean_correct": clean_correct,
        "success": clean_correct & ~correct,
        "correct_8bit": logits_8bit.argmax(axis=1) == labels,
        **norms,
        "reconstruction_error": [None] * n_images if reconstruction_error is None else reconstruction_error,
    }
    return pa.table(columns, schema=schema(n_classes))


def build_minimum_eps(
    images: dict[str, np.ndarray],
    curve: dict[str, str],
    eps: np.ndarray,
    found_by: np.ndarray,
    perturbation: np.ndarray,
    eps_8bit: np.ndarray,
) -> pa.Table:
    """The smallest eps of the grid that breaks each of N images: one row for each image, target and attack.

    Args:
        images: image, path, label and group, as of :meth:`tasks.dataset.prepared.Prepared.identity`.
        curve: ``target``, ``operating_point``, ``threat_model``, ``attack`` and ``norm``, the same for all images.
        eps: in 1/255, ``(N,)``; 0 for images that are misclassified unchanged, infinite where no eps breaks the image.
        found_by: for an attack that combines several, the one that broke the image, ``(N,)``.
        perturbation: size of the smallest perturbation found, in 1/255, ``(N,)``; 0 and infinite as ``eps``.
        eps_8bit: the smallest eps at which the image that was found, or its perturbation extended to the border of the
            ball, breaks the image after rounding to 8 bits, ``(N,)``; 0 and infinite as ``eps``.
    """
    columns = {
        **{name: pa.array(images[name], pa.int32()) for name in ("image", "label", "group")},
        "path": pa.array(images["path"], pa.string()),
        **{name: pa.array([value] * len(eps), pa.string()) for name, value in curve.items()},
        "minimum_eps": pa.array(eps, pa.float64()),
        "found_by": pa.array(found_by, pa.string()),
        "minimum_perturbation": pa.array(perturbation, pa.float64()),
        "minimum_eps_8bit": pa.array(eps_8bit, pa.float64()),
    }
    return pa.table(columns)


def build_diagnostics(
    rows: np.ndarray, image_paths: np.ndarray, target: str, found: Mapping[tuple[str, float], np.ndarray]
) -> pa.Table:
    """Diagnostics of a target: one row for each image, diagnostic and eps, with its ``value``.

    Args:
        rows: of N images in the prepared table, ``(N,)``.
        image_paths: paths of the images, ``(N,)``.
        target: name of the target.
        found: name of a diagnostic and eps -> a value for each image, ``(N,)``.
    """
    columns = {
        "image": pa.array(np.tile(rows, len(found)), pa.int32()),
        "path": pa.array(np.tile(image_paths, len(found)), pa.string()),
        "target": pa.array([target] * len(rows) * len(found), pa.string()),
        "diagnostic": pa.array([name for name, _ in found for _ in rows], pa.string()),
        "eps": pa.array([eps for _, eps in found for _ in rows], pa.float64()),
        "value": pa.array(np.concatenate(list(found.values())), pa.float64()),
    }
    return pa.table(columns)


def write_records(records: pa.Table, path: Path, made_with: Mapping[str, str] | None = None) -> None:
    """Write records as Parquet; the same records give the same bytes.

    Args:
        records: or another table.
        path: of the new file.
        made_with: digests of the files that the records were made with; written into the metadata.

    Raises:
        ValueError: a number is missing or NaN; with the image's path.
    """
    refuse_gaps(records, path, "Train the models again with a lower learning rate")
    metadata = {MADE_WITH: json.dumps(made_with)} if made_with else None
    pq.write_table(records.combine_chunks().replace_schema_metadata(metadata), path, compression="zstd")


def check_inputs_of_attack(workspace: Workspace, target: str) -> None:
    """Refuse records of a target that were made with another split or other networks than the present ones.

    Args:
        workspace: without records, or with records of an earlier version of this project, nothing is refused.
        target: ``undefended``, or the name of a defence.

    Raises:
        ValueError: they are refused.
    """
    file = workspace.records(target)
    if recorded := recorded_inputs(file):
        present = inputs_of_attack(workspace, target)
        known = {name: digest for name, digest in recorded.items() if name in present}
        check_made_with(file, workspace.step_of(file), known, workspace.data, present)


def recorded_inputs(file: Path) -> dict[str, str]:
    """Digests of the inputs that records were made with; empty without records, or of an earlier version."""
    if not file.is_file():
        return {}
    try:
        metadata = pq.read_schema(file).metadata or {}
    except pa.ArrowInvalid:
        # the reader of the records names the file
        return {}
    recorded: dict[str, str] = json.loads(metadata.get(MADE_WITH, b"{}"))
    return recorded


def refuse_gaps(table: pa.Table, file: Path, advice: str) -> None:
    """Refuse a table with missing values, which means would ignore silently.

    Args:
        table: records, minimum eps, diagnostics or certified radii.
        file: path of the table.
        advice: what to do, for the error message.

    Raises:
        ValueError: a value is missing or NaN; only the reconstruction error may be missing.
    """
    for name, values in zip(table.column_names, table.columns, strict=True):
        if (gaps := _gaps(name, values)).any():
            first = table["path"][int(gaps.argmax())]
            raise ValueError(f"{file}: {gaps.sum()} rows without a value in {name}; the first is {first}. {advice}")


def _gaps(name: str, values: pa.ChunkedArray) -> np.ndarray:
    """Return which rows of a column have no value, bool ``(N,)``."""
    if name == "reconstruction_error":
        return np.asarray(pc.is_nan(values).fill_null(False))
    if name == "logits" and not values.null_count:
        of_rows: np.ndarray = pc.list_flatten(values).to_numpy().reshape(len(values), -1)
        finite: np.ndarray = np.isfinite(of_rows).all(axis=1)
        return ~finite
    return np.asarray(values.is_null(nan_is_null=True))
