"""A bundle as an MLflow model: its code, requirements, signature and input example."""

import io
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.dataset.prepared import as_pictures
from tasks.serving.bundle import EXAMPLES, read_bundle

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

PACKAGES = (
    *("mlflow", "torch", "torchvision", "numpy", "pandas", "pillow", "safetensors", "pydantic", "ruamel.yaml"),
    *("scipy", "scikit-learn", "pyarrow", "adversarial-robustness-toolbox"),
)
"""Requirements of a registered model."""


def save_mlflow_model(folder: Path, path: str) -> None:
    """Save a bundle as an MLflow model, which runs ``pyfunc.py`` with this code.

    Args:
        folder: of the bundle.
        path: folder of the model, which does not exist.
    """
    import mlflow

    serving = Path(__file__).parent
    mlflow.pyfunc.save_model(
        path,
        python_model=str(serving / "pyfunc.py"),
        artifacts={"bundle": str(folder.resolve())},
        code_paths=[str(serving.parent)],
        signature=_signature(read_bundle(folder).channels),
        input_example=_input_example(folder),
        # MLflow's inference of requirements takes many seconds
        pip_requirements=[f"{package}=={version(package)}" for package in PACKAGES],
    )


def _signature(channels: int) -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array, Map

    grey = Array(Array(DataType.double))
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.binary, "image", required=False),
        ColSpec(grey if channels == 1 else Array(grey), "pixels", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "class"),
        ColSpec(Map(DataType.double), "probabilities"),
        ColSpec(DataType.double, "entropy"),
        ColSpec(DataType.double, "detector_score", required=False),
        ColSpec(Array(DataType.string), "warnings"),
    ]
    return ModelSignature(Schema(inputs), Schema(outputs))


def _input_example(folder: Path) -> Any:
    import pandas as pd
    from PIL import Image

    files = []
    for pixels in as_pictures(np.load(folder / EXAMPLES, allow_pickle=False)[:2]):
        Image.fromarray(pixels).save(file := io.BytesIO(), format="PNG")
        files.append(file.getvalue())
    return pd.DataFrame({"image": files})
