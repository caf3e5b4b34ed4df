"""Outputs of the earlier steps, read for the report."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.core.workspace import Workspace
from tasks.dataset.data_versions import read_reference
from tasks.dataset.prepared import Prepared, load_prepared
from tasks.evaluation.selection import merge_configurations, read_configurations
from tasks.outcomes.attack_outputs import read_minimum_eps, read_operating_points, read_records
from tasks.outcomes.names import AS_GIVEN
from tasks.params import Defence, Params, read_defence
from tasks.params.names import with_formulas
from tasks.records.operating_points import OperatingPoint
from tasks.reporting.examples import AttackExamples, read_examples

TEXT_COLUMNS = ["target", "surrogate", "threat_model", "attack", "norm", "actual", "prediction"]
TEXT_COLUMNS += ["class", "metric", "image_kind", "signal", "purifier", "feature_space", "detector"]
TEXT_COLUMNS += ["operating_point", "next_target", "attribute", "subgroup"]


@dataclass(frozen=True)
class Files:
    """Contents of output files; each field has the name of the path in :class:`Workspace`.

    The step that writes a file describes its columns. Tables of the step ``analyze`` can be empty.
    """

    manifest: pd.DataFrame
    validation: dict[str, Any]
    dataset_info: dict[str, Any]
    leakage: dict[str, Any]
    classifier_history: pd.DataFrame
    surrogates: list[dict[str, Any]]
    autoencoder_history: pd.DataFrame
    robustness: pd.DataFrame
    confusion: pd.DataFrame
    worst_case: pd.DataFrame
    comparison: pd.DataFrame
    minimum_perturbation: pd.DataFrame
    certified_accuracy: pd.DataFrame
    metrics: dict[str, Any]
    checks: list[dict[str, Any]]
    robustness_area: pd.DataFrame
    classification: pd.DataFrame
    reliability: pd.DataFrame
    entropy: pd.DataFrame
    intensity: pd.DataFrame
    intensity_histograms: pd.DataFrame
    spectrum: pd.DataFrame
    heatmaps: pd.DataFrame
    features: pd.DataFrame
    embeddings: pd.DataFrame
    resilience: pd.DataFrame
    detection: pd.DataFrame
    roc: pd.DataFrame
    rejection: pd.DataFrame
    claims: list[dict[str, Any]]
    examples: AttackExamples | None
    """None without images in the report."""
    cycles: pd.DataFrame
    learning_curves: pd.DataFrame
    label_efficiency: pd.DataFrame
    queries: pd.DataFrame


ACTIVE_LEARNING = ("cycles", "learning_curves", "label_efficiency", "queries")
"""Fields of the step ``active_learning``. An audit does not run it: the tables are empty if its folder is missing."""


@dataclass(frozen=True)
class Results(Files):
    """Everything that the report shows."""

    params: Params
    data: Prepared
    reference: pd.DataFrame
    """Columns of the manifest for the data version that is in git (:mod:`tasks.dataset.data_versions`)."""
    defence_histories: dict[str, pd.DataFrame]
    """Training histories of the trained defences, by name."""
    defence_settings: dict[str, Defence]
    """Settings of the selected defences, by name."""
    records: pd.DataFrame
    minimum_eps: pd.DataFrame
    configurations: pd.DataFrame
    """Configurations of targets that were compared on these images so far (:mod:`tasks.evaluation.selection`)."""
    subgroups: pd.DataFrame | None
    """Metrics of subgroups; None if the images have none."""
    operating_points: dict[str, list[OperatingPoint]]
    """Operating points of each target, the undefended classifier first."""


def load_results(workspace: Workspace, params: Params) -> Results:
    """Read the outputs of all earlier steps.

    Raises:
        FileNotFoundError: a step has not run, or the reference is missing.
    """
    paths = {field.name: getattr(workspace, field.name) for field in fields(Files)}
    left_out = () if workspace.active_learning.is_dir() else ACTIVE_LEARNING
    paths = {name: path for name, path in paths.items() if name not in left_out}
    if not params.report.include_images:
        paths.pop("examples")
    others = (workspace.data_docs, workspace.split, workspace.pixels, workspace.evaluated_configurations)
    if missing := [path for path in (*paths.values(), *others) if not path.exists()]:
        step = workspace.step_of(missing[0])
        raise FileNotFoundError(f"{missing[0]} not found: run the step {step} first (dvc repro {step})")
    if not workspace.reference.is_file():
        raise FileNotFoundError(f"{workspace.reference} not found: write it with `python -m flows.data_changes --keep`")
    defences, evaluated = params.selected_defences, read_configurations(workspace.evaluated_configurations)
    # DVC can restore an evaluation of a run that another list has
    listed = merge_configurations(read_configurations(workspace.configurations), evaluated)
    contents: dict[str, Any] = {name: READERS[path.suffix](path) for name, path in paths.items()}
    contents = {"examples": None} | contents | {name: pd.DataFrame() for name in left_out}
    return Results(
        **contents,
        params=params,
        data=load_prepared(workspace),
        reference=read_reference(workspace.reference),
        defence_histories={
            name: read_table(path) for name in defences if (path := workspace.defence_history(name)).is_file()
        },
        defence_settings={name: read_defence(workspace.defence_settings(name)) for name in defences},
        records=read_records(workspace, defences),
        minimum_eps=read_minimum_eps(workspace, defences),
        configurations=listed[listed["data"].isin(evaluated["data"])],
        subgroups=read_table(workspace.subgroups) if workspace.subgroups.is_file() else None,
        operating_points=read_operating_points(workspace, defences),
    )


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_table(path: Path) -> pd.DataFrame:
    """Return a CSV table; names of classes stay text, also ``NA`` and ``1``."""
    table = pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, "str"), keep_default_na=False, na_values=[""])
    if "subgroup" in table:
        table["subgroup"] = table["subgroup"].map(with_formulas)
    return table.fillna({"purifier": AS_GIVEN, "surrogate": ""})


READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": read_table,
    ".json": read_json,
    ".parquet": pd.read_parquet,
    ".npz": read_examples,
}
"""Reader of a file by its suffix."""
