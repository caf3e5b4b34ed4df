"""What a step can say about itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

MAX_PARAM_CHARACTERS = 6000
MAX_NOTE_CHARACTERS = 8000


class Tracker:
    """What a step can say; this one hears nothing and needs no mlflow."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Numbers at one step (an epoch; ε in thousandths of a grey level). The part before ``/`` makes a section."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters beyond those that every step's run carries.

        Raises:
            ValueError: a value longer than the store keeps.
        """

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags of the run."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file, or a folder with all that is in it, kept under ``folder``."""

    def dataset(self, path: Path, name: str, context: str) -> None:
        """A data set by DVC's digest of the file or folder at ``path``."""

    def model(self, name: str, module: "nn.Module", example: "np.ndarray") -> None:
        """A network with signature and input example, float32 ``(N, 1, H, W)``, N at least 2."""

    def curve(
        self,
        name: str,
        tags: Mapping[str, str],
        points: Sequence[tuple[int, Mapping[str, float]]],
        artifacts: Sequence[Path] = (),
    ) -> None:
        """A child run with the same metric keys as every other curve of its kind, at integer steps, and files."""

    def note(self, markdown: str) -> None:
        """The description that the run's page shows.

        Raises:
            ValueError: longer than the store keeps.
        """

    def link_steps(self) -> None:
        """Tag this run with the runs of steps that made what is now in ``data/``, and list their models as its own.

        Runs are found by the digests of their outputs. A step without one is named in a log line.
        """
