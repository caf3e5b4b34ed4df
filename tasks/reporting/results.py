"""What the earlier steps left, read for the report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.core.workspace import Workspace
from tasks.dataset.comparison import read_reference
from tasks.dataset.prepared import Prepared, load_prepared
from tasks.records.tables import read_records, read_smallest_eps
from tasks.records.vocabulary import AS_GIVEN
from tasks.reporting.examples import UnderAttack, read_examples

INPUTS = (
    "manifest",
    "validation",
    "data_docs",
    "dataset_info",
    "split",
    "pixels",
    "classifier_history",
    "autoencoder_history",
    "robustness",
    "confusion",
    "benchmark",
    "minimal_eps",
    "certified_accuracy",
    "metrics",
    "checks",
    "robustness_area",
    "classification",
    "reliability",
    "entropy",
    "intensity",
    "intensity_histograms",
    "spectrum",
    "heatmaps",
    "features",
    "embeddings",
    "resilience",
    "detection",
    "roc",
    "gate",
    "verdict",
    "examples",
    "cycles",
    "learning_curves",
    "label_efficiency",
    "queries",
)
"""Files of a :class:`Workspace` that the report needs."""

TEXTS = ["target", "surrogate", "threat_model", "attack", "norm", "actual", "predicted"]
TEXTS += ["class", "metric", "images", "of", "purifier", "space", "detector"]
"""Columns of text."""


@dataclass(frozen=True)
class Learning:
    """Tables of the step ``active_learning``; :mod:`tasks.labelling.learning_curves` says what their columns are."""

    cycles: pd.DataFrame
    curves: pd.DataFrame
    efficiency: pd.DataFrame
    queries: pd.DataFrame


@dataclass(frozen=True)
class Analysis:
    """Tables of the step ``analyze``, which says what their columns are; a table may have no rows.

    Where images were not purified, ``purifier`` is empty.
    """

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
    gate: pd.DataFrame
    verdict: list[dict[str, Any]]
    examples: UnderAttack


@dataclass(frozen=True)
class Results:
    """Outputs of the pipeline as objects; their formats are those of the steps that wrote them."""

    validation: dict[str, Any]
    manifest: pd.DataFrame
    reference: pd.DataFrame
    """The manifest's columns for the version of the data that is in git (:mod:`tasks.dataset.comparison`)."""
    data: Prepared
    dataset_info: dict[str, Any]
    classifier_history: pd.DataFrame
    autoencoder_history: pd.DataFrame
    defence_histories: dict[str, pd.DataFrame]
    """Of the defences that were trained, by name."""
    records: pd.DataFrame
    robustness: pd.DataFrame
    confusion: pd.DataFrame
    benchmark: pd.DataFrame
    smallest_eps: pd.DataFrame
    minimal_eps: pd.DataFrame
    certified: pd.DataFrame
    metrics: dict[str, Any]
    checks: list[dict[str, Any]]
    analysis: Analysis
    learning: Learning


def load_results(workspace: Workspace, benchmark: Sequence[str]) -> Results:
    """Read everything that the report is about.

    Args:
        workspace: where inputs are read and outputs written.
        benchmark: names of the defences.

    Raises:
        FileNotFoundError: a step has not run, or there is no reference.
    """
    if missing := [path for path in (getattr(workspace, name) for name in INPUTS) if not path.exists()]:
        step = workspace.step_of(missing[0])
        raise FileNotFoundError(f"{missing[0]} not found: run the step {step} first (dvc repro {step})")
    if not workspace.reference.is_file():
        raise FileNotFoundError(f"{workspace.reference} not found: write it by `python -m flows.data_changes --keep`")
    return Results(
        validation=read_json(workspace.validation),
        manifest=pd.read_parquet(workspace.manifest),
        reference=read_reference(workspace.reference),
        data=load_prepared(workspace),
        dataset_info=read_json(workspace.dataset_info),
        classifier_history=pd.read_csv(workspace.classifier_history),
        autoencoder_history=pd.read_csv(workspace.autoencoder_history),
        defence_histories={
            name: pd.read_csv(path) for name in benchmark if (path := workspace.defence_history(name)).is_file()
        },
        records=read_records(workspace, benchmark),
        robustness=read_table(workspace.robustness),
        confusion=read_table(workspace.confusion),
        benchmark=read_table(workspace.benchmark),
        smallest_eps=read_smallest_eps(workspace, benchmark),
        minimal_eps=read_table(workspace.minimal_eps),
        certified=read_table(workspace.certified_accuracy),
        metrics=read_json(workspace.metrics),
        checks=read_json(workspace.checks),
        analysis=Analysis(
            robustness_area=read_table(workspace.robustness_area),
            classification=read_table(workspace.classification),
            reliability=read_table(workspace.reliability),
            entropy=read_table(workspace.entropy),
            intensity=read_table(workspace.intensity),
            intensity_histograms=read_table(workspace.intensity_histograms),
            spectrum=read_table(workspace.spectrum),
            heatmaps=read_table(workspace.heatmaps),
            features=read_table(workspace.features),
            embeddings=pd.read_parquet(workspace.embeddings),
            resilience=read_table(workspace.resilience),
            detection=read_table(workspace.detection),
            roc=read_table(workspace.roc),
            gate=read_table(workspace.gate),
            verdict=read_json(workspace.verdict),
            examples=read_examples(workspace.examples),
        ),
        learning=Learning(
            cycles=read_table(workspace.cycles),
            curves=read_table(workspace.learning_curves),
            efficiency=read_table(workspace.label_efficiency),
            queries=pd.read_parquet(workspace.queries),
        ),
    )


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_table(path: Path) -> pd.DataFrame:
    """A CSV table of the step ``evaluate`` or ``analyze``; classes may be called ``NA`` or ``1`` and stay text."""
    table = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, "str"), keep_default_na=False, na_values=[""])
    return table.fillna({"purifier": AS_GIVEN})
