"""The interface that a step logs to, and the no-op tracker."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

MAX_PARAM_CHARACTERS = 6000
MAX_NOTE_CHARACTERS = 8000


class Tracker:
    """No-op tracker: has the methods that a step can call, logs nothing, and needs no mlflow."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at one step (an epoch, or eps in thousandths of 1/255).

        The part of a name before ``/`` becomes a section in MLflow's UI.
        """

    def epoch(self, epoch: int, metrics: Mapping[str, float], network: str = "") -> None:
        """Log the metrics of an epoch of a training in the section ``train``.

        Args:
            epoch: its number, from 1.
            metrics: values by name.
            network: name of the network, a part of the metric keys; needed if one step trains several networks.
        """
        section = f"train/{network}/" if network else "train/"
        self.metrics({f"{section}{name}": value for name, value in metrics.items()}, epoch)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters beside those that the step reads from params.yaml.

        Raises:
            ValueError: a value is longer than ``MAX_PARAM_CHARACTERS``.
        """

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a file, or a folder and its content, below ``folder``."""

    def images(self, path: Path) -> None:
        """Log the PNG files of a folder as images under their names, so that MLflow's UI compares those of two runs."""

    def dataset(self, path: Path, name: str, context: str) -> None:
        """Log a data set: the path of a file or folder, and its digest in DVC."""

    def model(self, name: str, module: "nn.Module", example: "np.ndarray") -> None:
        """Log a network with signature and input example, float32 ``(N, C, H, W)`` with N of at least 2."""

    def curve(
        self,
        name: str,
        tags: Mapping[str, str],
        points: Sequence[tuple[int, Mapping[str, float]]],
        artifacts: Sequence[Path] = (),
    ) -> None:
        """Log a child run with metrics at integer steps, files, and the parameters and tags of this run but its step.

        All curves of one kind have the same metric keys, so MLflow can compare them.
        """

    def note(self, markdown: str) -> None:
        """Set the description of the run.

        Raises:
            ValueError: the text is longer than ``MAX_NOTE_CHARACTERS``.
        """

    def link_steps(self) -> None:
        """Tag this run with the runs that made the outputs in ``data/``, and list their models as its own.

        The runs are found by the digests of the outputs. A log line names a step without a run.
        """
