"""The model that ``mlflow models serve`` runs: MLflow executes this file ("models from code") and unpickles nothing.

A request has a row for each image and one of two columns: ``image``, the bytes of a PNG, JPEG, BMP, TIFF or DICOM file
(base64 in JSON), or ``pixels``, H lists of W numbers in [0, 1]; for colours C such lists of lists.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class Served(PythonModel):
    """A bundle as an MLflow pyfunc model."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the registered bundle."""
        from tasks.serving.predictor import Predictor

        self.predictor = Predictor.load(Path(context.artifacts["bundle"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return a dictionary for each row: class, probabilities, entropy, detector_score, warnings.

        Raises:
            MlflowException: the input is invalid; the server answers with status 400 and the reason.
        """
        from tasks.serving.predictor import check_number

        columns = [name for name in ("image", "pixels") if name in model_input]
        try:
            if len(columns) != 1:
                raise ValueError(
                    "a request must have exactly one of the columns image (bytes of a file) and pixels (H x W numbers "
                    f"in [0, 1]). It has {list(model_input)}."
                )
            # before the pixels become an array
            check_number(len(model_input))
            values = model_input[columns[0]].tolist()
            if columns == ["image"]:
                predictions = self.predictor.predict_files(values)
            else:
                predictions = self.predictor.predict_arrays(as_array(values))
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return [
            {
                "class": prediction.name,
                "probabilities": prediction.probabilities,
                "entropy": prediction.entropy,
                "detector_score": prediction.detector_score,
                "warnings": prediction.warnings,
            }
            for prediction in predictions
        ]


def as_array(rows: list[Any]) -> np.ndarray:
    """Convert nested lists or arrays to float64 ``(N, H, W)`` or ``(N, C, H, W)``.

    Raises:
        ValueError: an element is no number, or the sizes differ.
    """
    try:
        return _stacked(rows)
    except (TypeError, ValueError):
        raise ValueError("pixels must be H lists of W numbers for each image, and all images of one size.") from None


def _stacked(rows: Any) -> np.ndarray:
    values = np.asarray(rows)
    # pandas can hold arrays of arrays
    return np.stack([_stacked(row) for row in rows]) if values.dtype == object else values.astype(np.float64)


mlflow.models.set_model(Served())
