"""The small workspace as bundles, and what they need beside prepared images and networks."""

import json
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from tasks.core.files import write_json, write_table
from tasks.core.workspace import Workspace
from tasks.params import Params, parse_params
from tasks.serving.bundle import write_bundle
from tasks.statistics.intervals import wilson
from tests.conftest import with_overrides
from tests.small_workspace import CLASSES, DEFENCES, SIDE, SMALL

OF_BUNDLES = SMALL | {
    "benchmark": DEFENCES,
    "acquire.classes": CLASSES,
    "acquire.positive_class": "left",
    "prepare.image_size": SIDE,
    "analyze.n_resamples": 100,
    "attack.sweep.n_restarts": 0,
}


def complete_workspace() -> Params:
    """Give the current folder, a copy of the small workspace, a manifest, parameters and what the data set says."""
    table = pd.read_parquet(Workspace().split)
    Workspace().validate.mkdir()
    table.drop(columns="split").assign(width=48, height=40).to_parquet(Workspace().manifest)
    info = json.loads(Workspace().dataset_info.read_text(encoding="utf-8"))
    counts = pd.crosstab(table["split"], table["class"])
    info |= {"name": "toy images", "source": "phantom", "image_size": SIDE, "strategy": "stratified", "n": len(table)}
    info["n_images"] = {split: counts.loc[split].to_dict() for split in ("train", "validation", "test")}
    Workspace().dataset_info.write_text(json.dumps(info), encoding="utf-8")
    values = with_overrides(OF_BUNDLES)
    with Workspace().params_file.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values, file)
    return parse_params(values)


def bundle_of(target: str, folder: Path) -> Path:
    """A target of the current folder as a bundle below ``folder``."""
    params = complete_workspace() if not Workspace().params_file.is_file() else parse_params(with_overrides(OF_BUNDLES))
    write_bundle(Workspace(), folder / target, params, target, f"# {target}\n")
    return folder / target


def write_results(targets: dict[str, tuple[int, list[str]]], eps: float = 4.0, n: int = 32) -> None:
    """What the step ``evaluate`` leaves for these targets, in this order of rank.

    Args:
        targets: of how many of ``n`` images each is right, clean and under attack, and the checks that it fails.
        eps: where.
        n: test images.
    """
    Workspace().evaluate.mkdir()
    rows, clean, checks = [], {}, []
    for rank, (target, (n_right, failing)) in enumerate(targets.items(), start=1):
        low, high = map(float, wilson(n_right, n))
        rate = {"accuracy": n_right / n, "accuracy_low": low, "accuracy_high": high}
        clean[target] = rate
        row = {"eps": eps, "rank": rank, "target": target, "n": n, **rate}
        rows += [{"threat_model": threat_model, **row} for threat_model in ("adaptive", "transfer")]
        for key in ("noise", "ball"):
            status = "FAIL" if key in failing else "PASS"
            checks.append({"target": target, "key": key, "status": status, "explanation": f"about {key}"})
            checks[-1] |= {"name": f"about {key}", "figure": 0.0}
    leaks = {"target": None, "key": "leakage", "name": "no leak", "figure": 0.1, "explanation": "some"}
    write_table(pd.DataFrame(rows), Workspace().benchmark)
    write_json({"clean": clean, "robust": {}}, Workspace().metrics)
    write_json([*checks, leaks | {"status": "WARN"}], Workspace().checks)
