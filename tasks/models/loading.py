"""Import of the user's classifier, and loading of classifiers from every source."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.core.digests import digest_of_folder, digest_of_model
from tasks.core.made_with import check_made_with
from tasks.core.workspace import Workspace
from tasks.models.classifier import build_classifier
from tasks.models.files import load_model
from tasks.models.imported import ImportedClassifier, output_order
from tasks.models.served_outputs import SERVED_OUTPUTS, check_served_outputs, write_served_outputs
from tasks.models.sources import ONNX, PROGRAM, SCRIPT, build_network, refusing
from tasks.models.untrusted import check_onnx, read_program, read_weights, user_file
from tasks.params import Classifier

COPIES = {"torch_export": PROGRAM, "torchscript": SCRIPT, "onnx": ONNX}


def load_classifier(workspace: Workspace, path: Path) -> nn.Module:
    """Load a classifier in evaluation mode, with frozen parameters.

    Args:
        workspace: whose step ``train_classifier`` trained or imported the classifier.
        path: of its weights: ``workspace.classifier``, those of a defence that trained it further, or of a surrogate.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or refused, or the classifier was made for other classes.
    """

    def build(made_for: Mapping[str, Any] | None = None, **arguments: Any) -> nn.Module:
        check_made_for(workspace, path, made_for or {})
        if "imported" in arguments:
            return build_imported(files=workspace.classifier_files, **arguments)
        return build_classifier(**arguments)

    return load_model(path, build)


def check_made_for(workspace: Workspace, path: Path, made_for: Mapping[str, Any]) -> None:
    """Refuse a classifier that was made for other classes than those of the prepared images, or for another order.

    Args:
        workspace: without prepared images, such as that of a bundle, nothing is refused.
        path: of its weights.
        made_for: entries of ``dataset.json`` when it was trained or imported, as far as they are known.

    Raises:
        ValueError: it is refused.
    """
    if workspace.dataset_info.is_file():
        info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
        check_made_with(path, workspace.step_of(path), made_for, workspace.dataset_info, info)


def surrogate_names(workspace: Workspace) -> list[str]:
    """Names of the independent surrogates, in the order of ``train_surrogates``.

    Raises:
        FileNotFoundError: the step train_surrogates has not run.
    """
    path = workspace.surrogates
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found. Run the step train_surrogates first: dvc repro train_surrogates")
    return [row["name"] for row in json.loads(path.read_text(encoding="utf-8"))]


def borrow_gradients(workspace: Workspace, model: nn.Module, device: torch.device) -> None:
    """Let attacks on a classifier that is only queried use the gradients of the surrogates, if these were trained.

    Raises:
        ValueError: there are no surrogates.
    """
    if not isinstance(model, ImportedClassifier) or model.has_gradients or not workspace.surrogates.is_file():
        return
    if not (names := surrogate_names(workspace)):
        raise ValueError(
            "train_surrogates: []. Attacks on a classifier that is only queried need at least one surrogate. Add a row"
        )
    surrogates = [load_classifier(workspace, workspace.surrogate(name)).to(device) for name in names]
    model.borrow_gradients(surrogates, ", ".join(["", *map(digest_of_model, surrogates)]))


def build_imported(
    imported: Mapping[str, Any], order: Sequence[int], image_size: Sequence[int], batch_size: int, files: Path
) -> ImportedClassifier:
    """Build an imported classifier from its copied files. A factory's network has the weights of its own.

    A server is asked once, and its outputs are compared with those at the import.

    Args:
        imported: the section ``classifier``.
        order: position among the outputs of each class.
        image_size: height and width of the prepared images.
        batch_size: see :class:`ImportedClassifier`.
        files: folder of the copies.

    Raises:
        ValueError: the file is refused, the factory fails, or the served model has changed.
    """
    # as JSON: lists are tuples there
    classifier = Classifier.model_validate_json(json.dumps(imported))
    size = classifier.input.size or (image_size[0], image_size[1])
    network, has_gradients = build_network(classifier, files, (classifier.input.channels, *size))
    model = ImportedClassifier(
        network,
        classifier.input,
        classifier.output,
        order,
        f"{classifier.source} {digest_of_folder(files)}",
        has_gradients,
        batch_size,
        classifier.head_layer,
        classifier.feature_map_layer,
    )
    if (files / SERVED_OUTPUTS).is_file():
        assert classifier.address is not None
        check_served_outputs(model, size, files, classifier.address)
    return model


def import_classifier(
    classifier: Classifier,
    classes: Sequence[str],
    positive_class: str,
    image_size: tuple[int, int],
    n_channels: int,
    workspace: Workspace,
    downloaded: Path | None = None,
) -> tuple[ImportedClassifier, dict[str, Any]]:
    """Copy the files of the user's classifier to the output of the step, and build it.

    Args:
        classifier: the section ``classifier``; its source is not ``train``.
        classes: ``acquire.classes``.
        positive_class: ``acquire.positive_class``.
        image_size: height and width of the prepared images.
        n_channels: channels of the prepared images.
        workspace: whose step ``train_classifier`` runs.
        downloaded: program of ``torch.export`` that an MLflow model holds.

    Returns:
        The classifier, and the arguments of :func:`build_imported` beside the folder, for its JSON file.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is refused, or the network does not agree with its declaration.
    """
    order = output_order(classifier.output, classes, positive_class)
    files, folder = workspace.classifier_files, workspace.root / classifier.folder
    files.mkdir()
    copy_files(classifier, folder, files, downloaded)
    arguments: dict[str, Any] = {
        "imported": classifier.model_dump(mode="json"),
        "order": order,
        "image_size": list(image_size),
        "batch_size": 0,
    }
    model = build_imported(files=files, **arguments)
    if classifier.source == "factory" and classifier.weights is not None:
        weights = read_weights(user_file(folder, classifier.weights, "classifier.weights"), "classifier.weights")
        load_weights(model.network, weights, classifier)
    model.batch_size = arguments["batch_size"] = find_batch_size(model, (n_channels, *image_size))
    if classifier.source == "http":
        write_served_outputs(model, classifier.input.size or image_size, files)
        # its digest depends on the outputs
        model = build_imported(files=files, **arguments)
    return model.eval().requires_grad_(False), arguments


def check_trainable(classifier: nn.Module, defence: str, kind: str) -> None:
    """Refuse a defence that is trained with the classifier, if the classifier has no gradients or no parameters.

    Args:
        classifier: from :func:`load_classifier`.
        defence: name of the defence.
        kind: its kind.

    Raises:
        ValueError: it is refused.
    """
    is_queried = isinstance(classifier, ImportedClassifier) and not classifier.has_gradients
    if is_queried or next(classifier.parameters(), None) is None:
        raise ValueError(
            f"selected_defences: {defence!r} of kind {kind} is trained with the classifier, which can only be queried. "
            "autoencoder, denoising_autoencoder, preprocessing are allowed for such a classifier. Remove the defence, "
            "or import the classifier in a format with gradients"
        )


def copy_modules(folder: Path, files: Path) -> None:
    """Copy the Python modules below a folder of the user."""
    for module in sorted(folder.rglob("*.py")):
        (copy := files / module.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module, copy)


def copy_files(classifier: Classifier, folder: Path, files: Path, downloaded: Path | None) -> None:
    """Copy the model file and the Python modules of a classifier, after a check of the model file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is refused.
    """
    if classifier.source in ("factory", "maite"):
        copy_modules(folder, files)
    if classifier.source == "maite" and classifier.weights is not None:
        source = user_file(folder, classifier.weights, "classifier.weights")
        (copy := files / classifier.weights).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    if classifier.source == "mlflow":
        assert downloaded is not None
        with refusing("classifier.uri"):
            read_program(downloaded)
        shutil.copyfile(downloaded, files / PROGRAM)
    if classifier.file is None:
        return
    source = user_file(folder, classifier.file, "classifier.file")
    if classifier.source == "onnx":
        # one file without external data
        with refusing("classifier.file"):
            content = check_onnx(source).SerializeToString()
        (files / ONNX).write_bytes(content)
    else:
        shutil.copyfile(source, files / COPIES[classifier.source])


def load_weights(network: nn.Module, weights: Mapping[str, torch.Tensor], classifier: Classifier) -> None:
    """Load weights into the network of a factory.

    Raises:
        ValueError: they are of another network.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"classifier.weights: {classifier.weights} does not fit the network of {classifier.factory}: {error}. "
            "Correct classifier.factory or classifier.arguments, or export the weights again"
        ) from error


def find_batch_size(model: ImportedClassifier, shape: tuple[int, int, int]) -> int:
    """Number of images of one call of the network: 0 if any number is possible, 1 if it takes single images.

    Args:
        model: imported classifier.
        shape: of the prepared images, ``(C, H, W)``.

    Raises:
        ValueError: the network takes no such images, or gives another number of outputs than declared.
    """
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    failure: Exception | None = None
    for batch_size in (0, 1):
        model.batch_size = batch_size
        try:
            with torch.inference_mode():
                outputs = model.raw(images)
        except Exception as error:
            failure = failure or error
            continue
        if outputs.ndim and len(outputs) == len(images):
            with torch.inference_mode():
                model.to_logits(outputs)
            return batch_size
    reason = str(failure).strip().partition("\n")[0]
    if isinstance(failure, ValueError):
        raise failure
    raise ValueError(
        f"classifier.input: the network fails for images of the declared shape: {reason}. Channels "
        f"{model.input.channels} and size {list(model.input.size or shape[1:])} are declared. Correct channels or size"
    ) from failure
