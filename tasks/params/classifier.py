"""The section ``classifier``: the classifier under study, trained here or brought by the user."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tasks.params.images import Channels
from tasks.params.section import Count, DottedPath, OutsideData, Section

NEEDED = {
    "train": (),
    "factory": ("factory",),
    "torch_export": ("file",),
    "torchscript": ("file", "trust"),
    "onnx": ("file",),
    "mlflow": ("uri",),
    "maite": ("factory",),
    "http": ("address",),
}
"""Source -> keys that it needs."""
ALLOWED = {"factory": ("arguments", "weights"), "maite": ("arguments", "weights")}
"""Source -> further keys that it can have."""


class ClassifierInput(Section):
    """The images that the user's classifier expects."""

    channels: Channels = 1
    """Channels. For a classifier of colour images, grey images are repeated. For a classifier of grey images, colour
    images become luma."""
    size: tuple[Count, Count] | None = None
    """Height and width in pixels; null: those of the prepared images. Images of another size are resized, bilinear with
    antialiasing."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """Values of black and white before ``mean`` and ``std``: [0, 1], [0, 255], [-1024, 1024]."""
    mean: tuple[float, ...] | None = None
    """Subtracted after ``value_range`` is applied, in its unit: one number, or one for each channel; null: 0."""
    std: tuple[float, ...] | None = None
    """Divisor after ``mean`` is subtracted: one number, or one for each channel; null: 1."""
    channel_order: Literal["RGB", "BGR"] = "RGB"
    """Order of three channels; ``mean`` and ``std`` are in this order."""

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        if self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"value_range {list(self.value_range)} must rise: the value of black, then that of white")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, self.channels):
                raise ValueError(f"{name} {list(values)} must have 1 number, or one for each channel")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std {list(self.std)} must be positive")
        if self.channel_order == "BGR" and self.channels == 1:
            raise ValueError("channel_order BGR needs channels 3")
        return self


class ClassifierOutput(Section):
    """The output of the user's classifier. The field ``logits`` of an object or a dictionary counts as output."""

    kind: Literal["logits", "probabilities", "sigmoid", "sigmoid_logit", "labels"] = "logits"
    """``logits`` or ``probabilities`` of all classes; ``sigmoid``: one probability, of the second class;
    ``sigmoid_logit``: the same before the sigmoid; ``labels``: the number of the predicted class, without gradients."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in the order of the outputs; for ``sigmoid`` the negative and the positive class. null: the
    order of ``acquire.classes``, for ``sigmoid`` the positive class second."""
    column: Annotated[int, Field(ge=0)] | None = None
    """Column of the finding that is audited, from 0, if ``sigmoid`` or ``sigmoid_logit`` has several; the classes are
    then "without" and "with" the finding."""

    @model_validator(mode="after")
    def _column_of_findings(self) -> Self:
        if self.column is not None and not self.kind.startswith("sigmoid"):
            raise ValueError(
                f"column {self.column} needs kind sigmoid or sigmoid_logit, with one output for each finding"
            )
        return self


class Classifier(Section):
    """The classifier under study: trained here, or a trained one that is imported by the step ``train_classifier``.

    See ``docs/how-to/own-classifier.md``.
    """

    source: Literal["train", "factory", "torch_export", "torchscript", "onnx", "mlflow", "maite", "http"]
    """``train``: trained as ``train_classifier`` says. The other sources import a trained classifier."""
    folder: OutsideData
    """Folder with the files of the classifier, outside ``data/``: model files, weights, Python modules, reference
    outputs. A change of a file in it runs the import again."""
    factory: DottedPath | None = None
    """``package.module:function`` that returns the network, of an installed package or a module in ``folder``. For
    ``maite`` it returns a model of MAITE's protocol for image classification."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory."""
    weights: str | None = None
    """File in ``folder`` with the weights: safetensors, or a state dict of torch, which is read with ``weights_only``.
    null: the factory loads them. For ``maite``, the path is passed as the argument ``weights``."""
    file: str | None = None
    """Model file in ``folder``, of the sources ``torch_export``, ``torchscript`` and ``onnx``."""
    uri: Annotated[str, Field(pattern=r"^(models|runs):/")] | None = None
    """Address of an MLflow model with the PyTorch flavour, such as ``models:/name/3``; its registry is
    ``MLFLOW_TRACKING_URI``."""
    address: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Address that answers ``{"instances": [...]}`` with ``{"predictions": [...]}``."""
    trust: bool = False
    """Load a format that can run code when it is loaded. Set it only if you trust the author of the file."""
    input: ClassifierInput = Field(default_factory=ClassifierInput)
    output: ClassifierOutput = Field(default_factory=ClassifierOutput)
    reference_outputs: str | None = None
    """CSV file in ``folder``: the column ``path`` with images of the data set, and a column named after each class with
    the output of the original classifier. The import stops if the outputs differ."""
    expected_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Clean accuracy of the original classifier on the test images. The import stops if the accuracy differs
    significantly."""
    head_layer: str | None = None
    """Name of the layer whose input is used as features; null: the last linear or convolutional layer that runs."""
    feature_map_layer: str | None = None
    """Name of the layer for Grad-CAM; null: the last one with a feature map larger than 1 x 1."""

    @model_validator(mode="after")
    def _keys_of_the_source(self) -> Self:
        given = {
            name
            for name in ("factory", "arguments", "weights", "file", "uri", "address", "trust")
            if getattr(self, name)
        }
        needed = NEEDED[self.source]
        if missing := [name for name in needed if name not in given and name != "trust"]:
            raise ValueError(f"{missing[0]} is missing. source {self.source} needs {' and '.join(needed)}")
        if "trust" in needed and not self.trust:
            raise ValueError(
                f"trust must be true for source {self.source}: a file of this format can run code when it is loaded. "
                "Set it only if you trust the author of the file"
            )
        if unused := sorted(given - set(needed) - set(ALLOWED.get(self.source, ()))):
            raise ValueError(f"{unused[0]} has no meaning for source {self.source}. Remove it")
        if self.output.kind == "labels" and self.source not in ("http", "maite"):
            raise ValueError("output.kind labels is only for classifiers without gradients: source http or maite")
        return self
