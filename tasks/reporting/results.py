"""What the earlier steps left, read for the report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tasks import paths
from tasks.dataset.comparison import read_reference
from tasks.dataset.prepared import Prepared, load_prepared
from tasks.evaluation.records import AS_GIVEN, read_records, read_smallest_eps
from tasks.reporting.examples import UnderAttack, read_examples

INPUTS = (
    paths.MANIFEST,
    paths.VALIDATION,
    paths.DATA_DOCS / "index.html",
    paths.DATASET_INFO,
    paths.SPLIT,
    paths.PIXELS,
    paths.CLASSIFIER_HISTORY,
    paths.AUTOENCODER_HISTORY,
    paths.ROBUSTNESS,
    paths.CONFUSION,
    paths.BENCHMARK,
    paths.MINIMAL_EPS,
    paths.CERTIFIED,
    paths.METRICS,
    paths.CHECKS,
    paths.ROBUSTNESS_AREA,
    paths.CLASSIFICATION,
    paths.RELIABILITY,
    paths.ENTROPY,
    paths.INTENSITY,
    paths.INTENSITY_HISTOGRAMS,
    paths.SPECTRUM,
    paths.HEATMAPS,
    paths.FEATURES,
    paths.EMBEDDINGS,
    paths.RESILIENCE,
    paths.DETECTION,
    paths.ROC,
    paths.GATE,
    paths.VERDICT,
    paths.EXAMPLES,
    paths.CYCLES,
    paths.LEARNING_CURVES,
    paths.LABEL_EFFICIENCY,
    paths.QUERIES,
)

TEXTS = ["target", "surrogate", "threat_model", "attack", "norm", "actual", "predicted"]
TEXTS += ["class", "metric", "images", "of", "purifier", "space", "detector"]
"""Columns of text."""


@dataclass(frozen=True)
class Learning:
    """Tables of the step ``active_learning``; :mod:`tasks.evaluation.learning_curves` says what their columns are."""

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


def load_results(benchmark: Sequence[str]) -> Results:
    """Read everything that the report is about.

    Args:
        benchmark: names of the defences.

    Raises:
        FileNotFoundError: a step has not run, or there is no reference.
    """
    if missing := [path for path in INPUTS if not path.is_file()]:
        step = paths.step_of(missing[0])
        raise FileNotFoundError(f"{missing[0]} not found: run the step {step} first (dvc repro {step})")
    if not paths.REFERENCE.is_file():
        raise FileNotFoundError(f"{paths.REFERENCE} not found: write it by `python -m flows.data_changes --keep`")
    return Results(
        validation=read_json(paths.VALIDATION),
        manifest=pd.read_parquet(paths.MANIFEST),
        reference=read_reference(paths.REFERENCE),
        data=load_prepared(),
        dataset_info=read_json(paths.DATASET_INFO),
        classifier_history=pd.read_csv(paths.CLASSIFIER_HISTORY),
        autoencoder_history=pd.read_csv(paths.AUTOENCODER_HISTORY),
        defence_histories={
            name: pd.read_csv(path) for name in benchmark if (path := paths.defence_history(name)).is_file()
        },
        records=read_records(benchmark),
        robustness=read_table(paths.ROBUSTNESS),
        confusion=read_table(paths.CONFUSION),
        benchmark=read_table(paths.BENCHMARK),
        smallest_eps=read_smallest_eps(benchmark),
        minimal_eps=read_table(paths.MINIMAL_EPS),
        certified=read_table(paths.CERTIFIED),
        metrics=read_json(paths.METRICS),
        checks=read_json(paths.CHECKS),
        analysis=Analysis(
            robustness_area=read_table(paths.ROBUSTNESS_AREA),
            classification=read_table(paths.CLASSIFICATION),
            reliability=read_table(paths.RELIABILITY),
            entropy=read_table(paths.ENTROPY),
            intensity=read_table(paths.INTENSITY),
            intensity_histograms=read_table(paths.INTENSITY_HISTOGRAMS),
            spectrum=read_table(paths.SPECTRUM),
            heatmaps=read_table(paths.HEATMAPS),
            features=read_table(paths.FEATURES),
            embeddings=pd.read_parquet(paths.EMBEDDINGS),
            resilience=read_table(paths.RESILIENCE),
            detection=read_table(paths.DETECTION),
            roc=read_table(paths.ROC),
            gate=read_table(paths.GATE),
            verdict=read_json(paths.VERDICT),
            examples=read_examples(paths.EXAMPLES),
        ),
        learning=Learning(
            cycles=read_table(paths.CYCLES),
            curves=read_table(paths.LEARNING_CURVES),
            efficiency=read_table(paths.LABEL_EFFICIENCY),
            queries=pd.read_parquet(paths.QUERIES),
        ),
    )


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_table(path: Path) -> pd.DataFrame:
    """A CSV table of the step ``evaluate`` or ``analyze``; classes may be called ``NA`` or ``1`` and stay text."""
    table = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, "str"), keep_default_na=False, na_values=[""])
    return table.fillna({"purifier": AS_GIVEN})
