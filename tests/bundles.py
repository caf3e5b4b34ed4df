"""The small workspace with everything that a bundle needs, and its targets as bundles."""

import json
import shutil
from itertools import product
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
}


def complete_workspace(workspace: Workspace) -> Params:
    """Add parameters, a manifest and a description of the data set to a copy of the small workspace."""
    table = pd.read_parquet(workspace.split)
    workspace.validate.mkdir()
    table.drop(columns="split").assign(width=48, height=40).to_parquet(workspace.manifest)
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    counts = pd.crosstab(table["split"], table["class"])
    info |= {"name": "toy images", "source": "phantom", "image_size": SIDE, "strategy": "stratified", "n": len(table)}
    info["n_groups"] = int(table["group"].nunique())
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
        workspace: where; every image is a group of its own.
        targets: by name, in the order of their rank: correctly classified images (of ``n``, clean and under attack,
            and of each class), and failed checks.
        eps: of the attacks.
        n: number of test images.
    """
    workspace.evaluate.mkdir()
    rows, clean, checks, worst = [], {}, [], []
    names = list(targets)
    for rank, (target, (n_correct, failed)) in enumerate(targets.items(), start=1):
        low, high = map(float, wilson(n_correct, n))
        rate = {"value": n_correct / n, "low": low, "high": high, "n": n, "n_groups": n}
        clean[target] = {"accuracy": n_correct / n, "accuracy_low": low, "accuracy_high": high}
        points = product(("as_trained", "recalibrated"), ("adaptive", "transfer"), (0.0, eps))
        metrics = ("accuracy", "balanced_accuracy", *(f"recall_{name}" for name in CLASSES))
        for (point, threat_model, value), metric in product(points, metrics):
            where = {"target": target, "operating_point": point, "threat_model": threat_model, "eps": value}
            worst.append({**where, "metric": metric, **rate})
        row = {"eps": eps, "rank": rank, "target": target, "n": n, "n_groups": n}
        row |= {f"robust_{key}": value for key, value in clean[target].items()}
        row |= {f"robust_balanced_{key}": value for key, value in clean[target].items()}
        row |= {f"validation_balanced_{key}": value for key, value in clean[target].items()}
        row |= dict.fromkeys(["next_target", "difference", "difference_low", "difference_high"])
        row |= {"p_value": None, "p_value_holm": None}
        if rank < len(names):
            row |= {"next_target": names[rank], "difference": 0.25, "difference_low": 0.125, "difference_high": 0.375}
            row |= {"p_value": 0.004, "p_value_holm": 0.008}
        for point, threat_model in product(("as_trained", "recalibrated"), ("adaptive", "transfer")):
            rows.append({"operating_point": point, "threat_model": threat_model, **row})
        for key in ("noise", "ball"):
            status = "FAIL" if key in failed else "PASS"
            checks.append({"target": target, "key": key, "status": status, "explanation": f"about {key}"})
            checks[-1] |= {"name": f"about {key}", "value": 0.0}
    leakage = {"target": None, "key": "leakage", "name": "no leak", "value": 0.1, "explanation": "some"}
    write_table(pd.DataFrame(worst), workspace.worst_case)
    write_table(pd.DataFrame(rows), workspace.comparison)
    write_json({"clean": clean, "robust": {}}, workspace.metrics)
    write_json([*checks, leakage | {"status": "UNVERIFIED"}], workspace.checks)
