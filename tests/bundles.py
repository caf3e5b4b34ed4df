"""The small workspace with everything that a bundle needs, and its targets as bundles."""

import json
import shutil
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from tasks.core.files import write_json, write_table
from tasks.core.workspace import Workspace
from tasks.params import Params, load_params, parse_params
from tasks.serving.bundle import write_bundle
from tasks.statistics.intervals import wilson
from tests.conftest import with_overrides
from tests.small_workspace import CLASSES, DEFENCES, SIDE, SMALL

BUNDLE_PARAMS = SMALL | {
    "selected_defences": DEFENCES,
    "acquire.classes": CLASSES,
    "acquire.positive_class": "left",
    "prepare.image_size": SIDE,
    "attack.sweep.n_restarts": 0,
}


def complete_workspace(workspace: Workspace) -> Params:
    """Add parameters, a manifest and a description of the data set to a copy of the small workspace."""
    table = pd.read_parquet(workspace.split)
    workspace.validate.mkdir()
    table.drop(columns="split").assign(width=48, height=40).to_parquet(workspace.manifest)
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    counts = pd.crosstab(table["split"], table["class"])
    info |= {"name": "toy images", "source": "phantom", "image_size": SIDE, "strategy": "stratified", "n": len(table)}
    info["n_images"] = {split: counts.loc[split].to_dict() for split in ("train", "validation", "test")}
    workspace.dataset_info.write_text(json.dumps(info), encoding="utf-8")
    values = with_overrides(BUNDLE_PARAMS)
    with workspace.params_file.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values, file)
    return parse_params(values)


def copy_completed(small_workspace: Path, folder: Path) -> Workspace:
    """A completed copy of the small workspace in a folder."""
    shutil.copytree(small_workspace / "data", folder / "data")
    complete_workspace(Workspace(folder))
    return Workspace(folder)


def bundle_of(workspace: Workspace, target: str, folder: Path) -> Path:
    """Write a target of a completed workspace as a bundle below a folder, and return the folder of the bundle."""
    write_bundle(workspace, folder / target, load_params(workspace.params_file), target, f"# {target}\n")
    return folder / target


def write_results(
    workspace: Workspace, targets: dict[str, tuple[int, list[str]]], eps: float = 4.0, n: int = 32
) -> None:
    """Write the results of the step ``evaluate``.

    Args:
        workspace: where.
        targets: by name, in the order of their rank: correctly classified images (of ``n``, clean and under attack),
            and failed checks.
        eps: of the attacks.
        n: number of test images.
    """
    workspace.evaluate.mkdir()
    rows, clean, checks = [], {}, []
    for rank, (target, (n_correct, failed)) in enumerate(targets.items(), start=1):
        low, high = map(float, wilson(n_correct, n))
        accuracy = {"accuracy": n_correct / n, "accuracy_low": low, "accuracy_high": high}
        clean[target] = accuracy
        row = {"eps": eps, "rank": rank, "target": target, "n": n}
        row |= {f"robust_{key}": value for key, value in accuracy.items()}
        rows += [{"threat_model": threat_model, **row} for threat_model in ("adaptive", "transfer")]
        for key in ("noise", "ball"):
            status = "FAIL" if key in failed else "PASS"
            checks.append({"target": target, "key": key, "status": status, "explanation": f"about {key}"})
            checks[-1] |= {"name": f"about {key}", "figure": 0.0}
    leakage = {"target": None, "key": "leakage", "name": "no leak", "figure": 0.1, "explanation": "some"}
    write_table(pd.DataFrame(rows), workspace.comparison)
    write_json({"clean": clean, "robust": {}}, workspace.metrics)
    write_json([*checks, leakage | {"status": "WARN"}], workspace.checks)
