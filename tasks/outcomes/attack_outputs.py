"""Outputs of the attack steps, as they are read: records, results of searches, diagnostics and operating points."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.workspace import Workspace
from tasks.outcomes.names import is_independent
from tasks.params import UNDEFENDED
from tasks.records.expected import FRESH
from tasks.records.operating_points import OperatingPoint
from tasks.records.tables import CERTIFIED_RADII, PARAMETERS, check_inputs_of_attack, recorded_inputs, refuse_gaps
from tasks.records.vocabulary import ART_REFERENCE


def read_records(workspace: Workspace, defences: Sequence[str]) -> pd.DataFrame:
    """Records of the undefended classifier and of some defences; ``logits`` has arrays ``(K,)``, nulls are NaN.

    Raises:
        FileNotFoundError: a target was not attacked.
        ValueError: records were made with another split or other networks than the present ones, or with other
            parameters than those of the undefended classifier.
    """
    parameters = recorded_inputs(workspace.records(UNDEFENDED)).get(PARAMETERS)
    for target in (UNDEFENDED, *defences):
        check_inputs_of_attack(workspace, target)
        file = workspace.records(target)
        if recorded_inputs(file).get(PARAMETERS, parameters) != parameters:
            raise ValueError(
                f"{file} was made with another seed or other parameters of the section attack than "
                f"{workspace.records(UNDEFENDED)}. Both must be equal. Run both steps again: dvc repro evaluate"
            )
    return _read(workspace, [workspace.records(target) for target in (UNDEFENDED, *defences)])


def without_reference(records: pd.DataFrame) -> pd.DataFrame:
    """Records without those of the reference attacks by ART, which try a part of the images."""
    return records[~records["attack"].isin(ART_REFERENCE)].reset_index(drop=True)


def without_independent_surrogates(records: pd.DataFrame) -> pd.DataFrame:
    """Records without those of transfer from an independent surrogate, which the study did not use."""
    return records[~records["surrogate"].map(is_independent)].reset_index(drop=True)


def read_minimum_eps(workspace: Workspace, defences: Sequence[str]) -> pd.DataFrame:
    """The smallest eps that breaks each image, of the undefended classifier and of some defences.

    Raises:
        FileNotFoundError: a target was not attacked.
    """
    return _read(workspace, [workspace.minimum_eps(target) for target in (UNDEFENDED, *defences)])


def read_validation_minimum_eps(workspace: Workspace, defences: Sequence[str]) -> pd.DataFrame:
    """The smallest eps at which the sweep breaks each validation image, of the undefended classifier and some defences.

    Raises:
        FileNotFoundError: a target was not attacked.
    """
    return _read(workspace, [workspace.validation_minimum_eps(target) for target in (UNDEFENDED, *defences)])


def read_diagnostics(workspace: Workspace, defences: Sequence[str]) -> pd.DataFrame:
    """Diagnostics of the undefended classifier and of some defences.

    Raises:
        FileNotFoundError: a target was not attacked.
    """
    return _read(workspace, [workspace.diagnostics(target) for target in (UNDEFENDED, *defences)])


def read_certified_radii(workspace: Workspace, defences: Sequence[str]) -> pd.DataFrame:
    """Certified radii of those of the defences that were certified; no rows if there are none."""
    files = [path for path in map(workspace.certified_radii, defences) if path.is_file()]
    return _read(workspace, files) if files else CERTIFIED_RADII.empty_table().to_pandas()


def _read(workspace: Workspace, files: list[Path]) -> pd.DataFrame:
    if missing := [file for file in files if not file.is_file()]:
        step = workspace.step_of(missing[0])
        raise FileNotFoundError(f"{missing[0]} not found. Run the step {step} first (dvc repro {step})")
    # the tables of random targets have further columns
    tables = [_read_table(workspace, file) for file in files]
    frame: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas()
    return frame


def _read_table(workspace: Workspace, file: Path) -> pa.Table:
    advice = f"Run the step {workspace.step_of(file)} again"
    try:
        table = pq.read_table(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} is damaged. {advice}") from error
    refuse_gaps(table, file, advice)
    return table


def expected_correct(records: pd.DataFrame, column: str = FRESH) -> "pd.Series[float]":
    """Return the expected accuracy of each record of the targets as trained: of a deterministic target 0 or 1.

    Args:
        records: of the attack steps.
        column: ``FRESH``, or ``FRESH_8BIT`` for the images rounded to 8 bits.
    """
    outcome = records["correct" if column == FRESH else "correct_8bit"].astype(float)
    if column not in records:
        return outcome
    # the first operating point is as_trained
    first = records[column].map(lambda fractions: fractions[0], na_action="ignore").astype(float)
    return first.fillna(outcome)


def read_operating_points(workspace: Workspace, defences: Sequence[str]) -> dict[str, list[OperatingPoint]]:
    """Operating points of the undefended classifier and of some defences, by target.

    Raises:
        FileNotFoundError: a target was not attacked.
    """
    points = {}
    for target in (UNDEFENDED, *defences):
        path = workspace.operating_points(target)
        if not path.is_file():
            step = workspace.step_of(path)
            raise FileNotFoundError(f"{path} not found. Run the step {step} first (dvc repro {step})")
        points[target] = parse_operating_points(path.read_text(encoding="utf-8"))
    return points


def parse_operating_points(text: str) -> list[OperatingPoint]:
    """Return operating points from the text of their file."""
    return [
        OperatingPoint(row["name"], *(row[key] and tuple(row[key]) for key in ("biases", "biases_low", "biases_high")))
        for row in json.loads(text)
    ]
