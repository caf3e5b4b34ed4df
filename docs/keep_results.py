"""Archive the numbers and figures of the workspace: ``python -m docs.keep_results NAME``.

The archive is ``docs/evidence/results/NAME/``. Its ``manifest.json`` has the commit, the parameters, the data and the
libraries with which the results were computed. ``python -m docs.make_results`` computes and archives the published
results, and ``python -m docs.write_tables`` writes the tables of the documents from the archives. The archive has the
results of each image, from which the step ``evaluate`` computes its tables, but no pixels.

Figures that show images are archived for phantoms only, since other data sets have their own licence. Figures of more
than 400 kB (embeddings, which have thousands of points) are only in the report.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from docs import RESULTS
from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED, load_params
from tasks.params.params import flatten
from tasks.reporting.drawings import IMAGES
from tasks.reporting.results import read_json
from tasks.tracking import git_output, minutes_of_steps, origin_tags

LOCK = "dvc.lock"
MANIFEST = "manifest.json"
INCOMPLETE = "incomplete"
"""File that an archive has while it is written."""
RUNS = "runs"
"""Key of the definition of a table with replacements for several runs."""
FILES = {
    "params_file": "params.yaml",
    "dataset_info": "dataset.json",
    "split": "split.parquet",
    "shortcut_predictions": "shortcut_predictions.csv",
    "leakage": "leakage.json",
    "classifier_history": "classifier_history.csv",
    "autoencoder_history": "autoencoder_history.csv",
    "metrics": "metrics.json",
    "robustness": "robustness.csv",
    "confusion": "confusion.csv",
    "worst_case": "worst_case.csv",
    "validation_robustness": "validation_robustness.csv",
    "configurations": "configurations.csv",
    "comparison": "comparison.csv",
    "minimum_perturbation": "minimum_perturbation.csv",
    "certified_accuracy": "certified_accuracy.csv",
    "checks": "checks.json",
    "claims": "claims.json",
    "robustness_area": "robustness_area.csv",
    "classification": "classification.csv",
    "heatmaps": "heatmaps.csv",
    "intensity": "intensity.csv",
    "features": "features.csv",
    "resilience": "resilience.csv",
    "detection": "detection.csv",
    "rejection": "rejection.csv",
    "cycles": "active_learning_cycles.csv",
    "learning_curves": "active_learning_curves.csv",
    "label_efficiency": "active_learning_efficiency.csv",
    "label_efficiency_by_seed": "active_learning_efficiency_by_seed.csv",
    "headline": "headline.md",
}
"""Attribute of :class:`Workspace` -> name of the file in the archive."""

RECORDS = "records"
"""Folder with the results of each image: a folder for each target with the tables of its attack step."""
MAX_FIGURE_BYTES = 400_000


def keep_results(name: str, root: Path = Path()) -> Path:
    """Archive the results of a workspace; an archive of the same name is replaced.

    Args:
        name: name of the archive: a-z, 0-9 and single hyphens.
        root: folder of the workspace.

    Returns:
        The folder of the archive.

    Raises:
        ValueError: the name is not valid, params.yaml has changed since the run, or two histories get the same name.
        FileNotFoundError: an output of the pipeline is missing.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name {name!r}: a-z, 0-9 and single hyphens are allowed. Use a name like stratified-80-20")
    workspace = Workspace(root)
    files = {getattr(workspace, attribute): archived for attribute, archived in FILES.items()}
    figures = sorted(workspace.figures.glob("*.png"))
    missing = [str(path) for path in (*files, root / LOCK) if not path.is_file()]
    if missing or not figures:
        raise FileNotFoundError(f"{', '.join(missing) or workspace.figures} not found. Run dvc repro first")
    _check_params(workspace)
    files |= _defence_histories(workspace)

    folder = root / RESULTS / name
    begin_archive(folder)
    (folder / "figures").mkdir()
    for source, archived in files.items():
        shutil.copyfile(source, folder / archived)
    for target in (UNDEFENDED, *load_params(workspace.params_file).selected_defences):
        records = folder / RECORDS / target
        records.mkdir(parents=True)
        for source in sorted(workspace.attack_folder(target).iterdir()):
            # the other files are adversarial images
            if source.suffix in (".parquet", ".json"):
                shutil.copyfile(source, records / source.name)
    _shorten_image_folder(folder / "params.yaml")
    is_phantom = read_json(workspace.dataset_info)["is_phantom"]
    for figure in figures:
        is_public = is_phantom is True or not figure.name.startswith(IMAGES)
        if is_public and figure.stat().st_size <= MAX_FIGURE_BYTES:
            shutil.copyfile(figure, folder / "figures" / figure.name)
    write_json(manifest(workspace), folder / MANIFEST)
    end_archive(folder)
    return folder


def check_archive(folder: Path) -> None:
    """Check that a folder can be replaced: it is an archive, empty or missing.

    Raises:
        ValueError: it has other files.
    """
    if (
        folder.is_dir()
        and any(folder.iterdir())
        and not any((folder / each).is_file() for each in (MANIFEST, INCOMPLETE))
    ):
        raise ValueError(
            f"{folder} has files and no {MANIFEST}, so it is no archive. An archive would replace all its files. "
            "Move the folder, or rename the table or the run."
        )


def begin_archive(folder: Path) -> None:
    """Empty an archive, or create it, and mark it as incomplete until :func:`end_archive`.

    Raises:
        ValueError: the folder is no archive.
    """
    check_archive(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INCOMPLETE).touch()
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != INCOMPLETE:
            path.unlink()


def end_archive(folder: Path) -> None:
    """Mark an archive as complete."""
    (folder / INCOMPLETE).unlink()


def copy_archive(source: Path, folder: Path) -> None:
    """Replace an archive by a copy of another one."""
    begin_archive(folder)
    shutil.copytree(source, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    end_archive(folder)


def manifest(workspace: Workspace) -> dict[str, Any]:
    """Commit, changed parameters, data, versions, processor and minutes of each step of the present outputs.

    Returns:
        ``parameters`` has the keys of params.yaml whose values differ from those of the commit. ``dirty`` is true if
        other files than params.yaml and outputs differ from the commit.
    """
    yaml = YAML(typ="safe")
    tags = origin_tags(workspace.params_file.name, RESULTS.as_posix())
    committed = flatten(yaml.load(git_output("show", "HEAD:./params.yaml") or "{}"))
    params = flatten(yaml.load(workspace.params_file))
    name = Path(params["acquire.folder"]).name
    deps = yaml.load(workspace.root / LOCK)["stages"]["acquire"]["deps"]
    data = next(dep for dep in deps if not dep["path"].startswith(("data/", "tasks/")))
    changed = {key: value for key, value in params.items() if key not in committed or committed[key] != value}
    return {
        "commit": tags.get("mlflow.source.git.commit"),
        "dirty": tags.get("mlflow.source.git.dirty") != "false",
        "parameters": changed | {"acquire.folder": name},
        "data": {"folder": name, "md5": data["md5"], "files": data["nfiles"]},
        "versions": {key.removeprefix("version."): tag for key, tag in tags.items() if key.startswith("version.")},
        "processor": tags["processor"],
        "cores": os.cpu_count(),
        "minutes": minutes_of_steps(workspace),
    }


def definitions(file: Path) -> dict[str, dict[str, Any]]:
    """Values that replace those of params.yaml in each run of a table, by the name of the run."""
    given = YAML(typ="safe").load(file) or {}
    runs = given.pop(RUNS, None) or {"": {}}
    return {"-".join(filter(None, (file.stem, str(name)))): merged(given, own or {}) for name, own in runs.items()}


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings with the values of ``changes``; lists are replaced as a whole."""
    result = dict(values)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _defence_histories(workspace: Workspace) -> dict[Path, str]:
    """Training histories of the selected defences -> name in the archive."""
    names = load_params(workspace.params_file).selected_defences
    histories = {workspace.defence_history(name): f"{name}_history.csv" for name in names}
    histories = {path: archived for path, archived in histories.items() if path.is_file()}
    if taken := sorted(set(histories.values()) & set(FILES.values())):
        raise ValueError(
            f"{', '.join(taken)}: two training histories have this name. Rename the defence in params.yaml"
        )
    return histories


def _shorten_image_folder(params_file: Path) -> None:
    """Remove the path of ``acquire.folder``, which is private, and keep its last part."""
    yaml = YAML()
    params = yaml.load(params_file)
    params["acquire"]["folder"] = Path(params["acquire"]["folder"]).name
    yaml.dump(params, params_file)


def _check_params(workspace: Workspace) -> None:
    """Compare params.yaml with the values in dvc.lock, which the outputs were computed with."""
    yaml = YAML(typ="safe")
    params = yaml.load(workspace.params_file)
    for stage, entry in yaml.load(workspace.root / LOCK)["stages"].items():
        for key, value_of_run in entry.get("params", {}).get("params.yaml", {}).items():
            value: Any = params
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value != value_of_run:
                raise ValueError(f"{key} in params.yaml has changed since the stage {stage} ran. Run dvc repro first")


def check_up_to_date() -> None:
    """Check that the outputs of the current folder belong to its code, parameters and data.

    Otherwise, a step that was run by hand, or before the present commit, would be archived under this commit.

    Raises:
        ValueError: DVC reports a change.
    """
    dvc = Path(sys.executable).parent / "dvc"
    if subprocess.run([dvc, "status", "--quiet"], check=False).returncode:  # noqa: S603  fixed  # nosec B603
        raise ValueError("dvc status reports changes, so the outputs may belong to other inputs. Run dvc repro first")


def main() -> None:
    """Command-line entry."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.keep_results",
        description=f"Archive the numbers and figures of the workspace in {RESULTS}/NAME.",
    )
    parser.add_argument("name", help="for example stratified-80-20")
    name = parser.parse_args().name
    try:
        check_up_to_date()
        print(keep_results(name))
    except (ValueError, OSError) as error:
        sys.exit(f"keep_results: {error}")


if __name__ == "__main__":
    main()
