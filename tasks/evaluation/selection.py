"""Choice among targets: their robust accuracy on validation images, and the configurations that were compared so far.

If the best of many configurations is chosen by test results, its test results are too high. So the choice uses
validation images, and the test images measure the chosen configuration.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.core.durable import rename_durably
from tasks.core.files import write_table
from tasks.core.source import digests_of_files
from tasks.core.workspace import Workspace
from tasks.evaluation.worst_case_table import value_at, worst_case_table
from tasks.outcomes.worst_case import search_outcomes
from tasks.params import UNDEFENDED, Params, read_defence

TEXT = dict.fromkeys(("configuration", "data", "target"), "str")
COLUMNS = (
    *("configuration", "data", "target", "seed", "eps", "n", "n_groups"),
    *("balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high"),
)
"""Columns of the list of configurations."""
DIGEST_LENGTH = 16
"""Hexadecimal digits of a digest: enough for millions of configurations."""


def validation_table(swept: pd.DataFrame, eps: Sequence[float], classes: Sequence[str], positive: int) -> pd.DataFrame:
    """Return the accuracies of each target on validation images under the sweep, in the columns of ``worst_case.csv``.

    Args:
        swept: the smallest eps at which the sweep breaks each validation image, of all targets.
        eps: the grid, in 1/255; eps 0, the unchanged images, is added.
        classes: names of the classes.
        positive: label of the positive class.
    """
    return worst_case_table(search_outcomes(swept, [0.0, *eps]), classes, positive)


def configuration_rows(
    workspace: Workspace, params: Params, split: pd.DataFrame, validation: pd.DataFrame
) -> pd.DataFrame:
    """Return one row for each target: the digest of its configuration, and its result on validation images.

    A configuration is everything that determines a target: prepared images, split, seed, the settings of its trainings,
    and the files of an imported classifier or a plug-in.

    Args:
        workspace: where the prepared images and the settings of the defences are.
        params: all parameters.
        split: path and split of every image.
        validation: of :func:`validation_table`.
    """
    seed, eps = params.seed, params.analyze.eps
    with workspace.pixels.open("rb") as file:
        data = hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]
    images = split[["path", "split"]].to_dict("list")
    classifier = {
        "classifier": params.classifier.model_dump(mode="json"),
        "train_classifier": params.train_classifier.model_dump(mode="json"),
        "files": digests_of_files(workspace.classifier_files),
    }
    made_of: dict[str, Any] = {UNDEFENDED: classifier}
    for name in params.selected_defences:
        made_of[name] = classifier | {
            "train_autoencoder": params.train_autoencoder.model_dump(mode="json"),
            "defence": read_defence(workspace.defence_settings(name)).model_dump(mode="json"),
            "plugin_files": digests_of_files(workspace.defence_files(name)),
        }
    rows = []
    for target, settings in made_of.items():
        found = value_at(validation, "balanced_accuracy", target=target, eps=eps)
        digest = hashlib.sha256(json.dumps([data, images, seed, settings], sort_keys=True).encode()).hexdigest()
        identity = [digest[:DIGEST_LENGTH], data, target, seed, eps]
        rows.append([*identity, int(found["n"]), int(found["n_groups"]), *found[["value", "low", "high"]]])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def read_configurations(path: Path) -> pd.DataFrame:
    """Return a list of configurations; no rows if there is no file.

    Raises:
        ValueError: the file is no such list.
    """
    return parse_configurations(path.read_text(encoding="utf-8") if path.is_file() else ",".join(COLUMNS), str(path))


def parse_configurations(text: str, name: str) -> pd.DataFrame:
    """Return a list of configurations from the text of a file.

    Args:
        text: of the file.
        name: of the file, for the error message.

    Raises:
        ValueError: the text is no such list.
    """
    try:
        return pd.read_csv(io.StringIO(text), dtype=TEXT)[list(COLUMNS)]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{name}: {error}. The columns {', '.join(COLUMNS)} are needed. Restore the file: git checkout {name}"
        ) from error


def merge_configurations(known: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Return two lists as one, sorted; the second list has the result of a configuration that is in both."""
    parts = [each for each in (known, found) if len(each)]
    merged = pd.concat(parts or [known], ignore_index=True).drop_duplicates("configuration", keep="last")
    return merged.sort_values(["data", "target", "seed", "configuration"], ignore_index=True)


def add_configurations(path: Path, found: pd.DataFrame) -> None:
    """Add configurations to a list that other runs wrote; the same rows twice give the same bytes."""
    merged = merge_configurations(read_configurations(path), found)
    unfinished = path.with_suffix(".partial")
    write_table(merged, unfinished)
    rename_durably(unfinished, path)
