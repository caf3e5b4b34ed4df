"""The models under attack by name: the bare classifier, and every defence in front of it."""

from collections.abc import Callable

from torch import nn

from tasks import paths
from tasks.defences.purified import Purified
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.files import load_model
from tasks.paths import UNDEFENDED


def _autoencoder(classifier: nn.Module) -> nn.Module:
    return Purified(load_model(paths.AUTOENCODER, build_autoencoder), classifier)


DEFENCES: dict[str, Callable[[nn.Module], nn.Module]] = {"autoencoder": _autoencoder}
"""Name of a defence -> what puts it in front of a classifier; the result takes images and returns logits."""


def load_targets() -> dict[str, nn.Module]:
    """Every target by name, the undefended classifier first; in evaluation mode, parameters frozen.

    Raises:
        FileNotFoundError: a model has not been trained.
    """
    if missing := [path for path in (paths.CLASSIFIER, paths.AUTOENCODER) if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]} not found: run the step {missing[0].parent.name} first")
    classifier = load_model(paths.CLASSIFIER, build_classifier)
    defended = {name: defend(classifier) for name, defend in DEFENCES.items()}
    return {name: model.eval().requires_grad_(False) for name, model in {UNDEFENDED: classifier, **defended}.items()}
