"""Networks of the user, by their source: a factory, a model file, or an address."""

import importlib
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.models.imported import ImportedClassifier, output_tensor
from tasks.models.queried import MaiteNetwork, Queried, http_query, onnx_outputs, onnx_query
from tasks.models.trial_images import trial_images
from tasks.models.untrusted import check_onnx, check_torchscript, read_program
from tasks.params import Classifier

PROGRAM, SCRIPT, ONNX = "model.pt2", "model.torchscript", "model.onnx"
"""Names of the copies of model files below ``data/train_classifier/files``."""
ONNX_TOLERANCE = 1e-4
"""Maximum difference of a converted ONNX model from onnxruntime, relative to the largest output."""
ONNX_ROUNDING = 1e-6
"""Absolute difference that is allowed beside it."""
ONNX_VERSIONS = (None, 18, 17, 15)
"""Versions of the operators that are tried for the conversion; None: those of the file."""

log = logging.getLogger(__name__)

_import_lock = threading.RLock()


def build_network(classifier: Classifier, files: Path, image_shape: tuple[int, int, int]) -> tuple[nn.Module, bool]:
    """Build the network of an imported classifier from its copied files.

    Args:
        classifier: the section ``classifier``; its source is not ``train``.
        files: folder of the copies.
        image_shape: of the network's input, ``(C, H, W)``.

    Returns:
        The network in evaluation mode, and whether it has gradients.

    Raises:
        ValueError: the file is damaged or refused, or the factory fails.
    """
    match classifier.source:
        case "factory":
            network = call_factory(classifier, files)
            if not isinstance(network, nn.Module):
                raise ValueError(
                    f"classifier.factory: {classifier.factory} returns {type(network).__name__}. A torch.nn.Module is "
                    "needed. Use source maite for an object of MAITE's protocol"
                )
            return network.eval(), True
        case "maite":
            arguments = {"weights": str(files / classifier.weights)} if classifier.weights else {}
            model = call_factory(classifier, files, **arguments)
            if not callable(model):
                raise ValueError(
                    f"classifier.factory: {classifier.factory} returns no callable. MAITE's protocol is needed"
                )
            network = MaiteNetwork(model).eval()
            return network, has_gradients(network, image_shape)
        case "torch_export" | "mlflow":
            return load_program(files / PROGRAM), True
        case "torchscript":
            with refusing("classifier.file"):
                check_torchscript(files / SCRIPT)
                script: nn.Module = torch.jit.load(str(files / SCRIPT), map_location="cpu")  # type: ignore[no-untyped-call]  # torch's annotation
                return script.eval(), True
        case "onnx":
            wrapper = ImportedClassifier(nn.Identity(), classifier.input, classifier.output, order=())
            return load_onnx(files / ONNX, wrapper.to_input(trial_images(image_shape)))
        case _:
            assert classifier.source == "http"
            assert classifier.address is not None
            return Queried(http_query(classifier.address), classifier.address), False


def call_factory(classifier: Classifier, files: Path, **more: Any) -> Any:
    """Call the factory of a classifier with its arguments.

    Raises:
        ValueError: there is no such function, or it fails.
    """
    assert classifier.factory is not None
    return call_function(classifier.factory, files, "classifier.factory", {**classifier.arguments, **more})


def call_function(dotted: str, folder: Path, key: str, arguments: dict[str, Any]) -> Any:
    """Call a function of a module in a folder, or of an installed package.

    Modules of the folder are imported anew for each call, because another folder can have other modules of their names.

    Args:
        dotted: ``package.module:function``.
        folder: with modules of the user.
        key: dotted key of the parameter, for errors.
        arguments: keyword arguments.

    Raises:
        ValueError: there is no such function, or it fails.
    """
    module_name, _, function_name = dotted.partition(":")
    with _import_lock, _importing_from(folder):
        try:
            function: Any = importlib.import_module(module_name)
            for name in function_name.split("."):
                function = getattr(function, name)
        except Exception as error:
            raise ValueError(
                f"{key}: {dotted} cannot be imported: {type(error).__name__}: {error}. A function of a "
                f"module in {folder} or of an installed package is needed. Correct the path, or install the package"
            ) from error
        try:
            return function(**arguments)
        except Exception as error:
            raise ValueError(
                f"{key}: {dotted} failed: {type(error).__name__}: {error}. It is called with the arguments "
                f"{arguments}. Correct the arguments or the function"
            ) from error


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Import modules from a folder before those of other folders, and unload them at the end."""
    where = str(folder.resolve())
    sys.path.insert(0, where)
    importlib.invalidate_caches()
    # a folder below data/ must not get __pycache__, which would change its digest
    writes = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(where)
        # a copy: another thread, or the access to a lazy module, can import modules meanwhile
        for name in [name for name, module in sys.modules.copy().items() if _is_below(module, folder)]:
            del sys.modules[name]


def load_program(path: Path) -> nn.Module:
    """Load a program of ``torch.export`` as modules with the names of the original ones.

    Raises:
        ValueError: the file is damaged or refused.
    """
    with refusing("classifier.file"):
        network = torch.export.unflatten(torch.export.load(read_program(path)))
    for module in network.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            # holds fake tensors, which have no copies
            node.meta = {}
    return network


def load_onnx(path: Path, inputs: Tensor) -> tuple[nn.Module, bool]:
    """Load an ONNX model as torch modules if they give its outputs, else for queries by onnxruntime.

    Args:
        path: of the file.
        inputs: images as the network expects them, ``(n, C, H, W)``, on which the outputs are compared.

    Raises:
        ValueError: the file is damaged or refused, or the packages for ONNX are missing.
    """
    try:
        import onnx
        import onnx.version_converter
        import onnx2torch
    except ImportError as error:
        raise ValueError(
            f"classifier.source: onnx needs the package {error.name}. Install onnx, onnx2torch and onnxruntime"
        ) from error
    with refusing("classifier.file"):
        model = check_onnx(path)
        session = Queried(onnx_query(model.SerializeToString()), ONNX)
        queries = onnx_outputs(with_scores(model).SerializeToString())
        expected = [queries(image[None].numpy()) for image in inputs]
        # refuses outputs that are not finite
        session(inputs[:1])
    for version in ONNX_VERSIONS:
        try:
            changed = model if version is None else onnx.version_converter.convert_version(model, version)
            network: nn.Module = onnx2torch.convert(changed).eval()
            compared: nn.Module = onnx2torch.convert(with_scores(changed)).eval()
            with torch.inference_mode():
                found = [compared(image[None]) for image in inputs]
        except Exception as error:
            # both converters raise many types of exceptions for operators that they do not support
            log.debug("onnx2torch, operators of version %s: %s", version, error)
            continue
        arrays = [[np.asarray(part) for part in (row if isinstance(row, list | tuple) else [row])] for row in found]
        if _same_outputs(arrays, expected):
            return network, True
    log.warning(
        "classifier.file: onnx2torch cannot convert the ONNX model, so it is queried for scores without gradients"
    )
    return session, False


def with_scores(model: Any) -> Any:
    """Copy an ONNX model; inputs of each softmax and sigmoid, which hide differences where they saturate, are outputs.

    Args:
        model: ``onnx.ModelProto``.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    given = {value.name for value in (*copy.graph.output, *copy.graph.input)}
    scores = [node.input[0] for node in copy.graph.node if node.op_type in ("Softmax", "Sigmoid")]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(scores) if name not in given)
    return copy


def _same_outputs(found: list[list[np.ndarray]], expected: list[list[np.ndarray]]) -> bool:
    """Compare outputs of each image, relative to the largest value for it or for the median image."""
    if any(len(row) != len(wanted) for row, wanted in zip(found, expected, strict=True)):
        return False
    for parts, wanted in zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True):
        largest = [np.abs(part[np.isfinite(part)]).max(initial=0) for part in wanted]
        for part, of_original, own in zip(parts, wanted, largest, strict=True):
            tolerance = ONNX_TOLERANCE * max(own, np.median(largest)) + ONNX_ROUNDING
            if part.size != of_original.size or not np.allclose(
                part.ravel(), of_original.ravel(), rtol=0, atol=tolerance, equal_nan=True
            ):
                return False
    return True


def has_gradients(network: nn.Module, image_shape: tuple[int, int, int]) -> bool:
    """Return whether the output of a network has a gradient with respect to its input."""
    images = torch.rand(1, *image_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.enable_grad():
        output = output_tensor(network(images))
        if not output.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(output.float().sum(), images, allow_unused=True)
    return gradient is not None and bool(gradient.abs().sum() > 0)


@contextmanager
def refusing(key: str) -> Iterator[None]:
    """Turn every error of a reader into one message that names the parameter.

    Raises:
        ValueError: the block raised an exception.
    """
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{key}: the file is refused: {reason}. Export the model again, from a source that you trust"
        ) from error


def _is_below(module: Any, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).resolve().is_relative_to(folder.resolve())
