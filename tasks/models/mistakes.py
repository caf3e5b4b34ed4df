"""The single mistake in the declaration of an imported classifier that explains its difference from the original.

Each possible mistake is corrected alone. If the outputs then agree with the reference, the mistake is named. With two
mistakes at once, no single correction gives agreement, and no cause is named.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from tasks.models.imported import LUMA, ImportedClassifier
from tasks.models.input_fit import COMMON_STATISTICS, fit_mean_and_std
from tasks.models.reference_outputs import Reference, difference
from tasks.models.resized_originals import resized_originals

NAMED_TOLERANCE = 0.002
"""Maximum difference from the reference at which a cause is named, relative to the spread of the reference. With a
second, smaller mistake the difference is larger, and no cause is named."""
CLEARLY_BETTER = 10
"""Factor between the differences of two explanations from which the worse one is not accepted."""
ROUNDED_TOLERANCE = 0.004
"""The same for resized images, which the original can round at another step, and for fitted numbers."""
RANGES = (
    (0.0, 1.0),
    (0.0, 255.0),
    (-1.0, 1.0),
    (-1024.0, 1024.0),
    (-0.5, 0.5),
    (0.0, 65535.0),
    (0.0, 4095.0),
    (-1000.0, 1000.0),
)
"""Ranges of values that are tried."""


@dataclass(frozen=True)
class Cause:
    """A mistake in a declaration, and what to do."""

    name: str
    """Such as ``value range``."""
    advice: str
    """A sentence for the user."""


def probabilities_as_logits(model: ImportedClassifier, images: Tensor) -> bool:
    """Return whether a network that is declared to return logits returns probabilities of all classes."""
    if model.output.kind != "logits":
        return False
    with torch.inference_mode():
        rows = model.raw(images).float().flatten(1)
    return bool((rows >= 0).all() and (rows <= 1).all() and (rows.sum(dim=1) - 1).abs().max() < 1e-4)


def find_cause(
    model: ImportedClassifier, images: Tensor, reference: Reference, originals: Sequence[Path]
) -> Cause | None:
    """Return the single mistake that explains the difference from the reference; None if none or several do.

    Args: as :func:`check_parity`.
    """
    if (is_probability := probabilities_as_logits(model, images)) and _explains(
        model.redeclared(output={"kind": "probabilities"}), images, reference
    ):
        return _PROBABILITIES
    if not is_probability and depends_on_batch(model, images):
        return _TRAIN_MODE
    found: dict[str, Cause] = {}
    for cause, logits_of, tolerance in _candidates(model, images, reference, originals):
        if cause.name in found:
            continue
        with torch.inference_mode():
            logits = logits_of()
        if difference(logits, reference) <= tolerance:
            found[cause.name] = cause
    if found.keys() == {_TRAIN_MODE.name} and _has_second_mistake(model, images, reference, originals):
        return None
    if len(found) == 1:
        return next(iter(found.values()))
    if found or not model.has_gradients:
        return None
    return fitted_cause(model, images, reference)


def depends_on_batch(model: ImportedClassifier, images: Tensor) -> bool:
    """Return whether outputs change from pass to pass, or depend on the other images of a batch."""
    with torch.inference_mode():
        together = model(images)
        alone = torch.cat([model(images[i : i + 1]) for i in range(len(images))])
        again = model(images)
    scale = together.abs().max().clamp_min(1e-6)
    return any(bool((other - together).abs().max() > 1e-3 * scale) for other in (alone, again))


_PROBABILITIES = Cause(
    "probabilities declared as logits",
    "Set classifier.output.kind to probabilities: the outputs of each image are probabilities",
)
_LOGITS = Cause("logits declared as probabilities", "Set classifier.output.kind to logits")
_TRAIN_MODE = Cause(
    "training mode",
    "Outputs depend on the other images of a batch, or change from pass to pass. Call model.eval() before the export "
    "and before the reference outputs are computed",
)
_CHANNEL_ORDER = Cause(
    "channel order (RGB or BGR)",
    "Set classifier.input.channel_order to the other order, and mean and std in this order",
)
_INVERTED = Cause(
    "inverted grey levels",
    "Black and white are exchanged, as in DICOM images of MONOCHROME1. Invert your images, and use these",
)

_COLOURS = Cause("colours became grey", "Set prepare.channels to 3: the original takes the colours of the files")


def _value_range(low: float, high: float) -> Cause:
    return Cause("value range", f"Set classifier.input.value_range to [{low:g}, {high:g}]")


def _class_order(order: list[int]) -> Cause:
    advice = f"Set classifier.output.classes to the order of the outputs; the classes are at the positions {order}"
    return Cause("order of the classes", advice)


_SIZE = {
    "resize": Cause(
        "resize",
        "The original stretches images (prepare.resize stretch), or resizes them by another filter than Pillow's "
        "bilinear one with antialiasing. Resize your images to the size of the network as the original does, and use "
        "these",
    ),
    "crop": Cause(
        "crop instead of stretch",
        "The original scales the shorter side and takes a central crop. Set prepare.resize to crop, and "
        "prepare.crop_ratio to the size before the crop divided by that after it",
    ),
    "border": Cause(
        "border instead of stretch",
        "The original keeps the aspect ratio and adds a border. Set prepare.resize to pad, or pad your images in this "
        "way, and use these",
    ),
}
"""Mistakes in the size, by the kinds of :func:`resized_originals`."""

Candidate = tuple[Cause, Callable[[], Tensor], float]
"""A mistake, the logits without it, and the maximum difference at which it explains the reference."""


def _candidates(
    model: ImportedClassifier, images: Tensor, reference: Reference, originals: Sequence[Path]
) -> Iterator[Candidate]:
    """Every single mistake that is tried, with the outputs of the classifier without it."""
    yield from _candidates_in_mode(model, images, reference, originals, len(images))
    for trained, size in _modes_of_training(model, images):
        yield _TRAIN_MODE, partial(_run_in_parts, trained, size, images), NAMED_TOLERANCE


def _candidates_in_mode(
    model: ImportedClassifier, images: Tensor, reference: Reference, originals: Sequence[Path], size: int
) -> Iterator[Candidate]:
    """Every single mistake except the mode of the classifier, with its outputs in batches of a size without it."""
    for cause, changed in _input_candidates(model):
        yield cause, partial(_run_in_parts, changed, size, images), NAMED_TOLERANCE
    yield _INVERTED, partial(_run_in_parts, model, size, 1 - images), NAMED_TOLERANCE
    yield from _output_candidates(model, images, reference, size)
    height, width = model.input.size or tuple(images.shape[2:])
    for kind, resized in resized_originals(originals, images.shape[1], (height, width)):
        yield _SIZE[kind], partial(_run_in_parts, model, size, resized.to(images.device)), ROUNDED_TOLERANCE
    if images.shape[1] == 1 and model.input.channels == 3:
        for _, colours in resized_originals(originals, 3, (height, width)):
            if _are_colours_of(images, colours):
                yield _COLOURS, partial(_run_in_parts, model, size, colours.to(images.device)), ROUNDED_TOLERANCE


def _modes_of_training(model: ImportedClassifier, images: Tensor) -> Iterator[tuple[ImportedClassifier, int]]:
    """Copies of a classifier in training mode, and the size of their batches."""
    for with_dropout in (True, False):
        trained = _in_train_mode(model, with_dropout)
        for size in (len(images), 1):
            yield trained, size


def _has_second_mistake(
    model: ImportedClassifier, images: Tensor, reference: Reference, originals: Sequence[Path]
) -> bool:
    """Return whether the training mode with a second mistake explains the reference clearly better than alone.

    Batch normalisation in training mode nearly removes some other mistakes, such as a wrong value range.
    """
    with torch.inference_mode():
        for trained, size in _modes_of_training(model, images):
            alone = difference(_run_in_parts(trained, size, images), reference)
            if alone <= NAMED_TOLERANCE:
                both = _candidates_in_mode(trained, images, reference, originals, size)
                if any(difference(logits_of(), reference) < alone / CLEARLY_BETTER for _, logits_of, _ in both):
                    return True
    return False


def _are_colours_of(images: Tensor, colours: Tensor) -> bool:
    """Return whether images ``(n, 3, H, W)`` have colours, and the luma of others ``(n, 1, H, W)`` up to rounding."""
    luma = (colours * colours.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    is_grey = torch.equal(colours[:, 0], colours[:, 2])
    return not is_grey and luma.shape == images.shape and bool((luma - images.cpu()).abs().max() < 2 / 255)


def _input_candidates(model: ImportedClassifier) -> Iterator[tuple[Cause, ImportedClassifier]]:
    """Mistakes about the range and the order of the channels, and the classifier without each."""
    for low, high in RANGES:
        if (low, high) != model.input.value_range:
            yield _value_range(low, high), model.redeclared(input={"value_range": (low, high)})
    if model.input.channels == 3:
        # the mean and std may be listed in the declared order or in the other one
        for with_statistics in (False, True):
            yield _CHANNEL_ORDER, _reversed_channels(model, with_statistics)


def _output_candidates(
    model: ImportedClassifier, images: Tensor, reference: Reference, size: int
) -> Iterator[Candidate]:
    """Mistakes about the output: another order of the classes, a softmax too many, or a missing softmax."""
    with torch.inference_mode():
        logits = _run_in_parts(model, size, images)
    n = logits.shape[1]
    if reference.outputs.shape[1] == n:
        wanted = np.log(np.clip(reference.outputs, 1e-12, 1)) if reference.is_probability else reference.outputs
        centred, target = (values - values.mean(axis=1, keepdims=True) for values in (logits.double().numpy(), wanted))
        costs = np.abs(centred[:, :, None] - target[:, None, :]).sum(axis=0)
        order = linear_sum_assignment(costs)[1].argsort()
        if not np.array_equal(order, np.arange(n)):
            yield _class_order(order.tolist()), partial(_columns, logits, order), NAMED_TOLERANCE
    elif n == 2:
        yield _class_order([1, 0]), partial(_columns, logits, np.array([1, 0])), NAMED_TOLERANCE
    for declared, other, cause in (("logits", "probabilities", _PROBABILITIES), ("probabilities", "logits", _LOGITS)):
        if model.output.kind == declared:
            changed = model.redeclared(output={"kind": other})
            yield cause, partial(_run_in_parts, changed, size, images), NAMED_TOLERANCE


def accuracy_candidates(
    model: ImportedClassifier, confusion: np.ndarray
) -> Iterator[tuple[Cause, ImportedClassifier, bool]]:
    """Yield single mistakes that an accuracy can show, the classifier without each, and whether images are inverted.

    Args:
        model: imported classifier.
        confusion: number of images by predicted and by actual class, ``(K, K)``.
    """
    for cause, changed in _input_candidates(model):
        yield cause, changed, False
    yield _INVERTED, model, True
    low, high = model.input.value_range
    for mean, std in COMMON_STATISTICS if model.input.mean is None else ():
        if len(mean) in (1, model.input.channels):
            numbers = tuple(low + (high - low) * each for each in mean), tuple((high - low) * each for each in std)
            changed = model.redeclared(input={"mean": numbers[0], "std": numbers[1]})
            advice = f"Set classifier.input.mean and std, such as {list(numbers[0])} and {list(numbers[1])}"
            yield Cause("missing mean and std", advice), changed, False
    # the images of a class are predicted most often at the position of its output
    order = linear_sum_assignment(-confusion)[1].argsort()
    if not np.array_equal(order, np.arange(len(order))):
        permuted = model.redeclared()
        permuted.order = tuple(model.order[position] for position in order)
        yield _class_order(order.tolist()), permuted, False


def fitted_cause(model: ImportedClassifier, images: Tensor, reference: Reference) -> Cause | None:
    """Return a mistake in mean and std whose correction is fitted to the reference; None if no plausible one fits.

    If the fitted numbers are plausible only for another range, both the range and mean and std are wrong. These are two
    mistakes.
    """
    declared = model.input
    low, high = declared.value_range
    width = high - low
    is_missing = declared.mean is None and declared.std is None
    if not is_missing:
        mean, std = np.array(declared.mean or (0.0,)), np.array(declared.std or (1.0,))
        if not _is_plausible(mean, std, low, width):
            return None
    fitted = fit_mean_and_std(
        model, images, lambda logits: difference(logits, reference), reference.outputs, reference.is_probability
    )
    if fitted is None:
        return None
    mean, std = fitted
    changed = model.redeclared(input={"mean": tuple(mean.tolist()), "std": tuple(std.tolist())})
    if not _explains(changed, images, reference, ROUNDED_TOLERANCE):
        return None
    if np.allclose(std, 1, rtol=0.02) and np.allclose(mean, 0, atol=0.01 * width):
        return Cause("mean and std that the original does not use", "Remove classifier.input.mean and std")
    # in another range than [0, 1], a wrong range with a missing mean and std has the same outputs
    if not _is_plausible(mean, std, low, width) or (is_missing and (low, high) != (0.0, 1.0)):
        return None
    numbers = f"near {np.round(mean, 3).tolist()} and {np.round(std, 3).tolist()}"
    if is_missing:
        return Cause("missing mean and std", f"Set classifier.input.mean and std, {numbers}")
    return Cause("wrong mean and std", f"Correct classifier.input.mean and std, {numbers}")


def _is_plausible(mean: np.ndarray, std: np.ndarray, low: float, width: float) -> bool:
    """Return whether mean and std can be those of images of a range."""
    inside = (mean >= low - 0.05 * width) & (mean <= low + 1.05 * width)
    return bool(inside.all() and ((std >= 0.04 * width) & (std <= 0.75 * width)).all())


def _explains(
    model: ImportedClassifier, images: Tensor, reference: Reference, tolerance: float = NAMED_TOLERANCE
) -> bool:
    with torch.inference_mode():
        return difference(model(images), reference) <= tolerance


def _reversed_channels(model: ImportedClassifier, with_statistics: bool) -> ImportedClassifier:
    other: dict[str, object] = {"channel_order": "RGB" if model.input.channel_order == "BGR" else "BGR"}
    if not with_statistics:
        return model.redeclared(input=other)
    statistics: dict[str, object] = {
        name: values and values[::-1] for name, values in (("mean", model.input.mean), ("std", model.input.std))
    }
    return model.redeclared(input=other | statistics)


def _columns(logits: Tensor, order: np.ndarray) -> Tensor:
    return logits[:, torch.from_numpy(order)]


def _in_train_mode(model: ImportedClassifier, with_dropout: bool) -> ImportedClassifier:
    """A copy in training mode as a whole, or only its layers of batch normalisation."""
    trained = copy.deepcopy(model).train(with_dropout)
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.train()
    return trained


def _run_in_parts(model: nn.Module, size: int, images: Tensor) -> Tensor:
    """Logits of batches of a size, or NaN where layers in training mode refuse it."""
    try:
        return torch.cat([model(part) for part in torch.split(images, size)])
    except ValueError:
        return torch.full((len(images), 2), float("nan"))
