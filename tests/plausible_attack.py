"""Made-up outputs of the attack steps that are consistent with given records."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED
from tasks.records.operating_points import OperatingPoint, write_operating_points
from tasks.records.tables import write_records
from tests.conftest import VALUES

COST = {"n_parameters": 1000, "multiply_adds": 2000, "n_eot_samples": 1}


def minimum_eps_in(records: pd.DataFrame) -> pd.DataFrame:
    """The result of a suite that breaks exactly the images that adaptive PGD breaks in these records."""
    clean = records[records["attack"] == "clean"][["image", "label", "group", "target", "norm", "correct"]]
    adaptive = records[(records["threat_model"] == "adaptive") & (records["attack"] == "pgd") & ~records["correct"]]
    broken = adaptive.groupby(["target", "image"])["eps"].min().rename("minimum_eps")
    found = clean.join(broken, on=["target", "image"]).fillna({"minimum_eps": math.inf})
    found.loc[~found["correct"], "minimum_eps"] = 0.0
    found["minimum_perturbation"] = 0.75 * found["minimum_eps"]
    found["minimum_eps_8bit"] = found["minimum_eps"]
    curve = {"operating_point": "as_trained", "threat_model": "adaptive", "attack": "suite", "found_by": "apgd_margin"}
    return found.drop(columns="correct").assign(**curve).reset_index(drop=True)


def diagnostics_in(records: pd.DataFrame) -> pd.DataFrame:
    """Diagnostics of targets without masked gradients: noise breaks no image, an unbounded attack breaks all."""
    clean = records[records["attack"] == "clean"][["image", "target", "correct"]]
    grid = sorted(set(records["eps"]) - {0.0})
    values = {("unbounded_attack", 127.5): 0.0, ("zero_gradient", 0.0): 0.125, ("finite_gradient", 0.0): 1.0}
    values |= {
        ("max_logit_difference", 0.0): 0.0,
        ("batch_difference", 0.0): 0.0,
        ("repeatable_prediction", 0.0): 1.0,
        ("outputs_are_probabilities", 0.0): 0.0,
    }
    parts = [clean.assign(diagnostic=name, eps=eps, value=value) for (name, eps), value in values.items()]
    parts += [clean.assign(diagnostic="random_noise", eps=eps, value=clean["correct"].astype(float)) for eps in grid]
    for eps in (0.25, 1.0, 4.0):
        parts.append(clean.assign(diagnostic="margin_drop", eps=eps, value=0.9 * eps))
        parts.append(clean.assign(diagnostic="margin_drop_by_gradient", eps=eps, value=eps))
    undefended = clean[clean["target"] == UNDEFENDED]
    parts.append(undefended.assign(diagnostic="positive_control", eps=grid[-1], value=0.0))
    return pd.concat(parts, ignore_index=True).drop(columns="correct")


def write_attacks(records: pa.Table, points: Sequence[OperatingPoint] = ()) -> None:
    """Write records of every target, and consistent other outputs, in the current folder as the steps do.

    Args:
        records: of all targets.
        points: operating points of every target, beside ``as_trained``; no search ran there.
    """
    workspace = Workspace()
    frame = records.to_pandas()
    minimum_eps, diagnostics = minimum_eps_in(frame), diagnostics_in(frame)
    for target in frame["target"].unique():
        workspace.attack_folder(target).mkdir(parents=True, exist_ok=True)
        write_records(records.filter(pc.field("target") == target), workspace.records(target))
        # the sweep finds on validation images what the suite finds on test images
        swept = minimum_eps.assign(attack="sweep", found_by="sweep")
        for table, path in (
            (minimum_eps, workspace.minimum_eps(target)),
            (swept, workspace.validation_minimum_eps(target)),
            (diagnostics, workspace.diagnostics(target)),
        ):
            write_records(pa.Table.from_pandas(table[table["target"] == target], preserve_index=False), path)
        workspace.cost(target).write_text(json.dumps(COST))
        n_classes = len(frame["logits"].iloc[0])
        as_trained = OperatingPoint("as_trained", (0.0,) * n_classes)
        write_operating_points([as_trained, *points], workspace.operating_points(target))
        if target in VALUES["defences"]:
            write_settings(workspace, target)


def write_settings(workspace: Workspace, defence: str) -> None:
    """Write the settings of a defence of the repository's params.yaml, as the step train_defence does."""
    path = workspace.defence_settings(defence)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(VALUES["defences"][defence]))


def write_leakage(workspace: Workspace, images: Sequence[int] | np.ndarray) -> None:
    """Write the leakage of a split without patient ids, and a shortcut baseline that is correct on every other image.

    Args:
        workspace: with the folder of the step prepare.
        images: row numbers of the test images.
    """
    estimate = {"value": 0.1, "low": 0.0, "high": 0.3, "n_flagged": 1, "n_images": len(images), "n_groups": len(images)}
    fractions = {"near_duplicate_in_train": 0.0, "group_in_train": 0.0}
    leakage = {"outcome": "unverified", "fractions": fractions, "estimate": estimate, "sweep": []}
    write_json(leakage, workspace.leakage)
    predictions = pd.DataFrame({"image": images, "path": [f"image {image}.png" for image in images]})
    predictions.assign(correct=predictions.index % 2 == 0).to_csv(workspace.shortcut_predictions, index=False)
