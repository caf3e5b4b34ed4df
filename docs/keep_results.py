"""Keep the numbers and figures of the present workspace: ``python -m docs.keep_results NAME``.

They go to ``docs/evidence/results/NAME/``, from which ``python -m docs.write_tables`` writes the documents' tables. Figures that
show images are kept for phantoms only; the licence of other data sets is theirs to give. A figure that is too large for
a repository (embeddings, with their thousands of points) stays in the report.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from docs import RESULTS
from tasks.core.workspace import Workspace
from tasks.params import load_params
from tasks.reporting.gallery import IMAGES

LOCK = Path("dvc.lock")
FILES = {
    Workspace().params_file: "params.yaml",
    Workspace().dataset_info: "dataset.json",
    Workspace().classifier_history: "classifier_history.csv",
    Workspace().autoencoder_history: "autoencoder_history.csv",
    Workspace().metrics: "metrics.json",
    Workspace().robustness: "robustness.csv",
    Workspace().confusion: "confusion.csv",
    Workspace().benchmark: "benchmark.csv",
    Workspace().minimal_eps: "minimal_eps.csv",
    Workspace().certified_accuracy: "certified.csv",
    Workspace().checks: "checks.json",
    Workspace().verdict: "verdict.json",
    Workspace().robustness_area: "robustness_area.csv",
    Workspace().classification: "classification.csv",
    Workspace().heatmaps: "heatmaps.csv",
    Workspace().intensity: "intensity.csv",
    Workspace().features: "features.csv",
    Workspace().resilience: "resilience.csv",
    Workspace().detection: "detection.csv",
    Workspace().gate: "gate.csv",
    Workspace().cycles: "active_learning_cycles.csv",
    Workspace().learning_curves: "active_learning_curves.csv",
    Workspace().label_efficiency: "active_learning_efficiency.csv",
}
"""Where a file is in the workspace -> its name among the kept results."""

MAX_FIGURE_BYTES = 400_000


def keep_results(name: str) -> Path:
    """Copy what is small to ``docs/evidence/results/<name>/``, in place of what is there, and return that folder.

    Raises:
        ValueError: ``name`` is no simple name, params.yaml is not what the outputs were made with, or a trained defence
            is called as the classifier or the autoencoder are.
        FileNotFoundError: the pipeline has not run.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"{name!r} must be made of a-z, 0-9 and single hyphens, such as stratified-80-20")
    figures = sorted(Workspace().figures.glob("*.png"))
    missing = [str(path) for path in (*FILES, LOCK) if not path.is_file()]
    if missing or not figures:
        raise FileNotFoundError(f"{', '.join(missing) or Workspace().figures} not found: run dvc repro first")
    _check_params()
    files = FILES | _histories()

    folder = RESULTS / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "figures").mkdir(parents=True)
    for source, kept in files.items():
        shutil.copyfile(source, folder / kept)
    _forget_where_images_lay(folder / "params.yaml")
    is_phantom = json.loads(Workspace().dataset_info.read_text(encoding="utf-8"))["is_phantom"]
    for figure in figures:
        may_be_shown = is_phantom is True or not figure.name.startswith(IMAGES)
        if may_be_shown and figure.stat().st_size <= MAX_FIGURE_BYTES:
            shutil.copyfile(figure, folder / "figures" / figure.name)
    return folder


def _histories() -> dict[Path, str]:
    """Histories of the defences that were trained, as ``FILES`` has those of classifier and autoencoder."""
    histories = {Workspace().defence_history(name): f"{name}_history.csv" for name in load_params().benchmark}
    if taken := sorted(kept for path, kept in histories.items() if path.is_file() and kept in FILES.values()):
        raise ValueError(f"{', '.join(taken)} would stand for two histories: call the defence otherwise in params.yaml")
    return {path: kept for path, kept in histories.items() if path.is_file()}


def _forget_where_images_lay(kept: Path) -> None:
    """Shorten ``acquire.folder`` to the folder's name: where it lies on this machine is nobody's business."""
    yaml = YAML()
    params = yaml.load(kept)
    params["acquire"]["folder"] = Path(params["acquire"]["folder"]).name
    yaml.dump(params, kept)


def _check_params() -> None:
    """Hold params.yaml against the values that DVC wrote down when it made the outputs."""
    yaml = YAML(typ="safe")
    for stage, entry in yaml.load(LOCK)["stages"].items():
        for key, made_with in entry.get("params", {}).get(str(Workspace().params_file), {}).items():
            value: Any = yaml.load(Workspace().params_file)
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value != made_with:
                raise ValueError(f"{key} in params.yaml is not what the stage {stage} ran with: run dvc repro first")


def main() -> None:
    """Command-line entry."""
    parser = argparse.ArgumentParser(description="Keep the present results under docs/evidence/results/NAME.")
    parser.add_argument("name", help="such as stratified-80-20")
    try:
        print(keep_results(parser.parse_args().name))
    except (ValueError, OSError) as error:
        sys.exit(f"keep_results: {error}")


if __name__ == "__main__":
    main()
