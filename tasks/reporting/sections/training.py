"""Training: loss and accuracy of each trained model by epoch."""

from typing import Any

import pandas as pd

from tasks.outcomes.names import display_name
from tasks.reporting import figures
from tasks.reporting.drawings import Drawing
from tasks.reporting.formats import number
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Section
from tasks.statistics.formatting import percent


def training_section(results: Results, _headline: Headline) -> Section:
    """Return the best epoch and the learning curves of the classifier, the autoencoder and the trained defences."""
    trainings, drawings = [], []
    for key, (name, history) in _histories(results).items():
        has_accuracy = "validation_accuracy" in history
        trainings.append({"key": key, "name": name, "has_accuracy": has_accuracy, **_best_epoch(history)})
        drawings.append(Drawing(f"{key}-loss", figures.training(history, "loss", name)))
        if has_accuracy:
            drawings.append(Drawing(f"{key}-accuracy", figures.training(history, "accuracy", name)))
    return Section("training", "Training", {"trainings": trainings}, drawings)


def _histories(results: Results) -> dict[str, tuple[str, pd.DataFrame]]:
    """Return the display name and the history of each training, by the prefix of its figures."""
    histories = {
        "classifier": ("classifier", results.classifier_history),
        "autoencoder": ("denoising autoencoder", results.autoencoder_history),
    }
    defences = results.defence_histories.items()
    return histories | {f"defence-{name}": (display_name(name), history) for name, history in defences}


def _best_epoch(history: pd.DataFrame) -> dict[str, Any]:
    best = history[history["best"] == 1].iloc[0]
    return {
        "n_epochs": len(history),
        "best_epoch": f"{best['epoch']:.0f}",
        "loss": number(best["validation_loss"]),
        "accuracy": percent(best["validation_accuracy"]) if "validation_accuracy" in history else None,
    }
